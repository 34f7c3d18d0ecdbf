"""What a node takes while it has nothing to do: memory after one OCI task, CPU time, bytes to flash."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from tests.bench.group_oci import push_fresh
from tests.bench.nodes import BenchNode, addition_task, agent_only, node_with_broker
from tests.bench.processes import Memory, cpu_s, memory, pause, total, tree, wait_for, written
from tests.bench.rows import MIB, Plan, Row, row
from tests.support.registry import running_registry

# Sooner than by default, so that a node without its worker can be measured in time.
WORKER_LEAVES = '[runtime]\nidle_timeout = "8s"\n'
_DAY_S = 86400
_SETTLED_S = 30.0


@dataclass
class _Idle:
    """A node at rest, and its memory while its worker was still there and after."""

    node: BenchNode
    with_worker: Memory | None = None
    without_worker: Memory | None = None


def measure(plan: Plan) -> Iterator[Row]:
    with ExitStack() as stack:
        registry = stack.enter_context(running_registry(plan.scratch / "idle-registry"))
        found: dict[str, _Idle] = {}
        for name in _VARIANTS:
            found[name] = _Idle(_open(plan, stack, name))
            _one_task(found[name].node, push_fresh(registry, name.split()[-1], MIB))
        for idle in found.values():
            _settle(idle)
        for name, idle in found.items():
            yield from _memory(name, _VARIANTS[name], idle)
        yield from _window(plan, found)


_VARIANTS: Mapping[str, float | None] = {
    "agent": 45.0,
    "agent, mosquitto, manager": 65.0,
    "agent, amqtt, manager": None,
}


def _open(plan: Plan, stack: ExitStack, name: str) -> BenchNode:
    directory = plan.scratch / f"idle-{name.replace(', ', '-')}"
    if name == "agent":
        return stack.enter_context(agent_only(directory, more=WORKER_LEAVES))
    engine = name.split(", ")[1]
    return stack.enter_context(node_with_broker(directory, engine, manager=True, more=WORKER_LEAVES))


def _one_task(node: BenchNode, image: str) -> None:
    if node.client is None:
        node.load("idle", images=[image])
        return
    node.client.apply(json.dumps(addition_task("idle", imageUrl=image)))
    ended = ("completed", "failed")
    wait_for(lambda: _phase(node) in ended, 60, f"the task of {image} ends")
    if _phase(node) != "completed":
        raise RuntimeError(f"the task of {image} failed: {node.client.get('tasks', 'idle')['status']}")


def _phase(node: BenchNode) -> str:
    assert node.client is not None
    return str(node.client.get("tasks", "idle")["status"].get("phase"))


def _settle(idle: _Idle) -> None:
    """Measured when the builder has gone, and again when the worker has."""
    pid = idle.node.pid
    wait_for(lambda: "builder" not in tree(pid).values(), _SETTLED_S, "the builder ends")
    idle.with_worker = memory(pid)
    if "worker" not in idle.with_worker.pss:
        raise RuntimeError("the worker left before its memory was measured")
    wait_for(lambda: "worker" not in tree(pid).values(), _SETTLED_S, "the idle worker ends")
    idle.without_worker = memory(pid)


def _memory(name: str, budget: float | None, idle: _Idle) -> Iterator[Row]:
    for when, taken in (("worker up", idle.with_worker), ("worker gone", idle.without_worker)):
        assert taken is not None
        shares = ", ".join(f"{process} {size / 1e6:.1f}" for process, size in taken.pss.items())
        notes = [f"PSS beside everything that shares pages with it now: {taken.total / 1e6:.1f} ({shares})"]
        yield row(
            f"memory alone, {name}, {when}", taken.alone / 1e6, "MB", most=budget, notes=notes, pss_mb=taken.total / 1e6
        )


def _window(plan: Plan, found: Mapping[str, _Idle]) -> Iterator[Row]:
    """CPU time and bytes written of all of them over the same moments of rest."""
    seconds = plan.pick(30.0, 5.0)
    before = {name: (total(idle.node.pid, cpu_s), total(idle.node.pid, written)) for name, idle in found.items()}
    began = time.monotonic()
    pause(seconds)
    elapsed = time.monotonic() - began
    rows: list[Row] = []
    for name, idle in found.items():
        cpu, wrote = total(idle.node.pid, cpu_s) - before[name][0], total(idle.node.pid, written) - before[name][1]
        over = [f"over {elapsed:.0f} s"]
        rows.append(row(f"idle CPU, {name}", 100 * cpu / elapsed, "% of a core", most=0.5, notes=over))
        daily = wrote / elapsed * _DAY_S / 1e6
        rows.append(
            row(f"idle flash writes, {name}", daily, "MB a day", most=5.0, notes=[f"{wrote:,.0f} bytes {over[0]}"])
        )
    yield from sorted(rows, key=lambda each: each.what.split(",")[0])
