"""Pins: what a process needs of the store, told to every other process for as long as it lives.

A pin is a shared lock of one byte of the file ``.pins``, at a place that the digest says; who removes blobs takes the
same byte for itself first. So any number of pins cost one descriptor, what is not in the store yet can be pinned, too,
and the kernel drops the pins of a killed process. Locks: open file description locks, fcntl(2), Linux 3.15; that two
digests share a byte is as good as impossible, and would only keep one of them a little longer.
"""

import errno
import fcntl
import os
import struct
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from proplet.oci.digest import Digest
from proplet.oci.files import mapped

#: How often the use of a blob is noted, in seconds.
NOTED_S: Final = 24 * 3600.0

_NAME: Final = ".pins"
_FLOCK: Final = struct.Struct("@hhqqi0q")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_EVERYTHING: Final = 1 << 62  # beyond every digest's place
_BUSY: Final = {errno.EAGAIN, errno.EACCES}


def note_use(root: Path, digest: Digest, now: float | None = None) -> None:
    """Note in the store at `root` that a blob is used, at most once a day: every note is a write to the flash."""
    now = time.time() if now is None else now
    path = root / "blobs" / digest.algorithm / digest.hex
    with suppress(OSError):
        if abs(now - path.stat().st_mtime) > NOTED_S:
            os.utime(path, (now, now))


class Pins:
    """The pins of one holder. Not for several threads at once; closing it, or its process's end, drops them.

    Raises:
        StoreReadOnly, StoreFailed: the file of pins can be neither made nor read.
    """

    def __init__(self, root: Path) -> None:
        """Pins in the store at `root`."""
        self._descriptor = _open(root)
        self._root = root
        self._held: Counter[Digest] = Counter()

    def hold(self, digest: Digest, *, wait: bool = False) -> bool:
        """Keep a blob in the store; counted. False, and no pin, if it is just being removed and `wait` is not given.

        What one had to wait for may be gone: look for the blob after pinning it, not before.

        Raises:
            StoreFailed: the kernel has no more locks.
        """
        if not self._held[digest]:
            with mapped(self._root):
                if not _lock(self._descriptor, fcntl.F_RDLCK, _place(digest), wait=wait):
                    return False
        self._held[digest] += 1
        return True

    def release(self, digest: Digest) -> None:
        """Take back one `hold`; without one, nothing happens."""
        if self._held[digest] > 1:
            self._held[digest] -= 1
        elif self._held.pop(digest, 0):
            with mapped(self._root):
                _lock(self._descriptor, fcntl.F_UNLCK, _place(digest))

    def holds(self, digest: Digest) -> bool:
        """Whether this holder has pinned it."""
        return digest in self._held and self._held[digest] > 0

    def hold_everything(self) -> None:
        """Let nothing at all be removed, by waiting for whoever is at it: until it is known what is needed."""
        with mapped(self._root):
            _lock(self._descriptor, fcntl.F_RDLCK, _EVERYTHING, wait=True)

    def release_everything(self) -> None:
        """From now on, only what is pinned stays."""
        with mapped(self._root):
            _lock(self._descriptor, fcntl.F_UNLCK, _EVERYTHING)

    def close(self) -> None:
        """Drop all pins."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._held.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Claims:
    """What one process is about to remove, and nobody can pin meanwhile; a context manager.

    `looking`: nothing is taken, only asked for, and nobody is kept from pinning.
    """

    def __init__(self, root: Path, *, looking: bool = False) -> None:
        """Claims in the store at `root`."""
        self._lock = _could_lock if looking else _lock
        self._descriptor = _open(root)
        self._root = root

    def everything_is_held(self) -> bool:
        """Whether somebody wants all to stay; if not, that has to wait until this is closed."""
        with mapped(self._root):
            return not self._lock(self._descriptor, fcntl.F_WRLCK, _EVERYTHING)

    def claim(self, digest: Digest) -> bool:
        """Take a blob to remove it; False if it is pinned."""
        with mapped(self._root):
            return self._lock(self._descriptor, fcntl.F_WRLCK, _place(digest))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def _open(root: Path) -> int:
    path = root / _NAME
    with mapped(root):
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            if not path.exists():
                raise
        # Enough for a pin: of a store that may only be read, nobody removes anything.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _place(digest: Digest) -> int:
    return int(digest.hex[:16], 16) >> 2


def _lock(descriptor: int, kind: int, place: int, *, wait: bool = False) -> bool:
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(descriptor, command, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def _could_lock(descriptor: int, kind: int, place: int) -> bool:
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] == fcntl.F_UNLCK)
