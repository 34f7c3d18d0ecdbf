"""The memory of the worker that guests share: who makes the engine hold too much is found, and whoever may is left."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from wasmtime import wat2wasm

from proplet.agent.ports import Job, Outcome
from proplet.agent.runtime_gauge import Gauge
from proplet.agent.wire import Reason
from tests.runtime.conftest import open_node
from tests.support.modules import bulky

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024

# Asks for random bytes again and again: the engine has them all at hand before it copies them.
ASKING = bytes(
    wat2wasm("""(component
  (import "wasi:random/random@0.2.0" (instance $random
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (core module $room (memory (export "memory") 800)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 64)))
  (core instance $r (instantiate $room))
  (core func $bytes (canon lower (func $random "get-random-bytes")
    (memory (core memory $r "memory")) (realloc (core func $r "realloc"))))
  (core module $m
    (import "host" "random" (func $random (param i64 i32)))
    (func (export "ask") (param $bytes i64) (loop $again
      (call $random (local.get $bytes) (i32.const 16))
      (br $again))))
  (core instance $i (instantiate $m (with "host" (instance (export "random" (func $bytes))))))
  (func (export "ask") (param "bytes" u64) (canon lift (core func $i "ask"))))""")
)
# As many bytes as it is told, zeros.
ANSWERING = bytes(
    wat2wasm("""(component
  (core module $m (memory (export "memory") 20)
    (func (export "many") (param i32) (result i32)
      (i32.store (i32.const 16) (i32.const 64)) (i32.store (i32.const 20) (local.get 0)) (i32.const 16)))
  (core instance $i (instantiate $m))
  (func (export "many") (param "count" u32) (result (list u8))
    (canon lift (core func $i "many") (memory (core memory $i "memory")))))""")
)
# Takes all the memory that it is told, uses its stack nearly up, and goes on for ever.
HUNGRY = bytes(
    wat2wasm("""(module
  (memory 1)
  (func $deep (param i32) (result i32)
    (if (result i32) (local.get 0)
      (then (i32.add (i32.const 1) (call $deep (i32.sub (local.get 0) (i32.const 1)))))
      (else (i32.const 0))))
  (func (export "main") (param i32)
    (if (i32.eq (memory.grow (i32.sub (local.get 0) (i32.const 1))) (i32.const -1)) (then unreachable))
    (memory.fill (i32.const 0) (i32.const 1) (i32.mul (local.get 0) (i32.const 65536)))
    (drop (call $deep (i32.const 5000)))
    (loop $again (br $again))))""")
)


async def test_whoever_makes_the_engine_hold_too_much_is_found_and_its_neighbours_run_on(warm_directory: Path) -> None:
    async with open_node(warm_directory, own_allowance_bytes=16 * MIB, loaded_bytes=MIB, strikes=1) as node:
        assert not (await node.artefact(ASKING)).waits, "it shares the worker"
        terms: dict[str, Any] = {"memory_bytes": MIB, "output_bytes": 999}
        neighbours = [
            await node.job("sleeper", "_start", key="daemon", wall_s=None, **terms),
            await node.job("loop", "count", ["600000000"], key="short", **terms),
        ]
        culprit = await node.job(ASKING, "ask", [str(48 * MIB)], key="culprit", memory_bytes=52 * MIB, output_bytes=999)
        async with _running(node, neighbours) as ended:
            (shared,) = node.runtime.worker_pids
            outcome = await node.runtime.run(culprit)
            assert outcome.reason is Reason.MEMORY_LIMIT
            assert "may have 52 MiB" in outcome.error
            with anyio.fail_after(60):
                while "short" not in ended:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            await node.running("daemon")
            assert shared not in node.runtime.worker_pids
            refused = await node.runtime.run(await node.job(ASKING, "ask", ["1"]))
            assert refused.reason is Reason.QUARANTINED, "it has cost the others their worker"
        assert ended["short"].results == "600000000"


async def test_of_daemons_that_hold_too_much_together_those_who_do_alone_are_ended(warm_directory: Path) -> None:
    terms: dict[str, Any] = {"wall_s": None, "memory_bytes": MIB, "output_bytes": 0}
    async with open_node(warm_directory, own_allowance_bytes=1, loaded_bytes=1) as node:  # a worker as such holds more
        jobs = [await node.job("sleeper", "_start", key=f"daemon-{number}", **terms) for number in range(3)]
        async with _running(node, jobs, begun=False) as ended:
            with anyio.fail_after(60):
                while len(ended) < len(jobs):  # noqa: ASYNC110
                    await anyio.sleep(0.01)
        assert {outcome.reason for outcome in ended.values()} == {Reason.MEMORY_LIMIT}


async def test_a_worker_in_which_too_much_is_left_is_not_used_again(warm_directory: Path) -> None:
    async with open_node(warm_directory, own_allowance_bytes=16 * MIB, loaded_bytes=MIB) as node:  # half is too little
        assert (await node.run("addition", "main", "1", "2")).results == "3"
        with anyio.fail_after(10):
            while node.runtime.worker_pids:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert (await node.run("addition", "main", "1", "2")).results == "3"


async def test_guests_that_use_all_they_may_keep_their_worker(warm_directory: Path) -> None:
    """A hundred daemons, sixteen guests at their limits of memory and stack, and much loaded code."""
    terms: dict[str, Any] = {"memory_bytes": 16 * MIB, "output_bytes": 0}
    # A third of the allowance: the test is to fail long before a node would.
    async with open_node(warm_directory, max_running=16, own_allowance_bytes=48 * MIB, loaded_bytes=8 * MIB) as node:
        assert (await node.run(bulky(4000), "main", "1")).reason is Reason.OK
        daemons = [await node.job("sleeper", "_start", key=f"d-{at}", wall_s=None, **terms) for at in range(98)]
        daemons += [await node.job(HUNGRY, "main", ["256"], key=f"d-{at}", wall_s=None, **terms) for at in (98, 99)]
        hungry = [await node.job(HUNGRY, "main", ["256"], key=f"h-{at}", **terms) for at in range(16)]
        async with _running(node, daemons + hungry) as ended:
            (worker,) = node.runtime.worker_pids
            gauge, most = Gauge(worker), 0
            with anyio.fail_after(60):
                while most < 18 * 16 * MIB:
                    most = max(most, gauge.private_bytes() or 0)
                    await anyio.sleep(0.05)
            with anyio.move_on_after(2.0):  # a daemon's looks are a second apart
                await anyio.sleep_forever()
            assert node.runtime.worker_pids == [worker]
            assert ended == {}


async def test_large_answers_within_their_limit_cost_nobody_a_worker_and_do_not_stay(warm_directory: Path) -> None:
    async with AsyncExitStack() as stack:
        settings: dict[str, Any] = {"max_running": 8, "own_allowance_bytes": 48 * MIB, "loaded_bytes": MIB}
        node = await stack.enter_async_context(open_node(warm_directory, **settings))
        terms: dict[str, Any] = {"memory_bytes": 2 * MIB}
        daemon = await node.job("sleeper", "_start", key="daemon", wall_s=None, **terms)
        jobs = [await node.job(ANSWERING, "many", ["340000"], key=f"answer-{at}", **terms) for at in range(24)]
        async with _running(node, [daemon]) as ended:
            (worker,) = node.runtime.worker_pids
            async with _running(node, jobs, begun=False) as answers:
                with anyio.fail_after(60):
                    while len(answers) < len(jobs):  # noqa: ASYNC110
                        await anyio.sleep(0.01)
            assert {len(outcome.results or "") for outcome in answers.values()} == {3 * 340_000}
            assert node.runtime.worker_pids == [worker]
            assert ended == {}
            assert (Gauge(worker).private_bytes() or 0) < 150 * MIB, "by itself glibc keeps twice as much"


@asynccontextmanager
async def _running(node: Any, jobs: list[Job], *, begun: bool = True) -> AsyncIterator[dict[str, Outcome]]:
    """Run `jobs` meanwhile, and stop them; the outcomes of those that have ended, by key."""
    ended: dict[str, Outcome] = {}

    async def run(job: Job) -> None:
        ended[job.key] = await node.runtime.run(job)

    async with anyio.create_task_group() as tasks:
        for job in jobs:
            tasks.start_soon(run, job)
        if begun:
            await node.running(*(job.key for job in jobs))
        yield ended
        for job in jobs:
            node.runtime.stop(job.key)
