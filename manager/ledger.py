"""The Tasks' records, written as the core decides: settle, record, and again where somebody else was faster.

Place in the flow: the controller says which task and what it was told; here it is decided over the task as it is known,
recorded with the version that was decided over, and announced. What is to be sent is the controller's business.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from proplet.manager import outcome
from proplet.manager.announcer import Announcer
from proplet.manager.book import Book
from proplet.manager.core import UNDER_WAY, settle
from proplet.manager.deletion import with_mark
from proplet.manager.exchange import Decision, Moment, Signal
from proplet.manager.model import Kind, Task
from proplet.manager.pauses import Pauses
from proplet.manager.ports import (
    ConflictError,
    NotFoundError,
    ResourceTooLargeError,
    Store,
    StoreUnavailableError,
)
from proplet.manager.world import World

log = logging.getLogger(__name__)


class Ledger:
    """Writes Tasks' statuses. `learn` takes over what was written."""

    def __init__(
        self,
        store: Store,
        book: Book,
        world: World,
        learn: Callable[[Task], object],
        *,
        now: Callable[[], Moment],
        announcer: Announcer,
        pauses: Pauses,
    ) -> None:
        self._store = store
        self._book = book
        self._world = world
        self._now = now
        self._learn = learn
        self._announcer = announcer
        self._pauses = pauses  # of the marks

    def forget(self, uid: str) -> None:
        """It was deleted."""
        self._pauses.over(uid)

    async def settle(self, uid: str, signals: Sequence[Signal]) -> Decision:
        """Decide about a task and record that; return what is left to do. Raises StoreUnavailableError."""
        try:
            while True:
                task = self._book.get(uid)
                if task is None:
                    return Decision()
                try:
                    return await self._once(task, signals)
                except ConflictError:
                    await self._read_again(task)
        except NotFoundError:
            self._world.fleet.assign(uid, None)  # the watch tells, too; until then there is nothing to do
            return Decision()

    async def _once(self, task: Task, signals: Sequence[Signal]) -> Decision:
        decision = settle(task, signals, self._book.contacts(task.id), self._world, self._now())
        if decision.status is not None:
            recorded = await self._record(replace(task, status=decision.status))
            self._learn(recorded)
            self._announcer.task(task, recorded)
        elif decision.delete:
            await self._store.delete(Kind.TASK, task.meta.key, task.meta.version)
        return decision if decision.mark is None else await self._marked(task.id, decision, marked=decision.mark)

    async def _marked(self, uid: str, decision: Decision, *, marked: bool) -> Decision:
        """Put the mark, or say when that is to be tried again."""
        mono, version = self._now().mono, self._book.version(uid)
        left = self._pauses.left(uid, version, mono)
        if left > 0.0:
            return replace(decision, mark=None, wake=min(decision.wake, mono + left))
        try:
            await self._mark(uid, marked=marked)
        except StoreUnavailableError as error:
            # What was told is in the record already: it must not be told again. Only the mark is still to be put.
            due = self._pauses.failed(uid, version, mono)
            log.warning("task %s cannot be marked, trying again in %.1f s: %s", uid, due - mono, error)
            return replace(decision, mark=None, wake=min(decision.wake, due))
        self._pauses.over(uid)
        return decision

    async def _record(self, task: Task) -> Task:
        try:
            return cast("Task", await self._store.record(task))
        except ResourceTooLargeError as error:
            # It never fits, and the message that brought it keeps others waiting: that it ended is worth more.
            lighter = outcome.lightened(task.status)
            if lighter == task.status:
                raise
            log.warning("the result of task %s is dropped: %s", task.meta.key, error)
            return cast("Task", await self._store.record(replace(task, status=lighter)))

    async def _mark(self, uid: str, *, marked: bool) -> None:
        """Put our finalizer on a task, or take it off. Where somebody was faster, the next look does it."""
        task = self._book.get(uid)
        if task is None:
            return
        try:
            written = cast("Task", await self._store.put(with_mark(task, marked=marked)))
            self._learn(written)
            if marked and written.status.phase in UNDER_WAY:
                self._announcer.lasting(written)
        except ConflictError:
            await self._read_again(task)

    async def _read_again(self, task: Task) -> None:
        fresh = cast("Task", await self._store.get(Kind.TASK, task.meta.key))
        if fresh.id != task.id:
            raise NotFoundError(f"task {task.meta.key} is another one now")
        self._learn(fresh)
        self._book.index(self._book.get(task.id) or fresh)
