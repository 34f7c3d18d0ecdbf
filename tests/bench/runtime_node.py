"""The runtime within its node, over MQTT: warm starts with all their bookkeeping, and latent tasks."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager

from tests.bench.caller import Caller, open_caller
from tests.bench.group_growth import slope_of
from tests.bench.nodes import BenchNode, node_with_broker
from tests.bench.processes import memory, tree
from tests.bench.rows import Plan, Row, number, percentile, row
from tests.bench.runtime_modules import distinct
from tests.support.modules import ADDITION, module

CALLERS = 64
_MOST_LATENT = 1100
_KEPT = 1024  # answers to repeated calls; and twice as many calls fill everything else
_NONE_BYTES = 10.0  # of growth a call: a megabyte in a hundred thousand
_FUNCTIONS = (("core", ADDITION, "main"), ("component", module("component_exports"), "add"))


async def in_node(plan: Plan) -> AsyncIterator[Row]:
    config = f"[runtime]\nmax_latent = {_MOST_LATENT}\n"
    with node_with_broker(plan.scratch / "runtime-node", "mosquitto", more=config) as node:
        yield await _warm(plan, node)
        async with open_caller(node) as caller:
            for kind, data, export in _FUNCTIONS:
                caller.deploy(kind, data, export)
            yield await _one_by_one(plan, caller)
            yield await _at_once(plan, caller)
            yield await _idle(plan, node, caller)
            yield await _growth(plan, node, caller)


async def _warm(plan: Plan, node: BenchNode) -> Row:
    """Each module is compiled for a first task, the node starts anew, each is loaded for a second; a third is hot."""
    modules = list(itertools.islice(distinct(), plan.pick(300, 40)))
    async with open_caller(node) as caller:
        cold = await _tasks(caller, "cold", modules)
    node.process.stop()
    node.process.start()
    async with open_caller(node) as caller:
        warm = await _tasks(caller, "warm", modules)
        hot = await _tasks(caller, "hot", modules)
    found = {"cold": percentile(cold, 50), "hot": percentile(hot, 50)}
    notes = [
        f"{len(modules)} tasks over MQTT, each with another module of 54 bytes, made durable",
        f"p99 {number(percentile(warm, 99))} ms; p50 cold {number(found['cold'])} ms, hot {number(found['hot'])} ms",
    ]
    return row("warm start to result through the node, p50", percentile(warm, 50), "ms", most=5.0, notes=notes, **found)


async def _tasks(caller: Caller, prefix: str, modules: Sequence[bytes]) -> list[float]:
    """Run each once, after one that starts the worker; milliseconds."""
    took = []
    await caller.run(f"{prefix}-other", ADDITION, "1", "1")
    for at, data in enumerate(modules):
        began = time.perf_counter()
        assert await caller.run(f"{prefix}-{at}", data, str(at), "1") == str(at + 1)
        took.append(1000 * (time.perf_counter() - began))
    return took


async def _one_by_one(plan: Plan, caller: Caller) -> Row:
    found: dict[str, list[float]] = {}
    for kind, _, _ in _FUNCTIONS:
        await caller.call(kind, "1", "1")
        took = found[kind] = []
        for at in range(plan.pick(2000, 200)):
            began = time.perf_counter()
            assert await caller.call(kind, str(at), "1") == str(at + 1)
            took.append(1000 * (time.perf_counter() - began))
    p50s = {kind: percentile(took, 50) for kind, took in found.items()}
    notes = [f"p99 {number(percentile(found['core'], 99))} ms; of a component p50 {number(p50s['component'])} ms"]
    return row("call of a latent task over MQTT, p50", p50s["core"], "ms", notes=notes, component=p50s["component"])


async def _at_once(plan: Plan, caller: Caller) -> Row:
    calls = plan.pick(10_000, 1000)
    elapsed = await _calls(caller, calls)
    notes = [f"{CALLERS} callers, {calls:,} calls, every other one of a component"]
    return row("calls of latent tasks over MQTT", calls / elapsed, "calls/s", notes=notes)


async def _calls(caller: Caller, calls: int) -> float:
    """Call core module and component in turns; how long all took, in seconds."""
    numbers = iter(range(calls))

    async def some() -> None:
        for at in numbers:
            assert await caller.call(_FUNCTIONS[at % 2][0], str(at), "1") == str(at + 1)

    began = time.perf_counter()
    await _together(some, CALLERS)
    return time.perf_counter() - began


async def _together(work: Callable[[], Coroutine[None, None, None]], count: int) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(work())


async def _idle(plan: Plan, node: BenchNode, caller: Caller) -> Row:
    """Each has been called once, so that its module is loaded: what it keeps until the worker is stopped as idle."""
    count = plan.pick(1000, 200)
    modules = enumerate(itertools.islice(distinct(), count))

    async def some() -> None:
        for at, data in modules:
            caller.deploy(f"latent-{at}", data)
            await caller.call(f"latent-{at}", "1", "1")

    before = memory(node.pid).pss
    await _together(some, 8)
    after = memory(node.pid).pss
    each = {name: (after[name] - before[name]) / 1024 / count for name in ("agent", "worker")}
    notes = [
        f"of {count}, each of another module: {number(each['agent'])} KiB in the agent",
        f"and {number(each['worker'])} KiB in the worker, until that is stopped as idle",
    ]
    return row("memory of an idle latent task", sum(each.values()), "KiB", notes=notes, **each)


async def _growth(plan: Plan, node: BenchNode, caller: Caller) -> Row:
    calls, samples_wanted, rest_s = plan.pick((100_000, 10, 1.5), (1500, 3, 0.5))
    each = calls // samples_wanted
    samples = list[tuple[float, float]]()
    first: Mapping[str, int] = {}
    await _calls(caller, 2 * _KEPT)
    async with _without_builder(node):
        for at in range(samples_wanted):
            await _calls(caller, each)
            await asyncio.sleep(rest_s)
            taken = memory(node.pid)
            first = first or taken.pss
            samples.append(((at + 1) * each, taken.alone))
    slope, error = slope_of(samples)
    grown = ", ".join(f"{name} {(size - first.get(name, 0)) / 1e6:+.2f} MB" for name, size in taken.pss.items())
    return Row(
        f"memory growth, slope over {calls:,} calls",
        f"{slope:+.1f} +- {error:.1f} bytes/call",
        "none",
        # As in the growth over tasks: a short run only shows that it can be measured.
        None if plan.quick else slope - 2 * error <= _NONE_BYTES,
        (
            "half of them of a component",
            f"{samples[0][1] / 1e6:.2f} MB after {samples[0][0]:,.0f} calls, {samples[-1][1] / 1e6:.2f} MB at the end",
            f"by process, what others share divided: {grown}",
        ),
        {"slope_bytes": slope, "standard_error_bytes": error},
    )


@asynccontextmanager
async def _without_builder(node: BenchNode) -> AsyncIterator[None]:
    async with asyncio.timeout(30):
        while "builder" in tree(node.pid).values():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    yield
