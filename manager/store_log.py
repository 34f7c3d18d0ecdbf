"""The changes of one kind, last ones first forgotten, and those who follow them."""

from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import islice

import anyio

from proplet.manager.ports import Change, GoneError


class ChangeLog:
    """A bounded history. Everything after `floor` is known; `last` is the version of the newest change of any kind."""

    def __init__(self, limit: int, floor: int = 0) -> None:
        self._limit = limit
        self._floor = floor
        self._changes: deque[Change] = deque()
        self._appended = 0
        self._more = anyio.Event()

    def append(self, change: Change) -> None:
        """Add the newest change; followers see it at `wake`."""
        if len(self._changes) == self._limit:
            self._floor = self._changes.popleft().version
        self._changes.append(change)
        self._appended += 1

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
