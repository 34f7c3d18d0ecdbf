"""Tasks through the whole control plane: applied at the API, placed, started, run, reported, completed."""

from collections.abc import Iterator

from tests.bench.nodes import node_with_broker, run_load
from tests.bench.processes import cpu_s, tree
from tests.bench.rows import Plan, Row, percentile, row


def measure(plan: Plan) -> Iterator[Row]:
    for engine in ("mosquitto", "amqtt"):
        directory = plan.scratch / f"manager-{engine}"
        with node_with_broker(directory, engine, manager=True) as node:
            socket = str(directory / "run" / "proplet.sock")
            run_load("load_api", prefix="warm", socket=socket, one=0, burst=1)
            before = {pid: cpu_s(pid) for pid in tree(node.pid)}
            tasks = {"one": plan.pick(500, 40), "burst": plan.pick(2000, 200)}
            found = run_load("load_api", prefix="all", socket=socket, **tasks)
            count = sum(tasks.values())
            costs = ", ".join(
                f"{name} {1000 * (cpu_s(pid) - before.get(pid, 0)) / count:.2f}" for pid, name in tree(node.pid).items()
            )
        p50, p99 = (1000 * percentile(found["latencies"], percent) for percent in (50, 99))
        # The budgets of the design are for Kubernetes as the store; SQLite should do better.
        known = engine == "mosquitto"
        yield row(
            f"applied to completed, manager and agent, {engine}, p50",
            p50,
            "ms",
            most=25.0 if known else None,
            notes=[f"{tasks['one']} tasks, one after the other; p99 {p99:.0f} ms"],
            p99_ms=p99,
        )
        yield row(
            f"burst through manager and agent, {engine}",
            tasks["burst"] / found["elapsed_s"],
            "tasks/s",
            least=150.0 if known else None,
            notes=[
                f"{tasks['burst']:,} tasks in lists of 25 from 8 callers, accepted after {found['applied_s']:.2f} s",
                f"CPU ms a task: {costs}",
            ],
        )
