"""The names a WebAssembly component imports and exports, read from its binary without a compiler.

Source: component model, design/mvp/Binary.md ("Component Definitions", "Import and Export Definitions"). Only the
two sections of the outermost component are read, everything else is skipped by its size.
"""

import os
from dataclasses import dataclass
from typing import BinaryIO

from proplet.oci.errors import NotWasm

_IMPORTS, _EXPORTS = 10, 11
_PREAMBLE = 8
_MAX_SECTION_BYTES = 4 * 1024 * 1024
_MAX_NAMES = 10_000


@dataclass(frozen=True, slots=True)
class Names:
    """What a component imports and exports, in the order it does."""

    imports: tuple[str, ...]
    exports: tuple[str, ...]


def component_names(file: BinaryIO) -> Names:
    """The names of the component that begins where the seekable file stands.

    Raises:
        NotWasm: its sections cannot be read.
    """
    found: dict[int, list[str]] = {_IMPORTS: [], _EXPORTS: []}
    start = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(start + _PREAMBLE)
    while section := file.read(1):
        size = _section_size(file)
        if size > end - file.tell():
            raise NotWasm("the component ends in the middle of a section: it is damaged")
        if section[0] not in found:
            file.seek(size, os.SEEK_CUR)
            continue
        if size > _MAX_SECTION_BYTES:
            raise NotWasm(f"the component has {size} bytes of names, more than {_MAX_SECTION_BYTES}")
        reader = _Reader(file.read(size))
        for _ in range(reader.count()):
            found[section[0]].append(reader.import_() if section[0] == _IMPORTS else reader.export())
        if sum(map(len, found.values())) > _MAX_NAMES:
            raise NotWasm(f"the component has more than {_MAX_NAMES} imports and exports")
    return Names(tuple(found[_IMPORTS]), tuple(found[_EXPORTS]))


def _section_size(file: BinaryIO) -> int:
    value = shift = 0
    while shift < 35:
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if not byte[0] & 0x80:
            return value
    raise NotWasm("the component ends in the middle of a section: it is damaged")


class _Reader:
    """One section's bytes; everything it cannot read is NotWasm."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def count(self) -> int:
        """The length of a vector; each of its items has at least three bytes."""
        number = self._number()
        if number > len(self._data) // 3:
            raise NotWasm("the component has a section that is shorter than it says: it is damaged")
        return number

    def import_(self) -> str:
        name = self._name()
        self._description()
        return name

    def export(self) -> str:
        name = self._name()
        if self._byte() == 0:  # a core sort has a second byte
            self._byte()
        self._number()
        if self._flag():
            self._description()
        return name

    def _name(self) -> str:
        kind = self._byte()
        name = self._text()
        if kind == 2:  # with attributes, such as a version suffix
            for _ in range(self._number()):
                self._byte()
                self._text()
        elif kind > 2:
            raise NotWasm(f"the component has a name of an unknown kind {kind}")
        return name

    def _description(self) -> None:
        """Skip an ``externdesc``."""
        kind = self._byte()
        if kind == 0:
            self._byte()  # a core module
            self._number()
        elif kind in {1, 4, 5}:  # function, component, instance: the index of its type
            self._number()
        elif kind in {2, 3}:  # a value equal to or of a type, a type equal to another or a new one
            bound = self._flag()
            if not bound or kind == 2:
                self._number()
        else:
            raise NotWasm(f"the component imports or exports something of an unknown kind {kind}")

    def _flag(self) -> bool:
        byte = self._byte()
        if byte > 1:
            raise NotWasm("the component has a section that cannot be read: it is damaged")
        return bool(byte)

    def _byte(self) -> int:
        return self._take(1)[0]

    def _number(self) -> int:
        value = shift = 0
        while shift < 35:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value
        raise NotWasm("the component has a number that is too long: it is damaged")

    def _text(self) -> str:
        try:
            return self._take(self._number()).decode()
        except UnicodeDecodeError:
            raise NotWasm("the component has a name that is no text: it is damaged") from None

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise NotWasm("the component has a section that ends early: it is damaged")
        self._at += count
        return taken
