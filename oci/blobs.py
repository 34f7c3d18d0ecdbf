"""Blobs on their way into a store: written to a file beside their place, which gets its name when all of it is right.

Two kinds. A `BlobWriter` leaves nothing behind unless it was committed. A `PartialBlob` is for transfers: it is kept as
``blobs/<algorithm>/.partial-<hex>`` when it breaks off, by an error or by a kill, and continued by whoever wants the
same blob next. A lock on that file sees to it that one process at a time fetches a digest; those who waited find it.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from proplet.oci.digest import Digest, OverlappedHasher, VerifyingHasher
from proplet.oci.errors import ContentFault, DigestMismatch, StoreFault, Truncated
from proplet.oci.files import check_space, create_temporary, mapped, sync_directory

PARTIAL = ".partial-"

_CHUNK = 256 * 1024
_WRITE_BACK_BYTES = 8 * 1024 * 1024  # measured: a fifth of the time of a large pull is saved, more bytes save less
_LOCK_WAIT_S = 0.05


class BlobWriter:
    """One blob on its way into the store; a context manager that leaves nothing behind unless ``commit`` was called."""

    def __init__(self, directory: Path, expected: Digest | None, size: int | None, what: str) -> None:
        """Made by ``OciLayout.new_blob``."""
        self._directory = directory
        self._hasher = VerifyingHasher(expected, size, what)
        self._temporary, self._file = create_temporary(directory)

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            SizeMismatch: more than announced.
            DiskFull, StoreFailed: the file system refused them.
        """
        self._hasher.update(chunk)
        with mapped(self._directory):
            self._file.write(chunk)

    def commit(self) -> Digest:
        """Check, sync and publish the blob under its digest; returns it.

        Raises:
            SizeMismatch, DigestMismatch: it is not what was expected; nothing is published.
            DiskFull, StoreFailed: as for ``write``.
        """
        digest = self._hasher.finish()
        with mapped(self._directory):
            _publish(self._file, self._temporary, self._directory / digest.hex)
        self._file.close()
        return digest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            with suppress(OSError):  # closing flushes, which a full disk refuses
                self._file.close()


class PartialBlob:
    """A blob whose transfer can be continued; a context manager, in which nobody else fetches the same digest.

    ``count`` is how many bytes are there, all of them read and hashed again. A transfer goes on from there; one that
    cannot calls ``restart``. With ``is_present`` the blob is in the store, whole: there is nothing to transfer, and
    neither ``write`` nor ``commit`` may be called. With ``count == size`` only ``commit`` is left to do.

    What came is kept when the block ends without ``commit``, unless its error says that the bytes are wrong or that the
    disk refuses them. It is not synced before ``commit``: what a power failure makes of it is found by its digest.
    """

    def __init__(self, directory: Path, expected: Digest, size: int, what: str, pause: Callable[[float], None]) -> None:
        """Made by ``OciLayout.continue_blob``; waits for whoever fetches the same digest, by calling ``pause``."""
        self._directory = directory
        self._expected = expected
        self._what = what
        self.size = size
        self._path = directory / f"{PARTIAL}{expected.hex}"
        self._hasher = OverlappedHasher(expected, size, what)
        self._was_kept = False
        self._handed_over = 0
        self.is_present = False
        self._file = _lock(self._path, pause)
        try:
            self.is_present = self._find()
            if not self.is_present:
                self._take_up()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    @property
    def count(self) -> int:
        """How many bytes are there, from the blob's beginning."""
        return self.size if self.is_present else self._hasher.count

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            SizeMismatch: more than announced.
            DiskFull, StoreFailed: the file system refused them.
        """
        self._hasher.update(chunk)
        with mapped(self._directory):
            self._file.write(chunk)
            if self.count - self._handed_over >= _WRITE_BACK_BYTES:
                self._write_back()

    def restart(self) -> None:
        """Forget what is there: the transfer begins anew.

        Raises:
            StoreFailed: the file system refused it.
        """
        self._hasher.close()
        self._hasher = OverlappedHasher(self._expected, self.size, self._what)
        self._was_kept = False
        self._handed_over = 0
        with mapped(self._directory):
            self._file.seek(0)
            self._file.truncate()

    def commit(self) -> Digest:
        """Check, sync and publish the blob under its digest; returns it.

        Raises:
            Truncated: bytes are missing; they are kept, and the transfer may go on. Or the part that was kept from an
                earlier transfer was not right; it is gone, and the transfer may begin anew.
            DigestMismatch: it is not what was expected; nothing is published or kept.
            DiskFull, StoreFailed: as for ``write``.
        """
        try:
            digest = self._hasher.finish()
        except DigestMismatch:
            if not self._was_kept:
                raise
            self.restart()
            raise Truncated(f"what was kept of {self._what} was damaged and is removed: it is fetched anew") from None
        with mapped(self._directory):
            _publish(self._file, self._path, self._directory / digest.hex)
        self._file.close()
        return digest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hasher.close()
        if self._file.closed:
            return
        wrong = isinstance(error, ContentFault) and not isinstance(error, Truncated)
        if self.is_present or not self._hasher.count or wrong or isinstance(error, StoreFault):
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        with suppress(OSError):  # closing flushes, which a full disk refuses
            self._file.close()

    def _find(self) -> bool:
        """Whether the blob is in the store, whole; one that is not is removed. Only here, where nobody publishes it."""
        place = self._directory / self._expected.hex
        with mapped(self._directory):
            try:
                with place.open("rb") as file:
                    hasher = VerifyingHasher(self._expected, self.size, self._what)
                    for chunk in _chunks(file):
                        hasher.update(chunk)
                    hasher.finish()
            except FileNotFoundError:
                return False
            except ContentFault:
                place.unlink(missing_ok=True)
                return False
        return True

    def _write_back(self) -> None:
        """Let the disk begin while bytes still come; else all of them wait for the sync of ``commit``.

        Linux begins to write dirty pages that it is told are not needed, and keeps them until they are written; what
        goes wrong there, that sync reports.
        """
        self._file.flush()
        begin, self._handed_over = self._handed_over, self.count
        os.posix_fadvise(self._file.fileno(), begin, self.count - begin, os.POSIX_FADV_DONTNEED)

    def _take_up(self) -> None:
        """Hash what an earlier transfer left; what cannot be the beginning of the blob is forgotten."""
        with mapped(self._directory):
            there = os.fstat(self._file.fileno()).st_size
            if there > self.size:
                self.restart()
            for chunk in _chunks(self._file):
                self._hasher.update(chunk)
            check_space(self._directory, self.size - self.count)
        self._was_kept = self.count > 0
        self._handed_over = self.count
        if self.count == self.size:
            with _restarting(self):
                self._hasher.finish()


@contextmanager
def _restarting(blob: PartialBlob) -> Iterator[None]:
    try:
        yield
    except DigestMismatch:
        blob.restart()


def _lock(path: Path, pause: Callable[[float], None]) -> BinaryIO:
    """The file at this path, locked; made if it is not there.

    Whoever had the lock may have published or removed it since it was opened: then what is at the path now.
    """
    while True:
        with mapped(path):
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            while not _try_lock(descriptor):
                pause(_LOCK_WAIT_S)
            if _is_at(path, descriptor):
                return os.fdopen(descriptor, "r+b")
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    with mapped(path), suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _publish(file: BinaryIO, temporary: Path, place: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    temporary.rename(place)
    sync_directory(place.parent)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk
