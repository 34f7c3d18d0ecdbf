"""Cold, warm and hot starts of small and large modules, and what `wasmtime run` takes for the same."""

import subprocess
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

from proplet.agent.program_find import ProgramMissingError, find
from tests.bench.rows import MIB, Plan, Row, number, percentile, row
from tests.bench.runtime_bench import Bench, open_bench
from tests.bench.runtime_modules import Start, all_starts
from tests.support.modules import module

_COLD = 5  # of a module that is compiled in no time
_WARM_MS = 5.0


async def starts(plan: Plan, directory: Path) -> AsyncIterator[Row]:
    """Cold: stored and compiled for it. Warm: found on the disk, loaded for it. Hot: loaded before.

    Of a node that has a worker, and for the cold ones a builder, as both have after their first task.
    """
    for start in all_starts(plan):
        yield await _ours(plan, directory, start)
        if start.large:
            yield await _again(plan, directory, start)
        if (theirs := _wasmtime(plan, directory / "wasmtime", start)) is not None:
            yield theirs


async def _ours(plan: Plan, directory: Path, start: Start) -> Row:
    cold, first, warm, hot = [], [], [], []
    for attempt in range(1 if start.cold_once else _COLD):
        async with open_bench(directory / f"cold-{len(start.data)}-{attempt}") as bench:
            await _first(bench)
            cold.append(await _took(_stored(bench, start)))
    for _ in range(plan.pick(15, 5)):
        async with open_bench(directory / f"cold-{len(start.data)}-0") as bench:
            first.append(await _first(bench))
            digest = await bench.modules.keep(start.data)
            warm.append(await _took(_prepared(bench, digest, start)))
            hot.append(await _took(_prepared(bench, digest, start)))
    found = {"cold": percentile(cold, 50), "hot": percentile(hot, 50), "new_worker": percentile(first, 50)}
    cold_hot = f"cold {number(found['cold'])} ms with its compilation, hot {number(found['hot'])} ms"
    notes = [f"{cold_hot}; a worker to load it is there, else {number(found['new_worker'])} ms more"]
    bound = {} if start.large else {"most": _WARM_MS}
    with_what = ", with its authentication" if start.large else ""
    return row(f"warm start of {start.name}{with_what}, p50", percentile(warm, 50), "ms", notes=notes, **bound, **found)


async def _again(plan: Plan, directory: Path, start: Start) -> Row:
    """In a worker that has had it before, and another since: a file is authenticated once per process."""
    took = []
    async with open_bench(directory / f"cold-{len(start.data)}-0", loaded_bytes=MIB) as bench:
        other, digest = await bench.artefact(module("run_only")), await bench.modules.keep(start.data)
        size = (await bench.prepared(digest)).path.stat().st_size
        for _ in range(plan.pick(16, 6)):
            await bench.well(other, "run", (), ())
            took.append(await _took(_prepared(bench, digest, start)))
    notes = [f"an artefact of {size / 1e6:.1f} MB; {number(took[0])} ms the first time, with its authentication"]
    what = f"warm start of {start.name}, authenticated before, p50"
    return row(what, percentile(took[1:], 50), "ms", most=_WARM_MS, notes=notes, first=took[0])


async def _first(bench: Bench) -> float:
    artefact = await bench.artefact(module("run_only"))
    return await _took(bench.well(artefact, "run", (), ()))


async def _stored(bench: Bench, start: Start) -> None:
    await _prepared(bench, await bench.modules.keep(start.data), start)


async def _prepared(bench: Bench, digest: str, start: Start) -> None:
    await bench.well(await bench.prepared(digest), start.export, start.inputs, start.argv)


async def _took(work: Awaitable[None]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    await work
    return 1000 * (time.perf_counter() - began)


def _wasmtime(plan: Plan, directory: Path, start: Start) -> Row | None:
    """The reference's way: a process for each run. None where there is no such program."""
    try:
        command = [*find().command, "run"]
    except ProgramMissingError:
        return None
    directory.mkdir(exist_ok=True)
    path, config = directory / f"{len(start.data)}.wasm", directory / "cache.toml"
    path.write_bytes(start.data)
    config.write_text(f'[cache]\ndirectory = "{directory / "cache"}"\n')
    export = () if start.export == "_start" else ("--invoke", start.export)
    guest = (*export, str(path), *start.inputs, *start.argv)
    # Unless it is told otherwise, it has a cache in the user's home.
    cold = [_run(*command, "-C", "cache=n", *guest) for _ in range(1 if start.cold_once else _COLD)]
    cached = [_run(*command, "-C", f"cache-config={config}", *guest) for _ in range(1 + plan.pick(15, 5))][1:]
    notes = [f"{number(percentile(cold, 50))} ms without a cache"]
    what = f"`wasmtime run` of {start.name} with its cache, p50"
    return row(what, percentile(cached, 50), "ms", notes=notes, cold=percentile(cold, 50))


def _run(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return 1000 * (time.perf_counter() - began)
