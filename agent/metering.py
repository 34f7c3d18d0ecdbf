"""Measures what tasks use while they run and lie ready, publishes that, and counts for the device's own metrics.

Place in the flow: `presence` says which runs begin and end; the runtime is asked when a measurement is due. Of a task
whose monitoring profile was given there is a last one when it ends, however soon. All of it is telemetry: when the
broker is away, live measurements are left out, and the last ones wait, so many of them.
"""

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import anyio

from proplet.agent import wire
from proplet.agent.events import Outcome, RunKey, Spent, StartKind
from proplet.agent.ports import Link, Runtime, Sample
from proplet.agent.task_meter import TaskMeter
from proplet.agent.vitals import Vitals
from proplet.agent.wire import MeterTerms, Reason

_LAST_MAX: Final = 256
_AWAY_S: Final = 1.0  # how often it is looked for the broker while last measurements wait

#: What a latent task's invocations have cost so far, and the runtime's keys of those under way.
Tally = Callable[[], tuple[Spent, Collection[str]]]


@dataclass(slots=True)
class Counts:
    """What runs there were on this device since the node was started, invocations aside."""

    started: int = 0
    starts: dict[str, int] = field(default_factory=lambda: {kind.value: 0 for kind in StartKind})  # of those ended
    ended: dict[str, int] = field(default_factory=lambda: {"completed": 0, "failed": 0, "stopped": 0})
    cpu_s: float = 0.0
    run_s: float = 0.0
    connects: int = 0
    modules: dict[str, int] = field(default_factory=lambda: {"cache": 0, "build": 0})


@dataclass(slots=True)
class _Metered:
    start: wire.Start
    meter: TaskMeter
    restarts: int = 0
    tally: Tally | None = None  # of a latent task
    told: int = 0  # invocations


