"""The largest update that is taken fits, with everything around it, through a real API server into a real etcd."""

import base64
import json
from dataclasses import replace
from typing import cast

import pytest

from proplet.agent.events import Outcome, Spent
from proplet.agent.results import result_of
from proplet.agent.wire import Reason
from proplet.manager import federation, rounds
from proplet.manager.averaging import MAX_UPDATE_BYTES
from proplet.manager.command import start_of
from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import open_api
from proplet.manager.model import FederatedJob, Task, TrainingRound, WorkPhase
from proplet.manager.outcome import result_text
from proplet.manager.phases import Phase
from proplet.manager.store_kubernetes import open_kubernetes_store
from proplet.manager.work import Related, WorkDecision
from tests.federated.scene import a_job
from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_objects import install

pytestmark = pytest.mark.anyio


async def test_a_job_with_the_largest_updates_and_hyperparameters_runs_in_a_cluster(
    api_server: ApiServer, namespace: str
) -> None:
    install(api_server)
    job = a_job(participants=("device-1",), k=1, total=2, hyperparams="x" * (256 * 1024 - 2))
    job = replace(job, meta=replace(job.meta, namespace=namespace, uid=""))
    access = Access(api_server.kubeconfig)
    async with open_api(access) as api, open_kubernetes_store(api) as store:
        await store.ready()

        async def done(decision: WorkDecision) -> None:
            made.extend([await store.create(child) for child in decision.create])
            made.append(await store.record(decision.work))

        made: list[object] = []
        await done(federation.decide(cast("FederatedJob", await store.create(job)), Related(), 1.0))
        for number in (1, 2):
            round_, job = cast("TrainingRound", made[-2]), cast("FederatedJob", made[-1])
            await done(rounds.decide(round_, Related(), 2.0))
            task, round_ = cast("Task", made[-2]), cast("TrainingRound", made[-1])
            printed = {"update_b64": base64.b64encode(bytes(MAX_UPDATE_BYTES)).decode(), "format": "f32-delta"}
            outcome = Outcome(Reason.OK, json.dumps(printed))
            result = result_of(
                start_of(task, "device-1"),
                outcome,
                Spent(),
                proplet_id="device-1",
                stages={},
                image_digest=None,
                restarts=0,
                start_kind=None,
            )
            status = replace(task.status, phase=Phase.COMPLETED, results=result_text(result))
            task = cast("Task", await store.record(replace(task, status=status)))
            await done(rounds.decide(round_, Related({task.meta.name: task}), 3.0))
            round_ = cast("TrainingRound", made[-1])
            assert round_.status.phase is WorkPhase.COMPLETED, round_.status.conditions
            await done(federation.decide(job, Related(rounds={round_.meta.name: round_}), 4.0))
            assert ("FL_GLOBAL_UPDATE_B64" in task.spec.env) == (number == 2)
        last = cast("FederatedJob", made[-1])
        assert (last.status.phase, last.status.completed_rounds) == (WorkPhase.COMPLETED, 2)
