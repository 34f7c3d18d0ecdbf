"""How much memory is free on this machine now, and what compiling a module may take of it."""

from contextlib import suppress
from pathlib import Path
from typing import Final

_MIB: Final = 1024 * 1024
_LEAST: Final = 64 * _MIB
# Measured (x86-64, wasmtime 50): 10 modules of 0.2 to 26 MB, of five languages. Small ones cost more for each byte.
_BASE: Final = 30 * _MIB
_LARGE: Final = 4 * _MIB
_FACTORS_LARGE, _FACTORS_SMALL = (12, 26), (16, 66)


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return what the kernel would give without swapping, within this process's cgroup; None if it does not tell."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        group = cgroups / (proc / "self" / "cgroup").read_text(encoding="ascii").rpartition("0::")[2].strip().lstrip(
            "/"
        )
        most = int((group / "memory.max").read_text(encoding="ascii"))  # "max" is no number
        found.append(max(0, most - int((group / "memory.current").read_text(encoding="ascii"))))
    return min(found, default=None)


def compile_cap(configured: int, available: int | None) -> int:
    """Return what a builder may use: as configured, but three quarters of what is available, and at least 64 MiB."""
    if available is None:
        return configured
    return min(configured, max(_LEAST, available * 3 // 4))


def compile_need(module_bytes: int) -> tuple[int, int]:
    """Return what compiling a module of this size was seen to take, the least and the most, in bytes."""
    least, most = _FACTORS_LARGE if module_bytes >= _LARGE else _FACTORS_SMALL
    return _BASE + least * module_bytes, _BASE + most * module_bytes
