"""The changes of one kind, oldest ones first forgotten, and those who follow them."""

from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import islice
from typing import Final

import anyio

from proplet.manager.ports import Change, GoneError
from proplet.manager.store_weight import Scale

_HEAVIEST: Final = 32 * 1024 * 1024


class ChangeLog:
    """A history of at most `limit` changes, which keep at most `heaviest` bytes of results and modules alive."""

    def __init__(self, limit: int, floor: int = 0, *, heaviest: int = _HEAVIEST) -> None:
        self._limit = limit
        self._heaviest = heaviest
        self._scale = Scale()
        self._floor = floor  # everything after it is known
        self._changes: deque[Change] = deque()
        self._appended = 0
        self._more = anyio.Event()

    def append(self, change: Change) -> None:
        """Add the newest change; followers see it at `wake`."""
        self._changes.append(change)
        self._appended += 1
        self._scale.put(change.resource)
        while len(self._changes) > self._limit or (self._scale.weight > self._heaviest and len(self._changes) > 1):
            oldest = self._changes.popleft()
            self._scale.take(oldest.resource)
            self._floor = oldest.version

    def reset(self, floor: int) -> None:
        """Forget every change; those after version `floor` will be told. Followers who are behind it list again."""
        self._changes.clear()
        self._scale = Scale()
        self._floor = max(self._floor, floor)

    def wake(self) -> None:
        """Tell the followers that there is more."""
        if self._more.statistics().tasks_waiting:
            self._more.set()
            self._more = anyio.Event()

    async def follow(self, since: int, revision: Callable[[], int]) -> AsyncIterator[Change]:
        """Yield every change after version `since`, for ever; `revision` tells the store's newest version.

        Raises:
            GoneError: some of them are forgotten, or `since` lies in the future (of another store).
        """
        if since > revision():
            raise GoneError(f"version {since} was not reached yet (the store is at {revision()}): list again")
        while True:
            if since < self._floor:
                raise GoneError(f"the changes after version {since} are no longer known: list again")
            position = self._first_after(since)
            if position == self._appended:
                await self._more.wait()
                continue
            start = len(self._changes) - (self._appended - position)
            for change in list(islice(self._changes, start, start + 256)):
                since = change.version
                yield change

    def _first_after(self, since: int) -> int:
        """How many changes were appended before the first one after `since`; all of them when there is none."""
        low, high = 0, len(self._changes)
        while low < high:
            middle = (low + high) // 2
            if self._changes[middle].version <= since:
                low = middle + 1
            else:
                high = middle
        return self._appended - len(self._changes) + low
