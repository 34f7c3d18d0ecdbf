"""One live task's measurements, as its monitoring profile asks for them: when they are due, and what they say. Pure.

Place in the flow: `presence` asks the runtime for a sample when one is due, and publishes what `TaskMeter.take` makes
of it.
"""

import math

from proplet.agent import wire
from proplet.agent.ports import Sample

_HISTORY_MAX = 1000


class TaskMeter:
    """The measurements of one running task; times are monotonic seconds."""

    def __init__(self, start: wire.Start, now: float, total_memory_bytes: int) -> None:
        """The task runs since `now`; memory is told as a share of `total_memory_bytes`, too."""
        self._profile = start.monitoring_profile or wire.MonitoringProfile(interval=120.0 if start.daemon else 10.0)
        self._total_memory = total_memory_bytes
        self._began = now
        self._last_cpu = (now, 0.0)
        self._samples: list[wire.TaskSample] = []
        self.due = now + self._interval_s

    @property
    def _interval_s(self) -> float:
        wanted = self._profile.enabled and self._profile.export_to_mqtt
        return max(1.0, self._profile.interval) if wanted else math.inf

    def take(self, sample: Sample, now: float) -> tuple[wire.TaskSample, wire.TaskAggregate | None]:
        """Return the measurement that `sample` is, and all so far summed up."""
        cpu = sample.cpu_s or 0.0
        elapsed = max(1e-6, now - self._last_cpu[0])
        percent = 100 * max(0.0, cpu - self._last_cpu[1]) / elapsed
        self._last_cpu = (now, cpu)
        memory = sample.memory_bytes or 0
        # What a thread shares with others stays 0.
        one = wire.TaskSample(
            cpu_percent=round(percent, 2),
            memory_bytes=memory,
            memory_percent=round(100 * memory / self._total_memory, 3),
            uptime_seconds=int(now - self._began),
            thread_count=1,
        )
        return one, self._aggregate(one)

    def asked(self, now: float) -> None:
        """A sample was asked for, whether there is one or not: the next is due an interval later."""
        self.due = now + self._interval_s

    def _aggregate(self, sample: wire.TaskSample) -> wire.TaskAggregate | None:
        if not self._profile.retain_history:
            return None
        self._samples.append(sample)
        del self._samples[: -max(1, min(self._profile.history_size, _HISTORY_MAX))]
        cpu = [s.cpu_percent for s in self._samples]
        memory = [s.memory_bytes for s in self._samples]
        return wire.TaskAggregate(
            sum(cpu) / len(cpu), max(cpu), sum(memory) // len(memory), max(memory), sample_count=len(cpu)
        )
