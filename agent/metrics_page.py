"""The device's own metrics, as Prometheus has them: families of samples, under the reference's names where it has some.

Place in the flow: the application serves them, or the manager on this node does. Nothing here writes text. Labels are
few: kinds, and the ids of what runs at this moment. Source of the names: absmach/propeller, the proplet's metrics.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from proplet.agent.events import Spent
from proplet.agent.metering import Metering
from proplet.agent.ports import Sample
from proplet.agent.wire import CpuMetrics, MemoryMetrics


class Family(NamedTuple):
    """One metric: its name, ``counter`` or ``gauge``, what it is, and its samples by labels."""

    name: str
    kind: str
    explanation: str
    samples: Sequence[tuple[Mapping[str, str], float]]


def _plain(name: str, kind: str, explanation: str, value: float) -> Family:
    return Family(name, kind, explanation, [({}, value)])


def work(meters: Metering, invoked: Spent, workers: int, fetched_bytes: int) -> Iterator[Family]:
    """Yield what this device has done since its node was started, and is doing."""
    counts = meters.counts
    totals = (
        ("proplet_tasks_started_total", "Runs begun.", counts.started),
        ("proplet_tasks_completed_total", "Runs that ended well.", counts.ended["completed"]),
        ("proplet_tasks_failed_total", "Runs that failed.", counts.ended["failed"]),
        ("proplet_tasks_stopped_total", "Runs that were stopped.", counts.ended["stopped"]),
        ("proplet_run_cpu_seconds_total", "CPU time of runs that have ended.", counts.cpu_s),
        ("proplet_run_seconds_total", "Wall time of runs that have ended.", counts.run_s),
        ("proplet_invocations_total", "Invocations answered.", invoked.runs),
        ("proplet_invocation_cpu_seconds_total", "CPU time of answered invocations.", invoked.cpu_s or 0.0),
        ("proplet_invocation_seconds_total", "Wall time of answered invocations.", invoked.run_s),
        ("proplet_mqtt_reconnects_total", "Connections to the broker, the first one included.", counts.connects),
        ("proplet_wasm_fetch_bytes_total", "Bytes of modules fetched from registries.", fetched_bytes),
    )
    for name, explanation, value in totals:
        yield _plain(name, "counter", explanation, value)
    kinds = [({"kind": kind}, float(count)) for kind, count in counts.starts.items()]
    yield Family("proplet_starts_total", "counter", "Runs that have ended, by how warm they began.", kinds)
    modules = [({"from": place}, float(count)) for place, count in counts.modules.items()]
    yield Family("proplet_modules_prepared_total", "counter", "Modules made ready: from the cache, or built.", modules)
    yield _plain("proplet_tasks_running", "gauge", "Runs under way.", meters.running)
    yield _plain("proplet_latent_tasks", "gauge", "Latent tasks that lie ready.", meters.ready)
    yield _plain("proplet_workers", "gauge", "Worker processes.", workers)


def device(cpu: CpuMetrics, memory: MemoryMetrics) -> Iterator[Family]:
    """Yield what the node's processes and the machine use."""
    gauges = (
        ("proplet_cpu_usage_ratio", "CPU of the machine in use, 0 to 1.", cpu.percent / 100),
        ("proplet_cpu_user_seconds", "CPU time of the node's processes, in their own code.", cpu.user_seconds),
        ("proplet_cpu_system_seconds", "CPU time of the node's processes, in the kernel.", cpu.system_seconds),
        ("proplet_memory_rss_bytes", "Resident memory of the node's processes.", memory.rss_bytes),
        ("proplet_memory_container_usage_bytes", "Memory of the node's cgroup.", memory.container_usage_bytes),
        ("proplet_memory_container_limit_bytes", "Its limit.", memory.container_limit_bytes),
    )
    for name, explanation, value in gauges:
        if value is not None:
            yield _plain(name, "gauge", explanation, value)


def live(measured: Mapping[str, Sample], tasks: Mapping[str, str]) -> Iterator[Family]:
    """Yield what runs under way use; `tasks` gives each run's task. What could not be measured is left out."""
    known = [({"task": tasks[key]}, sample) for key, sample in measured.items() if key in tasks]
    cpu = [(labels, sample.cpu_s) for labels, sample in known if sample.cpu_s is not None]
    memory = [(labels, float(sample.memory_bytes)) for labels, sample in known if sample.memory_bytes is not None]
    yield Family("proplet_task_cpu_seconds_total", "counter", "CPU time of a run under way.", cpu)
    yield Family("proplet_task_memory_bytes", "gauge", "Memory of a run under way.", memory)
    walls = [(labels, sample.wall_s) for labels, sample in known]
    yield Family("proplet_task_run_seconds", "gauge", "How long a run has been under way.", walls)
