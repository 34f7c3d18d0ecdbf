"""One embedded manager with many proplets on its mosquitto."""

from collections.abc import Iterator

from tests.bench.nodes import identities, node_with_broker, run_load
from tests.bench.processes import memory
from tests.bench.rows import Plan, Row, percentile, row

BEAT_S = 10.0


def measure(plan: Plan) -> Iterator[Row]:
    proplets, tasks, rate = plan.pick((1000, 1000, 50.0), (50, 100, 50.0))
    directory = plan.scratch / "fleet"
    with node_with_broker(directory, "mosquitto", manager=True, proplets=proplets) as node:
        known = identities(directory, proplets)
        found = run_load(
            "load_fleet",
            port=node.access.port,
            socket=str(directory / "run" / "proplet.sock"),
            pid=node.pid,
            passwords={name: one.password for name, one in known.items() if name.startswith("sim-")},
            proplets=proplets,
            beat_s=BEAT_S,
            rest_s=plan.pick(20.0, 2.0),
            tasks=tasks,
            rate=rate,
        )
        taken = memory(node.pid)
    took = [1000 * each for each in found["took"]]
    p50, p99 = percentile(took, 50), percentile(took, 99)
    yield row(
        f"dispatch among {proplets:,} proplets, p99",
        p99,
        "ms",
        most=200.0,
        notes=[
            f"request to start received, {tasks:,} tasks at {rate:.0f}/s, p50 {p50:.1f} ms, {len(took)} reached them",
            f"all connected after {found['connected_s']:.1f} s; memory alone {taken.alone / 1e6:.0f} MB",
        ],
        p50_ms=p50,
    )
    notes = [f"each beats every {BEAT_S:.0f} s; agent, manager and mosquitto together"]
    yield row(f"CPU of {proplets:,} heartbeating proplets", 100 * found["heartbeat_cpu"], "% of a core", notes=notes)
