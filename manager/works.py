"""The loop over works: resources that consist of others (jobs, federated jobs, training rounds).

Like the controller's for Tasks: what is known -> a pure decision -> done in its order -> recorded. Works are looked at
in parallel, each by one worker at a time, whenever something changes that they made or name, or their time has come.
Children are made before the status is recorded, under names that follow from the work's; so a crash in between, a
conflict or a store that is away lead to another look, which finds them. An idle loop waits and does nothing.
"""

import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

import anyio

from proplet.manager import federation, rounds
from proplet.manager.conditions import settled
from proplet.manager.following import follow
from proplet.manager.jobs import decide_job
from proplet.manager.kinship import Kinship
from proplet.manager.model import Condition, Kind, Resource
from proplet.manager.ports import (
    Change,
    ChangeType,
    Clock,
    ConflictError,
    EventSink,
    NotFoundError,
    Store,
    StoreError,
    StoreUnavailableError,
)
from proplet.manager.work import Related, Told, Work, WorkDecision
from proplet.manager.work_writes import WorkWrites
from proplet.manager.workqueue import Timers, WorkQueue

log = logging.getLogger(__name__)

Decide = Callable[[Any, Related, float], WorkDecision]

WATCHED: Final = (Kind.TASK, Kind.ROUND, Kind.FEDERATED_JOB, Kind.JOB)  # children before those who own them
WORKERS: Final = 8
RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0
PROGRESS_S: Final = 0.5  # a status in which only counts have changed is recorded no more often
_SOONEST_S: Final = 0.02
_LATEST_S: Final = 300.0  # a clock that was set must not make anybody wait for ever
_BLOCKED: Final = "Blocked"
_NAMED: Final = 5
_FAILURES_TOLD: Final = 2


DECISIONS: Final[Mapping[Kind, Decide]] = {
    Kind.JOB: decide_job,
    Kind.FEDERATED_JOB: federation.decide,
    Kind.ROUND: rounds.decide,
}


