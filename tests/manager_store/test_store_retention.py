"""Finished tasks are forgotten, oldest first, and nothing else is."""

from dataclasses import replace

import pytest

from proplet.manager.model import (
    JobSpec,
    JobStatus,
    Key,
    Kind,
    Meta,
    Owner,
    PropellerJob,
    RoundStatus,
    Task,
    TaskStatus,
    TrainingRound,
    WorkPhase,
)
from proplet.manager.phases import Phase
from proplet.manager.store_memory import MemoryStore
from proplet.manager.store_retention import prune
from tests.manager_store.contract import task

pytestmark = pytest.mark.anyio


async def finished(store: MemoryStore, name: str, at: float, phase: Phase = Phase.COMPLETED, **spec: object) -> Task:
    made = await store.create(task(name, **spec))
    assert isinstance(made, Task)
    result = await store.record(replace(made, status=TaskStatus(phase, finished_at=at)))
    assert isinstance(result, Task)
    return result


async def names(store: MemoryStore) -> list[str]:
    return [item.meta.name for item in (await store.list(Kind.TASK)).items]


async def test_the_longest_finished_go_first() -> None:
    store = MemoryStore()
    for name, at in (("b", 2.0), ("a", 1.0), ("d", 4.0), ("c", 3.0)):
        await finished(store, name, at)
    assert await prune(store, 2) == 2
    assert sorted(await names(store)) == ["c", "d"]
    assert await prune(store, 2) == 0


async def test_what_has_not_finished_or_runs_again_stays() -> None:
    store = MemoryStore()
    await store.create(task("pending"))
    await finished(store, "running", 0.0, Phase.RUNNING)
    await finished(store, "recurring", 1.0, schedule="* * * * *", is_recurring=True)
    await finished(store, "failed", 1.0, Phase.FAILED)
    assert await prune(store, 0) == 1
    assert await names(store) == ["pending", "running", "recurring"]


async def test_what_finished_too_long_ago_goes_whatever_the_count() -> None:
    store = MemoryStore()
    for at in range(1, 6):
        await finished(store, f"t{at}", float(at))
    assert await prune(store, 100, before=3.0) == 2
    assert await names(store) == ["t3", "t4", "t5"]


def job(name: str, *refs: str) -> PropellerJob:
    return PropellerJob(Meta(name), JobSpec(name, task_refs=refs))


async def ended(store: MemoryStore, name: str, at: float) -> None:
    made = await store.create(job(name))
    assert isinstance(made, PropellerJob)
    await store.record(replace(made, status=JobStatus(WorkPhase.COMPLETED, finish_time=at)))


async def test_what_a_job_under_way_has_made_or_refers_to_stays() -> None:
    store = MemoryStore()
    of = (await store.create(job("j", "referred"))).meta
    await finished(store, "referred", 1.0)
    made = await finished(store, "made", 2.0)
    await store.put(replace(made, meta=replace(made.meta, owner=Owner("PropellerJob", "j", of.uid))))
    await finished(store, "other", 3.0)
    assert await prune(store, 0) == 1
    assert await names(store) == ["referred", "made"]
    current = await store.get(Kind.JOB, Key("j"))
    assert isinstance(current, PropellerJob)
    await store.record(replace(current, status=JobStatus(WorkPhase.COMPLETED, finish_time=9.0)))
    assert await prune(store, 1) == 1
    assert await names(store) == ["made"]


async def test_what_an_unfinished_task_depends_on_stays() -> None:
    store = MemoryStore()
    await finished(store, "first", 1.0)
    await store.create(task("second", depends_on=("first",), workflow_id="w"))
    assert await prune(store, 0) == 0


async def test_jobs_that_ended_long_ago_are_forgotten_and_those_under_way_are_not() -> None:
    store = MemoryStore()
    await store.create(job("under-way"))
    for name, at in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        await ended(store, name, at)
    await prune(store, 2)
    assert sorted(item.meta.name for item in (await store.list(Kind.JOB)).items) == ["b", "c", "under-way"]


async def test_rounds_go_with_their_tasks_but_for_the_newest_two_of_each_job() -> None:
    store = MemoryStore()
    for number in range(4):
        owner = Owner("FederatedJob", "f", "uid of f")
        made = await store.create(TrainingRound(Meta(f"round-{number}", owner=owner)))
        assert isinstance(made, TrainingRound)
        await store.record(replace(made, status=RoundStatus(WorkPhase.COMPLETED, end_time=float(number))))
        of = Owner("TrainingRound", made.meta.name, made.meta.uid)
        await finished(store, f"task-{number}", float(number))
        child = await store.get(Kind.TASK, Key(f"task-{number}"))
        await store.put(replace(child, meta=replace(child.meta, owner=of)))  # type: ignore[type-var]

    async def rounds() -> list[str]:
        return [item.meta.name for item in (await store.list(Kind.ROUND)).items]

    assert await prune(store, 3) == 1
    assert await rounds() == ["round-1", "round-2", "round-3"]
    assert await prune(store, 0) == 3
    assert await rounds() == ["round-2", "round-3"]
