"""The device's durable memory: attempts and an outbox in one SQLite file, written in batches.

Place in the flow: the shell commits what the core wants saved, one transaction a batch, before it acts. Durable means a
power cut (`synchronous=FULL`). A row is appended and later changed near the end of its table, and the pages are small,
because an SD card pays for every page that a commit touches.

The outbox is bounded; what gives way, and in which order, is `journal_sweep`'s.
"""

import logging
import sqlite3
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar, assert_never

from proplet.agent import codec, wire
from proplet.agent.events import (
    Recovered,
    RecoveredAttempt,
    RunKey,
    Save,
    SaveAccepted,
    SaveOutcome,
    SaveReply,
    SaveResend,
    SaveState,
)
from proplet.agent.journal_sweep import OutboxBounds, Sweep
from proplet.agent.lifecycle import TERMINAL, State
from proplet.agent.ports import OutboxRow, StorageError

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
_PAGE_BYTES = 2048
_PENDING_BYTES = 4 * 1024 * 1024  # of messages in memory at once; one may be larger
_SWEEP_SAVES, _SWEEP_BYTES = 512, 16 * 1024 * 1024  # whichever comes first
_CHECKPOINT_PAGES = 2048  # of the write-ahead log: 4 MiB, so that a page written often is copied rarely

_SCHEMA = """
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL,
    run INTEGER NOT NULL,
    state TEXT NOT NULL,
    received_at REAL NOT NULL,
    restarts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,
    payload_hash TEXT NOT NULL,
    module_digest TEXT,
    start BLOB
) STRICT;
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    sent INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    attempt INTEGER,
    route TEXT NOT NULL,
    payload BLOB NOT NULL
) STRICT;
"""

# By the version that comes after it; the tables of `_SCHEMA` are those of version 1.
_MIGRATIONS = {1: _SCHEMA, 2: "ALTER TABLE attempts ADD COLUMN image_digest TEXT;"}

T = TypeVar("T")


