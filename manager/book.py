"""Every Task as the store has it, and what this process remembers beside: contacts, mail, who waits for whom.

The controller's memory, without decisions. All of it can be made again from the store; losing it repeats messages.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from proplet.manager.circles import Circles
from proplet.manager.core import UNDER_WAY, holder
from proplet.manager.crowd import Crowd
from proplet.manager.exchange import Contacts, Signal
from proplet.manager.model import Key, Task
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.placement import Fleet

TOMBSTONES: Final = 10_000

HOLD_S: Final = 20.0
KEPT_S: Final = 8.0  # what is unacknowledged keeps heartbeats behind it: less than the silence of a lost proplet

Letter = tuple[Signal, Callable[[], None]]
"""A signal, and what to call when its meaning is recorded."""


def _nothing_to_do() -> None:
    pass


class Book:
    """The tasks, and the indexes over them.

    `hold_s`: seconds that what the store refuses to record is kept unacknowledged; more than a cluster may be away.
    """

    def __init__(self, fleet: Fleet, *, hold_s: float = HOLD_S) -> None:
        self.crowd = Crowd(fleet)  # pending until a proplet has room
        self._fleet = fleet
        self._hold_s = hold_s
        self._keys: dict[Key, str] = {}
        self._assigned: Counter[str] = Counter()
        self._tasks: dict[str, Task] = {}
        self._circles = Circles(self.find, self.get)
        self._contacts: dict[str, Contacts] = {}
        self._mail: dict[str, list[Letter]] = {}
        self._refused: dict[str, float] = {}  # since when their records are
        self._awaiting: OrderedDict[str, None] = OrderedDict()  # pending until the fleet changes
        self._broadcasts: set[str] = set()  # under way
        self._deleted: OrderedDict[str, int] = OrderedDict()  # their last versions

    def get(self, uid: str) -> Task | None:
        """Return a task, None if there is none."""
        return self._tasks.get(uid)

    def find(self, key: Key) -> Task | None:
        """Return the task of this name, None if there is none."""
        return self._tasks.get(self._keys.get(key, ""))

    def version(self, uid: str) -> int:
        """Return the version of a task as it is known, 0 if there is none."""
        task = self._tasks.get(uid)
        return 0 if task is None else task.meta.version

    def all(self) -> Iterable[Task]:
        """Return every task; a snapshot."""
        return list(self._tasks.values())

    def learn(self, task: Task) -> bool:
        """Take over a task as the store has it; return whether that is news.

        What was recorded just before a deletion is learned of after it, by whoever recorded it: that is no news.
        """
        known = self._tasks.get(task.id)
        version = self._deleted.get(task.id, -1) if known is None else known.meta.version
        if version >= task.meta.version:
            return False
        self._tasks[task.id] = task
        named = self.find(task.meta.key)
        if named is None or named.meta.version <= task.meta.version:  # else another one has its name by now
            self._keys[task.meta.key] = task.id
        self._circles.change(known, task)
        self._count(known, task)
        self.index(task)
        return True

    def _count(self, before: Task | None, after: Task | None) -> None:
        """Keep the numbers of tasks by proplet."""
        was = before.status.proplet_id if before is not None else None
        now = after.status.proplet_id if after is not None else None
        if was != now:
            if was is not None:
                self._assigned[was] -= 1
                if not self._assigned[was]:
                    del self._assigned[was]
            if now is not None:
                self._assigned[now] += 1

    def assigned(self, proplet_id: str) -> int:
        """Return how many tasks are or were with a proplet, of those that are there."""
        return self._assigned[proplet_id]

    def dependents(self, task: Task) -> Iterable[str]:
        """Return the pending tasks that depend on this one."""
        return [other.id for other in self._circles.dependents(task.meta.key)]

    def circle(self, task: Task) -> Sequence[str]:
        """Return the names of a circle in which a pending task waits for itself; empty: there is none."""
        return self._circles.of(task)

    def index(self, task: Task) -> None:
        """Note who has the task now."""
        uid, phase = task.id, task.status.phase
        self._fleet.assign(uid, holder(task))
        if task.spec.broadcast and phase in UNDER_WAY:
            self._broadcasts.add(uid)
        else:
            self._broadcasts.discard(uid)
        if phase in TERMINAL:
            self._contacts.pop(uid, None)

    def forget(self, task: Task) -> None:
        """It was deleted. That it once was ours is remembered for a while: it may turn up again."""
        uid = task.id
        known = self._tasks.pop(uid, None)
        self._count(known, None)
        if self._keys.get(task.meta.key) == uid:
            del self._keys[task.meta.key]
        self._circles.change(known, None)
        self._awaiting.pop(uid, None)
        self.crowd.leave(uid)
        self._deleted[uid] = task.meta.version
        if len(self._deleted) > TOMBSTONES:
            self._deleted.popitem(last=False)
        self.index(replace(task, status=replace(task.status, phase=Phase.INTERRUPTED)))

    def was_deleted(self, uid: str) -> bool:
        """Whether it was a task of ours."""
        return uid in self._deleted

    def held_by(self, proplet_id: str) -> set[str]:
        """Return the tasks that a proplet should know of."""
        return self._fleet.held.get(proplet_id, set()) | self._broadcasts

    def contacts(self, uid: str) -> Contacts:
        """Return what was said about a task; kept while it is not over."""
        task = self._tasks.get(uid)
        if task is None or task.status.phase in TERMINAL:
            return Contacts()
        return self._contacts.setdefault(uid, Contacts())

    # --- mail ---------------------------------------------------------------------------------------------------------

    def post(self, uid: str, letter: Letter) -> None:
        """Add to a task's mail."""
        self._mail.setdefault(uid, []).append(letter)

    def collect(self, uid: str) -> list[Letter]:
        """Take a task's mail, oldest first."""
        return self._mail.pop(uid, [])

    def put_back(self, uid: str, letters: list[Letter]) -> None:
        """Return mail that could not be dealt with, before what came since."""
        if letters:
            self._mail[uid] = letters + self._mail.get(uid, [])

    def dealt_with(self, uid: str, letters: list[Letter]) -> None:
        """Their meaning is recorded."""
        self._refused.pop(uid, None)
        for _, done in letters:
            done()

    def _refuse(self, uid: str, letters: list[Letter], mono: float) -> None:
        """Return mail whose meaning the store refuses to record.

        Once it has done so for long, it is acknowledged, because until it is the broker soon delivers nothing that is
        behind it. It stays here, and its proplet tells it again when asked.
        """
        if mono - self._refused.setdefault(uid, mono) < self._hold_s:
            self.put_back(uid, letters)
            return
        kept: list[Signal] = []
        for signal, done in reversed(letters):
            done()
            if signal not in kept:
                kept.append(signal)
        self.put_back(uid, [(signal, _nothing_to_do) for signal in reversed(kept)])

    def held_back(self, uid: str, mono: float) -> None:
        """It is not looked at yet. What it was told waits, or is acknowledged if it is refused for long."""
        self.crowd.decline(uid)
        if uid in self._refused:
            self._refuse(uid, self.collect(uid), mono)

    def patience(self, uid: str, mono: float) -> float:
        """Return for how many seconds a task may be left alone for all that is not acknowledged."""
        if not self._mail.get(uid):
            return math.inf
        if uid not in self._refused:
            return KEPT_S
        left = self._refused[uid] + self._hold_s - mono
        return min(KEPT_S, left) if left > 0 else math.inf

    def not_recorded(self, uid: str, letters: list[Letter], mono: float, *, refused: bool) -> None:
        """What was decided of a task is not so: it has no place but the one it had, and its mail is there again."""
        if refused:
            self._refuse(uid, letters, mono)
        else:
            self.put_back(uid, letters)
        self.crowd.decline(uid)
        task = self._tasks.get(uid)
        if task is not None:
            self.index(task)

    # --- who waits ----------------------------------------------------------------------------------------------------

    def await_fleet(self, uid: str) -> None:
        """It waits for a proplet that fits."""
        self._awaiting[uid] = None

    def awaiting(self) -> Iterable[str]:
        """Take all that wait for a proplet that fits, the most urgent first, then those waiting for longest."""
        waiting, self._awaiting = [uid for uid in self._awaiting if uid in self._tasks], OrderedDict()
        return sorted(waiting, key=lambda uid: -self._tasks[uid].spec.priority)

    def timed(self) -> Iterable[str]:
        """Return the tasks that wait for a time of day; what a clock that was set has to be told to."""
        return [uid for uid, task in self._tasks.items() if task.status.next_run or task.status.not_before]


def goes_on(task: Task) -> bool:
    """Whether something may follow on the end of the task's run."""
    recurs = task.spec.is_recurring and bool(task.spec.schedule)
    return recurs or task.spec.ttl_seconds_after_finished is not None or bool(task.meta.finalizers)


def matters_to_others(before: Task | None, after: Task) -> bool:
    """Whether tasks that depend on this one have to be looked at again."""
    if before is None or before.meta.generation != after.meta.generation:
        return True
    return (before.status.phase in TERMINAL) is not (after.status.phase in TERMINAL)