class Works:
    """Drives every work of a store. `load`, then `run`; `open_works` does both."""

    def __init__(
        self,
        store: Store,
        events: EventSink | None = None,
        clock: Clock = time.time,
        *,
        collect_garbage: bool,
        decisions: Mapping[Kind, Decide] = DECISIONS,
        monotonic: Clock = time.monotonic,
        retry_s: float = RETRY_S,
    ) -> None:
        self._retry_s = retry_s
        self._store = store
        self._events = events
        self._clock = clock
        self._monotonic = monotonic
        self._collect_garbage = collect_garbage
        self._decisions = decisions
        self._kin = Kinship()
        self._versions = dict.fromkeys(WATCHED, 0)
        self._queue = WorkQueue()
        self._timers = Timers()
        self._poke = anyio.Event()
        self._failures: dict[str, int] = {}
        self._recorded: dict[str, float] = {}  # when, by the monotonic clock
        self._writes = WorkWrites(store, clock, self._learn)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to look at now."""
        return self._queue.idle

    async def load(self) -> None:
        """Take over everything the store has. Raises StoreError."""
        for kind in WATCHED:
            await self._load(kind)

    async def run(self) -> None:
        """Work until cancelled. Call `load` before."""
        async with anyio.create_task_group() as group:
            for kind in WATCHED:
                group.start_soon(self._follow, kind)
            group.start_soon(self._tick)
            for _ in range(WORKERS):
                group.start_soon(self._work)

    # --- what there is ------------------------------------------------------------------------------------------------

    async def _load(self, kind: Kind) -> None:
        before = [self._kin.at(place) for place in self._kin.places(kind)]  # later ones may be missing in the list
        listing = await self._store.list(kind)
        there = {item.meta.uid for item in listing.items}
        for known in before:
            if known.meta.uid not in there:
                self._look_soon(self._kin.forget(known))
        for item in listing.items:
            self._look_soon(self._kin.learn(item))
        self._versions[kind] = listing.version

    async def _follow(self, kind: Kind) -> None:
        take, relist = partial(self._on_change, kind), partial(self._load, kind)
        await follow(self._store, kind, lambda: self._versions[kind], take, relist, retry_s=self._retry_s)

    def _on_change(self, kind: Kind, change: Change) -> None:
        self._versions[kind] = change.version
        deleted = change.type is ChangeType.DELETED
        self._look_soon(self._kin.forget(change.resource) if deleted else self._kin.learn(change.resource))

    def _learn(self, resource: Resource, maker: str) -> None:
        """Take over what a write returned, before the watch tells; where it has told already, later things may hold.

        `maker` is the uid of the work that needs no look for it.
        """
        if resource.meta.version > self._versions[resource.kind]:
            self._look_soon([uid for uid in self._kin.learn(resource) if uid != maker])

    def _look_soon(self, uids: Sequence[str]) -> None:
        for uid in uids:
            self._queue.add(uid)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _wake(self, uid: str, delay: float) -> None:
        if self._timers.at(uid, self._monotonic() + min(max(delay, _SOONEST_S), _LATEST_S)):
            self._poke.set()

    async def _tick(self) -> None:
        while True:
            for uid in self._timers.due(self._monotonic()):
                self._queue.add(uid)
            with anyio.move_on_after(max(0.0, self._timers.next() - self._monotonic())):
                await self._poke.wait()
            if self._poke.is_set():
                self._poke = anyio.Event()

    # --- looking ------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            uid = await self._queue.take()
            try:
                await self._look_at(uid)
                self._failures.pop(uid, None)
            except StoreError as error:
                self._later(uid, error)
            except Exception:
                log.exception("%s: a defect of this program; it is looked at again when it changes", self._said(uid))
            finally:
                self._queue.done(uid)

    def _later(self, uid: str, error: StoreError) -> None:
        failures = self._failures[uid] = self._failures.get(uid, 0) + 1
        delay = min(LONGEST_RETRY_S, self._retry_s * 2.0 ** min(failures - 1, 10))
        log.warning("%s: trying again in %g s: %s", self._said(uid), delay, error)
        self._wake(uid, delay)

    def _said(self, uid: str) -> str:
        work = self._kin.work(uid)
        return f"work {uid}" if work is None else f"{work.kind.value} {work.meta.key}"

    async def _look_at(self, uid: str) -> None:
        """Decide, and do what was decided; again where somebody else was faster. Raises StoreError."""
        while True:
            work = self._kin.work(uid)
            if work is None:
                self._recorded.pop(uid, None)
                if self._collect_garbage:
                    await self._writes.bury(uid, self._kin.children(uid))
                return
            decide = self._decisions.get(work.kind)
            if decide is None or work.meta.deleted_at:
                return
            now = self._clock()
            decision = decide(work, self._kin.related(work), now)
            try:
                await self._carry_out(work, decision, now)
                return
            except ConflictError:
                fresh = await self._store.get(work.kind, work.meta.key)
                if fresh.meta.version <= work.meta.version:
                    raise StoreUnavailableError("it reads as it was before the conflict") from None
                self._kin.learn(fresh)
            except NotFoundError:
                return  # it was deleted; the watch tells

    async def _carry_out(self, work: Work, decision: WorkDecision, now: float) -> None:
        uid = work.meta.uid
        try:
            strangers = await self._writes.create(work, decision.create)
        except StoreError as error:
            await self._refused(work, error, now)
            raise
        if self._kin.name(work, strangers):
            self._queue.add(uid)  # decided again, now that it is known whose they are
            return
        await self._writes.delete(decision.delete)
        await self._writes.stop(decision.stop)
        await self._writes.release(decision.release)
        names = ", ".join(sorted(f"{kind.value} {key.name}" for kind, key in strangers)[:_NAMED])
        text = f"Not of this {work.kind.value}, but of the name of its child: {names}; delete it" if names else ""
        wanted = _blocked(work, decision.work, "NameTaken", text, now)
        recorded: Resource = work
        if wanted.status != work.status:
            wait = self._patience(work, wanted, decision)
            if wait > 0:
                self._wake(uid, wait)
                return
            recorded = await self._record(work, wanted)
        for each in decision.told:
            self._tell(recorded, each)
        if decision.wake_at:
            self._wake(uid, decision.wake_at - self._clock())

    async def _record(self, work: Work, wanted: Work) -> Resource:
        uid = work.meta.uid
        recorded = await self._store.record(wanted)
        self._recorded[uid] = self._monotonic()
        self._look_soon([other for other in self._kin.learn(recorded) if other != uid])
        if cast("Work", recorded).status.phase is not work.status.phase:
            self._queue.add(uid)  # what follows from the new phase
        return recorded

    def _patience(self, work: Work, wanted: Work, decision: WorkDecision) -> float:
        """Seconds until a status may be recorded in which only counts have changed: flash wears, API servers tire."""
        if wanted.status.phase is not work.status.phase or decision.told:
            return 0.0
        return self._recorded.get(work.meta.uid, -math.inf) + PROGRESS_S - self._monotonic()

    async def _refused(self, work: Work, error: StoreError, now: float) -> None:
        """Say in the status why children cannot be made, where that has been so for a while."""
        if self._failures.get(work.meta.uid, 0) >= _FAILURES_TOLD:
            with suppress(StoreError):
                wanted = _blocked(work, work, "NotMade", f"Its children cannot be made: {error}", now)
                self._kin.learn(await self._store.record(wanted))

    def _tell(self, work: Resource, told: Told) -> None:
        level = logging.WARNING if told.warning else logging.INFO
        log.log(level, "%s %s: %s", work.kind.value, work.meta.key, told.message)
        if self._events is not None:
            self._events.emit(work, told.reason, told.message, warning=told.warning)


def _blocked(before: Work, work: Work, reason: str, text: str, now: float) -> Work:
    """The work with the condition that its children cannot be made and why; "": without it."""
    conditions = tuple(condition for condition in work.status.conditions if condition.type != _BLOCKED)
    if text:
        condition = Condition(_BLOCKED, status=True, reason=reason, message=text)
        conditions += settled([condition], before.status.conditions, now)
    if conditions == work.status.conditions:
        return work
    return replace(work, status=replace(cast("Any", work.status), conditions=conditions))


@asynccontextmanager
async def open_works(
    store: Store,
    events: EventSink | None = None,
    clock: Clock = time.time,
    *,
    collect_garbage: bool,
    retry_s: float = RETRY_S,
) -> AsyncIterator[Works]:
    """Drive the store's works while the context is open.

    Args:
        store: where they are.
        events: who is told what happens to them, beside the log.
        clock: epoch seconds.
        collect_garbage: delete what a work made when it is gone; not where an API server does that.
        retry_s: how long after a failure of the store it is tried again; longer with every further one.

    Raises:
        StoreError: the store cannot be read.
    """
    works = Works(store, events, clock, collect_garbage=collect_garbage, retry_s=retry_s)
    await works.load()
    async with anyio.create_task_group() as group:
        group.start_soon(works.run)
        try:
            yield works
        finally:
            group.cancel_scope.cancel()
