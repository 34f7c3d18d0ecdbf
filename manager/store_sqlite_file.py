"""The SQLite file of the store: its lock, schema, contents, and how its errors are told.

Spec and status are in tables of their own, so that a status write rewrites a few hundred bytes and not the spec; module
bytes are kept once per digest. Everything here blocks and is called from one thread at a time.
"""

import fcntl
import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from proplet.manager import store_codec
from proplet.manager.model import RESOURCES, Kind, Meta, PropellerJob, Resource, Task, TaskSpec
from proplet.manager.ports import ChangeType, StoreError, StoreUnavailableError
from proplet.manager.store_table import Place, Record, Table, Write

SCHEMA_VERSION: Final = 1
_APPLICATION: Final = 0x70726F70  # "prop"

# No index but the row's number: `store_table` sees to what is unique, and each index costs a page a write.
_SCHEMA: Final = """
CREATE TABLE resources (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    uid TEXT NOT NULL,
    created_at REAL NOT NULL,
    generation INTEGER NOT NULL,
    meta TEXT NOT NULL,
    spec TEXT NOT NULL,
    file BLOB
);
CREATE TABLE states (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, updated_at REAL NOT NULL, status TEXT NOT NULL);
CREATE TABLE files (digest BLOB PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE deleted (id INTEGER PRIMARY KEY CHECK (id = 0), revision INTEGER NOT NULL);
INSERT INTO deleted VALUES (0, 0);
"""
_LOAD: Final = """
SELECT r.kind, r.namespace, r.name, r.uid, r.created_at, r.generation, r.meta, r.spec, r.file,
       s.version, s.updated_at, s.status, r.id
FROM resources r JOIN states s ON s.id = r.id ORDER BY r.id
"""


class StoreCorruptError(StoreError):
    """The file is damaged or is no store; it is left as it is."""


class StoreInUseError(StoreError):
    """Another process has the store open."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Where a resource is in the file, and the digest of its module."""

    id: int
    file: bytes | None


@dataclass(slots=True)
class _Step:
    """What a commit changes in memory once it is durable."""

    following: int
    rows: dict[Place, _Row | None] = field(default_factory=dict)
    uses: Counter[bytes] = field(default_factory=Counter)
    modules: dict[bytes, bytes] = field(default_factory=dict)

    def release(self, row: _Row) -> None:
        """The row no longer uses its module."""
        if row.file is not None:
            self.uses[row.file] -= 1


def with_shared_modules(resource: Resource, modules: Mapping[bytes, bytes]) -> Resource:
    """Return a Task or a job with the module bytes of `modules` (by digest) where they are the same, in memory once."""
    seen: dict[bytes, bytes] = {}

    def shared(spec: TaskSpec) -> TaskSpec:
        if not spec.file:
            return spec
        digest = hashlib.sha256(spec.file).digest()
        known = modules.get(digest) or seen.setdefault(digest, spec.file)
        return spec if known is spec.file else replace(spec, file=known)

    if isinstance(resource, Task):
        spec = shared(resource.spec)
        return resource if spec is resource.spec else replace(resource, spec=spec)
    if isinstance(resource, PropellerJob):
        tasks = tuple(map(shared, resource.spec.tasks))
        if any(new is not old for new, old in zip(tasks, resource.spec.tasks, strict=True)):
            return replace(resource, spec=replace(resource.spec, tasks=tasks))
    return resource


