"""Manifests in a directory, applied at every start: what has begun is left alone."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from proplet.manager.job_plan import STOP
from proplet.manager.model import ExecutionMode, JobStatus, Key, Kind, PropellerJob, WorkPhase
from proplet.manager.runs import have_job_end
from proplet.manager.seed import apply_directory
from proplet.manager.store_memory import MemoryStore

pytestmark = pytest.mark.anyio

JOB = """
apiVersion: propeller.propeller.abstractmachines.fr/v1
kind: PropellerJob
metadata: {name: j}
spec: {name: j, executionMode: parallel, tasks: [{name: a, imageUrl: "localhost:5000/add:1"}]}
"""


async def job_in(store: MemoryStore) -> PropellerJob:
    found = await store.get(Kind.JOB, Key("j"))
    assert isinstance(found, PropellerJob)
    return found


async def test_a_job_that_has_started_is_not_changed_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    (tmp_path / "job.yaml").write_text(JOB)
    assert [await apply_directory(store, tmp_path) for _ in range(2)] == [1, 0]
    (tmp_path / "job.yaml").write_text(JOB.replace("parallel", "sequential"))
    assert await apply_directory(store, tmp_path) == 1
    await store.record(replace(await job_in(store), status=JobStatus(WorkPhase.COMPLETED, start_time=1.0)))
    (tmp_path / "job.yaml").write_text(JOB)
    with caplog.at_level(logging.ERROR, "proplet.manager.seed"):
        assert await apply_directory(store, tmp_path) == 0
    assert "PropellerJob default/j has started: spec.executionMode cannot change any more" in caplog.text
    assert (await job_in(store)).spec.execution_mode is ExecutionMode.SEQUENTIAL


async def test_a_job_that_somebody_stopped_stays_stopped(tmp_path: Path) -> None:
    store = MemoryStore()
    (tmp_path / "job.yaml").write_text(JOB)
    await apply_directory(store, tmp_path)
    await have_job_end(store, (await job_in(store)).meta.uid)
    assert await apply_directory(store, tmp_path) == 0
    assert STOP in (await job_in(store)).meta.annotations
