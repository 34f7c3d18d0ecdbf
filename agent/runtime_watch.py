"""The watch over a worker that has one job: its memory and CPU time, seen from outside.

Place in the flow: `runtime_link` has one for each worker that a job has to itself. The worker itself ends a guest that
computes too long, and the engine refuses linear memory; this is for what neither sees: the engine's own memory and CPU
time on a guest's behalf, and a guest that the worker cannot reach.
"""

from dataclasses import dataclass
from typing import Final

from proplet.agent.ports import GuestLimits
from proplet.agent.runtime_gauge import Gauge

_SOONEST_S, _LATEST_S = 0.1, 1.0
_BUSY_SHARE: Final = 0.02  # of a core: who computes less than this cannot take much memory either
# The worker enforces the limit itself, exactly; loading the module and starting the guest are not the guest's.
_CPU_ALLOWANCE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What the job's worker has used: CPU seconds since the job began, its memory now and at its peak, in bytes."""

    cpu_s: float | None = None
    private_bytes: int | None = None
    peak_bytes: int | None = None


class Watch:
    """Over the worker with the process id `pid`. `allowance_bytes` is what it may hold beyond the job's memory."""

    def __init__(self, pid: int, allowance_bytes: int) -> None:
        self._gauge = Gauge(pid)
        self._allowance = allowance_bytes
        self._used_before = False
        self._peak_is_the_jobs = True
        self._cpu_at_begin = 0.0
        self._cpu_s = 0.0
        self.pause_s = _SOONEST_S

    def begin(self) -> None:
        """A job begins now. The first one's peak is the worker's since its start; later ones' begin anew."""
        self._peak_is_the_jobs = not self._used_before or self._gauge.forget_peak()
        self._used_before = True
        self._cpu_at_begin = self._gauge.cpu_s() or 0.0
        self._cpu_s = 0.0
        self.pause_s = _SOONEST_S

    def excess(self, limits: GuestLimits) -> str | None:
        """Why the job has to be ended, or None. Sets when to look again: seldom, while the worker does nothing."""
        cpu_s = self._gauge.cpu_s()
        if cpu_s is None:
            return None
        cpu_s -= self._cpu_at_begin
        busy = cpu_s - self._cpu_s > _BUSY_SHARE * self.pause_s
        self._cpu_s = cpu_s
        self.pause_s = _SOONEST_S if busy else min(2 * self.pause_s, _LATEST_S)
        if limits.cpu_s is not None and cpu_s > limits.cpu_s + _CPU_ALLOWANCE_S:
            return "cpu_limit"
        if (self.private_bytes or 0) > limits.memory_bytes + self._allowance:
            return "memory_limit"
        return None

    @property
    def private_bytes(self) -> int | None:
        """The memory that the worker holds now, the compiled module not counted."""
        return self._gauge.private_bytes()

    @property
    def peak_bytes(self) -> int | None:
        """The worker's peak since the job began; None where the kernel does not tell."""
        return self._gauge.peak_bytes() if self._peak_is_the_jobs else None

    def measured(self) -> Measured:
        """Return all of it; before the worker is ended, for afterwards nobody can."""
        cpu_s = self._gauge.cpu_s()
        since = None if cpu_s is None else cpu_s - self._cpu_at_begin
        return Measured(since, self.private_bytes, self.peak_bytes)
