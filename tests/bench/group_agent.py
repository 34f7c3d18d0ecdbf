"""Start to result over MQTT on one agent: latency, throughput, bytes to flash, growth."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.nodes import BenchNode, node_with_broker
from tests.bench.processes import cpu_s, tree, written
from tests.bench.rows import Plan, Row, percentile, row

WINDOW = 64
# Where making something durable costs nothing: what is left is the software's own.
_MEMORY_DISK = Path("/dev/shm")


def measure(plan: Plan) -> Iterator[Row]:
    for engine in ("mosquitto", "amqtt"):
        with node_with_broker(plan.scratch / f"agent-{engine}", engine) as node:
            node.load("warm", tasks=plan.pick(300, 50))
            yield from _latency(plan, node, engine)
            yield from _burst(plan, node, engine)
    if _MEMORY_DISK.is_dir():
        with (
            TemporaryDirectory(prefix="proplet-bench-", dir=_MEMORY_DISK) as directory,
            node_with_broker(Path(directory) / "node", "mosquitto") as node,
        ):
            node.load("warm", tasks=plan.pick(300, 50))
            yield from _latency(plan, node, "mosquitto, state in memory")


def _latency(plan: Plan, node: BenchNode, engine: str) -> Iterator[Row]:
    found = node.load("one", tasks=plan.pick(2000, 200))["latencies"]
    p50, p99 = (1000 * percentile(found, percent) for percent in (50, 99))
    notes = [f"{len(found)} tasks, one after the other"]
    budgets = {"most": 3.0}, {"most": 15.0}
    for name, value, budget in (("p50", p50, budgets[0]), ("p99", p99, budgets[1])):
        bound = budget if engine == "mosquitto" else {}
        yield row(f"start to result, {engine}, {name}", value, "ms", notes=notes if name == "p50" else (), **bound)


def _burst(plan: Plan, node: BenchNode, engine: str) -> Iterator[Row]:
    tasks = plan.pick(6000, 1000)
    bytes_before = {pid: written(pid) for pid in tree(node.pid)}
    cpu_before = {pid: cpu_s(pid) for pid in tree(node.pid)}
    found = node.load("burst", tasks=tasks, window=WINDOW)
    names = tree(node.pid)
    cpu = {names[pid]: 1000 * (cpu_s(pid) - cpu_before.get(pid, 0)) / tasks for pid in names}
    wrote = {names[pid]: (written(pid) - bytes_before.get(pid, 0)) / tasks for pid in names}
    bound = {"least": 1000.0} if engine == "mosquitto" else {}
    costs = ", ".join(f"{name} {ms:.2f}" for name, ms in cpu.items())
    yield row(
        f"sustained, one agent, {engine}",
        tasks / found["elapsed_s"],
        "tasks/s",
        **bound,
        notes=[
            f"{tasks:,} tasks, {WINDOW} under way; CPU ms a task: {costs}, load {1000 * found['cpu_s'] / tasks:.2f}",
        ],
    )
    if engine == "mosquitto":
        by_name = ", ".join(f"{name} {each:,.0f}" for name, each in wrote.items())
        yield row(
            "flash bytes a task in that burst",
            sum(wrote.values()) / 1024,
            "KiB",
            most=4.0,
            notes=[f"bytes by process: {by_name}"],
        )
