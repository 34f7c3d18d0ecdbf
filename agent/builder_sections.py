"""What a core module declares, read from its binary: imports, exported functions with their types, memories.

Place in the flow: `builder` reads it after the compiler has accepted the module, and puts it into the cache's record.
The engine could be asked, but its C interface aborts the process at the first vector type in a signature.
Source: WebAssembly core specification 3.0, "Binary Format", "Modules".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

COMPONENT_LAYER: Final = b"\1\0"  # the second half of a component's version field; core modules have 0
_TYPES, _IMPORTS, _FUNCTIONS, _MEMORIES, _EXPORTS = 1, 2, 3, 5, 7
_FUNCTION, _TABLE, _MEMORY, _GLOBAL = range(4)
_FUNCTION_TYPE: Final = 0x60
_LONG_REFERENCES: Final = frozenset({0x63, 0x64})
_VALUE_TYPES: Final = {
    0x7F: "i32",
    0x7E: "i64",
    0x7D: "f32",
    0x7C: "f64",
    0x7B: "v128",
    0x70: "funcref",
    0x6F: "externref",
}

Signature = tuple[tuple[str, ...], tuple[str, ...]]


class SectionError(ValueError):
    """The binary is cut off, or has a form that this reader does not know."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A module's outside. `functions` are the exported ones by name, as (parameters, results)."""

    imports: tuple[tuple[str, str], ...]
    functions: dict[str, Signature]
    memories: tuple[str, ...]
    has_memory: bool


def declared(data: bytes) -> Declared:
    """Read what the valid core module `data` declares.

    Raises:
        SectionError: it is not valid after all, or uses types that are off here.
    """
    try:
        return _declared(data)
    except (IndexError, UnicodeDecodeError) as error:
        raise SectionError(f"the module ends within a section: {error}") from error


def _declared(data: bytes) -> Declared:
    types: list[Signature] = []
    imports: list[tuple[str, str]] = []
    functions: list[int] = []
    exports: list[tuple[str, int, int]] = []
    has_memory = False
    for section, reader, _ in sections(data):
        if section == _TYPES:
            types = [reader.function_type() for _ in range(reader.unsigned())]
        elif section == _IMPORTS:
            for _ in range(reader.unsigned()):
                imports.append((reader.name(), reader.name()))
                kind = reader.byte()
                has_memory |= kind == _MEMORY
                if kind == _FUNCTION:
                    functions.append(reader.unsigned())
                else:
                    reader.skip_import(kind)
        elif section == _FUNCTIONS:
            functions += [reader.unsigned() for _ in range(reader.unsigned())]
        elif section == _MEMORIES:
            has_memory |= reader.unsigned() > 0
        elif section == _EXPORTS:
            exports = [(reader.name(), reader.byte(), reader.unsigned()) for _ in range(reader.unsigned())]
    return Declared(
        imports=tuple(imports),
        functions={name: types[functions[index]] for name, kind, index in exports if kind == _FUNCTION},
        memories=tuple(name for name, kind, _ in exports if kind == _MEMORY),
        has_memory=has_memory,
    )


def sections(data: bytes | memoryview) -> Iterator[tuple[int, "Reader", memoryview]]:
    """Yield the sections of a module or component: number, a reader of the content, the content."""
    view = memoryview(data)
    reader = Reader(view, 8)
    while reader.at < len(view):
        section, size = reader.byte(), reader.unsigned()
        body = view[reader.at : reader.at + size]
        yield section, Reader(body, 0), body
        reader.at += size


class Reader:
    """A position in the binary."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data = data
        self.at = at

    def byte(self) -> int:
        """Read one byte."""
        self.at += 1
        return self._data[self.at - 1]

    def unsigned(self) -> int:
        """Read a number (LEB128)."""
        value, shift = 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    def name(self) -> str:
        """Read a string."""
        length = self.unsigned()
        self.at += length
        if self.at > len(self._data):
            raise SectionError("the module ends within a name")
        return bytes(self._data[self.at - length : self.at]).decode()

    def value_type(self) -> str:
        """Read a value type."""
        kind = self.byte()
        if kind in _LONG_REFERENCES:
            self.unsigned()  # the heap type; of a signed number only the length matters
            return "reference"
        return _VALUE_TYPES.get(kind, "reference")

    def function_type(self) -> Signature:
        """Read a type, which must be a function's."""
        if self.byte() != _FUNCTION_TYPE:
            raise SectionError("the module has types that are not functions")
        parameters = tuple(self.value_type() for _ in range(self.unsigned()))
        return parameters, tuple(self.value_type() for _ in range(self.unsigned()))

    def limits(self) -> None:
        """Read past the limits of a memory or table."""
        flags = self.byte()
        self.unsigned()
        if flags & 1:
            self.unsigned()

    def skip_import(self, kind: int) -> None:
        """Read past the type of an import that is no function."""
        if kind == _TABLE:
            self.value_type()
            self.limits()
        elif kind == _MEMORY:
            self.limits()
        elif kind == _GLOBAL:
            self.value_type()
            self.byte()
        else:
            raise SectionError(f"the module imports something of an unknown kind {kind}")
