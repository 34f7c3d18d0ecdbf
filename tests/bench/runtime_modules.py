"""The modules whose starts are measured, from 42 bytes to tens of megabytes; made here, or cached by the tests."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.rows import Plan
from tests.support.guests import GUESTS
from tests.support.modules import ADDITION, bulky
from tests.systemd.machine import CACHE

FUNCTION_BYTES = 330  # of `bulky`
_CODE_SECTION = 10
_CODE_BYTES = 11  # of `ADDITION`, with the section's head


@dataclass(frozen=True)
class Start:
    """A module and how it is run; `cold_once`: its compilation takes long, `large`: its authentication, too."""

    name: str
    data: bytes
    inputs: Sequence[str] = ("1",)
    argv: Sequence[str] = ()
    export: str = "main"
    cold_once: bool = False
    large: bool = False


def all_starts(plan: Plan) -> Iterator[Start]:
    """Yield them in order of size."""
    yield Start("42 B", ADDITION, ("1", "1"))
    yield Start("30 KB", bulky(30_000 // FUNCTION_BYTES))
    yield Start("1 MB", bulky(1_000_000 // FUNCTION_BYTES), cold_once=True)
    if not plan.quick:
        yield _largest()
    yield Start("32 MB, nearly all data", with_data(32_000_000), ("1", "1"), cold_once=True, large=True)


def _largest() -> Start:
    """CPython if the tests have fetched it, else as much code of ours."""
    path = CACHE / f"guest-{GUESTS['cpython'].sha256[:12]}.wasm"
    if path.is_file():
        return Start("26 MB, CPython", path.read_bytes(), (), ("--version",), "_start", cold_once=True, large=True)
    return Start("10 MB", bulky(10_000_000 // FUNCTION_BYTES), cold_once=True, large=True)


def with_data(size: int) -> bytes:
    """Return the addition with so many bytes of data that nothing can compress: much to load, nothing to compile."""
    head, code = ADDITION[:-_CODE_BYTES], ADDITION[-_CODE_BYTES:]
    assert code[0] == _CODE_SECTION
    segment = b"\1\1" + leb(size) + random.Random(size).randbytes(size)
    return head + b"\x0c\1\1" + code + b"\x0b" + leb(len(segment)) + segment


def distinct() -> Iterator[bytes]:
    """Yield additions without end that differ in nothing but their digest."""
    for number in itertools.count():
        name = f"n{number:08}".encode()
        yield ADDITION + b"\0" + leb(len(name) + 1) + leb(len(name)) + name


def leb(value: int) -> bytes:
    """An unsigned LEB128."""
    found = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        found.append(low | (0x80 if value else 0))
        if not value:
            return bytes(found)
