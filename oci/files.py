"""Files that are whole or not there: temporary files with a live owner, atomic replacement, and the disk's errors."""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from proplet.oci.errors import DiskFull, StoreFailed, StoreReadOnly

_TEMPORARY = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def create_temporary(directory: Path) -> tuple[Path, BinaryIO]:
    """A new, locked file. Between making and locking it a cleaner may take it for a leftover: then once more."""
    while True:
        path = directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return path, os.fdopen(descriptor, "wb")
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files of writers that are gone: the kernel dropped their locks with them."""
    for path in directory.glob(f"{_TEMPORARY}*"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            pass  # its writer lives
        finally:
            os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Give a file new content, all or nothing, on the disk when this returns."""
    temporary, file = create_temporary(path.parent)
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Put the names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_space(directory: Path, size: int) -> None:
    """See that a file of this size can fit, before anything is transferred.

    Raises:
        DiskFull: it cannot.
    """
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free < size:
        raise DiskFull(f"{directory} has {free} bytes free, {size} are needed: free some space or move the store")


@contextmanager
def mapped(where: Path) -> Iterator[None]:
    """Errors of the file system become errors of this package."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                f"no space left for {where}: free some space or move the store ({error.strerror})"
            ) from error
        if error.errno in _READ_ONLY:
            message = (
                f"{error.filename or where} may not be written ({error.strerror}): the store needs a writable directory"
            )
            raise StoreReadOnly(message) from error
        raise StoreFailed(f"{where}: {error.strerror or error}") from error
