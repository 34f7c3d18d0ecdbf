"""A store in memory: the executable specification of `ports.Store`. Nothing survives the process."""

import time
from collections.abc import AsyncIterator

from proplet.manager.model import Key, Kind, Resource
from proplet.manager.ports import Change, Clock, Listing
from proplet.manager.store_log import ChangeLog
from proplet.manager.store_table import Create, Delete, Draft, Operation, Put, Record, Table

HISTORY = 4096


class MemoryStore:
    """Implements `ports.Store`. `history` bounds how many changes of a kind a watcher can be behind."""

    def __init__(self, clock: Clock = time.time, *, history: int = HISTORY) -> None:
        self._clock = clock
        self._table = Table()
        self._logs = {kind: ChangeLog(history) for kind in Kind}

    async def list(self, kind: Kind) -> Listing:
        """Return everything of a kind, in order of creation."""
        return Listing(self._table.items(kind), self._table.revision)

    async def get(self, kind: Kind, key: Key) -> Resource:
        """Return one. Raises NotFoundError."""
        return self._table.get(kind, key)

    async def find(self, kind: Kind, uid: str) -> Resource:
        """Return the one with this uid. Raises NotFoundError."""
        return self._table.find(kind, uid)

    async def create(self, resource: Resource) -> Resource:
        """Add a resource. Raises AlreadyExistsError."""
        return self._write(Create(resource))

    async def put(self, resource: Resource) -> Resource:
        """Write meta and spec. Raises ConflictError, NotFoundError."""
        return self._write(Put(resource))

    async def record(self, resource: Resource) -> Resource:
        """Write the status. Raises ConflictError, NotFoundError."""
        return self._write(Record(resource))

    async def delete(self, kind: Kind, key: Key, version: int | None = None) -> Resource:
        """Remove one. Raises NotFoundError, ConflictError."""
        return self._write(Delete(kind, key, version))

    def watch(self, kind: Kind, since: int) -> AsyncIterator[Change]:
        """Yield every change of a kind after version `since`. Raises GoneError."""
        return self._logs[kind].follow(since, lambda: self._table.revision)

    def _write(self, operation: Operation) -> Resource:
        resource, write = Draft(self._table).decide(operation, round(self._clock(), 6))
        if write is not None:
            self._table.apply(write)
            log = self._logs[resource.kind]
            log.append(write.change)
            log.wake()
        return resource
