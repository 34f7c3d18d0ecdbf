"""What was last measured, said and printed, in memory and within bounds: metrics, tasks' states, output lines.

Lines are numbered as they arrive, so that a reader can go on where it was. The numbers begin with the time of day: they
grow over a restart, too.

Gone after a restart, by design: a Pi's flash is not worn by what nobody may ever look at.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar

import anyio

from proplet.agent.wire import LogLines, PropletMetrics, TaskMetrics
from proplet.manager.ports import Printed

T = TypeVar("T")

MEASUREMENTS: Final = 100  # per proplet or task, the reference's history size
SUBJECTS: Final = 500  # proplets, or tasks, of which any are kept
STATES: Final = 10_000  # tasks of which it is known
LOG_BYTES_PER_TASK: Final = 256 * 1024
LOG_BYTES: Final = 8 * 1024 * 1024
_NUMBERS_PER_S: Final = 1_000_000  # more than arrive; and in this century below what JSON can carry


class Rings(Generic[T]):
    """The last values of each subject, of the subjects heard of last."""

    def __init__(self, length: int, subjects: int) -> None:
        self._length = length
        self._subjects = subjects
        self._rings: OrderedDict[str, deque[T]] = OrderedDict()

    def add(self, subject: str, value: T) -> None:
        """Append a value; the oldest subject makes room."""
        ring = self._rings.get(subject)
        if ring is None:
            ring = self._rings[subject] = deque(maxlen=self._length)
            if len(self._rings) > self._subjects:
                self._rings.popitem(last=False)
        else:
            self._rings.move_to_end(subject)
        ring.append(value)

    def of(self, subject: str) -> Sequence[T]:
        """Return a subject's values, oldest first."""
        return tuple(self._rings.get(subject, ()))

    def forget(self, subject: str) -> None:
        """Drop a subject."""
        self._rings.pop(subject, None)


class Logs:
    """The last output of each task, bounded per task and in all."""

    def __init__(
        self, per_task: int = LOG_BYTES_PER_TASK, in_all: int = LOG_BYTES, wall: Callable[[], float] = time.time
    ) -> None:
        self._per_task = per_task
        self._in_all = in_all
        self._wall = wall
        self._number = int(wall() * _NUMBERS_PER_S)
        self._lines: OrderedDict[str, deque[Printed]] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._news: dict[str, anyio.Event] = {}
        self._sizes: dict[str, int] = {}
        self._size = 0

    def add(self, lines: LogLines) -> None:
        """Append lines; the oldest of the task, then the task ended, or else silent, for longest make room."""
        task, size = lines.task_id, _size(lines)
        if size > self._per_task:
            return
        kept = self._lines.setdefault(task, deque())
        self._lines.move_to_end(task)
        if kept and kept[-1].lines.attempt != lines.attempt:
            self._ended.pop(task, None)  # it runs again
        self._number += 1
        kept.append(Printed(self._number, lines.at or self._wall(), lines))
        self._grow(task, size)
        while self._sizes[task] > self._per_task:
            self._grow(task, -_size(kept.popleft().lines))
        while self._size > self._in_all:
            self.forget(next(iter(self._ended), None) or next(iter(self._lines)))
        if news := self._news.pop(task, None):
            news.set()

    def ended(self, task: str) -> None:
        """A run of a task has ended: its lines make room before those of what runs."""
        if task in self._lines:
            self._ended[task] = None
            self._ended.move_to_end(task)

    def of(self, task: str, since: int = 0) -> Sequence[Printed]:
        """Return a task's lines after the number `since`, oldest first; all if that number was never given."""
        kept = self._lines.get(task, ())
        if not 0 < since <= self._number:
            return tuple(kept)
        return tuple(printed for printed in kept if printed.number > since)

    async def grown(self, task: str) -> None:
        """Return when there are more lines of a task."""
        await self._news.setdefault(task, anyio.Event()).wait()

    def forget(self, task: str) -> None:
        """Drop a task's lines."""
        self._ended.pop(task, None)
        if news := self._news.pop(task, None):
            news.set()
        if self._lines.pop(task, None) is not None:
            self._size -= self._sizes.pop(task)

    def _grow(self, task: str, size: int) -> None:
        self._sizes[task] = self._sizes.get(task, 0) + size
        self._size += size


def _size(lines: LogLines) -> int:
    return 200 + sum(len(line) + 50 for line in lines.lines)


class States:
    """Where each task stands, as the proplets that hold it said last: finer than its phase, and not recorded.

    In their words: ``fetching``, ``running``, ``waiting``, ``crash_loop``, ``deployed``, ``serving``, and the like.
    """

    def __init__(self, most: int = STATES) -> None:
        self._most = most
        self._states: OrderedDict[str, dict[str, tuple[int | None, str]]] = OrderedDict()

    def add(self, task: str, proplet_id: str, attempt: int | None, state: str) -> None:
        """Note what a proplet said; the task heard of longest ago makes room."""
        self._states.setdefault(task, {})[proplet_id] = (attempt, state)
        self._states.move_to_end(task)
        if len(self._states) > self._most:
            self._states.popitem(last=False)

    def of(self, task: str) -> Mapping[str, tuple[int | None, str]]:
        """Return, by proplet, the attempt and where it stands."""
        return self._states.get(task, {})

    def forget(self, task: str, proplet_id: str | None = None) -> None:
        """Drop a task, or what one proplet said of it."""
        found = self._states.get(task, {})
        found.pop(proplet_id or "", None)
        if proplet_id is None or not found:
            self._states.pop(task, None)


class Observed:
    """All of it."""

    def __init__(self) -> None:
        self.proplets: Rings[PropletMetrics] = Rings(MEASUREMENTS, SUBJECTS)
        self.tasks: Rings[TaskMetrics] = Rings(MEASUREMENTS, SUBJECTS)
        self.states = States()
        self.logs = Logs()

    def forget_task(self, uid: str) -> None:
        """A task was deleted."""
        self.tasks.forget(uid)
        self.states.forget(uid)
        self.logs.forget(uid)
