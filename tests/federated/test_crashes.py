"""The manager dies after each single write of a federated job's life; what is learnt is the same."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import anyio
import pytest

from proplet.manager.model import (
    FederatedJob,
    JobReference,
    Key,
    Kind,
    Meta,
    Owner,
    Resource,
    RoundSpec,
    RoundStatus,
    Task,
    TaskSpec,
    TrainingRound,
    WorkPhase,
)
from proplet.manager.phases import Phase
from proplet.manager.ports import Change, ConflictError, Listing, Store
from proplet.manager.store_memory import MemoryStore
from proplet.manager.works import open_works
from tests.federated.scene import a_job, update

pytestmark = pytest.mark.anyio

JOB = Key("job", "edge")
PATIENCE_S = 20.0


class DyingStore:
    """Does its `fatal`th write, and its caller never hears of it."""

    def __init__(self, store: Store, fatal: int) -> None:
        self._store = store
        self._left = fatal
        self.dead = anyio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def create(self, resource: Resource) -> Resource:
        return await self._written(await self._store.create(resource))

    async def record(self, resource: Resource) -> Resource:
        return await self._written(await self._store.record(resource))

    async def _written(self, resource: Resource) -> Resource:
        self._left -= 1
        if self._left == 0:
            self.dead.set()
        if self.dead.is_set():
            await anyio.sleep_forever()
        return resource


class BlindStore(MemoryStore):
    """Its list of Tasks is from before there were any, and its watch has not caught up."""

    async def list(self, kind: Kind) -> Listing:
        return Listing((), 0) if kind is Kind.TASK else await super().list(kind)

    async def watch(self, kind: Kind, since: int) -> AsyncIterator[Change]:
        if kind is Kind.TASK:
            await anyio.sleep_forever()
        async for change in super().watch(kind, since):
            yield change


async def answer_everything(store: Store) -> None:
    """Devices whose updates follow from their names and the model they are given."""
    async for change in store.watch(Kind.TASK, 0):
        task = change.resource
        if not isinstance(task, Task) or task.status.phase is not Phase.PENDING:
            continue
        number, given = float(task.meta.name[-1]), float(task.spec.env.get("FL_GLOBAL_VERSION", 0))
        ended = replace(task.status, phase=Phase.COMPLETED, results=update(number + 10 * given))
        try:
            await store.record(replace(task, status=ended))
        except ConflictError:
            continue


async def until_over(store: Store) -> FederatedJob:
    async for change in store.watch(Kind.FEDERATED_JOB, 0):
        if isinstance(change.resource, FederatedJob) and change.resource.status.finish_time:
            return change.resource
    raise AssertionError


async def live(fatal: int) -> tuple[FederatedJob, Store, bool]:
    """A job's life, with a death of the manager after so many of its writes; returns whether it came to that."""
    store = MemoryStore()
    dying = DyingStore(store, fatal)
    await store.create(a_job(k=3, total=3))
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as world:
            world.start_soon(answer_everything, store)
            async with anyio.create_task_group() as first:

                async def finish() -> None:
                    await until_over(store)
                    first.cancel_scope.cancel()

                first.start_soon(finish)
                async with open_works(cast("Store", dying), collect_garbage=True):
                    await dying.dead.wait()
                    first.cancel_scope.cancel()
            async with open_works(store, collect_garbage=True):
                job = await until_over(store)
            world.cancel_scope.cancel()
    return job, store, dying.dead.is_set()


async def test_a_manager_that_dies_after_any_write_is_taken_up_where_it_was() -> None:
    undisturbed, _, _ = await live(fatal=-1)
    assert undisturbed.status.phase is WorkPhase.COMPLETED
    deaths = 0
    for fatal in range(1, 100):
        job, store, died = await live(fatal)
        if not died:
            break
        deaths += 1
        assert job.status.aggregate == undisturbed.status.aggregate
        assert (job.status.phase, job.status.completed_rounds) == (WorkPhase.COMPLETED, 3)
        tasks = (await store.list(Kind.TASK)).items
        assert len(tasks) == 9
        assert len((await store.list(Kind.ROUND)).items) == 3
    assert deaths >= 3 * (1 + 3 + 1)  # of each round at least: itself, its tasks, its end


async def test_tasks_that_ended_before_their_creation_was_heard_of_are_counted() -> None:
    store = BlindStore()
    spec = RoundSpec("round-1", JobReference("none"), "m", "i", ("device-1", "device-2"), None, 2, 3600)
    running = RoundStatus(WorkPhase.RUNNING, start_time=time.time())
    round_ = await store.create(TrainingRound(Meta("r", "edge"), spec))
    assert isinstance(round_, TrainingRound)
    await store.record(replace(round_, status=running))
    owner = Owner("TrainingRound", "r", round_.meta.uid)
    for participant in spec.participants:
        task = await store.create(Task(Meta(f"r-{participant}", "edge", owner=owner), TaskSpec("train")))
        assert isinstance(task, Task)
        await store.record(replace(task, status=replace(task.status, phase=Phase.COMPLETED, results=update(1.0))))
    with anyio.fail_after(PATIENCE_S):
        async with open_works(store, collect_garbage=True):
            async for change in store.watch(Kind.ROUND, 0):
                if cast("TrainingRound", change.resource).status.phase is WorkPhase.COMPLETED:
                    break
