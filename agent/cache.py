"""Compiled modules on disk: found by what they were compiled from and for, authenticated by the device's key.

Machine code has no integrity check of its own and runs as it is. So only this device writes it, into a directory of
mode 0700, and beside each file stands a record with a code (HMAC-SHA256) over the file and all that is believed of it;
who loads a file checks the code first, once per file and process. That is a defence against bit rot and copied caches,
not against somebody who already runs as this user.

Place in the flow: `fetch` looks up (agent process), `builder` publishes, `host` verifies (worker). Imports no wasmtime.
"""

import errno
import functools
import hashlib
import hmac
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from proplet.agent.engines import CRANELIFT

# The engine's configuration where it decides which modules are accepted and what code comes out; `host_engine` applies
# it. Off is what is young, rarely needed, or makes limits hard to hold (several memories, those beyond 4 GiB, threads).
FEATURES: Final = MappingProxyType(
    {
        "epoch_interruption": True,
        "wasm_threads": False,
        "wasm_memory64": False,
        "wasm_multi_memory": False,
        "wasm_relaxed_simd": False,
        "wasm_exceptions": False,
        "wasm_gc": False,
        "wasm_function_references": False,
        "wasm_wide_arithmetic": False,
        "wasm_custom_page_sizes": False,
        "wasm_stack_switching": False,
    }
)
#: Errors of a process that has no more of something, whatever file it was about.
SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_KEY_NAME: Final = "cache.key"
_KEY_BYTES: Final = 32
_FORM: Final = "proplet-compiled-2"
_TOUCH_S: Final = 3600.0  # recency is written no more often: every write wears the flash
_CHUNK: Final = 1024 * 1024
_FIELD_TYPES: Final[Mapping[str, type]] = MappingProxyType(
    {
        "module_digest": str,
        "metered": bool,
        "size": int,
        "has_memory": bool,
        "code": str,
        "functions": dict,
        "kind": str,
        "waits": bool,
        "serves_http": bool,
        "memory_count": int,
    }
)


class CacheError(Exception):
    """The cache's directory or key cannot be read or written; the message names the path. `full` if space ran out."""

    def __init__(self, message: str, *, full: bool = False) -> None:
        super().__init__(message)
        self.full = full


class RottenError(Exception):
    """A compiled file that is incomplete, changed, or another device's; it must not be loaded."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a compiled file.

    Of a core module, `imports` are (module, name) and `functions` the exported ones, as (parameters, results) by name.
    Of a component (`kind`), `imports` are interfaces, `functions` are `wit` JSON by ``name`` or ``instance#name``;
    `waits` and `serves_http` as in `ports.Artefact`.
    """

    module_digest: str
    metered: bool
    size: int
    has_memory: bool
    imports: Sequence[Any] = ()
    functions: Mapping[str, Any] = field(default_factory=dict)
    memories: Sequence[str] = ()
    kind: str = "core"
    waits: bool = False
    serves_http: bool = False
    memory_count: int = 1
    code: str = ""


def device_key(directory: Path) -> bytes:
    """Return this device's key, made on first use (mode 0600).

    Raises:
        CacheError: it cannot be read or made, or is not a key.
    """
    path = directory / _KEY_NAME
    with _mapped(path):
        for _ in range(2):
            with suppress(FileNotFoundError):
                key = path.read_bytes()
                if len(key) != _KEY_BYTES:
                    raise CacheError(f"{path} is not a device key: remove it, compiled modules are made again")
                return key
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = _write_temporary(path, secrets.token_bytes(_KEY_BYTES))
            # Of two processes that make a key at once, the first one's stays.
            with suppress(FileExistsError):
                os.link(temporary, path)
            temporary.unlink()
            _sync_directory(directory)
    raise CacheError(f"{path} cannot be made")


@functools.cache
def engine_identity(engine: str) -> str:
    """What compiled code depends on besides the module: the engine, its version and configuration, the machine."""
    from importlib.metadata import version

    return json.dumps([_FORM, engine, version("wasmtime"), sorted(FEATURES.items()), platform.machine()])


def compiled_name(module_digest: str, *, metered: bool, engine: str = CRANELIFT) -> str:
    """Return the file name under which a module's code for an engine of `engines` and this machine is kept."""
    text = f"{engine_identity(engine)}\n{module_digest}\n{metered}"
    return hashlib.sha256(text.encode()).hexdigest()[:40] + ".cwasm"


