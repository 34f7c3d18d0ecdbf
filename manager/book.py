"""Every Task as the store has it, and what this process remembers beside: contacts, mail, who waits for what.

The controller's memory, without decisions. All of it can be made again from the store; losing it repeats messages.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from proplet.manager.core import UNDER_WAY, holder
from proplet.manager.exchange import Contacts, Signal
from proplet.manager.model import Task
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.placement import Fleet

TOMBSTONES: Final = 10_000

Letter = tuple[Signal, Callable[[], None]]
"""A signal, and what to call when its meaning is recorded."""


class Book:
    """The tasks, and the indexes over them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._tasks: dict[str, Task] = {}
        self._contacts: dict[str, Contacts] = {}
        self._mail: dict[str, list[Letter]] = {}
        self._awaiting: OrderedDict[str, None] = OrderedDict()  # pending until the fleet changes
        self._crowded: deque[str] = deque()  # pending until a proplet has room
        self._broadcasts: set[str] = set()  # under way
        self._deleted: OrderedDict[str, int] = OrderedDict()  # their last versions

    def get(self, uid: str) -> Task | None:
        """Return a task, None if there is none."""
        return self._tasks.get(uid)

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
        self.index(task)
        return True

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
        self._tasks.pop(uid, None)
        self._awaiting.pop(uid, None)
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

    # --- who waits ----------------------------------------------------------------------------------------------------

    def await_fleet(self, uid: str) -> None:
        """It waits for a proplet that fits."""
        self._awaiting[uid] = None

    def await_room(self, uid: str) -> None:
        """It waits for a fitting proplet to have room."""
        self._crowded.append(uid)

    def awaiting(self) -> Iterable[str]:
        """Take all that wait for a proplet that fits."""
        waiting, self._awaiting = self._awaiting, OrderedDict()
        return waiting

    def crowded(self, most: int) -> Iterable[str]:
        """Take some that wait for room, those waiting for longest."""
        return [self._crowded.popleft() for _ in range(min(most, len(self._crowded)))]
