"""The machine that was measured, and how busy it was."""

import os
import platform
import subprocess
import time
from pathlib import Path
from statistics import median


def facts(scratch: Path) -> dict[str, str]:
    """What a reader must know to compare figures."""
    return {
        "CPU": f"{_cpu()}, {os.cpu_count()} cores, {platform.machine()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB",
        "system": f"{_system()}, kernel {platform.release()}",
        "Python": platform.python_version(),
        "mosquitto": _mosquitto(),
        "disk": f"{scratch} on {_file_system(scratch)}",
        "4 KiB made durable": sync_ms(scratch),
    }


def load() -> str:
    """The load averages now."""
    return "load average " + " ".join(f"{value:.2f}" for value in os.getloadavg())


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return "unknown"


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _mosquitto() -> str:
    from proplet.manager.broker import find_mosquitto

    program = find_mosquitto()
    if program is None:
        return "not installed"
    said = subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stdout
    return said.splitlines()[0].removeprefix("mosquitto version ") if said else "unknown"


def _file_system(path: Path) -> str:
    """The type of the file system that holds `path`, from the mount it is under."""
    found, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, name, *_ = line.split()
        if path.is_relative_to(mount) and len(mount) >= len(found):
            found, kind = mount, name
    return kind


def sync_ms(scratch: Path) -> str:
    """What the disk takes to make 4 KiB durable: the floor of everything that waits for it."""
    took = []
    with (scratch / "sync").open("wb", buffering=0) as file:
        for _ in range(50):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
            took.append(1000 * (time.perf_counter() - began))
    return f"{median(took):.2f} ms (median), {max(took):.1f} ms (worst of {len(took)})"
