"""A set of pieces that together are one file: taken in any order, kept on disk, read in their order.

Place in the flow: `module_requests` adds what arrives. Nothing that is said is believed: a total is fixed by the first
piece, indices are below it, a piece that comes twice must be the same, and all together stay within a limit. Pieces are
written one behind the other as they come, to a file without a name, so that a killed process leaves nothing behind.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

MAX_TOTAL: Final = 65_536  # pieces; what is remembered of each costs memory
_COPY_BYTES: Final = 256 * 1024
_MARK_BYTES: Final = 8


class PartsError(Exception):
    """The pieces cannot be those of one file of the allowed size; the message says why."""


class ConflictError(PartsError):
    """A piece contradicts earlier ones: they are of two files."""


class Parts:
    """The pieces of one file, of at most `limit` bytes. Touches the disk: `add` and `read` belong into a thread."""

    def __init__(self, directory: Path, limit: int) -> None:
        """Keep them in a file without a name in `directory`, made when the first piece comes. Sizes in bytes."""
        self._directory = directory
        self._limit = limit
        self._where: dict[int, tuple[int, int, bytes]] = {}  # offset, length and a mark of the content, by index
        self._spool: IO[bytes] | None = None
        self.total = 0
        self.size = 0

    @property
    def count(self) -> int:
        """How many pieces are here."""
        return len(self._where)

    @property
    def complete(self) -> bool:
        """Whether none is missing."""
        return self.total > 0 and len(self._where) == self.total

    def gap(self, most: int) -> tuple[int, int]:
        """Return where the first run of missing pieces begins, and how long it is, `most` at the longest."""
        end = self.total or most
        first = next((index for index in range(end) if index not in self._where), end)
        last = first
        while last < min(end, first + most) and last not in self._where:
            last += 1
        return first, last - first

    def add(self, index: int, total: int, data: bytes) -> bool:
        """Take one piece; return whether it is new.

        Raises:
            ConflictError: the total is another, or the piece came before and was different.
            PartsError: an index or a total that cannot be, nothing in the piece, or too much in all.
            OSError: the disk.
        """
        self._check(index, total, data)
        mark = hashlib.blake2b(data, digest_size=_MARK_BYTES).digest()
        if (known := self._where.get(index)) is not None:
            if known[2] != mark:
                raise ConflictError(f"piece {index} came twice and was not the same")
            return False
        if self.size + len(data) > self._limit:
            raise PartsError(f"more than the limit of {self._limit} bytes came: raise [modules] max_module_size")
        if self._spool is None:
            self._spool = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115  closed by `close`
        self._spool.seek(self.size)
        self._spool.write(data)
        self._where[index] = (self.size, len(data), mark)
        self.total = total
        self.size += len(data)
        return True

    def read(self) -> Iterator[bytes]:
        """Yield what is here, in the order of the pieces. Raises OSError."""
        for index in sorted(self._where):
            offset, left, _ = self._where[index]
            assert self._spool is not None
            self._spool.seek(offset)
            while left:
                data = self._spool.read(min(left, _COPY_BYTES))
                if not data:
                    raise OSError(5, "what was written cannot be read again")
                left -= len(data)
                yield data

    def close(self) -> None:
        """Forget everything; it can be begun anew."""
        if self._spool is not None:
            self._spool.close()
        self._spool = None
        self._where.clear()
        self.total = self.size = 0

    def _check(self, index: int, total: int, data: bytes) -> None:
        if not 0 < total <= MAX_TOTAL:
            raise PartsError(f"{total} pieces were announced; 1 to {MAX_TOTAL} are possible")
        if self.total and total != self.total:
            raise ConflictError(f"{total} pieces were announced, and {self.total} before")
        if not 0 <= index < total:
            raise PartsError(f"piece {index} of {total} came; they are counted from 0")
        if not data:
            raise PartsError(f"piece {index} of {total} is empty")
