"""What is known of the use of tasks and proplets, from what they have told: chosen, and in Prometheus' format.

Bounded: only what is under way is told, and of no more tasks than `observed` keeps measurements of. Where the
reference's proplet has a metric of its own, the name is the same here, with the proplet as its label.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from proplet.agent.wire import PropletMetrics, TaskMetrics
from proplet.manager.api_stats import Sample, family
from proplet.manager.model import Proplet, Task, TaskStatus
from proplet.manager.phases import Phase
from proplet.manager.ports import Control

T = TypeVar("T")

UNDER_WAY: Final = (Phase.SCHEDULED, Phase.RUNNING)

_TASKS: Final[Sequence[tuple[str, str, str, Callable[[TaskMetrics], float | None]]]] = (
    (
        "proplet_task_cpu_seconds_total",
        "counter",
        "CPU time of a task under way, as last measured.",
        lambda one: one.ext.cpu_seconds if one.ext else None,
    ),
    (
        "proplet_task_cpu_usage_ratio",
        "gauge",
        "CPU that it uses; 1 is one CPU.",
        lambda one: one.metrics.cpu_percent / 100,
    ),
    ("proplet_task_memory_bytes", "gauge", "Its memory.", lambda one: one.metrics.memory_bytes),
    ("proplet_task_run_seconds", "gauge", "How long it has been running.", lambda one: one.metrics.uptime_seconds),
    (
        "proplet_task_invocations_total",
        "counter",
        "Invocations of a latent task.",
        lambda one: one.ext.invocations if one.ext and one.ext.invocations else None,
    ),
    (
        "proplet_task_restarts_total",
        "counter",
        "How often it was run again.",
        lambda one: one.ext.restarts if one.ext else None,
    ),
    ("proplet_task_measured_seconds", "gauge", "When that was measured, epoch time.", lambda one: one.timestamp),
)
_PROPLETS: Final[Sequence[tuple[str, str, Callable[[PropletMetrics], float | None]]]] = (
    ("proplet_cpu_usage_ratio", "CPU of its machine in use, 0 to 1.", lambda one: one.cpu_metrics.percent / 100),
    ("proplet_cpu_user_seconds", "CPU time of a proplet, in its own code.", lambda one: one.cpu_metrics.user_seconds),
    ("proplet_cpu_system_seconds", "In the kernel.", lambda one: one.cpu_metrics.system_seconds),
    ("proplet_memory_rss_bytes", "Its resident memory.", lambda one: one.memory_metrics.rss_bytes),
    (
        "proplet_memory_container_usage_bytes",
        "Memory of its cgroup.",
        lambda one: one.memory_metrics.container_usage_bytes,
    ),
    ("proplet_memory_container_limit_bytes", "Its limit.", lambda one: one.memory_metrics.container_limit_bytes),
    ("proplet_measured_seconds", "When that was measured, epoch time.", lambda one: one.timestamp),
)


def current(status: TaskStatus, found: Sequence[TaskMetrics]) -> Sequence[TaskMetrics]:
    """Return the last measurement of a task's current attempt by each proplet that has told one."""
    last: dict[str, TaskMetrics] = {}
    for one in found:
        attempt = one.ext.attempt if one.ext else None
        if attempt == status.attempt or (attempt is None and one.timestamp >= status.dispatched_at):
            last[one.proplet_id] = one
    return tuple(last.values())


def own_cpu_percent(found: Sequence[PropletMetrics]) -> float | None:
    """Return what a proplet's processes used of one CPU between the last two measurements, in percent."""
    if len(found) < 2:
        return None
    (before, now), seconds = found[-2:], found[-1].timestamp - found[-2].timestamp
    used = cpu_seconds(now) - cpu_seconds(before)
    return round(100 * used / seconds, 2) if seconds > 0 and used >= 0 else None


def cpu_seconds(metrics: PropletMetrics) -> float:
    """Return the CPU time that a proplet's processes have used."""
    return metrics.cpu_metrics.user_seconds + metrics.cpu_metrics.system_seconds


def families(tasks: Iterable[Task], proplets: Iterable[Proplet], control: Control) -> list[str]:
    """Return the metrics of tasks under way and of proplets; what was not measured has no sample."""
    known = [
        ({"namespace": task.meta.namespace, "task": task.meta.name, "proplet": one.proplet_id}, one)
        for task in tasks
        if task.status.phase in UNDER_WAY
        for one in current(task.status, control.task_metrics(task.id))
    ]
    told = [family(name, kind, text, _samples(known, value)) for name, kind, text, value in _TASKS]
    measured = [(proplet.id, control.proplet_metrics(proplet.id)) for proplet in proplets]
    devices = [({"proplet": name}, found[-1]) for name, found in measured if found]
    return told + [family(name, "gauge", text, _samples(devices, value)) for name, text, value in _PROPLETS]


def _samples(known: Sequence[tuple[dict[str, str], T]], value: Callable[[T], float | None]) -> list[Sample]:
    found = ((labels, value(one)) for labels, one in known)
    return [(labels, number) for labels, number in found if number is not None]
