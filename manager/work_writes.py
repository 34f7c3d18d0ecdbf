"""What the loop over works does to the store: children made, stopped and deleted, many at once.

All of it can be done again: what is there already is found, what is gone already is gone.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, cast

import anyio

from proplet.manager.job_plan import HELD
from proplet.manager.kinship import Place, owner_of
from proplet.manager.model import Key, Kind, Resource, Task
from proplet.manager.ports import (
    AlreadyExistsError,
    Clock,
    NotFoundError,
    NotRunningError,
    Store,
    StoreError,
    StoreUnavailableError,
)
from proplet.manager.runs import ask_stop
from proplet.manager.work import Work

_AT_ONCE: Final = 64  # writes, which share commits

Learn = Callable[[Resource, str], None]


class WorkWrites:
    """Writes for works. `learn` is told what was written, and the uid of the work that knows already, or ""."""

    def __init__(self, store: Store, clock: Clock, learn: Learn) -> None:
        self._store = store
        self._clock = clock
        self._learn = learn

    async def create(self, work: Work, children: Sequence[Resource]) -> list[Place]:
        """Make children, in order; return the places where there is something of somebody else's. Raises StoreError."""
        strangers: list[Place] = []

        async def create(child: Resource) -> None:
            maker = work.meta.uid
            try:
                made = await self._store.create(child)
            except AlreadyExistsError:
                made, maker = await self._existing(child), ""  # it may be further than what was decided over
            if made.meta.owner is None or made.meta.owner.uid != work.meta.uid:
                strangers.append((child.kind, child.meta.key))
            self._learn(made, maker)

        await _each(children, create)
        return strangers

    async def _existing(self, child: Resource) -> Resource:
        try:
            return await self._store.get(child.kind, child.meta.key)
        except NotFoundError:
            if child.meta.uid:  # it is the uid that is taken: another one will do
                return await self._store.create(replace(cast("Any", child), meta=replace(child.meta, uid="")))
            raise StoreUnavailableError(f"{child.kind.value} {child.meta.key} was there and is not any more") from None

    async def delete(self, tasks: Sequence[Key]) -> None:
        """Delete Tasks. Raises StoreError."""

        async def delete(key: Key) -> None:
            with suppress(NotFoundError):
                await self._store.delete(Kind.TASK, key)

        await _each(tasks, delete)

    async def stop(self, tasks: Sequence[Key]) -> None:
        """Stop Tasks. Raises StoreError."""

        async def stop(key: Key) -> None:
            with suppress(NotFoundError, NotRunningError):  # it is over
                await ask_stop(self._store, (await self._store.get(Kind.TASK, key)).meta.uid, self._clock())

        await _each(tasks, stop)

    async def release(self, tasks: Sequence[Key]) -> None:
        """Let Tasks go that were made suspended. Raises StoreError."""

        async def release(key: Key) -> None:
            with suppress(NotFoundError):
                task = cast("Task", await self._store.get(Kind.TASK, key))
                if HELD in task.meta.annotations:
                    annotations = {name: text for name, text in task.meta.annotations.items() if name != HELD}
                    meta = replace(task.meta, annotations=annotations)
                    freed = await self._store.put(replace(task, meta=meta, spec=replace(task.spec, suspend=False)))
                    self._learn(freed, "")

        await _each(tasks, release)

    async def bury(self, uid: str, children: Sequence[Resource]) -> None:
        """Delete what the work with this uid made, if it is no longer there. Raises StoreError."""
        owner = owner_of(children[0]) if children else None
        if owner is None:
            return
        with suppress(NotFoundError):
            await self._store.find(owner[0], uid)
            return  # it is there, the watch is behind

        async def delete(child: Resource) -> None:
            with suppress(NotFoundError):
                found = await self._store.get(child.kind, child.meta.key)
                if owner_of(found) == owner:
                    await self._store.delete(child.kind, child.meta.key, found.meta.version)

        await _each(children, delete)


async def _each(items: Sequence[Any], do: Callable[[Any], Awaitable[None]]) -> None:
    """Do it to each, some at once, begun in order. Raises the first StoreError, when the others are done."""
    problems: list[StoreError] = []

    async def attempt(item: Any) -> None:
        try:
            await do(item)
        except StoreError as error:
            problems.append(error)

    for at in range(0, len(items), _AT_ONCE):
        async with anyio.create_task_group() as group:
            for item in items[at : at + _AT_ONCE]:
                group.start_soon(attempt, item)
        if problems:
            raise problems[0]
