"""A queue of keys to look at, each by one worker at a time, and a clock that puts keys into it.

A key added while it waits is there once; one added while it is worked on is looked at again afterwards.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterator

import anyio


class WorkQueue:
    """Keys to look at. One that is taken must be given back with `done`."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._queued: set[str] = set()
        self._busy: set[str] = set()
        self._takers: deque[anyio.Event] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is worked on."""
        return not self._queued and not self._busy

    def busy(self, key: str) -> bool:
        """Whether somebody works on `key` now."""
        return key in self._busy

    def add(self, key: str) -> None:
        """Have `key` looked at."""
        if key in self._queued:
            return
        self._queued.add(key)
        if key not in self._busy:
            self._put(key)

    def _put(self, key: str) -> None:
        self._waiting.append(key)
        if self._takers:
            self._takers.popleft().set()

    async def take(self) -> str:
        """Return the next key; until `done` nobody else gets it."""
        while not self._waiting:
            taker = anyio.Event()
            self._takers.append(taker)
            try:
                await taker.wait()
            finally:
                if taker in self._takers:
                    self._takers.remove(taker)
        key = self._waiting.popleft()
        self._queued.discard(key)
        self._busy.add(key)
        return key

    def done(self, key: str) -> None:
        """Give `key` back."""
        self._busy.discard(key)
        if key in self._queued:
            self._put(key)


class Timers:
    """When which key is due; one time per key, the earliest asked for. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}

    def at(self, key: str, when: float) -> bool:
        """Have `key` come due at `when`, or before; return whether it is now the first of all."""
        if when == math.inf or self._due.get(key, math.inf) <= when:
            return False
        self._due[key] = when
        heapq.heappush(self._heap, (when, key))
        return self._heap[0][1] == key

    def next(self) -> float:
        """Return when the next key is due; infinity if none is."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def due(self, now: float) -> Iterator[str]:
        """Yield the keys that are due and forget them."""
        while self.next() <= now:
            _, key = heapq.heappop(self._heap)
            del self._due[key]
            yield key
