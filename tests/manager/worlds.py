"""Small worlds for tests of the pure decisions: a task, a fleet, a clock that stands until it is moved."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from proplet.agent.wire import Metadata, Reason, Result, ResultTerms, Start, Stop, Usage
from proplet.manager.core import settle
from proplet.manager.deletion import with_mark
from proplet.manager.exchange import (
    Contacts,
    Decision,
    Ended,
    Handed,
    Holds,
    Lacks,
    Moment,
    Policy,
    SendStart,
    SendStop,
    SessionLost,
    Signal,
    Unsendable,
)
from proplet.manager.model import Key, Meta, Proplet, PropletSpec, PropletStatus, Task, TaskSpec, TaskStatus
from proplet.manager.phases import Phase
from proplet.manager.placement import Fleet, Peer
from proplet.manager.world import World

EPOCH = 1_800_000_000.0


def proplet(name: str, *, tags: tuple[str, ...] = (), memory: int = 0, labels: Any = None, **spec: Any) -> Proplet:
    metadata = Metadata(tags=tags, total_memory_bytes=memory)
    return Proplet(Meta(name, labels=labels or {}), PropletSpec(**spec), PropletStatus(metadata=metadata))


@dataclass
class Story:
    """One task and what happens to it. Sends are taken by the broker at once unless `broker` is False."""

    task: Task
    world: World = field(default_factory=lambda: World(Fleet(connected=True, settled=True), Policy()))
    contacts: Contacts = field(default_factory=Contacts)
    mono: float = 100.0
    starts: list[tuple[str | None, Start]] = field(default_factory=list)
    stops: list[tuple[str | None, Stop]] = field(default_factory=list)
    decision: Decision = field(default_factory=Decision)
    broker: bool = True
    wake: float = math.inf
    ahead: float = 0.0  # what the wall clock was set forward by
    others: dict[Key, Task] = field(default_factory=dict)
    marks: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = replace(self.world, find=self.find)

    def find(self, key: Key) -> Task | None:
        return self.task if key == self.task.meta.key else self.others.get(key)

    def other(self, name: str, phase: Phase = Phase.PENDING, namespace: str = "default", **spec: Any) -> None:
        meta = Meta(name, namespace, uid=f"uid-{name}")
        self.others[meta.key] = Task(meta, TaskSpec(name=name, **spec), TaskStatus(phase=phase))

    def respec(self, **spec: Any) -> "Story":
        meta = replace(self.task.meta, generation=self.task.meta.generation + 1)
        self.task = replace(self.task, meta=meta, spec=replace(self.task.spec, **spec))
        return self

    def condition(self, kind: str) -> tuple[bool, str, str] | None:
        for condition in self.status.conditions:
            if condition.type == kind:
                return condition.status, condition.reason, condition.message
        return None

    @property
    def fleet(self) -> Fleet:
        return self.world.fleet

    @property
    def policy(self) -> Policy:
        return self.world.policy

    @property
    def status(self) -> TaskStatus:
        return self.task.status

    @property
    def at(self) -> Moment:
        return Moment(EPOCH + self.mono + self.ahead, self.mono)

    def peer(self, name: str, *, alive: bool = True, lost: bool = False, tells: bool = True, **kwargs: Any) -> None:
        self.fleet.show(Peer(proplet(name, **kwargs), alive, lost, tells, "" if alive else "last heard of at noon"))

    def after(self, seconds: float) -> "Story":
        self.mono += seconds
        return self.look()

    def look(self, *signals: Signal) -> "Story":
        """Settle, record, send; what was sent may be answered by the broker at once."""
        self.decision = settle(self.task, signals, self.contacts, self.world, self.at)
        if self.decision.status is not None:
            self.task = replace(self.task, status=self.decision.status)
        if self.decision.mark is not None:
            self.marks.append(self.decision.mark)
            self.task = with_mark(self.task, marked=self.decision.mark)
            if not self.decision.then:
                return self.look()
        again: list[Signal] = []
        self.wake = self.decision.wake
        for effect in self.decision.then:
            tells = effect.proplet_id is not None and self.world.tells(effect.proplet_id)
            contact = self.contacts.of(effect.proplet_id, self.status.attempt, self.mono, ask_at=self.mono)
            if isinstance(effect, SendStart):
                self.starts.append((effect.proplet_id, effect.command))
                if self.broker:
                    contact.sent(self.mono, self.policy, tells=tells)
                    if not tells:
                        again.append(Handed(effect.proplet_id, self.status.attempt))
            else:
                assert isinstance(effect, SendStop)
                self.stops.append((effect.proplet_id, effect.command))
                if self.broker and not effect.farewell:
                    contact.stopped(self.mono, self.policy, tells=tells)
            if not self.broker:
                contact.unsent(self.mono)
            if not (isinstance(effect, SendStop) and effect.farewell):
                self.wake = min(self.wake, contact.ask_at if isinstance(effect, SendStart) else contact.stop_at)
        return self.look(*again) if again else self

    def sleep(self) -> "Story":
        """Let time pass until the task wants to be looked at."""
        assert self.wake < math.inf, "nothing is due, ever"
        self.mono = max(self.mono, self.wake)
        return self.look()

    def holds(self, name: str, attempt: int | None = None) -> "Story":
        return self.look(Holds(name, self.status.attempt if attempt is None else attempt))

    def lacks(self, name: str) -> "Story":
        return self.look(Lacks(name))

    def session_lost(self) -> "Story":
        return self.look(SessionLost())

    def too_large(self) -> "Story":
        return self.look(Unsendable(self.status.attempt, "a message of 20 MB exceeds the limit"))

    def result(
        self,
        name: str = "a",
        results: str = "42",
        *,
        error: str | None = None,
        reason: Reason | None = Reason.OK,
        attempt: int | None = -1,
        **terms: Any,
    ) -> "Story":
        """A result; `attempt` None is a peer of the reference, -1 the current one."""
        number = self.status.attempt if attempt == -1 else attempt
        ext = None if number is None else ResultTerms(attempt=number, reason=reason, **terms)
        return self.look(Ended(Result(self.task.id, name, results, error, ext)))


def story(*names: str, tells: bool = True, status: TaskStatus | None = None, **spec: Any) -> Story:
    """A task called `add`, and live proplets of these names."""
    given = {"name": "add", "image_url": "r.test/add:1", **spec}
    meta = Meta("add", uid="uid-1", version=1, created_at=EPOCH, updated_at=EPOCH)
    told = Story(Task(meta, TaskSpec(**given), status or TaskStatus()))
    for name in names:
        told.peer(name, tells=tells)
    return told


USAGE = Usage(cpu_seconds=0.01, peak_memory_bytes=65536, wall_seconds={"run": 0.02})