class CompileCache:
    """The directory of compiled modules, kept within a budget of bytes; least recently used ones go first."""

    def __init__(self, directory: Path, budget_bytes: int, engine: str = CRANELIFT) -> None:
        """Use ``directory``/compiled, made on first writing; `path` is for that engine."""
        self.directory = directory / "compiled"
        self._budget = budget_bytes
        self._engine = engine

    def path(self, module_digest: str, *, metered: bool) -> Path:
        """Where the compiled module is, or would be."""
        return self.directory / compiled_name(module_digest, metered=metered, engine=self._engine)

    def find(self, path: Path) -> Record | None:
        """Return the record of a complete compiled file, or None. Its content is not checked: see `verify`."""
        try:
            record = _read_record(path)
            status = path.stat()
        except (OSError, RottenError):
            return None
        if status.st_size != record.size:
            return None
        if time.time() - status.st_mtime > _TOUCH_S:
            with suppress(OSError):
                os.utime(path)
        return record

    def trim(self, keep: Path | None = None) -> None:
        """Remove the least recently used files until the rest fits the budget; leftovers of killed writers, too."""
        found = []
        with suppress(OSError):
            for path in self.directory.iterdir():
                with suppress(OSError):
                    status = path.stat()
                    if ".tmp-" in path.name and time.time() - status.st_mtime > _TOUCH_S:
                        path.unlink()
                    elif path.suffix == ".cwasm":
                        found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._budget:
                break
            if path != keep:
                discard(path)
                total -= size


def publish(path: Path, data: bytes | bytearray, record: Record, key: bytes) -> None:
    """Write a compiled file and its record; a crash in between leaves neither usable.

    Raises:
        CacheError: the disk is full or not writable.
    """
    with _mapped(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        _record_path(path).unlink(missing_ok=True)  # an old record must not speak for the new file
        code = _code(key, path.name, record, hashlib.sha256(data).digest())
        _replace(path, data)
        sealed = asdict(record) | {"code": code}
        _replace(_record_path(path), json.dumps(sealed).encode())
        _sync_directory(path.parent)


def discard(path: Path) -> None:
    """Remove a compiled file; one that a worker has loaded stays usable there."""
    with suppress(OSError):
        _record_path(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


class Digests:
    """The digests of the files that this process has read: one that is as it was is not read again.

    As it was by inode, time and size: nobody but this user writes in its directory, and every file comes there by a
    rename. Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int, int, int], bytes]] = {}

    def of(self, path: Path) -> bytes:
        """Return a file's SHA-256.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            state = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._known.get(path)
            if known is None or known[0] != state:
                known = self._known[path] = state, hashlib.file_digest(file, "sha256").digest()
            return known[1]


def verify(path: Path, key: bytes, digests: Digests | None = None) -> Record:
    """Check a compiled file against its record and the key; only then may it be loaded.

    With `digests` a file that this process has read before is not read again.

    Raises:
        RottenError: either is missing, incomplete, changed, or made with another key.
        OSError: this process lacks memory or descriptors, which says nothing about the files.
    """
    try:
        record = _read_record(path)
        digest = (digests or Digests()).of(path)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        raise RottenError(f"{path}: {error.strerror}") from error
    # As bytes: the comparison of texts fails with one that is not ASCII.
    told = record.code.encode(errors="replace")
    if not hmac.compare_digest(_code(key, path.name, record, digest).encode(), told):
        raise RottenError(f"{path} is not what this device compiled")
    return record


def _code(key: bytes, name: str, record: Record, content: bytes) -> str:
    claims = asdict(record)
    del claims["code"]
    text = json.dumps([_FORM, name, sorted(claims.items())]).encode()
    return hmac.digest(key, text + content, "sha256").hex()


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_record(path: Path) -> Record:
    try:
        fields: Any = json.loads(_record_path(path).read_bytes())
        record = Record(**fields)
    except (ValueError, TypeError) as error:
        raise RottenError(f"{_record_path(path)} is no record") from error
    if any(type(getattr(record, name)) is not kind for name, kind in _FIELD_TYPES.items()):
        raise RottenError(f"{_record_path(path)} is no record")
    return record


def _write_temporary(path: Path, data: bytes | bytearray) -> Path:
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            view = memoryview(data)
            for start in range(0, len(view), _CHUNK):
                file.write(view[start : start + _CHUNK])
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _replace(path: Path, data: bytes | bytearray) -> None:
    temporary = _write_temporary(path, data)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        where = error.filename or path
        raise CacheError(
            f"{where}: {error.strerror or error}; the cache needs a writable directory with free space", full=full
        ) from error
