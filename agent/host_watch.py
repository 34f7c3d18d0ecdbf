"""Who runs in this worker, and the thread that ends those who have had enough.

A guest is interrupted by the engine's epoch: every store has a deadline of one tick, and at a tick each running guest
calls back, on its own thread, into `on_tick`, which ends it if it was cancelled and lets it go on otherwise. So a tick
happens only when somebody is to be ended (or measured), never by the clock: no ticker costs anything, and one guest's
end is nothing but a moment's pause to the others. The watch sleeps until the nearest wall deadline, or the earliest
moment at which a guest could have used up its CPU time; that it reads from the kernel's clock of the guest's thread.
"""

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from proplet.agent import host_ffi

_STEP_S: Final = 0.01  # how exactly CPU time is enforced; also the least pause between two looks
_SLEEPER_STEP_S: Final = 1.0
_LONGEST_WAIT_S: Final = 86_400.0  # a deadline may be farther away than the clock's calls accept
_FOREVER: Final = float("inf")

# The reasons a run is cancelled with; the values are wire.Reason's.
STOPPED, TIMEOUT, CPU_LIMIT = "stopped", "timeout", "cpu_limit"

_numbers = itertools.count(1)
_by_number: dict[int, "Run"] = {}


class Run:
    """One guest that runs, or is about to, on this thread. Its thread owns it; others read, and set `cancelled`."""

    def __init__(self, wall_s: float | None, cpu_s: float | None) -> None:
        self.number = next(_numbers)
        self.cancelled: str | None = None
        self.exit_code: int | None = None
        self.memory_bytes: int | None = None
        self.has_stdin = False
        self.has_files = False
        self.clock_origin_ns = 0
        self.memories: list[Any] = []
        self.started = time.monotonic()
        self.wall_due = _FOREVER if wall_s is None else self.started + wall_s
        self.cpu_limit = cpu_s
        self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        self._cpu_start = time.thread_time()
        self._wake: threading.Event | None = None
        self.sleeping = False

    def cpu_s(self) -> float:
        """CPU seconds of the guest's thread since the start; from any thread."""
        return time.clock_gettime(self._cpu_clock) - self._cpu_start

    def sleep(self, seconds: float) -> bool:
        """Wait on the guest's behalf; False if it was cancelled."""
        if self._wake is None:
            self._wake = threading.Event()
        # A cancel sets `cancelled` first and looks for `_wake` then; here it is the other way round.
        if self.cancelled is None:
            self.sleeping = True
            self._wake.wait(seconds)
            self.sleeping = False
        return self.cancelled is None

    def cancel(self, reason: str) -> None:
        """Mark it as to be ended, the first reason stays. The engine's tick must follow."""
        if self.cancelled is None:
            self.cancelled = reason
        if self._wake is not None:
            self._wake.set()

    def next_look(self, now: float) -> float:
        """When its limits have to be looked at next, at the earliest; cancels it if one is exceeded."""
        if self.cancelled is not None:
            return _FOREVER
        if now >= self.wall_due:
            self.cancel(TIMEOUT)
            return _FOREVER
        if self.cpu_limit is None:
            return self.wall_due
        left = self.cpu_limit - self.cpu_s()
        if left <= 0:
            self.cancel(CPU_LIMIT)
            return _FOREVER
        return min(self.wall_due, now + max(left, _SLEEPER_STEP_S if self.sleeping else _STEP_S))


class Watch:
    """The runs of this process and their limits."""

    def __init__(self, tick: Callable[[], None]) -> None:
        """`tick` increments the epoch of every engine that may run a guest."""
        self._tick = tick
        self._runs: dict[int, Run] = {}
        self._next_look = _FOREVER
        self._signal: queue.SimpleQueue[None] = queue.SimpleQueue()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def add(self, run: Run) -> None:
        """Watch `run` from now on; call on the thread that runs it."""
        self._runs[run.number] = run
        _by_number[run.number] = run
        due = run.wall_due
        if run.cpu_limit is not None:
            due = min(due, run.started + run.cpu_limit)
        if due < self._next_look:
            self._signal.put(None)

    def remove(self, run: Run) -> None:
        """The run has ended."""
        self._runs.pop(run.number, None)
        _by_number.pop(run.number, None)

    def cancel(self, run: Run, reason: str) -> None:
        """End `run` soon, whether it computes or sleeps."""
        run.cancel(reason)
        self._tick()

    def refresh(self) -> None:
        """Let every computing guest note its memory."""
        self._tick()

    def _watch(self) -> None:
        while True:
            wait_s = min(max(0.0, self._next_look - time.monotonic()), _LONGEST_WAIT_S)
            with contextlib.suppress(queue.Empty):
                self._signal.get(timeout=wait_s)
            # Whoever is added while we look finds nothing announced yet, and signals again.
            self._next_look = _FOREVER
            now = time.monotonic()
            runs = list(self._runs.values())
            due = min((run.next_look(now) for run in runs), default=_FOREVER)
            self._next_look = due
            if any(run.cancelled is not None for run in runs):
                self._tick()


def _on_tick(handle: Any, number: int) -> bool:
    run = _by_number.get(number)
    if run is None or run.cancelled is not None:
        return False
    note_memory(run, handle)
    return True


_ON_TICK: Final = host_ffi.tick_callback(_on_tick)


def note_memory(run: Run, handle: Any) -> None:
    """Note how large the guest's memories are; on its own thread only."""
    if run.memories:
        run.memory_bytes = sum(host_ffi.memory_size(handle, memory) for memory in run.memories)


def obey_ticks(store: Any, run: Run) -> None:
    """Make `store` call back at the next tick. Check `run.cancelled` after this: an earlier tick is not seen."""
    host_ffi.obey_ticks(store, _ON_TICK, run.number)
