"""One live task's measurements, as its monitoring profile asks for them: when they are due, and what they say. Pure.

Place in the flow: `metering` asks the runtime for a sample when one is due, and publishes what `TaskMeter.take` makes
of it. Source of the profile and its defaults: absmach/propeller, the proplet's monitoring.
"""

import math
from dataclasses import replace

from proplet.agent import wire
from proplet.agent.events import Outcome
from proplet.agent.ports import Sample
from proplet.agent.wire import MonitoringProfile, TaskSample

_HISTORY_MAX = 1000
_FIRST_S = 2.0
_BRIEF = MonitoringProfile()
_LASTING = MonitoringProfile(interval=120.0, history_size=500)
_NO_PROCESS = TaskSample()


class TaskMeter:
    """The measurements of one running task; times are monotonic seconds."""

    def __init__(self, start: wire.Start, now: float, total_memory_bytes: int, spent_cpu_s: float = 0.0) -> None:
        """The task runs since `now`; memory is told as a share of `total_memory_bytes`, too.

        `spent_cpu_s` is what it has used before: a latent task's samples go on from there.
        """
        self._profile = start.monitoring_profile or (_LASTING if start.daemon else _BRIEF)
        self._asked = start.monitoring_profile is not None
        self._total_memory = total_memory_bytes
        self._began = now
        self._last_cpu = (now, spent_cpu_s)
        self._samples: list[TaskSample] = []
        # Somebody looks at what has just begun; peers of the reference get theirs when the reference would.
        soon = start.ext is not None and self._interval_s < math.inf
        self.due = now + (min(self._interval_s, _FIRST_S) if soon else self._interval_s)

    @property
    def wants_end(self) -> bool:
        """Whether there is to be a measurement when it ends, however soon: where a profile was given."""
        return self._asked and self._interval_s < math.inf

    @property
    def wants_process(self) -> bool:
        """Whether a process that the task has to itself is to be looked at."""
        profile = self._profile
        return profile.collect_disk_io or profile.collect_threads or profile.collect_file_descriptors

    @property
    def moving(self) -> bool:
        """Whether the last measurement had found it at work: another will say that it rests."""
        return bool(self._samples and self._samples[-1].cpu_percent)

    @property
    def _interval_s(self) -> float:
        wanted = self._profile.enabled and self._profile.export_to_mqtt
        return max(1.0, self._profile.interval) if wanted else math.inf

    def take(
        self, sample: Sample, now: float, process: TaskSample = _NO_PROCESS
    ) -> tuple[TaskSample, wire.TaskAggregate | None]:
        """Return the measurement that `sample` is, and all so far summed up. What was not asked for stays 0.

        `process` says what the process uses that the task has to itself; what it shares with others stays 0.
        """
        profile = self._profile
        cpu = sample.cpu_s or 0.0
        elapsed = max(1e-6, now - self._last_cpu[0])
        percent = 100 * max(0.0, cpu - self._last_cpu[1]) / elapsed
        self._last_cpu = (now, cpu)
        memory = (sample.memory_bytes or 0) if profile.collect_memory else 0
        one = TaskSample(
            cpu_percent=round(percent, 2) if profile.collect_cpu else 0.0,
            memory_bytes=memory,
            memory_percent=round(100 * memory / self._total_memory, 3),
            disk_read_bytes=process.disk_read_bytes if profile.collect_disk_io else 0,
            disk_write_bytes=process.disk_write_bytes if profile.collect_disk_io else 0,
            uptime_seconds=int(now - self._began),
            thread_count=process.thread_count if profile.collect_threads else 0,
            file_descriptor_count=process.file_descriptor_count if profile.collect_file_descriptors else 0,
        )
        return one, self._aggregate(one)

    def end(self, outcome: Outcome, now: float) -> tuple[TaskSample, wire.TaskAggregate | None]:
        """Return the last measurement, of a run that has ended; what went to disk is what was last seen of that."""
        last = self._samples[-1] if self._samples else _NO_PROCESS
        traffic = replace(_NO_PROCESS, disk_read_bytes=last.disk_read_bytes, disk_write_bytes=last.disk_write_bytes)
        return self.take(Sample(outcome.cpu_s, outcome.peak_memory_bytes, outcome.run_s), now, traffic)

    def asked(self, now: float) -> None:
        """A sample was asked for, whether there is one or not: the next is due an interval later."""
        self.due = now + self._interval_s

    def _aggregate(self, sample: TaskSample) -> wire.TaskAggregate | None:
        self._samples.append(sample)
        if not self._profile.retain_history:
            del self._samples[:-1]
            return None
        del self._samples[: -max(1, min(self._profile.history_size, _HISTORY_MAX))]
        cpu = [s.cpu_percent for s in self._samples]
        memory = [s.memory_bytes for s in self._samples]
        return wire.TaskAggregate(
            sum(cpu) / len(cpu),
            max(cpu),
            sum(memory) // len(memory),
            max(memory),
            sample.disk_read_bytes,
            sample.disk_write_bytes,
            len(cpu),
        )