class Metering:
    """The meters of one node's tasks."""

    def __init__(self, proplet_id: str, runtime: Runtime, vitals: Vitals) -> None:
        self.counts = Counts()
        self._proplet_id = proplet_id
        self._runtime = runtime
        self._vitals = vitals
        self._runs: dict[RunKey, _Metered] = {}
        self._ready: dict[RunKey, _Metered] = {}
        self._last: deque[wire.TaskMetrics] = deque(maxlen=_LAST_MAX)
        self._changed = anyio.Event()
        self._wakes_at = math.inf

    @property
    def running(self) -> int:
        """How many runs are under way, invocations aside."""
        return len(self._runs)

    @property
    def ready(self) -> int:
        """How many latent tasks lie ready."""
        return len(self._ready)

    def tasks(self) -> dict[str, str]:
        """Return the task of each run under way, invocations included, by the runtime's key."""
        found = {str(key): key.task_id for key in self._runs}
        for key, metered in self._ready.items():
            if metered.tally is not None:
                found |= dict.fromkeys(metered.tally()[1], key.task_id)
        return found

    # --- what happens -----------------------------------------------------------------------------------------------

    def began(self, key: RunKey, start: wire.Start, restarts: int) -> None:
        """A guest runs now."""
        self.counts.started += 1
        self._runs[key] = metered = _Metered(start, self._meter(start), restarts)
        self._expect(metered)

    def deployed(self, key: RunKey, start: wire.Start, tally: Tally) -> None:
        """A latent task lies ready."""
        self._ready[key] = metered = _Metered(start, self._meter(start), tally=tally)
        self._expect(metered)

    def prepared(self, kind: StartKind) -> None:
        """A module was made ready."""
        self.counts.modules["build" if kind is StartKind.COLD else "cache"] += 1

    def ended(self, key: RunKey, outcome: Outcome, kind: StartKind | None) -> None:
        """A run is over."""
        metered = self._runs.pop(key, None)
        if metered is None:
            return  # it never began
        self._count(outcome, kind)
        if metered.meter.wants_end:
            one, aggregated = metered.meter.end(outcome, time.monotonic())
            ext = MeterTerms(cpu_seconds=outcome.cpu_s, final=True)
            self._last.append(self._message(key, metered, one, aggregated, ext))
            self._changed.set()

    def retired(self, key: RunKey) -> None:
        """A latent task lies ready no more."""
        metered = self._ready.pop(key, None)
        if metered is not None and metered.tally is not None and metered.meter.wants_end:
            spent, _ = metered.tally()
            sample = Sample(spent.cpu_s, spent.peak_memory_bytes)
            self._last.append(self._latent(key, metered, sample, spent, final=True))
            self._changed.set()

    def _count(self, outcome: Outcome, kind: StartKind | None) -> None:
        counts, kind = self.counts, outcome.start_kind or kind
        if kind is not None:
            counts.starts[kind.value] += 1
        by = {Reason.OK: "completed", Reason.STOPPED: "stopped", Reason.INTERRUPTED: "stopped"}
        counts.ended[by.get(outcome.reason, "failed")] += 1
        counts.cpu_s += outcome.cpu_s or 0.0
        counts.run_s += outcome.run_s

    def _meter(self, start: wire.Start) -> TaskMeter:
        return TaskMeter(start, time.monotonic(), self._vitals.total_memory_bytes)

    def _expect(self, metered: _Metered) -> None:
        """Wake up in time for it; most end long before."""
        if metered.meter.due < self._wakes_at:
            self._changed.set()

    # --- publishing ---------------------------------------------------------------------------------------------------

    async def serve(self, link: Link, tell: Callable[[wire.TaskMetrics], Awaitable[bool]]) -> None:
        """Measure and `tell`, until cancelled."""
        while True:
            due = min((m.meter.due for held in (self._runs, self._ready) for m in held.values()), default=math.inf)
            now = time.monotonic()
            self._wakes_at = min(due, now + _AWAY_S) if self._last else due
            with anyio.move_on_after(max(0.0, self._wakes_at - now)):
                await self._changed.wait()
            self._changed = anyio.Event()
            while self._last and link.connected:
                last = self._last.popleft()
                if not await tell(last) and not link.connected and len(self._last) < _LAST_MAX:
                    self._last.appendleft(last)
            if due <= time.monotonic():
                await self._measure(link, tell)

    async def _measure(self, link: Link, tell: Callable[[wire.TaskMetrics], Awaitable[bool]]) -> None:
        now = time.monotonic()
        runs = {key: metered for key, metered in self._runs.items() if metered.meter.due <= now}
        ready = {key: metered for key, metered in self._ready.items() if metered.meter.due <= now}
        for metered in (*runs.values(), *ready.values()):
            metered.meter.asked(now)
        if not link.connected:
            return
        at_work = {key: metered for key, metered in ready.items() if _at_work(metered)}
        if not runs and not at_work:
            return
        measured = await self._runtime.sample()
        for key, metered in runs.items():
            if (sample := measured.get(str(key))) is not None and key in self._runs:
                await tell(self._live(key, metered, sample))
        for key, metered in at_work.items():
            if key in self._ready and metered.tally is not None:
                spent, live = metered.tally()
                await tell(self._latent(key, metered, _together(measured, spent, live), spent))

    def _live(self, key: RunKey, metered: _Metered, sample: Sample) -> wire.TaskMetrics:
        process = wire.TaskSample()
        if sample.pid is not None and metered.meter.wants_process:
            process = self._vitals.process(sample.pid)
        one, aggregated = metered.meter.take(sample, time.monotonic(), process)
        return self._message(key, metered, one, aggregated, MeterTerms(cpu_seconds=sample.cpu_s))

    def _latent(
        self, key: RunKey, metered: _Metered, sample: Sample, spent: Spent, *, final: bool = False
    ) -> wire.TaskMetrics:
        metered.told = spent.runs
        one, aggregated = metered.meter.take(sample, time.monotonic())
        ext = MeterTerms(cpu_seconds=sample.cpu_s, invocations=spent.runs, final=final)
        return self._message(key, metered, one, aggregated, ext)

    def _message(
        self,
        key: RunKey,
        metered: _Metered,
        sample: wire.TaskSample,
        aggregated: wire.TaskAggregate | None,
        ext: MeterTerms,
    ) -> wire.TaskMetrics:
        """Only peers of ours are told what is ours."""
        told = None
        if metered.start.ext is not None:
            told = MeterTerms(
                metered.start.attempt, round(ext.cpu_seconds or 0.0, 9), ext.invocations, metered.restarts, ext.final
            )
        return wire.TaskMetrics(key.task_id, self._proplet_id, sample, aggregated, time.time(), told)


def _at_work(metered: _Metered) -> bool:
    """Whether a latent task has something new to say: of one that rests, once that it does."""
    if metered.tally is None:
        return False
    spent, live = metered.tally()
    return bool(live) or spent.runs != metered.told or metered.meter.moving


def _together(measured: Mapping[str, Sample], spent: Spent, live: Collection[str]) -> Sample:
    """What a latent task uses: what its answered invocations have, and those under way."""
    found = [measured[key] for key in live if key in measured]
    cpu_s = (spent.cpu_s or 0.0) + sum(sample.cpu_s or 0.0 for sample in found)
    return Sample(cpu_s, sum(sample.memory_bytes or 0 for sample in found))
