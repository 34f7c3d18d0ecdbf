"""Where an archive of images is read from: a directory, a tar archive, a compressed one, or a stream.

What can only be read once is first laid down beside the store, bounded, in a file that goes with its process; so
everything here can be read in any order. Nothing of an archive's names is ever used as a path outside it.
"""

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from proplet.oci.errors import InvalidArchive
from proplet.oci.files import create_temporary, mapped
from proplet.oci.tarball import members

_CHUNK = 256 * 1024
_GZIP = b"\x1f\x8b"
_OTHERS = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"PK\x03\x04": "zip"}
# Modules seldom shrink to less than a tenth; a bomb to a thousandth.
_MAX_RATIO = 100
_ALWAYS_BYTES = 64 * 1024 * 1024
_MAX_BYTES = 64 * 1024**3


class Source(Protocol):
    """The files of an image layout, by their names in it."""

    name: str

    def size(self, name: str) -> int | None:
        """How many bytes a file has; None where there is none."""
        ...

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file that is there."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """A small file that is there.

        Raises:
            InvalidArchive: it has more than ``limit`` bytes.
        """
        ...


@contextmanager
def open_source(path: Path | BinaryIO, name: str, spool: Path) -> Iterator[Source]:
    """An archive, opened: a directory, a file, or a stream; ``spool`` is a directory for what must be unpacked.

    Raises:
        InvalidArchive: it is none, or a bomb.
        StoreFault: it cannot be read, or there is no room to unpack it.
    """
    if isinstance(path, Path) and path.is_dir():
        yield _Directory(path, name)
        return
    with ExitStack() as stack:
        if isinstance(path, Path):
            with _readable(name):
                stream: BinaryIO = stack.enter_context(path.open("rb", buffering=0))
        else:
            stream = path
        head = _Head(stream)
        for magic, what in _OTHERS.items():
            if head.start.startswith(magic):
                raise InvalidArchive(f"{name} is compressed with {what}: only gzip is understood, unpack it first")
        if head.start.startswith(_GZIP) or not _can_seek(stream):
            stream = stack.enter_context(_spooled(head, name, spool))
        yield _Tar(stream, name)


class _Tar:
    """A seekable tar archive."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file = file
        try:
            with _readable(name):
                found = list(members(file))
        except InvalidArchive as error:
            raise InvalidArchive(str(error).replace("the archive", name, 1)) from None
        self._members = {member.name: member for member in found}
        if len(self._members) != len(found):
            raise InvalidArchive(f"{name} has two files of one name: make it again")

    def size(self, name: str) -> int | None:
        member = self._members.get(name)
        return None if member is None else member.size

    def chunks(self, name: str) -> Iterator[bytes]:
        member = self._members[name]
        at, end = member.offset, member.offset + member.size
        while at < end:
            with _readable(self.name):
                self._file.seek(at)
                chunk = self._file.read(min(_CHUNK, end - at))
            if not chunk:
                raise InvalidArchive(f"{self.name} ends in the middle of {name}: copy it again")
            at += len(chunk)
            yield chunk

    def read(self, name: str, limit: int) -> bytes:
        return _whole(self, name, limit)


class _Directory:
    """A layout in a directory. Links are not followed: it may be on a stranger's USB stick."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._path = path

    def size(self, name: str) -> int | None:
        with suppress(FileNotFoundError, NotADirectoryError), _readable(self.name):
            descriptor = self._open(name)
            try:
                return os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
        return None

    def chunks(self, name: str) -> Iterator[bytes]:
        with _readable(self.name):
            file = os.fdopen(self._open(name), "rb")
        with file:
            while True:
                with _readable(self.name):
                    chunk = file.read(_CHUNK)
                if not chunk:
                    return
                yield chunk

    def read(self, name: str, limit: int) -> bytes:
        return _whole(self, name, limit)

    def _open(self, name: str) -> int:
        """The file's descriptor, step by step from the top, so that nothing on the way can be a link."""
        *parents, last = name.split("/")
        flags = os.O_RDONLY | os.O_CLOEXEC
        at = os.open(self._path, flags | os.O_DIRECTORY)
        try:
            for parent in parents:
                inner = os.open(parent, flags | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = inner
            found = os.open(last, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) and not self._is_link(name):
                raise
            if self._is_link(name):
                raise InvalidArchive(f"{name} in {self.name} is a link: only files are read") from None
            raise
        finally:
            os.close(at)
        if not stat.S_ISREG(os.fstat(found).st_mode):
            os.close(found)
            raise InvalidArchive(f"{name} in {self.name} is no file")
        return found

    def _is_link(self, name: str) -> bool:
        steps = [self._path.joinpath(*name.split("/")[:count]) for count in range(1, name.count("/") + 2)]
        return any(step.is_symlink() for step in steps)


class _Head:
    """A stream whose first bytes were looked at, and that counts."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.start = b""
        while len(self.start) < 8 and (more := stream.read(8 - len(self.start))):
            self.start += more
        self._left = self.start
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        if self._left:
            cut = len(self._left) if size < 0 else size
            data, self._left = self._left[:cut], self._left[cut:]
        else:
            data = self._stream.read(size if size >= 0 else _CHUNK) or b""
        self.count += len(data)
        return data


@contextmanager
def _spooled(head: _Head, name: str, directory: Path) -> Iterator[BinaryIO]:
    """What the stream holds, unpacked, in a file that is gone afterwards."""
    with mapped(directory):
        path, file = create_temporary(directory)
    try:
        with file:
            for chunk in _unpacked(head, name):
                with mapped(directory):
                    file.write(chunk)
            with mapped(directory):
                file.flush()
            with path.open("rb") as written:
                yield written
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _unpacked(head: _Head, name: str) -> Iterator[bytes]:
    count = 0
    packed = head.start.startswith(_GZIP)
    reader = gzip.GzipFile(fileobj=head, mode="rb") if packed else head  # type: ignore[call-overload]
    while True:
        try:
            chunk = reader.read(_CHUNK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidArchive(f"{name} is damaged or cut short ({error}): copy it again") from None
        except OSError as error:
            raise InvalidArchive(f"{name} cannot be read: {error.strerror or error}") from None
        if not chunk:
            return
        count += len(chunk)
        if count > _MAX_BYTES or (packed and count > _ALWAYS_BYTES + _MAX_RATIO * head.count):
            raise InvalidArchive(f"{name} unpacks to far more than an archive of modules does: not read")
        yield chunk


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise InvalidArchive(f"{name} cannot be read: {error.strerror or error}") from None


def _can_seek(stream: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode) and stream.seekable()
    except OSError:
        return False


def _whole(source: Source, name: str, limit: int) -> bytes:
    size = source.size(name)
    if size is None or size > limit:
        raise InvalidArchive(f"{name} in {source.name} has {size} bytes, more than {limit}")
    return b"".join(source.chunks(name))[:limit]
