"""Tasks that wait for room on the proplets that fit them: who is next. The most urgent first, then who came first.

Tasks that want the same stand in one line. Whoever is called is looked at soon and counts as having a place until then,
so that no newcomer of less priority takes it. A newcomer is placed at once only if nobody before it waits for the same
proplets; otherwise it joins its line, and is called right away where there is room for both.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from proplet.manager.model import Task
from proplet.manager.placement import Fleet, wants

_SLACK: Final = 16

Place = tuple[int, int, str]
"""Priority, negative; when it came; the task's uid."""


@dataclass(slots=True)
class _Line:
    """Those who want the same. Who leaves is only struck off `waiting`; its place in the heap goes later."""

    sample: Task
    waiting: dict[str, Place] = field(default_factory=dict)
    called: dict[str, Place] = field(default_factory=dict)
    fitting: frozenset[str] = frozenset()
    asked_at: int = -1  # which of the fleet's changes `fitting` is as of
    _places: list[Place] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, place: Place) -> None:
        """It waits here."""
        self.waiting[place[2]] = place
        heapq.heappush(self._places, place)

    def strike(self, uid: str) -> None:
        """It does not wait any more, nor is it called."""
        if self.called.pop(uid, None) is None:
            del self.waiting[uid]
            self._tidy()

    def first(self) -> Place | None:
        """Who is next of those that wait."""
        while self._places:
            place = self._places[0]
            if self.waiting.get(place[2]) == place:
                return place
            heapq.heappop(self._places)
        return None

    def call(self) -> str:
        """Call the next of those that wait, of whom there must be one, and return its uid."""
        while True:
            place = heapq.heappop(self._places)
            uid = place[2]
            if self.waiting.get(uid) == place:
                self.called[uid] = self.waiting.pop(uid)
                return uid

    def _tidy(self) -> None:
        """Keep the heap about as long as the line: what that costs was paid for by those who left."""
        if len(self._places) > _SLACK + 2 * len(self.waiting):
            self._places = list(self.waiting.values())
            heapq.heapify(self._places)


class Crowd:
    """The lines."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lines: dict[object, _Line] = {}
        self._at: dict[str, tuple[object, Place]] = {}
        self._came = 0

    def __len__(self) -> int:
        return len(self._at)

    def join(self, task: Task) -> None:
        """It waits for room. Who was called and found none is where it was before."""
        key, uid = wants(task), task.id
        came = self._at[uid][1][1] if uid in self._at else self._next()
        self.leave(uid)
        place = (-task.spec.priority, came, uid)
        self._lines.setdefault(key, _Line(task)).add(place)
        self._at[uid] = (key, place)

    def leave(self, uid: str) -> None:
        """It was placed, or waits for something else, or is gone."""
        found = self._at.pop(uid, None)
        if found is None:
            return
        line = self._lines[found[0]]
        line.strike(uid)
        if not line.waiting and not line.called:
            del self._lines[found[0]]

    def decline(self, uid: str) -> None:
        """It cannot come now. If it was called, the place is for others; if it only waits, it goes on waiting."""
        found = self._at.get(uid)
        if found is not None and uid in self._lines[found[0]].called:
            self.leave(uid)

    def outranks(self, task: Task) -> bool:
        """Whether somebody who comes before the task waits for a proplet that it may have."""
        if not self._at:
            return False
        key, known = wants(task), self._at.get(task.id)
        if known is not None and task.id in self._lines[known[0]].called:
            return False
        mine = known[1] if known is not None else (-task.spec.priority, self._came + 1, task.id)
        fitting: tuple[str, ...] | None = None
        for other, line in self._lines.items():
            ahead = line.first()
            first = min((*line.called.values(), *([] if ahead is None else [ahead])), default=None)
            if first is None or first >= mine:
                continue
            if fitting is None:
                fitting = self._fleet.fitting(task)
            if other == key or not self._fitting(line).isdisjoint(fitting):
                return True
        return False

    def call(self, mono: float) -> Iterator[str]:
        """Yield who has room now, or no proplet any more, which is not to be waited for here."""
        if not self._at:
            return
        free = self._free(mono)
        for line in list(self._lines.values()):
            fitting = self._fitting(line)
            if not fitting:
                while line.waiting:
                    yield line.call()
            for _ in line.called:
                _take(free, fitting)
        while (following := self._next_line(free)) is not None:
            _take(free, self._fitting(following))
            yield following.call()

    def _next_line(self, free: dict[str, int]) -> _Line | None:
        """The line of the first of all who could have a place."""
        if not free:
            return None
        lines = [
            (first, line)
            for line in self._lines.values()
            if (first := line.first()) is not None and not self._fitting(line).isdisjoint(free)
        ]
        return min(lines, key=itemgetter(0), default=(None, None))[1]

    def _fitting(self, line: _Line) -> frozenset[str]:
        """Who fits the tasks of a line. It remembers that: there may be more lines than the fleet has answers for."""
        if line.asked_at != self._fleet.changes:
            line.fitting, line.asked_at = frozenset(self._fleet.fitting(line.sample)), self._fleet.changes
        return line.fitting

    def _free(self, mono: float) -> dict[str, int]:
        """How many more tasks proplets may have, of those that may have more."""
        fleet = self._fleet
        return {
            proplet: left
            for proplet, peer in fleet.peers.items()
            if peer.alive
            and fleet.resting.get(proplet, 0.0) <= mono
            and (left := fleet.window - len(fleet.held.get(proplet, ()))) > 0
        }

    def _next(self) -> int:
        self._came += 1
        return self._came


def _take(free: dict[str, int], fitting: frozenset[str]) -> None:
    best = max((proplet for proplet in free if proplet in fitting), key=free.__getitem__, default=None)
    if best is not None:
        free[best] -= 1
        if not free[best]:
            del free[best]
