"""The watch over a worker, seen from outside: its memory, and where it has one job, its CPU time.

Place in the flow: `runtime_link` has one for each worker. The worker itself ends a guest that computes too long, and
the engine refuses linear memory; this is for what neither sees: the engine's own memory and CPU time on a guest's
behalf, and a guest that the worker cannot reach. Over a worker that is shared, only the sum can be judged. A limit of
the kernel's would not do: there whoever asks next is refused, or the process aborts, be it a neighbour's turn.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from proplet.agent.ports import GuestLimits, Job, ModuleKind
from proplet.agent.runtime_gauge import Gauge

_SOONEST_S, _LATEST_S = 0.1, 1.0
_BUSY_SHARE: Final = 0.02  # of a core: who computes less than this cannot take much memory either
# The worker enforces the limit itself, exactly; loading the module and starting the guest are not the guest's.
_CPU_ALLOWANCE_S: Final = 1.0
_KIB: Final = 1024
_STACK_MOST: Final = 2048 * _KIB  # the engine's largest
_THREAD: Final = 256 * _KIB  # the rest of a guest's thread: our own stack, what the allocator keeps for it
# Of each byte of output there are copies on its way out. A list of numbers takes most before it is text: 32 bytes an
# element in the engine, and as much as Python's.
_COPIES: Final = 4
_SWOLLEN: Final = 32


@dataclass(frozen=True, slots=True)
class Measured:
    """What the job's worker has used: CPU seconds since the job began, its memory now and at its peak, in bytes."""

    cpu_s: float | None = None
    private_bytes: int | None = None
    peak_bytes: int | None = None


class _Watch:
    """Over the worker with the process id `pid`; when to look at it again: seldom, while it does nothing."""

    def __init__(self, pid: int, allowance_bytes: int) -> None:
        self._gauge = Gauge(pid)
        self._allowance = allowance_bytes
        self._cpu_s = 0.0  # at the last look
        self.pause_s = _SOONEST_S

    @property
    def private_bytes(self) -> int | None:
        """The memory that the worker holds now, the compiled module not counted."""
        return self._gauge.private_bytes()

    def _look(self) -> float | None:
        """Return the CPU seconds so far, None if the worker is gone; set when to look again."""
        cpu_s = self._gauge.cpu_s()
        if cpu_s is None:
            return None
        busy = cpu_s - self._cpu_s > _BUSY_SHARE * self.pause_s
        self._cpu_s = cpu_s
        self.pause_s = _SOONEST_S if busy else min(2 * self.pause_s, _LATEST_S)
        return cpu_s


class Watch(_Watch):
    """Over the worker with the process id `pid`. `allowance_bytes` is what it may hold beyond the job's memory."""

    def __init__(self, pid: int, allowance_bytes: int) -> None:
        super().__init__(pid, allowance_bytes)
        self._used_before = False
        self._peak_is_the_jobs = True
        self._cpu_at_begin = 0.0

    def begin(self) -> None:
        """A job begins now. The first one's peak is the worker's since its start; later ones' begin anew."""
        self._peak_is_the_jobs = not self._used_before or self._gauge.forget_peak()
        self._used_before = True
        self._cpu_at_begin = self._cpu_s = self._gauge.cpu_s() or 0.0
        self.pause_s = _SOONEST_S

    def excess(self, limits: GuestLimits) -> str | None:
        """Why the job has to be ended, or None. Sets when to look again."""
        cpu_s = self._look()
        if cpu_s is None:
            return None
        if limits.cpu_s is not None and cpu_s - self._cpu_at_begin > limits.cpu_s + _CPU_ALLOWANCE_S:
            return "cpu_limit"
        if (self.private_bytes or 0) > limits.memory_bytes + self._allowance:
            return "memory_limit"
        return None

    @property
    def peak_bytes(self) -> int | None:
        """The worker's peak since the job began; None where the kernel does not tell."""
        return self._gauge.peak_bytes() if self._peak_is_the_jobs else None

    def measured(self) -> Measured:
        """Return all of it; before the worker is ended, for afterwards nobody can."""
        cpu_s = self._gauge.cpu_s()
        since = None if cpu_s is None else cpu_s - self._cpu_at_begin
        return Measured(since, self.private_bytes, self.peak_bytes)


class SharedWatch(_Watch):
    """Over the shared worker with the process id `pid`; `allowance_bytes` are beyond all that its guests may have."""

    def __init__(self, pid: int, allowance_bytes: int) -> None:
        super().__init__(pid, allowance_bytes)
        self._threads = 0
        self._stack = 0
        self._components = 0
        self._answer = 0

    def begin(self, jobs: Collection[Job], running: Collection[Job]) -> None:
        """`jobs` begin now, `running` are all that the worker has then: it has a thread for each, and they stay."""
        self._threads = max(self._threads, len(running))
        self._stack = max(self._stack, *(min(job.limits.stack_bytes, _STACK_MOST) for job in jobs))
        if answers := [job.limits.output_bytes for job in jobs if _is_component(job)]:
            self._answer = max(self._answer, *answers)
            self._components = max(self._components, sum(map(_is_component, running)))
        self.pause_s = _SOONEST_S

    def excess(self, jobs: Collection[Job]) -> str | None:
        """Say how much the worker holds if that is more than `jobs`, all that run there, may have; else None."""
        if self._look() is None:
            return None
        held = self.private_bytes or 0
        if held <= self._allowance:
            return None
        # Python keeps memory in which the least is still in use: of answers once made at the same time, up to half.
        answers = _SWOLLEN * self._components * self._answer
        allowed = self._allowance + self._stacks + answers + sum(map(_room, jobs))
        if held <= allowed:
            return None
        return (
            f"held {held >> 20} MiB of memory, more than the {allowed >> 20} MiB that its {len(jobs)} guests may have"
        )

    @property
    def worn(self) -> bool:
        """True if so much is left of jobs that have ended that the worker, which has none now, had better end, too."""
        return (self.private_bytes or 0) > self._allowance // 2 + self._stacks

    @property
    def _stacks(self) -> int:
        """What its threads may keep: how deep each once was."""
        return self._threads * (self._stack + _THREAD)

    def measured(self) -> Measured:
        """Return its memory; before the worker is ended, for afterwards nobody can."""
        return Measured(None, self.private_bytes, self._gauge.peak_bytes())


def _is_component(job: Job) -> bool:
    return job.artefact.kind is ModuleKind.COMPONENT


def _room(job: Job) -> int:
    """The most bytes that a worker holds for a job that does nothing odd, its stack and its answer's values apart."""
    limits = job.limits
    text = sum(map(len, (job.stdin, *job.inputs, *job.argv, *job.env, *job.env.values())))
    return limits.memory_bytes + _COPIES * (limits.output_bytes + text)
