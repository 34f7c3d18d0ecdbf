"""The runtime alone: how soon a guest has run, how many do in a second, what those that stay take."""

import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from proplet.agent.fetch import ModulesSettings, StoredModules, open_modules
from proplet.agent.ports import Artefact, GuestLimits, Job, ModuleWanted, Outcome
from proplet.agent.runtime import RuntimeSettings, WorkerRuntime, open_runtime
from proplet.agent.wire import Reason
from tests.bench.processes import cpu_s, pss
from tests.bench.rows import MIB, Plan, Row, percentile, row
from tests.support.modules import ADDITION, bulky, module

CALLERS = 64
RUNNING = 16  # as a node is configured by default
DAEMONS = 100
_KIB = 1024
_FUNCTION_BYTES = 330  # of `bulky`


def measure(plan: Plan) -> Iterator[Row]:
    rows: list[Row] = []
    anyio.run(_measure, plan, rows)
    yield from rows


@dataclass
class _Bench:
    """A runtime and the modules it runs."""

    modules: StoredModules
    runtime: WorkerRuntime
    keys: Any = field(default_factory=itertools.count)

    async def artefact(self, data: bytes) -> Artefact:
        digest = await self.modules.keep(data)
        return await self.modules.prepare(ModuleWanted(digest), lambda _stage: None)

    async def run(self, artefact: Artefact, export: str, *inputs: str, wall_s: float | None = 60.0) -> Outcome:
        job = Job(f"job-{next(self.keys)}", artefact, export, inputs, limits=GuestLimits(wall_s=wall_s))
        return await self.runtime.run(job)


@asynccontextmanager
async def _bench(directory: Path) -> AsyncIterator[_Bench]:
    async with AsyncExitStack() as stack:
        settings = ModulesSettings(directory / "store", directory / "cache", directory / "key")
        modules = await stack.enter_async_context(open_modules(settings))
        runtime = await stack.enter_async_context(
            open_runtime(RuntimeSettings(directory / "key", max_running=RUNNING), modules)
        )
        yield _Bench(modules, runtime)


async def _measure(plan: Plan, rows: list[Row]) -> None:
    directory = plan.scratch / "runtime"
    async with _bench(directory) as bench:
        rows += await _hot(plan, bench)
    for name, data in (("42 B", ADDITION), ("30 KB", bulky(30_000 // _FUNCTION_BYTES)), ("1 MB", _megabyte())):
        rows.append(await _starts(plan, directory, name, data))
    async with _bench(directory) as bench:
        rows.append(await _daemons(bench))
    async with _bench(directory) as bench:
        component = await bench.artefact(module("component_waiting"))
        rows.append(
            await _one_by_one(plan, bench, component, "add", "hot invoke of a component in its own worker, p50")
        )
    async with _bench(directory) as bench:
        rows.append(await _component_daemon(bench))


def _megabyte() -> bytes:
    return bulky(1_000_000 // _FUNCTION_BYTES)


async def _hot(plan: Plan, bench: _Bench) -> list[Row]:
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


async def _one_by_one(plan: Plan, bench: _Bench, artefact: Artefact, export: str, what: str) -> Row:
    took = []
    for number in range(plan.pick(5000, 500)):
        began = time.perf_counter()
        outcome = await bench.run(artefact, export, str(number), "1")
        took.append(1000 * (time.perf_counter() - began))
        assert outcome.results == str(number + 1)
    notes = [f"p99 {percentile(took, 99):.2f} ms, one after the other"]
    return row(what, percentile(took, 50), "ms", most=1.0, notes=notes)


async def _starts(plan: Plan, directory: Path, name: str, data: bytes) -> Row:
    """Cold: compiled for it; warm: compiled before, loaded for it; hot: loaded before. Of a worker that is there."""
    warm, hot = [], []
    async with _bench(directory) as bench:
        await bench.run(await bench.artefact(module("run_only")), "run")
        began = time.perf_counter()
        artefact = await bench.artefact(data)
        await bench.run(artefact, "main", "1", "1") if name == "42 B" else await bench.run(artefact, "main", "1")
        cold = 1000 * (time.perf_counter() - began)
    inputs = ["1", "1"] if name == "42 B" else ["1"]
    for _ in range(plan.pick(15, 3)):
        async with _bench(directory) as bench:
            await bench.run(await bench.artefact(module("run_only")), "run")
            artefact = await bench.artefact(data)
            for found in (warm, hot):
                began = time.perf_counter()
                outcome = await bench.run(artefact, "main", *inputs)
                found.append(1000 * (time.perf_counter() - began))
                assert outcome.reason is Reason.OK, outcome
    notes = [f"cold {cold:.0f} ms with its compilation ({len(data):,} bytes); hot p50 {percentile(hot, 50):.2f} ms"]
    return row(f"warm start of {name}, p50", percentile(warm, 50), "ms", most=5.0, notes=notes, cold=cold)


async def _daemons(bench: _Bench) -> Row:
    """Sleeping and slowly looping guests in the shared worker, half and half."""
    sleeper, slow = await bench.artefact(module("sleeper")), await bench.artefact(module("slow_loop"))
    async with anyio.create_task_group() as tasks:
        for number in range(DAEMONS):
            artefact = (sleeper, slow)[number % 2]
            tasks.start_soon(lambda artefact: bench.run(artefact, "_start", wall_s=None), artefact)
        await _live(bench, DAEMONS)
        (worker,) = bench.runtime.worker_pids
        memory, before = pss(worker) / MIB, cpu_s(worker)
        await anyio.sleep(5)
        share = (cpu_s(worker) - before) / 5
        tasks.cancel_scope.cancel()
    notes = [f"the worker with all of them, {100 * share:.2f} % of a core while half of them wake once a second"]
    return row(f"memory of {DAEMONS} live daemons, core modules", memory, "MiB", most=100.0, notes=notes)


async def _component_daemon(bench: _Bench) -> Row:
    artefact = await bench.artefact(module("component_waiting"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: bench.run(artefact, "sleep", "1000000", wall_s=None))
        await _live(bench, 1)
        (worker,) = bench.runtime.worker_pids
        memory = _private(worker) / MIB
        whole = pss(worker) / MIB
        tasks.cancel_scope.cancel()
    return row(
        "memory of a component daemon, private", memory, "MiB", notes=[f"its worker's share of all {whole:.0f} MiB"]
    )


async def _live(bench: _Bench, count: int) -> None:
    with anyio.fail_after(60):
        while len(await bench.runtime.sample()) < count:  # noqa: ASYNC110
            await anyio.sleep(0.05)


def _private(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * _KIB for line in lines if line.startswith("Private_"))
