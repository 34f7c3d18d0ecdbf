"""A durable store in one SQLite file: implements `ports.Store`; what has returned survives a power cut.

Writes queue up while a commit is under way, and the next commit takes them all. Each is decided over what is durable
and those before it, made durable in a thread, then made visible. Reads come from memory: a node keeps some thousand
resources (`store_retention` bounds them), module bytes once per digest.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
from anyio import CancelScope, CapacityLimiter, to_thread

from proplet.manager.model import Key, Kind, Resource
from proplet.manager.ports import Change, Clock, Listing, StoreError, StoreUnavailableError
from proplet.manager.store_log import ChangeLog
from proplet.manager.store_sqlite_file import StoreFile, with_shared_modules
from proplet.manager.store_table import Create, Delete, Draft, Operation, Put, Record, Table, Write

HISTORY: Final = 4096
_BATCH: Final = 256


class _Ticket:
    """One operation, and what became of it once `done` is set."""

    __slots__ = ("done", "error", "operation", "resource")

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.done = anyio.Event()
        self.resource: Resource | None = None
        self.error: StoreError | None = None


class SqliteStore:
    """Implements `ports.Store`; made by `open_sqlite_store`. A call that is cancelled may have been carried out."""

    def __init__(self, file: StoreFile, table: Table, clock: Clock, history: int) -> None:
        self._file = file
        self._table = table
        self._clock = clock
        self._logs = {kind: ChangeLog(history, table.revision) for kind in Kind}
        self._queue: deque[_Ticket] = deque()
        self._arrived = anyio.Event()
        self._closed = False
        self._thread = CapacityLimiter(1)

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
        """Add a resource. Raises AlreadyExistsError, StoreUnavailableError."""
        return await self._write(Create(with_shared_modules(resource, self._file.modules)))

    async def put(self, resource: Resource) -> Resource:
        """Write meta and spec. Raises ConflictError, NotFoundError, StoreUnavailableError."""
        return await self._write(Put(with_shared_modules(resource, self._file.modules)))

    async def record(self, resource: Resource) -> Resource:
        """Write the status. Raises ConflictError, NotFoundError, StoreUnavailableError."""
        return await self._write(Record(resource))

    async def delete(self, kind: Kind, key: Key, version: int | None = None) -> Resource:
        """Remove one. Raises NotFoundError, ConflictError, StoreUnavailableError."""
        return await self._write(Delete(kind, key, version))

    def watch(self, kind: Kind, since: int) -> AsyncIterator[Change]:
        """Yield every change of a kind after version `since`. Raises GoneError."""
        return self._logs[kind].follow(since, lambda: self._table.revision)

    async def _write(self, operation: Operation) -> Resource:
        if self._closed:
            raise StoreUnavailableError(f"{self._file.path} is closed: the node is stopping")
        ticket = _Ticket(operation)
        self._queue.append(ticket)
        self._arrived.set()
        await ticket.done.wait()
        if ticket.error is not None:
            raise ticket.error
        assert ticket.resource is not None
        return ticket.resource

    def close(self) -> None:
        """Take no more writes; those under way are finished."""
        self._closed = True
        self._arrived.set()

    async def serve(self) -> None:
        """Commit what is queued, until closed. Not cancelled: who waits for a write in a finalizer gets it."""
        with CancelScope(shield=True):
            while self._queue or not self._closed:
                if not self._queue:
                    self._arrived = anyio.Event()
                    await self._arrived.wait()
                    continue
                await self._commit([self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))])

    async def _commit(self, batch: Sequence[_Ticket]) -> None:
        draft = Draft(self._table)
        now = round(self._clock(), 6)
        writes = []
        for ticket in batch:
            try:
                ticket.resource, write = draft.decide(ticket.operation, now)
            except StoreError as error:
                ticket.error = error
                continue
            if write is not None:
                writes.append(write)
        if writes:
            try:
                await to_thread.run_sync(self._file.commit, writes, limiter=self._thread)
            except StoreError as error:
                for ticket in batch:  # what was decided on top of what is not durable does not hold either
                    ticket.error = type(error)(*error.args)
            else:
                self._publish(writes)
        for ticket in batch:
            ticket.done.set()

    def _publish(self, writes: Sequence[Write]) -> None:
        for write in writes:
            self._table.apply(write)
            self._logs[write.change.resource.kind].append(write.change)
        for log in self._logs.values():
            log.wake()


@asynccontextmanager
async def open_sqlite_store(
    path: Path, clock: Clock = time.time, *, history: int = HISTORY
) -> AsyncIterator[SqliteStore]:
    """Open the store in the file at `path`, made if it is not there (mode 0600); writes end when the block ends.

    `history` bounds how many changes of a kind a watcher can be behind.

    Raises:
        StoreInUseError: another process has it open.
        StoreCorruptError: the file is damaged, or another program's.
        StoreUnavailableError: it cannot be read or written here.
        StoreError: it was written by a newer version.
    """
    file = await to_thread.run_sync(StoreFile, path)
    try:
        store = SqliteStore(file, await to_thread.run_sync(file.load), clock, history)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(store.serve)
                try:
                    yield store
                finally:
                    store.close()
        except BaseExceptionGroup as errors:
            if len(errors.exceptions) == 1:  # the block's own error, as if there were no task group here
                raise errors.exceptions[0] from errors.exceptions[0].__cause__
            raise
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(file.close)
