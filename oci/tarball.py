"""Tar archives, read with suspicion and written the same each time.

Source: POSIX.1-2024, pax, "ustar Interchange Format" and "pax Interchange Format"; for long names and large sizes the
GNU tar manual, "Basic Tar Format". Not Python's ``tarfile`` for reading: it takes extended headers of any size into
memory, and follows links.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from proplet.oci.errors import InvalidArchive

BLOCK = 512
END = bytes(2 * BLOCK)

_MAX_HEADER_BYTES = 64 * 1024  # of one extended header; ours have none
_MAX_MEMBERS = 100_000
_MAX_NAME = 4096
_MAX_DIGITS = 19
_FILE, _DIRECTORY = "0\0007", "5"  # "7" is a contiguous file, which POSIX treats as a plain one
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = "x", "g", "L", "K"


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive: its name, and where in the archive its bytes are."""

    name: str
    offset: int
    size: int


def members(file: BinaryIO) -> Iterator[Member]:
    """The plain files of a seekable archive, in its order; directories are passed over.

    Raises:
        InvalidArchive: damaged, cut short, or with anything but plain files and directories.
    """
    end = file.seek(0, 2)
    at, count = 0, 0
    name: str | None = None
    size: int | None = None
    while header := _header(file, at, end):
        count += 1
        if count > _MAX_MEMBERS:
            raise InvalidArchive(f"the archive has more than {_MAX_MEMBERS} members")
        kind = chr(header[156])
        own_size = _number(header[124:136])
        at += BLOCK
        if kind in {_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK}:
            data = _extension(file, at, own_size, end)
            if kind == _LONG_NAME:
                name = _text(data)
            elif kind != _LONG_LINK:
                told = _pax(data)
                if kind == _PAX_GLOBAL and told.keys() & {"path", "size"}:
                    raise InvalidArchive("the archive gives all its members one name or size: not read")
                name = told.get("path", name)
                size = _decimal(told["size"]) if "size" in told else size
            at += _padded(own_size)
            continue
        found = Member(_safe(_own_name(header) if name is None else name), at, own_size if size is None else size)
        name = size = None
        if kind in _FILE and not found.name.endswith("/"):
            if found.size > end - at:
                raise InvalidArchive(f"the archive ends in the middle of {found.name}: copy it again")
            yield found
            at += _padded(found.size)
        elif kind not in _DIRECTORY and kind not in _FILE:
            raise InvalidArchive(f"{found.name} in the archive is a link or a device: only files are read")


def header(name: str, size: int) -> bytes:
    """What stands before a file in an archive: readable for all, of nobody, from no time."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """What stands behind a file of this many bytes."""
    return bytes(_padded(size) - size)


def _header(file: BinaryIO, at: int, end: int) -> bytes:
    """The next member's header; nothing where the archive ends."""
    if at >= end:
        if at == 0:
            raise InvalidArchive("the archive is empty")
        return b""
    file.seek(at)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise InvalidArchive("the archive ends in the middle of a header: copy it again")
    if not any(block):
        return b""
    blank = block[:148] + b" " * 8 + block[156:]
    told = block[148:156].strip(b"\0 ")
    if told.strip(b"01234567") or int(told or b"0", 8) != sum(blank):
        what = "is no tar archive" if at == 0 else "is damaged: a header has a wrong checksum; copy it again"
        raise InvalidArchive(f"the archive {what}")
    return block


def _extension(file: BinaryIO, at: int, size: int, end: int) -> bytes:
    if size > _MAX_HEADER_BYTES:
        raise InvalidArchive(f"the archive has an extended header of {size} bytes, more than {_MAX_HEADER_BYTES}")
    if size > end - at:
        raise InvalidArchive("the archive ends in the middle of a header: copy it again")
    file.seek(at)
    return file.read(size)


def _pax(data: bytes) -> dict[str, str]:
    """Records of the form ``LENGTH KEY=VALUE``, each with a newline at its end."""
    told = {}
    at = 0
    while at < len(data):  # not cut off from the front: thousands of short records would be copied each time
        digits, space, _ = data[at : at + _MAX_DIGITS + 1].partition(b" ")
        length = _decimal(digits.decode("ascii", "replace")) if space else 0
        record = data[at : at + length]
        at += length
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if length < len(digits) + 3 or len(record) != length or record[-1:] != b"\n" or not equals:
            raise InvalidArchive("the archive has an extended header that cannot be read")
        told[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    if any(key.startswith("GNU.sparse.") for key in told):
        raise InvalidArchive("the archive has a sparse file: make it without --sparse")
    return told


def _own_name(header: bytes) -> str:
    name = _text(header[:100])
    # GNU's variant has other things where POSIX has the prefix.
    if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
        return f"{prefix}/{name}"
    return name


def _safe(name: str) -> str:
    """The name, with nothing in it that leads elsewhere.

    Raises:
        InvalidArchive: it is absolute, climbs, or could move a cursor.
    """
    parts = name.split("/")
    if not name or len(name) > _MAX_NAME or name.startswith("/") or ".." in parts or not name.isprintable():
        raise InvalidArchive(f"the archive has a member with the name {name[:80]!r}, which leads out of it: not read")
    tail = "/" if name.endswith("/") or name == "." else ""
    return "/".join(part for part in parts if part not in {"", "."}) + tail


def _number(field: bytes) -> int:
    """A header's number: octal digits, or GNU's base 256."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    if digits.strip(b"01234567"):
        raise InvalidArchive("the archive has a header that cannot be read: it is damaged")
    return int(digits or b"0", 8)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise InvalidArchive("the archive has an extended header that cannot be read")
    return int(text)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
