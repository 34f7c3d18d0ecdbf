"""What a process and its children use: memory, CPU time, bytes written. All from /proc, in bytes and seconds."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_TRIES = 5


def tree(pid: int) -> dict[int, str]:
    """The process and its descendants, each with what it is in the node."""
    main = psutil.Process(pid)
    found = {pid: "agent"}
    for child in main.children(recursive=True):
        try:
            words = child.cmdline()
            module = next((word for word in words if word.startswith("proplet.")), None)
            found[child.pid] = module.rsplit(".", 1)[-1] if module else child.name()
        except psutil.NoSuchProcess:
            continue
    return found


def cpu_s(pid: int) -> float:
    """CPU time of all its threads so far, to the nanosecond where the clock ticks of `times` are 10 ms."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def whole_cpu_s(pid: int) -> float:
    """CPU time so far, also that of threads that have ended, which `cpu_s` forgets; to 10 ms."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def written(pid: int) -> int:
    """Bytes it has sent to a disk (pages made dirty, as the kernel accounts them)."""
    return next(
        int(line.split()[1])
        for line in Path(f"/proc/{pid}/io").read_text().splitlines()
        if line.startswith("write_bytes")
    )


def total(pid: int, what: Callable[[int], float]) -> float:
    """The sum of a measure over the tree; who ends meanwhile is left out."""
    found = 0.0
    for member in tree(pid):
        try:
            found += what(member)
        except OSError:
            continue
    return found


def pss(pid: int) -> int:
    """Its proportional set size: every shared page divided by those who share it, whoever they are."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no Pss")


@dataclass(frozen=True)
class Memory:
    """The memory of a tree: `pss` by process, and `alone`, what it would be if nobody else shared a page with it."""

    pss: Mapping[str, int]
    alone: int

    @property
    def total(self) -> int:
        return sum(self.pss.values())


def memory(pid: int) -> Memory:
    """Measure a tree. Pages of files that its members share are counted once in `alone`."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError, ProcessLookupError):  # a member has just ended
            return _measured(pid)
    raise RuntimeError(f"the processes of {pid} come and go")


def _measured(pid: int) -> Memory:
    members = tree(pid)
    by_name: dict[str, int] = {}
    private, shared = 0, dict[tuple[str, ...], int]()
    for member, name in members.items():
        by_name[name] = by_name.get(name, 0) + pss(member)
        own, files = _mappings(member)
        private += own
        for key, size in files.items():
            shared[key] = max(size, shared.get(key, 0))
    return Memory(by_name, private + sum(shared.values()))


def _mappings(pid: int) -> tuple[int, dict[tuple[str, ...], int]]:
    """Private bytes, and the shared ones by file and offset."""
    private, shared, key = 0, dict[tuple[str, ...], int](), ("",)
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            key = tuple(words[2:5]) if words[4] != "0" else (str(pid), words[0])
        elif words[0] in ("Private_Clean:", "Private_Dirty:"):
            private += int(words[1]) * 1024
        elif words[0] in ("Shared_Clean:", "Shared_Dirty:"):
            shared[key] = shared.get(key, 0) + int(words[1]) * 1024
    return private, shared


def wait_for(met: Callable[[], bool], within_s: float, what: str) -> None:
    """Look every 50 ms until it is so; an error says what was not."""
    end = time.monotonic() + within_s
    while not met():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        pause(0.05)


def pause(seconds: float) -> None:
    """Let time pass: the one thing a measurement over a window does."""
    import threading

    threading.Event().wait(seconds)
