"""The control plane's only loop over Tasks: what is known -> core -> recorded -> sent.

Tasks are worked on in parallel, each by one worker at a time, so what concerns one task stays in order and the records
of many share a commit. Signals wait in a task's mail until their meaning is recorded; only then is the message that
brought them acknowledged. After a restart `load` and reconciling every task reach the same state again.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

import anyio

from proplet.agent.wire import InvokeResult, PropletMetrics, TaskMetrics
from proplet.manager.announcer import Announcer
from proplet.manager.book import HOLD_S, Book, Letter, goes_on, matters_to_others
from proplet.manager.bus import BusEvent, Down, Heard, Up
from proplet.manager.command import start_of, stop_of
from proplet.manager.core import UNDER_WAY
from proplet.manager.errands import Errands, HelloBus
from proplet.manager.exchange import (
    Decision,
    Effect,
    Handed,
    Holds,
    Moment,
    Policy,
    SendStart,
    SendStop,
    SessionLost,
    Signal,
)
from proplet.manager.following import follow
from proplet.manager.hearing import Hearing, Tell, nothing_to_do
from proplet.manager.invoking import Invoking
from proplet.manager.ledger import Ledger
from proplet.manager.membership import Membership
from proplet.manager.model import Kind, Task
from proplet.manager.observed import Observed
from proplet.manager.pauses import Pauses
from proplet.manager.phases import TERMINAL, IllegalTransitionError, Phase
from proplet.manager.placement import Fleet
from proplet.manager.ports import (
    Change,
    ChangeType,
    Clock,
    EventSink,
    Liveness,
    Printed,
    RefusedError,
    Store,
    StoreUnavailableError,
)
from proplet.manager.registry import Registry
from proplet.manager.rhythm import Beat, Rhythm
from proplet.manager.roster import Roster
from proplet.manager.runs import ask_start, ask_stop
from proplet.manager.sending import send
from proplet.manager.workqueue import WorkQueue
from proplet.manager.world import World

log = logging.getLogger(__name__)

WORKERS: Final = 64


class Controller:
    """Drives every Task of a store; the `Control` of the HTTP API.

    `policy` has the waiting times and what the store can do (finalizers), `membership` which proplets are this
    manager's, `events` is told what happens, `unsupported` says what a Task asks for that cannot be done, `hold_s` how
    long what the store refuses to record is kept unacknowledged (seconds), `spread` (0.0 to 1.0) keeps what fails
    together from being tried again together.
    """

    def __init__(
        self,
        store: Store,
        *,
        policy: Policy | None = None,
        unsupported: Callable[[Task], str | None] | None = None,
        not_proplets: Sequence[str] = (),
        membership: Membership | None = None,
        events: EventSink | None = None,
        window: int = 500,
        hold_s: float = HOLD_S,
        spread: Callable[[], float] = random.random,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self._store = store
        self._policy = policy or Policy()
        self._clock = clock
        self._monotonic = monotonic
        self._fleet = Fleet(window=window, quiet_until=monotonic() + self._policy.confirm_s)
        self._book = book = Book(self._fleet, hold_s=hold_s)
        self._world = World(
            self._fleet, self._policy, unsupported or (lambda _task: None), book.find, book.crowd.outranks, book.circle
        )
        self._registry = Registry(self._fleet, self._policy, not_proplets, membership, book.assigned)
        self._announcer = Announcer(events, sparing=self._policy.finalizers)
        self._roster = Roster(store, self._registry, self._now, self._on_proplet_news, self._announcer)
        self._observed = Observed()
        self._errands = Errands(self._policy)
        self._invoking = Invoking(
            book.get, lambda proplet_id: self.liveness(proplet_id).alive, start_of, self._policy.confirm_s
        )
        tell = Tell(
            self._signal, self._unwanted, book.get, book.was_deleted, book.held_by, answered=self._invoking.heard
        )
        self._hearing = Hearing(tell, self._roster, self._observed, clock)
        self._ledger = Ledger(
            store,
            book,
            self._world,
            self._learn,
            now=self._now,
            announcer=self._announcer,
            pauses=Pauses(spread=spread),
        )
        self._pauses = Pauses(spread=spread)
        self._queue = WorkQueue()
        beat = Beat(self._queue.add, self._sweep, self._on_fleet_news, self._on_clock_set)
        self._rhythm = Rhythm(beat, clock, monotonic)
        self._version = 0

    def _now(self) -> Moment:
        return Moment(self._clock(), self._monotonic())

    @property
    def announcement(self) -> Callable[[str], Any]:
        """What a proplet understands, by id; for the bus."""
        return self._registry.announcement

    def held_by(self, proplet_id: str) -> list[Task]:
        """Return the tasks that a proplet should have."""
        return [task for uid in self._book.held_by(proplet_id) if (task := self._book.get(uid)) is not None]

    def held_by_others(self) -> Iterable[Task]:
        """Return the tasks that are with peers which have no topics of their own, and those for everybody."""

        def shares(task: Task) -> bool:
            said = self.announcement(task.status.proplet_id) if task.status.proplet_id is not None else None
            return said is None or "own" not in said.topics

        return [task for task in self._book.all() if shares(task)]

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self._fleet.connected

    @property
    def queued(self) -> int:
        """How many tasks are to be looked at."""
        return len(self._queue)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take over everything the store has; before anything is heard. Raises StoreError."""
        await self._roster.load()
        await self._load()

    async def _load(self) -> None:
        before = self._book.all()  # what is made while it is listed may be missing there
        listing = await self._store.list(Kind.TASK)
        there = {task.meta.uid for task in listing.items}
        for task in before:
            if task.id not in there:
                self._forget(task)
        for found in listing.items:
            self._take_over(cast("Task", found))
        self._version = listing.version

    async def run(self, bus: HelloBus) -> None:
        """Work until cancelled. Call `load` before, and `hear` with everything the bus says."""
        self._invoking.open(bus)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow, self._store, Kind.TASK, lambda: self._version, self._on_change, self._load)
            tasks.start_soon(self._roster.run)
            tasks.start_soon(self._rhythm.run)
            tasks.start_soon(self._errands.run, bus)
            for _ in range(WORKERS):
                tasks.start_soon(self._work, bus)

    def hear(self, event: BusEvent) -> None:
        """Take what the bus says; in order, from the event loop."""
        match event:
            case Heard(message, done):
                self._hearing.hear(message, done)
            case Up(session_present):
                self._on_up(session_present=session_present)
            case Down():
                self._fleet.connected = self._fleet.settled = False
                self._fleet.quiet_until = self._monotonic() + self._policy.confirm_s
                self._registry.disconnected()
                self._errands.connected(up=False)

    def _on_up(self, *, session_present: bool) -> None:
        at = self._now()
        self._fleet.connected, self._fleet.settled = True, False
        self._fleet.quiet_until = at.mono + self._policy.confirm_s / 2
        self._registry.connected(at)
        self._errands.connected(up=True)
        for task in self._book.all():
            if task.status.phase in UNDER_WAY:
                unsent = task.status.phase is Phase.SCHEDULED
                self._book.contacts(task.id).reconnected(at.mono, self._policy, unsent=unsent)
                if not session_present:
                    self._signal(task.id, SessionLost(), nothing_to_do)
                self._queue.add(task.id)
        self._rhythm.news()

    # --- what others tell ---------------------------------------------------------------------------------------------

    def _signal(self, uid: str, signal: Signal, done: Callable[[], None]) -> None:
        if isinstance(signal, Holds) and self._is_known_to_run(uid, signal):
            done()
            return
        self._book.post(uid, (signal, done))
        if isinstance(signal, Holds | Handed):
            self._rhythm.wake(uid, self._monotonic() + self._policy.confirm_delay_s)
        else:
            self._queue.add(uid)

    def _is_known_to_run(self, uid: str, signal: Holds) -> bool:
        """Most progress says nothing new."""
        task = self._book.get(uid)
        if signal.ended or task is None or task.spec.broadcast or task.status.phase is not Phase.RUNNING:
            return False
        contact = self._book.contacts(uid).known(signal.proplet_id, task.status.attempt)
        if contact is None or not contact.heard or signal.attempt not in (None, task.status.attempt):
            return False
        if signal.note is not None and signal.note != task.status.message:
            return False
        if signal.image is not None and signal.image != task.status.resolved_image:
            return False
        contact.hear(self._monotonic(), self._policy)
        return True

    def _unwanted(self, uid: str, proplet_id: str, attempt: int | None) -> None:
        self._errands.stop(proplet_id, stop_of(uid, proplet_id, attempt))

    def _on_proplet_news(self, proplet_id: str) -> None:
        self._queue_up(self._book.held_by(proplet_id))
        self._rhythm.news()

    # --- the store ----------------------------------------------------------------------------------------------------

    def _take_over(self, task: Task) -> None:
        """A task is as the store has it now; look at it, unless it is over for good."""
        if self._learn(task) and (task.status.phase not in TERMINAL or goes_on(task)):
            self._queue.add(task.id)

    def _learn(self, task: Task) -> bool:
        held, before = self._fleet.held_count(), self._book.get(task.id)
        news = self._book.learn(task)
        if news and matters_to_others(before, task):
            self._queue_up(self._book.dependents(task))
        if self._fleet.held_count() < held:
            self._let_in()
        return news

    def _let_in(self) -> None:
        """Proplets may have room again."""
        self._queue_up(self._book.crowd.call(self._monotonic()))

    def _forget(self, task: Task) -> None:
        """It was deleted; what still runs is stopped, now and whenever it turns up again."""
        self._queue_up(self._book.dependents(task))
        self._book.forget(task)
        self._let_in()
        if task.status.phase in UNDER_WAY:
            proplet_id = None if task.spec.broadcast else task.status.proplet_id
            self._errands.stop(proplet_id, stop_of(task.id, proplet_id, task.status.attempt))
        self._observed.forget_task(task.id)
        self._pauses.over(task.id)
        self._ledger.forget(task.id)
        self._queue.add(task.id)  # what is in its mail is acknowledged

    def _on_change(self, change: Change) -> None:
        self._version = change.version
        task = cast("Task", change.resource)
        if change.type is ChangeType.DELETED:
            self._forget(task)
        else:
            self._take_over(task)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _sweep(self, mono: float) -> None:
        self._roster.sweep()
        self._errands.tick(mono)
        self._let_in()

    def _on_fleet_news(self) -> None:
        self._let_in()
        self._queue_up(self._book.awaiting())

    def _on_clock_set(self) -> None:
        """What waits for a time of day is looked at again."""
        self._queue_up(self._book.timed())

    def _queue_up(self, uids: Iterable[str]) -> None:
        for uid in uids:
            self._queue.add(uid)

    # --- work ---------------------------------------------------------------------------------------------------------

    async def _work(self, bus: HelloBus) -> None:
        while True:
            uid = await self._queue.take()
            try:
                await self._look_at(uid, bus)
            finally:
                self._queue.done(uid)

    async def _look_at(self, uid: str, bus: HelloBus) -> None:
        if self._is_left_alone(uid):
            return
        mail = self._book.collect(uid)
        try:
            decision = await self._ledger.settle(uid, [signal for signal, _ in mail])
        except StoreUnavailableError as error:
            self._try_later(uid, mail, error)
            return
        except IllegalTransitionError:
            log.exception("task %s: a defect of this program; what it was told is dropped", uid)
            decision = Decision()
        self._pauses.over(uid)
        self._book.dealt_with(uid, mail)
        task = self._book.get(uid)
        if task is None:
            return
        if decision.awaiting:
            self._book.await_fleet(uid)
        if decision.crowded:
            self._book.crowd.join(task)
            self._let_in()
        else:
            self._book.crowd.leave(uid)
        self._rhythm.wake(uid, decision.wake)
        if decision.mark is not None and not task.meta.deleted_at:
            self._queue.add(uid)
        if decision.then:
            await self._carry_out(task, decision.then, bus)

    def _is_left_alone(self, uid: str) -> bool:
        """Whether it failed not long ago and is as it was."""
        mono = self._monotonic()
        left = self._pauses.left(uid, self._book.version(uid), mono, self._book.patience(uid, mono))
        if left <= 0.0:
            return False
        self._book.held_back(uid, mono)
        self._rhythm.wake(uid, mono + left)
        return True

    def _try_later(self, uid: str, mail: list[Letter], error: StoreUnavailableError) -> None:
        mono = self._monotonic()
        self._book.not_recorded(uid, mail, mono, refused=isinstance(error, RefusedError))
        due = self._pauses.failed(uid, self._book.version(uid), mono, self._book.patience(uid, mono))
        log.warning("task %s cannot be recorded, trying again in %.1f s: %s", uid, due - mono, error)
        self._let_in()
        self._rhythm.wake(uid, due)

    async def _carry_out(self, task: Task, effects: Sequence[Effect], bus: HelloBus) -> None:
        if len(effects) == 1:
            await self._send(task, effects[0], bus)
            return
        async with anyio.create_task_group() as sending:
            for effect in effects:
                sending.start_soon(self._send, task, effect, bus)

    async def _send(self, task: Task, effect: Effect, bus: HelloBus) -> None:
        """Publish one command; what became of it is a signal, or a time to look again."""
        uid, proplet_id, mono = task.id, effect.proplet_id, self._monotonic()
        if isinstance(effect, SendStop) and effect.farewell:
            self._errands.stop(proplet_id, effect.command)
            return
        tells = proplet_id is not None and self._world.tells(proplet_id)
        contact = self._book.contacts(uid).of(proplet_id, task.status.attempt, mono, ask_at=mono)
        signal = await send(effect, contact, bus, self._policy, self._monotonic, tells=tells)
        self._rhythm.wake(uid, contact.ask_at if isinstance(effect, SendStart) else contact.stop_at)
        if contact.stops > 1:  # perhaps it does not hold the task at all: its inventory will tell
            self._errands.ask(mono)
        if signal is not None:
            self._signal(uid, signal, nothing_to_do)

    # --- Control ------------------------------------------------------------------------------------------------------

    async def start(self, uid: str) -> Task:
        """Ask for a run: releases a held task, runs a finished one again; of one under way it is no-op."""
        task = await ask_start(self._store, uid)
        self._take_over(task)
        return task

    async def stop(self, uid: str) -> Task:
        """Ask for the end of the current run; a pending one becomes `interrupted` at once."""
        before, task = self._book.get(uid), await ask_stop(self._store, uid, self._clock())
        if before is not None:
            self._announcer.task(before, task)
        self._take_over(task)
        return task

    async def invoke(self, uid: str, inputs: Sequence[str], env: Mapping[str, str], timeout_s: float) -> InvokeResult:
        """Call a latent task; see the port."""
        if self._book.get(uid) is None:  # it was created a moment ago
            self._take_over(cast("Task", await self._store.find(Kind.TASK, uid)))
        return await self._invoking.invoke(uid, inputs, env, timeout_s)

    def liveness(self, proplet_id: str) -> Liveness:
        """Return what is known of a proplet; not alive with no history for an unknown one."""
        return self._registry.liveness(proplet_id, self._now())

    def proplet_metrics(self, proplet_id: str) -> Sequence[PropletMetrics]:
        """Return a proplet's last metrics, oldest first."""
        return self._observed.proplets.of(proplet_id)

    def task_metrics(self, uid: str) -> Sequence[TaskMetrics]:
        """Return a task's last metrics, oldest first."""
        return self._observed.tasks.of(uid)

    def task_states(self, uid: str) -> Mapping[str, tuple[int | None, str]]:
        """Return where proplets last said that a task stands; see the port."""
        return self._observed.states.of(uid)

    def task_logs(self, uid: str, since: int = 0) -> Sequence[Printed]:
        """Return a task's last output after the number `since`, oldest first."""
        return self._observed.logs.of(uid, since)

    async def task_printed(self, uid: str) -> None:
        """Return when there is more output of a task."""
        await self._observed.logs.grown(uid)
