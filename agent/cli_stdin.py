"""The standard input of ``proplet run``, for a guest: all of it, read before the guest begins.

`wasmtime run` hands its own on. So does this command, where there is some (a pipe, a socket, a file; not a terminal or
/dev/null) and the module imports what reads it: nobody is kept waiting for the end of a pipe that no guest reads.
"""

import os
import stat
import sys
from collections.abc import Sequence
from typing import Any, Final

import anyio

from proplet.agent.cache import CompileCache
from proplet.agent.ports import Artefact

_STDIN: Final = 0
_CHUNK: Final = 64 * 1024
_CORE_READS: Final = frozenset({("wasi_snapshot_preview1", "fd_read"), ("wasi_snapshot_preview1", "fd_pread")})
_COMPONENT_READS: Final = "wasi:cli/stdin@"


async def given(artefact: Artefact, *, asked: bool) -> bytes:
    """Return what is to be read: if `asked` for, from wherever; else as the module and this command's input are."""
    if sys.stdin is None:  # closed: its descriptor is something else by now
        return b""
    kind = os.fstat(_STDIN).st_mode
    if not asked and not (_is_data(kind) and _reads(artefact)):
        return b""
    read = bytearray()
    waits = os.isatty(_STDIN) or stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)  # others never block, nor can be waited for
    while True:
        if waits:
            await anyio.wait_readable(_STDIN)
        chunk = os.read(_STDIN, _CHUNK)
        if not chunk:
            return bytes(read)
        read += chunk


def _is_data(kind: int) -> bool:
    return stat.S_ISFIFO(kind) or stat.S_ISREG(kind) or stat.S_ISSOCK(kind)


def _reads(artefact: Artefact) -> bool:
    record = CompileCache(artefact.path.parent.parent, 0).find(artefact.path)
    imports: Sequence[Any] = () if record is None else record.imports
    if record is not None and record.kind == "component":
        return any(name.startswith(_COMPONENT_READS) for name in imports)
    return any(tuple(item) in _CORE_READS for item in imports)