class SqliteJournal:
    """The port `Journal` on one SQLite file. All of SQLite runs in one thread of its own."""

    def __init__(self, path: Path, bounds: OutboxBounds, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._bounds = bounds
        self._thread = ThreadPoolExecutor(1, "journal")
        self._rows: OrderedDict[RunKey, int] = OrderedDict()  # to the attempt's row id
        self._outbox: dict[RunKey, int] = {}  # finished attempts to their message's seq
        self._acknowledged: list[int] = []
        self._since_sweep = 0
        self._posted_bytes = 0
        self._db: sqlite3.Connection
        self._bounds_held: Sweep

    async def load(self) -> Recovered:
        """Return what was accepted and not finished, and which attempts are known to have ended."""
        return await self._call(self._load)

    async def commit(self, saves: Sequence[Save]) -> None:
        """Make all of `saves` durable at once. Raises StorageError, and then nothing was saved."""
        await self._call(lambda: self._commit(saves))

    async def pending(self, after: int, limit: int) -> Sequence[OutboxRow]:
        """Return the oldest undelivered messages with a `seq` above `after`; fewer than `limit` of large ones."""
        noted = frozenset(self._acknowledged)
        return await self._call(lambda: self._pending(after, limit, noted))

    async def sent(self, seqs: Sequence[int]) -> None:
        """Note that messages were acknowledged. Written with the next commit: losing it only sends them again."""
        self._acknowledged += seqs

    async def flush(self) -> None:
        """Write down the acknowledgements noted so far; for moments of quiet."""
        if self._acknowledged:
            await self.commit(())

    async def unsent_attempts(self) -> Sequence[RunKey]:
        """Return the finished attempts whose result nobody has acknowledged yet."""
        noted = frozenset(self._acknowledged)
        return await self._call(lambda: self._unsent_attempts(noted))

    # --- in the journal's thread -----------------------------------------------------------------------------------

    async def _call(self, work: Callable[[], T]) -> T:
        import asyncio

        # Not cancellable: a commit that was begun is finished, whoever waited for it.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = not self._path.exists()
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=0)
            if fresh:
                self._path.chmod(0o600)
            self._db.execute(f"PRAGMA page_size={_PAGE_BYTES}")
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
            self._db.execute("PRAGMA cache_size=-1024")
            self._migrate()
            self._bounds_held = Sweep(self._db, self._bounds, self._clock)
        except sqlite3.DatabaseError as error:
            raise self._storage_error(error) from error
        except OSError as error:
            raise StorageError(f"{self._path.parent} cannot be used: {error.strerror or error}") from error

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StorageError(
                f"{self._path} was written by a newer proplet (schema {version}, this one knows {SCHEMA_VERSION}): "
                "install that version again, or move the file away to start empty"
            )
        for following in range(version + 1, SCHEMA_VERSION + 1):
            self._db.executescript(f"BEGIN; {_MIGRATIONS[following]} PRAGMA user_version={following}; COMMIT;")

    def _close(self) -> None:
        if hasattr(self, "_db"):
            try:
                if self._acknowledged:
                    self._commit(())
            except StorageError as error:
                log.warning("acknowledgements were not written, their results will be sent again: %s", error)
            self._db.close()

    def _storage_error(self, error: sqlite3.Error) -> StorageError:
        text = str(error)
        if "locked" in text or "busy" in text:
            return StorageError(
                f"{self._path} is in use by another node: stop that one, or give this one its own state"
            )
        if "full" in text:
            return StorageError(f"the disk that holds {self._path} is full: free some space, work goes on by itself")
        if "readonly" in text or "unable to open" in text:
            return StorageError(f"{self._path} cannot be written: check the owner and mode of its directory ({text})")
        if isinstance(error, sqlite3.DatabaseError) and ("malformed" in text or "not a database" in text):
            return StorageError(f"{self._path} is damaged ({text}): move it away to start empty")
        return StorageError(f"{self._path}: {text}")

    def _load(self) -> Recovered:
        self._sweep(by_age=False)  # a node that is switched off every night would never come to it
        try:
            return self._load_rows()
        except sqlite3.Error as error:
            raise self._storage_error(error) from error

    def _load_rows(self) -> Recovered:
        unfinished: list[RecoveredAttempt] = []
        finished: dict[RunKey, str] = {}
        rows = self._db.execute(
            "SELECT id, task_id, run, state, received_at, restarts, not_before, payload_hash, module_digest, start,"
            " image_digest FROM attempts ORDER BY id"
        )
        for row_id, task_id, run, word, received_at, restarts, not_before, payload_hash, digest, start, image in rows:
            key, state = RunKey(task_id, run), State(word)
            self._rows[key] = row_id
            if state in TERMINAL:
                finished[key] = payload_hash
                continue
            try:
                command = codec.decode_as(wire.Start, start)
            except codec.WireError as error:
                # Another version's command must not keep this one from starting; reported as interrupted.
                log.error("a command in the journal cannot be read and is not run: %s", error)  # noqa: TRY400
                command, state = wire.Start(task_id, "", ext=wire.StartTerms(attempt=run)), State.RUNNING
            unfinished.append(
                RecoveredAttempt(key, command, digest, payload_hash, state, received_at, restarts, not_before, image)
            )
        keys = {row_id: key for key, row_id in self._rows.items()}
        for seq, row_id in self._db.execute("SELECT seq, attempt FROM outbox WHERE attempt IS NOT NULL"):
            if row_id in keys:
                self._outbox[keys[row_id]] = seq
        return Recovered(tuple(unfinished), finished)

    def _commit(self, saves: Sequence[Save]) -> None:
        acknowledged, self._acknowledged = self._acknowledged, []
        rows, outbox = dict[RunKey, int](), dict[RunKey, int]()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                # First, so that a result delivered just now and asked for again is delivered again.
                self._db.executemany("UPDATE outbox SET sent = 1 WHERE seq = ?", ((s,) for s in acknowledged))
                for save in saves:
                    self._save(save, rows, outbox)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            self._acknowledged = acknowledged + self._acknowledged
            raise self._storage_error(error) from error
        self._rows |= rows
        self._outbox |= outbox
        self._since_sweep += len(saves)
        self._posted_bytes += sum(len(save.payload) for save in saves if isinstance(save, (SaveOutcome, SaveReply)))
        if self._since_sweep >= _SWEEP_SAVES or self._posted_bytes >= _SWEEP_BYTES:
            self._since_sweep = self._posted_bytes = 0
            self._sweep()

    def _save(self, save: Save, rows: dict[RunKey, int], outbox: dict[RunKey, int]) -> None:
        match save:
            case SaveAccepted(key, start, digest, payload_hash, received_at):
                rows[key] = self._insert(
                    "INSERT INTO attempts (task_id, run, state, received_at, payload_hash, module_digest, start)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        key.task_id,
                        key.run,
                        State.ACCEPTED.value,
                        received_at,
                        payload_hash,
                        digest,
                        codec.encode(start),
                    ),
                )
            case SaveState(key, state, _, restarts, not_before, image_digest):
                self._db.execute(
                    "UPDATE attempts SET state = ?, restarts = ?, not_before = ?,"
                    " image_digest = coalesce(?, image_digest) WHERE id = ?",
                    (state.value, restarts, not_before, image_digest, self._row(key, rows)),
                )
            case SaveOutcome(key, state, at, payload_hash, route, payload):
                row = rows.get(key) or self._rows.get(key)
                if row is None:
                    row = rows[key] = self._insert(
                        "INSERT INTO attempts (task_id, run, state, received_at, payload_hash) VALUES (?, ?, ?, ?, ?)",
                        (key.task_id, key.run, state.value, at, payload_hash),
                    )
                else:
                    self._db.execute("UPDATE attempts SET state = ?, start = NULL WHERE id = ?", (state.value, row))
                outbox[key] = self._post(route, payload, at, row)
            case SaveReply(route, payload, at):
                self._post(route, payload, at, None)
            case SaveResend(key):
                seq = outbox.get(key) or self._outbox.get(key)
                if seq is not None:  # delivered long ago and beyond the bound: there is nothing to repeat
                    outbox[key] = self._repeat(seq)
            case _:
                assert_never(save)

    def _row(self, key: RunKey, rows: dict[RunKey, int]) -> int:
        row = rows.get(key) or self._rows.get(key)
        assert row is not None, f"{key} was never accepted"
        return row

    def _insert(self, statement: str, values: tuple[object, ...]) -> int:
        row = self._db.execute(statement, values).lastrowid
        assert row is not None
        return row

    def _post(self, route: str, payload: bytes, at: float, row: int | None) -> int:
        return self._insert(
            "INSERT INTO outbox (created_at, attempt, route, payload) VALUES (?, ?, ?, ?)", (at, row, route, payload)
        )

    def _repeat(self, seq: int) -> int:
        """A message goes to the end of the queue, delivered or not: it may be on its way at this very moment."""
        row = self._db.execute("SELECT route, payload, created_at, attempt FROM outbox WHERE seq = ?", (seq,))
        found = row.fetchone()
        if found is None:
            return seq
        self._db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))
        return self._post(*found)

    def _pending(self, after: int, limit: int, noted: frozenset[int]) -> Sequence[OutboxRow]:
        try:
            rows = self._db.execute(
                "SELECT seq, route, payload FROM outbox WHERE sent = 0 AND seq > ? ORDER BY seq", (after,)
            )
            found, room = list[OutboxRow](), _PENDING_BYTES
            for row in rows:
                if row[0] not in noted:
                    found.append(OutboxRow(*row))
                    room -= len(found[-1].payload)
                if len(found) >= limit or room <= 0:
                    break
            rows.close()
            return found
        except sqlite3.Error as error:
            raise self._storage_error(error) from error

    def _unsent_attempts(self, noted: frozenset[int]) -> Sequence[RunKey]:
        try:
            rows = self._db.execute("SELECT seq FROM outbox WHERE sent = 0 AND attempt IS NOT NULL").fetchall()
        except sqlite3.Error as error:
            raise self._storage_error(error) from error
        unsent = {seq for (seq,) in rows} - noted
        return [key for key, seq in self._outbox.items() if seq in unsent]

    def _sweep(self, *, by_age: bool = True) -> None:
        """Hold the bounds. Runs now and then, in a transaction of its own; failing it costs only space."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            forgotten = self._bounds_held.run(by_age=by_age)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            log.warning("the journal could not be tidied: %s", self._storage_error(error))
            return
        for key in [k for k, row in self._rows.items() if row in forgotten]:
            del self._rows[key]
            self._outbox.pop(key, None)


@asynccontextmanager
async def open_journal(
    path: Path, bounds: OutboxBounds | None = None, clock: Callable[[], float] = time.time
) -> AsyncIterator[SqliteJournal]:
    """Open the journal at `path`, made if it is not there, for this process alone.

    Raises:
        StorageError: it cannot be used; the message says why (in use, full, not writable, damaged, newer).
    """
    journal = SqliteJournal(path, bounds or OutboxBounds(), clock)
    try:
        await journal._call(journal._open)  # noqa: SLF001 (its own module)
        yield journal
    finally:
        await journal._call(journal._close)  # noqa: SLF001
        journal._thread.shutdown()  # noqa: SLF001
