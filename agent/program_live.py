"""One job in the wasmtime program: what it has said, why it is being ended, and the watch over it.

Place in the flow: `program` decides what is started; here a child that was started is followed to its end.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import anyio

from proplet.agent.ports import Job, Notice, Output, Sample, Serving
from proplet.agent.program_child import ProgramChild
from proplet.agent.program_ports import listens
from proplet.agent.program_settings import ProgramSettings
from proplet.agent.runtime_gauge import Gauge
from proplet.agent.runtime_watch import Measured, Watch
from proplet.agent.wire import Reason

_TAIL_BYTES: Final = 4096
_READY_LOOK_S: Final = 0.02
_DEAF_LOOK_S: Final = 5.0
_FOREVER: Final = float("inf")


@dataclass(slots=True, eq=False)
class Live:
    """A job from its arrival to its outcome. `port` is where it is to serve, None if it only runs.

    `ending` is why it is being ended, and `waiting` what that cuts short before its child is there; `code` how the
    child ended; `measured` what it used, seen before its end.
    """

    job: Job
    tell: Callable[[Notice], None]
    settings: ProgramSettings
    port: int | None = None
    serves: bool = False
    ending: Reason | None = None
    why: str = ""
    code: int | None = None
    measured: Measured = field(default_factory=Measured)
    begun_at: float = 0.0
    said: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})
    tail: bytearray = field(default_factory=bytearray)
    child: ProgramChild | None = None
    waiting: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    _kill_at: float = _FOREVER
    _changed: anyio.Event = field(default_factory=anyio.Event)
    _watch: Watch | None = None
    _cpu_before_s: float = 0.0

    async def follow(self, child: ProgramChild) -> None:
        """Follow a child to its end, which `code` then tells. Cancelled, it kills the child."""
        self.child, self.code, self.begun_at, self.serves = child, None, time.monotonic(), False
        self.tail.clear()
        self._watch = Watch(child.pid, self.settings.compile_bytes)
        self._watch.begin()
        try:
            if self.ending is not None:  # while it was started
                child.send(signal.SIGKILL)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child.listen, self._hear)
                tasks.start_soon(self._mind, child)
                self.code = await child.wait()
                self._measure_all(child)
                self._changed.set()
        finally:
            self.child = self._watch = None
            await child.aclose()

    def end(self, reason: Reason, why: str, *, now: bool = False) -> None:
        """End it soon, for the first reason that is given; unless `now`, requests under way may come to their end."""
        if self.ending is not None:
            return
        self.ending, self.why = reason, why
        self.waiting.cancel()
        if self.child is not None:
            self.child.send(signal.SIGINT if self.serves and not now else signal.SIGKILL)
            self._kill_at = time.monotonic() + self.settings.stop_s
        self._changed.set()

    def sample(self) -> Sample:
        """Return what it uses; nothing before its child is there."""
        if self._watch is None or self.child is None:
            return Sample()
        measured = self._watch.measured()
        return Sample(measured.cpu_s, measured.private_bytes, time.monotonic() - self.begun_at, self.child.pid)

    def last_words(self) -> str:
        """The last lines of the program's errors."""
        return "\n".join(self.tail.decode(errors="replace").strip().splitlines()[-5:])

    def _hear(self, stream: str, data: bytes) -> None:
        kept, most = self.said[stream], self.job.limits.output_bytes
        if self.job.daemon:  # of what stays, the last is of interest
            kept += data
            del kept[: max(0, len(kept) - most)]
        else:
            kept += data[: max(0, most - len(kept))]
        if stream == "stderr":
            self.tail += data
            del self.tail[:-_TAIL_BYTES]
        self.tell(Output(stream, data))

    async def _mind(self, child: ProgramChild) -> None:
        """See that it serves, ends in time and stays within its limits."""
        watch, looked_at = self._watch, 0.0
        wall_s = self.job.limits.wall_s
        while self.code is None and watch is not None:
            now = time.monotonic()
            self._measure(watch)
            if now >= self._kill_at:
                child.send(signal.SIGKILL)
            if self.ending is None:
                if self.port is not None and not self.serves:
                    watch = self._look_whether_it_serves(child, watch, now)
                elif self.port is not None and now - looked_at > _DEAF_LOOK_S:
                    looked_at = now
                    if not listens(child.pid, self.port):
                        self.end(Reason.WORKER_CRASHED, f"it did not listen on port {self.port} any more")
                if wall_s is not None and now - self.begun_at > wall_s:
                    self.end(Reason.TIMEOUT, f"ended after {wall_s:g} s, its limit of time")
                self._see_limits(watch)
            pause_s = watch.pause_s
            if self.port is not None and not self.serves:  # soon, if it need not be compiled; that can take minutes
                pause_s = min(pause_s, max(_READY_LOOK_S, (now - self.begun_at) / 10))
            due = min(self._kill_at, _FOREVER if wall_s is None else self.begun_at + wall_s)
            if due > now:
                pause_s = min(pause_s, due - now)
            with anyio.move_on_after(pause_s):
                await self._changed.wait()
            if self._changed.is_set():
                self._changed = anyio.Event()

    def _measure(self, watch: Watch) -> None:
        measured = watch.measured()
        if measured.peak_bytes is not None:  # else it has just ended
            self.measured = measured

    def _measure_all(self, child: ProgramChild) -> None:
        """The kernel has measured what ended; its peak includes the compiling, a service's is the last one seen."""
        peak_bytes = self.measured.peak_bytes if self.serves else child.peak_bytes
        self.measured = replace(self.measured, cpu_s=child.cpu_s - self._cpu_before_s, peak_bytes=peak_bytes)

    def _look_whether_it_serves(self, child: ProgramChild, watch: Watch, now: float) -> Watch:
        assert self.port is not None
        if listens(child.pid, self.port):
            self.serves, self.begun_at = True, now
            gauge = Gauge(child.pid)
            gauge.forget_peak()
            self._cpu_before_s = gauge.cpu_s() or 0.0
            # What it needed to compile is not the guest's.
            watch = self._watch = Watch(child.pid, self.settings.allowance_bytes + (watch.private_bytes or 0))
            watch.begin()
            self.tell(Serving(self.port))
        elif now - self.begun_at > self.settings.start_s:
            self.end(Reason.INTERNAL, f"it did not begin to serve within {self.settings.start_s:g} s")
        return watch

    def _see_limits(self, watch: Watch) -> None:
        excess = watch.excess(self.job.limits)
        if excess == "cpu_limit":
            self.end(Reason.CPU_LIMIT, f"ended after {self.job.limits.cpu_s or 0:g} s of CPU time, its limit", now=True)
        elif excess is not None:
            held, allowed = (watch.private_bytes or 0) / 2**20, self.job.limits.memory_bytes / 2**20
            self.end(
                Reason.MEMORY_LIMIT,
                f"ended because its program held {held:.0f} MiB: the guest may have {allowed:.0f} MiB of memory, all "
                "its requests together",
                now=True,
            )
