"""What a task's measurements say, given its monitoring profile."""

import math
from dataclasses import astuple, replace

import pytest

from proplet.agent.events import Outcome
from proplet.agent.ports import Sample
from proplet.agent.task_meter import TaskMeter
from proplet.agent.wire import MonitoringProfile, Reason, Start, StartTerms, TaskSample

PROCESS = TaskSample(disk_read_bytes=10, disk_write_bytes=20, thread_count=3, file_descriptor_count=7)
USED = Sample(cpu_s=0.5, memory_bytes=1024, wall_s=2.0)


def meter(profile: MonitoringProfile | None = None, *, daemon: bool = False) -> TaskMeter:
    return TaskMeter(Start("t", "main", daemon=daemon, monitoring_profile=profile), 100.0, 4096)


def test_without_a_profile_a_task_is_measured_every_ten_seconds_and_a_daemon_every_two_minutes() -> None:
    assert (meter().due, meter(daemon=True).due) == (110.0, 220.0)
    assert not meter().wants_end


def test_managers_of_ours_see_something_of_a_daemon_soon() -> None:
    daemon = Start("t", "main", daemon=True, ext=StartTerms(attempt=1))
    mine = TaskMeter(daemon, 100.0, 4096)
    assert mine.due == 102.0
    mine.asked(102.0)
    assert mine.due == 222.0
    never = replace(daemon, monitoring_profile=MonitoringProfile(enabled=False))
    assert TaskMeter(never, 100.0, 4096).due == math.inf


@pytest.mark.parametrize("profile", [MonitoringProfile(enabled=False), MonitoringProfile(export_to_mqtt=False)])
def test_a_profile_that_wants_nothing_gets_nothing(profile: MonitoringProfile) -> None:
    assert meter(profile).due == math.inf
    assert not meter(profile).wants_end


def test_a_measurement_is_of_the_time_since_the_one_before() -> None:
    mine = meter(MonitoringProfile(interval=2))
    first, summed = mine.take(USED, 102.0, PROCESS)
    assert first == TaskSample(25.0, 1024, 25.0, 10, 20, 2, 3, 7)
    second, summed = mine.take(Sample(1.5, 3072), 104.0, PROCESS)
    assert second.cpu_percent == 50.0
    assert summed is not None
    assert astuple(summed) == (37.5, 50.0, 2048, 3072, 10, 20, 2)


@pytest.mark.parametrize(
    ("off", "fields"),
    [
        ("collect_cpu", ["cpu_percent"]),
        ("collect_memory", ["memory_bytes", "memory_percent"]),
        ("collect_disk_io", ["disk_read_bytes", "disk_write_bytes"]),
        ("collect_threads", ["thread_count"]),
        ("collect_file_descriptors", ["file_descriptor_count"]),
    ],
)
def test_what_is_not_to_be_collected_stays_zero_and_nothing_else_does(off: str, fields: list[str]) -> None:
    one, _ = meter(MonitoringProfile(**{off: False})).take(USED, 102.0, PROCESS)  # type: ignore[arg-type]
    everything, _ = meter(MonitoringProfile()).take(USED, 102.0, PROCESS)
    for name in TaskSample.__slots__:
        assert getattr(one, name) == (0 if name in fields else getattr(everything, name)), name


def test_a_run_shorter_than_an_interval_has_one_measurement_which_is_its_end() -> None:
    mine = meter(MonitoringProfile(interval=10))
    one, summed = mine.end(Outcome(Reason.OK, cpu_s=0.25, peak_memory_bytes=2048, run_s=0.5), 100.5)
    assert (one.cpu_percent, one.memory_bytes, one.uptime_seconds) == (50.0, 2048, 0)
    assert summed is not None
    assert (summed.sample_count, summed.avg_cpu_usage, summed.max_memory_usage) == (1, 50.0, 2048)


def test_history_is_kept_as_long_as_asked_and_not_told_where_none_is() -> None:
    mine = meter(MonitoringProfile(history_size=2))
    for n in range(5):
        _, summed = mine.take(Sample(0.0, n), 110.0 + n)
    assert summed is not None
    assert (summed.sample_count, summed.max_memory_usage) == (2, 4)
    assert meter(MonitoringProfile(retain_history=False)).take(USED, 110.0)[1] is None