class StoreFile:
    """One open store file. `modules` holds the module bytes by digest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: dict[bytes, bytes] = {}
        self._rows: dict[Place, _Row] = {}
        self._uses: Counter[bytes] = Counter()
        self._next = 1
        with _told(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(path)
        try:
            with _told(path):
                self._db = self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> sqlite3.Connection:
        # SQLite gives its other files the mode of this one; it holds credentials of proplets.
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            self._check_version(db)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA journal_size_limit = 4194304")
            db.execute("PRAGMA cache_size = -1024")
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        except BaseException:
            db.close()
            raise
        if verdict != "ok":
            db.close()
            raise StoreCorruptError(_damaged(self.path, verdict))
        return db

    def _check_version(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version > SCHEMA_VERSION and application == _APPLICATION:
            raise StoreError(
                f"{self.path} was written by a newer proplet (schema {version}, this one knows {SCHEMA_VERSION}): "
                "install that version again, or give this node another state directory"
            )
        if tables and application != _APPLICATION:
            raise StoreCorruptError(
                f"{self.path} is another program's database: give this node another state directory"
            )
        if not tables:
            db.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA}; PRAGMA application_id = {_APPLICATION}; "
                f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT"
            )

    def load(self) -> Table:
        """Return everything the file holds. Raises StoreCorruptError."""
        with _told(self.path):
            table = Table()
            (revision,) = self._db.execute("SELECT revision FROM deleted").fetchone()
            for digest, content in self._db.execute("SELECT digest, content FROM files"):
                if hashlib.sha256(content).digest() != digest:
                    raise StoreCorruptError(_damaged(self.path, "a module does not match its digest"))
                self.modules[digest] = content
            for row in self._db.execute(_LOAD):
                try:
                    resource = self._resource(row)
                except (ValueError, KeyError, TypeError) as error:
                    raise StoreCorruptError(_damaged(self.path, f"{row[0]} {row[1]}/{row[2]}: {error}")) from error
                table.load(resource)
                self._rows[resource.kind, resource.meta.key] = _Row(row[-1], row[8])
                self._next = row[-1] + 1
                if row[8] is not None:
                    self._uses[row[8]] += 1
                revision = max(revision, resource.meta.version)
            table.revision = revision
            return table

    def _resource(self, row: tuple) -> Resource:  # type: ignore[type-arg]
        kind_name, namespace, name, uid, created, generation, meta_text, spec_text, file, version, updated, status = (
            row[:12]
        )
        kind = Kind(kind_name)
        meta = store_codec.load(
            Meta,
            meta_text,
            name=name,
            namespace=namespace,
            uid=uid,
            created_at=created,
            updated_at=updated,
            generation=generation,
            version=version,
        )
        state = store_codec.load(store_codec.STATUSES[kind], status)
        given = {"file": b"" if file is None else self.modules[file]} if kind is Kind.TASK else {}
        resource = RESOURCES[kind](meta, store_codec.load(store_codec.SPECS[kind], spec_text, **given), state)
        return resource if kind is Kind.TASK else with_shared_modules(resource, self.modules)

    def commit(self, writes: Sequence[Write]) -> None:
        """Make changes durable, all or none.

        Raises:
            StoreUnavailableError: it could not be written; nothing was changed.
            StoreCorruptError: the file is damaged.
        """
        step = _Step(self._next)
        with _told(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for write in writes:
                    self._write(write, step)
                dropped = [digest for digest, change in step.uses.items() if self._uses[digest] + change <= 0]
                for digest in dropped:
                    self._db.execute("DELETE FROM files WHERE digest = ?", (digest,))
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        self._next = step.following
        for place, row in step.rows.items():
            if row is None:
                self._rows.pop(place, None)
            else:
                self._rows[place] = row
        self._uses.update(step.uses)
        self.modules.update(step.modules)
        for digest in dropped:
            self.modules.pop(digest, None)
            del self._uses[digest]

    def _write(self, write: Write, step: _Step) -> None:
        resource, meta, db = write.change.resource, write.change.resource.meta, self._db
        place = (resource.kind, meta.key)
        if write.change.type is ChangeType.ADDED:
            row = _Row(step.following, self._keep(resource, step))
            step.following += 1
            step.rows[place] = row
            head = (row.id, resource.kind.value, meta.namespace, meta.name, meta.uid, meta.created_at, meta.generation)
            body = (_meta(meta), store_codec.dump(resource.spec), row.file)
            db.execute("INSERT INTO resources VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*head, *body))
            state = (row.id, meta.version, meta.updated_at, store_codec.dump(resource.status))
            db.execute("INSERT INTO states VALUES (?, ?, ?, ?)", state)
            return
        row = step.rows.get(place) or self._rows[place]
        if write.change.type is ChangeType.DELETED:
            step.release(row)
            step.rows[place] = None
            db.execute("DELETE FROM resources WHERE id = ?", (row.id,))
            db.execute("DELETE FROM states WHERE id = ?", (row.id,))
            db.execute("UPDATE deleted SET revision = ?", (write.change.version,))
        elif isinstance(write.operation, Record):
            db.execute(
                "UPDATE states SET version = ?, updated_at = ?, status = ? WHERE id = ?",
                (meta.version, meta.updated_at, store_codec.dump(resource.status), row.id),
            )
        else:
            step.release(row)
            step.rows[place] = row = _Row(row.id, self._keep(resource, step))
            db.execute(
                "UPDATE resources SET generation = ?, meta = ?, spec = ?, file = ? WHERE id = ?",
                (meta.generation, _meta(meta), store_codec.dump(resource.spec), row.file, row.id),
            )
            db.execute(
                "UPDATE states SET version = ?, updated_at = ? WHERE id = ?", (meta.version, meta.updated_at, row.id)
            )

    def _keep(self, resource: Resource, step: _Step) -> bytes | None:
        """Have the resource's module in the file, once; return its digest."""
        if not isinstance(resource, Task) or not resource.spec.file:
            return None
        digest = hashlib.sha256(resource.spec.file).digest()
        if digest not in self.modules and digest not in step.modules:
            self._db.execute("INSERT INTO files VALUES (?, ?)", (digest, resource.spec.file))
            step.modules[digest] = resource.spec.file
        step.uses[digest] += 1
        return digest

    def close(self) -> None:
        """Close the file and let go of it."""
        try:
            self._db.close()
        finally:
            os.close(self._lock)


def _meta(meta: Meta) -> str:
    kept = Meta(
        "",
        labels=meta.labels,
        annotations=meta.annotations,
        owner=meta.owner,
        finalizers=meta.finalizers,
        deleted_at=meta.deleted_at,
    )
    return store_codec.dump(kept)


def _lock(path: Path) -> int:
    """Take the lock beside the file; SQLite's own locks vanish when anything in the process closes the file."""
    lock = path.with_name(path.name + ".lock")
    handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
        os.close(handle)
        raise StoreInUseError(
            f"{path} is in use by process {owner or 'unknown'}: stop it, or give this node another state directory"
        ) from None
    except BaseException:
        os.close(handle)
        raise
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode("ascii"), 0)
    except OSError:
        os.close(handle)
        raise
    return handle


def _damaged(path: Path, detail: str) -> str:
    return (
        f"{path} is damaged ({' '.join(detail.split())}): stop the node, move the file and its -wal and -shm aside, "
        "and put back a copy or start without; tasks and proplets can be applied again from their manifests"
    )


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say what happened to the file, and what to do, instead of what SQLite says."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = (getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StoreCorruptError(_damaged(path, str(error))) from error
        if code == sqlite3.SQLITE_FULL:
            raise StoreUnavailableError(f"{path} cannot grow: the disk is full; free some space") from error
        raise StoreUnavailableError(
            f"{path} cannot be written ({error}); check the disk, its mount and the file's owner"
        ) from error
    except OSError as error:
        raise StoreUnavailableError(f"{error.filename or path} cannot be used: {error.strerror}") from error
