"""The runtime: how soon a guest has run, how many do in a second, what those that stay take; alone and in its node."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import anyio

from proplet.agent.ports import Artefact
from tests.bench.processes import cpu_s, pss
from tests.bench.rows import MIB, Plan, Row, percentile, row
from tests.bench.runtime_bench import Bench, open_bench
from tests.bench.runtime_node import in_node
from tests.bench.runtime_starts import starts
from tests.support.modules import ADDITION, module

CALLERS = 64
DAEMONS = 100
_KIB = 1024


def measure(plan: Plan) -> Iterator[Row]:
    rows: list[Row] = []
    anyio.run(_measure, plan, rows)
    yield from rows


async def _measure(plan: Plan, rows: list[Row]) -> None:
    directory = plan.scratch / "runtime"
    async with open_bench(directory) as bench:
        rows += await _hot(plan, bench)
        shared = await bench.artefact(module("component_exports"))
        rows.append(await _one_by_one(plan, bench, shared, "add", "hot invoke of a component, p50"))
    async with open_bench(directory) as bench:
        own = await bench.artefact(module("component_waiting"))
        rows.append(await _one_by_one(plan, bench, own, "add", "hot invoke of a component in its own worker, p50"))
    rows += [found async for found in starts(plan, directory)]
    async with open_bench(directory) as bench:
        rows.append(await _daemons(plan, bench))
    async with open_bench(directory) as bench:
        rows.append(await _component_daemon(bench))
    rows += [found async for found in in_node(plan)]


async def _hot(plan: Plan, bench: Bench) -> list[Row]:
    artefact = await bench.artefact(ADDITION)
    alone = await _one_by_one(plan, bench, artefact, "main", "hot invoke through the worker, p50")
    runs, done = plan.pick(30_000, 3000), itertools.count()
    (worker,) = bench.runtime.worker_pids

    async def call() -> None:
        while (number := next(done)) < runs:
            assert (await bench.run(artefact, "main", str(number), "1")).results == str(number + 1)

    began, ours, theirs = time.perf_counter(), time.process_time(), cpu_s(worker)
    async with anyio.create_task_group() as tasks:
        for _ in range(CALLERS):
            tasks.start_soon(call)
    elapsed = time.perf_counter() - began
    costs = [f"{1e6 * spent / runs:.0f}" for spent in (time.process_time() - ours, cpu_s(worker) - theirs)]
    notes = [f"{CALLERS} callers; CPU microseconds a run: agent {costs[0]}, worker {costs[1]}"]
    return [alone, row("hot invocations, one worker", runs / elapsed, "runs/s", least=3000.0, notes=notes)]


async def _one_by_one(plan: Plan, bench: Bench, artefact: Artefact, export: str, what: str) -> Row:
    took = []
    for number in range(plan.pick(5000, 500)):
        began = time.perf_counter()
        outcome = await bench.run(artefact, export, str(number), "1")
        took.append(1000 * (time.perf_counter() - began))
        assert outcome.results == str(number + 1)
    notes = [f"p99 {percentile(took, 99):.2f} ms, one after the other"]
    return row(what, percentile(took, 50), "ms", most=1.0, notes=notes)


async def _daemons(plan: Plan, bench: Bench) -> Row:
    """Sleeping and slowly looping guests in the shared worker, half and half."""
    sleeper, slow = await bench.artefact(module("sleeper")), await bench.artefact(module("slow_loop"))
    async with anyio.create_task_group() as tasks:
        for number in range(DAEMONS):
            artefact = (sleeper, slow)[number % 2]
            tasks.start_soon(bench.stay, artefact, "_start")
        await _live(bench, DAEMONS)
        (worker,) = bench.runtime.worker_pids
        memory, before = pss(worker) / MIB, cpu_s(worker)
        window_s = plan.pick(5, 2)
        await anyio.sleep(window_s)
        share = (cpu_s(worker) - before) / window_s
        tasks.cancel_scope.cancel()
    notes = [f"the worker with all of them, {100 * share:.2f} % of a core while half of them wake once a second"]
    return row(f"memory of {DAEMONS} live daemons, core modules", memory, "MiB", most=100.0, notes=notes)


async def _component_daemon(bench: Bench) -> Row:
    artefact = await bench.artefact(module("component_waiting"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.stay, artefact, "sleep", "1000000")
        await _live(bench, 1)
        (worker,) = bench.runtime.worker_pids
        memory = _private(worker) / MIB
        whole = pss(worker) / MIB
        tasks.cancel_scope.cancel()
    return row(
        "memory of a component daemon, private", memory, "MiB", notes=[f"its worker's share of all {whole:.0f} MiB"]
    )


async def _live(bench: Bench, count: int) -> None:
    with anyio.fail_after(60):
        while len(await bench.runtime.sample()) < count:  # noqa: ASYNC110
            await anyio.sleep(0.05)


def _private(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * _KIB for line in lines if line.startswith("Private_"))
