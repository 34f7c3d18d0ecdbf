"""Whether a node grows with the tasks it has done: the slope of its memory, once every bounded memory is full."""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from statistics import mean

from tests.bench.nodes import node_with_broker
from tests.bench.processes import memory, pause, tree, wait_for
from tests.bench.rows import Plan, Row

WINDOW = 64
# Of results and attempts, known to answer a repeated start with: by default 10,000, which a short run never fills.
_KEPT = "[agent.results]\ncount = {0}\n"
_REST_S = 1.5  # longer than the outbox waits before it writes down what was acknowledged
_NONE_BYTES = 1e6


def measure(plan: Plan) -> Iterator[Row]:
    tasks, kept, samples_wanted = plan.pick((100_000, 10_000, 10), (1500, 200, 3))
    each, filled = tasks // samples_wanted, kept + kept // 5
    with node_with_broker(plan.scratch / "growth", "mosquitto", more=_KEPT.format(kept)) as node:
        done, samples = 0, list[tuple[float, float]]()
        first: Mapping[str, int] = {}
        node.load("fill", tasks=filled, window=WINDOW)
        wait_for(lambda: "builder" not in tree(node.pid).values(), 30, "the builder ends")
        for number in range(samples_wanted):
            node.load(f"grow-{number}", tasks=each, window=WINDOW)
            done += each
            pause(_REST_S)
            taken = memory(node.pid)
            first = first or taken.pss
            samples.append((done, taken.alone))
    grown = ", ".join(f"{name} {(size - first.get(name, 0)) / 1e6:+.2f} MB" for name, size in taken.pss.items())
    slope, error = slope_of(samples)
    yield Row(
        f"memory growth, slope over {tasks:,} tasks",
        f"{slope:+.1f} +- {error:.1f} bytes/task",
        "none",
        # Noise is forgiven; what would be a megabyte in a hundred thousand tasks and is no noise, is not.
        # A short run only shows that it can be measured: caches are still filling.
        None if plan.quick else slope - 2 * error <= _NONE_BYTES / 100_000,
        (
            f"after {filled:,} others, so that the {kept:,} results it keeps are there",
            f"{samples[0][1] / 1e6:.2f} MB after {samples[0][0]:,.0f} tasks, {samples[-1][1] / 1e6:.2f} MB at the end",
            f"by process: {grown}",
        ),
        {"slope_bytes": slope, "standard_error_bytes": error},
    )


def slope_of(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The least-squares slope and its standard error."""
    middle_x, middle_y = mean(x for x, _ in samples), mean(y for _, y in samples)
    spread = sum((x - middle_x) ** 2 for x, _ in samples)
    slope = sum((x - middle_x) * (y - middle_y) for x, y in samples) / spread
    residue = sum((y - middle_y - slope * (x - middle_x)) ** 2 for x, y in samples)
    return slope, sqrt(residue / (len(samples) - 2) / spread)
