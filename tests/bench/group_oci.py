"""Images: from a registry on loopback to a result, large ones beside curl, once for many, the mirror, signatures."""

import os
from collections.abc import Iterator, Mapping
from statistics import median

from tests.bench.nodes import agent_only
from tests.bench.oci_sharing import at_once, mirrored, resumed
from tests.bench.oci_signatures import signatures
from tests.bench.oci_transfers import transfers
from tests.bench.rows import MIB, Plan, Row, row
from tests.support.modules import ADDITION, padded
from tests.support.registry import RunningRegistry, running_registry

_FILLED = 64


def measure(plan: Plan) -> Iterator[Row]:
    nodes, pulls = plan.pick(5, 2), plan.pick(10, 4)
    first: list[Mapping[str, float]] = []
    later: list[Mapping[str, float]] = []
    with running_registry(plan.scratch / "registry") as registry:
        for number in range(nodes):
            images = [push_fresh(registry, f"cold-{number}-{each}", MIB) for each in range(pulls)]
            with agent_only(plan.scratch / f"oci-{number}") as node:
                found = node.load("pull", images=images)
            took = [
                {**stages, "seen": latency} for stages, latency in zip(found["stages"], found["latencies"], strict=True)
            ]
            first.append(took[0])
            later += took[1:]
        moved = [*transfers(plan, registry), *at_once(plan, registry), *resumed(plan, registry)]
    yield _row("OCI pull to result, 1 MB, first of a node, less compile", first, [f"{nodes} nodes just started"])
    yield _row("the same, builder and worker running, less compile", later, [f"{len(later)} modules, each a new one"])
    yield from moved
    yield from mirrored(plan)
    yield from signatures(plan)


def push_fresh(registry: RunningRegistry, name: str, size: int) -> str:
    """Push an addition of that many bytes which nobody has seen before; how a task names it."""
    noise = os.urandom(_FILLED)
    module = padded(ADDITION + b"\0" + bytes([len(noise) + 2]) + b"\1n" + noise, size)
    registry.push(f"bench/{name}", "v1", module)
    return f"{registry.address}/bench/{name}:v1"


def _row(what: str, took: list[Mapping[str, float]], notes: list[str]) -> Row:
    stages = ", ".join(f"{name} {1000 * median(each.get(name, 0.0) for each in took):.0f}" for name in took[0])
    without = [1000 * (each["seen"] - each["compile"]) for each in took]
    worst = f"worst {max(without):.0f} ms"
    return row(what, median(without), "ms", most=300.0, notes=[f"{notes[0]}; {worst}; medians in ms: {stages}"])
