"""A store that fails where it is told to, and a controller of a kind, for tests of the loop over works."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import anyio
import anyio.lowlevel

from proplet.manager.model import (
    ExecutionMode,
    JobSpec,
    Key,
    Kind,
    Meta,
    PropellerJob,
    Resource,
    Task,
    TaskSpec,
    WorkPhase,
)
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.ports import ConflictError
from proplet.manager.store_memory import MemoryStore
from proplet.manager.works import RETRY_S, Works, open_works


def spec(name: str, *depends_on: str, **more: Any) -> TaskSpec:
    return TaskSpec(name, image_url="localhost:5000/add:1", depends_on=depends_on, **more)


def job(name: str, *names: str, mode: str = "parallel", refs: tuple[str, ...] = (), **meta: Any) -> PropellerJob:
    return PropellerJob(Meta(name, **meta), JobSpec(name, ExecutionMode(mode), tuple(map(spec, names)), refs))


class Store(MemoryStore):
    """A store that remembers what was done with it, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__(history=64)
        self.writes: list[str] = []
        self.fail: Callable[[str], Exception | None] = lambda _: None
        self.before_record: Callable[[Resource], Any] | None = None

    def _check(self, what: str) -> None:
        problem = self.fail(what)
        if problem is not None:
            raise problem
        self.writes.append(what)

    async def create(self, resource: Resource) -> Resource:
        self._check(f"create {resource.meta.name}")
        return await super().create(resource)

    async def record(self, resource: Resource) -> Resource:
        if self.before_record is not None:
            await self.before_record(resource)
        self._check(f"record {resource.meta.name}")
        return await super().record(resource)

    async def delete(self, kind: Kind, key: Key, version: int | None = None) -> Resource:
        self._check(f"delete {key.name}")
        return await super().delete(kind, key, version)

    async def is_so(self, kind: Kind, name: str, met: Callable[[Any], bool]) -> Any:
        """Return the resource as soon as it is there and as wanted."""
        with anyio.fail_after(20):
            async with aclosing(cast("Any", self.watch(kind, (await self.list(kind)).version))) as news:
                changes = aiter(news)
                while True:
                    found = next((i for i in (await self.list(kind)).items if i.meta.name == name), None)
                    if found is not None and met(found):
                        return found
                    await anext(changes)

    async def is_gone(self, kind: Kind, name: str) -> None:
        with anyio.fail_after(20):
            async with aclosing(cast("Any", self.watch(kind, (await self.list(kind)).version))) as news:
                changes = aiter(news)
                while any(item.meta.name == name for item in (await self.list(kind)).items):
                    await anext(changes)

    async def end(self, name: str, phase: Phase = Phase.COMPLETED) -> None:
        """What the controller does."""
        while True:
            task = await self.is_so(Kind.TASK, name, lambda _: True)
            try:
                await self.record(replace(task, status=replace(task.status, phase=phase, finished_at=1.0)))
                return
            except ConflictError:
                continue


async def job_in(store: Store, name: str, phase: WorkPhase) -> PropellerJob:
    found = await store.is_so(Kind.JOB, name, lambda of: of.status.phase is phase)
    assert isinstance(found, PropellerJob)
    return found


async def task_of(store: Store, name: str) -> Task:
    found = await store.is_so(Kind.TASK, name, lambda _: True)
    assert isinstance(found, Task)
    return found


@asynccontextmanager
async def finishing(store: Store, ends: Mapping[str, Phase] | None = None) -> AsyncIterator[list[str]]:
    """A controller that ends every Task as soon as its dependencies have; yields their names in the order of that."""
    done: list[str] = []

    async def work() -> None:
        async with aclosing(cast("Any", store.watch(Kind.TASK, 0))) as changes:
            async for _ in changes:
                for item in (await store.list(Kind.TASK)).items:
                    task = cast("Task", item)
                    others = [await store.get(Kind.TASK, Key(name)) for name in task.spec.depends_on]
                    if task.status.phase in TERMINAL or any(
                        cast("Task", other).status.phase not in TERMINAL for other in others
                    ):
                        continue
                    phase = (ends or {}).get(task.meta.name, Phase.COMPLETED)
                    done.append(task.meta.name)
                    await store.record(replace(task, status=replace(task.status, phase=phase)))

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        yield done
        group.cancel_scope.cancel()


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, bool]] = []

    def emit(self, resource: Resource, reason: str, message: str, *, warning: bool = False) -> None:
        assert message
        self.told.append((resource.meta.name, reason, warning))


@asynccontextmanager
async def driven(
    store: Store, sink: Sink | None = None, *, collect: bool = True, retry_s: float = RETRY_S
) -> AsyncIterator[Works]:
    async with open_works(store, sink, collect_garbage=collect, retry_s=retry_s) as works:
        yield works


async def until_idle(works: Works) -> None:
    """Return when the loop has looked at all that is new."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()
    with anyio.fail_after(20):
        while not works.idle:
            await anyio.lowlevel.checkpoint()
