"""Guests that get a worker of their own: what can block inside the engine, and components that stay."""

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent.events import StartKind
from proplet.agent.ports import Job, Outcome
from proplet.agent.wire import Reason
from tests.runtime.conftest import open_node

pytestmark = pytest.mark.anyio

WAITING = "component_waiting"
AGES = "31536000"
MIB = 1024 * 1024


async def test_a_component_that_sleeps_for_ever_is_stopped_with_its_worker_and_only_it(node: Any) -> None:
    async with _beside(node, await node.job("loop", "main", key="neighbour", wall_s=None)) as neighbour:
        (shared,) = node.runtime.worker_pids
        sleeper = await node.job(WAITING, "sleep", [AGES], key="sleeper")
        outcome, took_s = await _stopped(node, sleeper, "neighbour")
        assert outcome.reason is Reason.STOPPED
        assert outcome.error == "stopped before completion"
        assert took_s < 3
        assert node.runtime.worker_pids == [shared]
        assert neighbour == []


async def test_its_limit_of_time_ends_it_too_and_none_of_that_is_a_misdeed(warm_directory: Path) -> None:
    async with open_node(warm_directory, strikes=1, quarantine_s=600) as node:
        for _ in range(2):
            outcome = await node.run(WAITING, "sleep", AGES, wall_s=0.3)
            assert (outcome.reason, outcome.error) == (Reason.TIMEOUT, "ended after 0.3 s, its limit of time")
            assert 0.3 <= outcome.run_s < 3
            assert outcome.cpu_s < 2
            assert outcome.peak_memory_bytes > MIB
            assert "worker's peak" in outcome.memory_note
        stopped, _ = await _stopped(node, await node.job(WAITING, "sleep", [AGES], key="sleeper"))
        assert stopped.reason is Reason.STOPPED
        assert (await node.run(WAITING, "add", "1", "2")).results == "3"


async def test_one_that_computes_is_ended_the_ordinary_way_and_its_worker_lives_on(node: Any) -> None:
    assert (await node.run(WAITING, "add", "1", "2")).results == "3"
    workers = node.runtime.worker_pids
    assert (await node.run(WAITING, "spin", wall_s=0.2)).reason is Reason.TIMEOUT
    outcome = await node.run(WAITING, "spin", cpu_s=0.2)
    assert outcome.reason is Reason.CPU_LIMIT
    assert 0.2 <= outcome.cpu_s < 1
    assert node.runtime.worker_pids == workers


async def test_what_the_engine_keeps_on_a_guests_behalf_is_limited(warm_directory: Path) -> None:
    async with open_node(warm_directory, own_allowance_bytes=16 * MIB) as node:
        outcome = await node.run(WAITING, "ask", str(48 * MIB), memory_bytes=52 * MIB)
        assert outcome.reason is Reason.MEMORY_LIMIT
        assert "may have 52 MiB" in outcome.error
        assert outcome.peak_memory_bytes > 68 * MIB


async def test_a_worker_is_used_again_and_the_module_is_hot_in_it(node: Any) -> None:
    first, second = [await node.run(WAITING, "add", "1", "2") for _ in range(2)]
    assert (first.results, second.results) == ("3", "3")
    assert (first.start_kind is StartKind.HOT, second.start_kind is StartKind.HOT) == (False, True)
    assert len(node.runtime.worker_pids) == 1


async def test_the_peak_is_this_tasks_and_not_that_of_the_one_before(node: Any) -> None:
    await node.run(WAITING, "add", "1", "2")
    (worker,) = node.runtime.worker_pids
    large = await node.run(WAITING, "ask", str(40 * MIB), cpu_s=0.5)
    small = await node.run(WAITING, "add", "1", "2")
    assert node.runtime.worker_pids == [worker]
    assert large.peak_memory_bytes - small.peak_memory_bytes > 30 * MIB
    assert "worker's peak" in small.memory_note


async def test_where_the_worker_is_shared_the_engine_tells_or_nobody_knows(node: Any) -> None:
    told = await node.run("addition", "main", "1", "2")
    hidden = await node.run("hidden_memory")
    assert (told.peak_memory_bytes, told.memory_note) == (0, None)
    assert hidden.peak_memory_bytes is None
    assert "shared with others" in hidden.memory_note


async def test_a_core_module_in_a_worker_of_its_own_tells_its_linear_memory(node: Any) -> None:
    outcome = await node.runtime.run(await _waits(node, "loop", "count", ["10"]))
    assert (outcome.results, outcome.peak_memory_bytes, outcome.memory_note) == ("10", 2 * 65536, None)


async def test_a_sample_of_a_guest_that_waits_tells_its_workers_memory(node: Any) -> None:
    async with _beside(node, await node.job(WAITING, "sleep", [AGES], key="sleeper")):
        sample = (await node.running("sleeper"))["sleeper"]
        assert sample.memory_bytes > MIB


async def test_daemons_leave_workers_to_short_jobs_and_wait_for_each_other(warm_directory: Path) -> None:
    async with open_node(warm_directory, max_own_workers=4) as node, anyio.create_task_group() as tasks:
        for number in range(4):
            job = await node.job(WAITING, "sleep", [AGES], key=f"daemon-{number}", wall_s=None)
            tasks.start_soon(node.runtime.run, job)
        await node.running("daemon-0", "daemon-1", "daemon-2")
        for _ in range(2):
            assert (await node.run(WAITING, "add", "1", "2")).results == "3"
        assert len(node.runtime.worker_pids) == 4
        node.runtime.stop("daemon-1")
        await node.running("daemon-0", "daemon-2", "daemon-3")
        for number in range(4):
            node.runtime.stop(f"daemon-{number}")


async def test_a_daemon_takes_the_place_of_the_worker_that_was_idle_the_longest(warm_directory: Path) -> None:
    async with open_node(warm_directory, max_own_workers=2) as node:
        jobs = [await _waits(node, "loop", "count", ["300000000"], key=f"short-{number}") for number in range(2)]
        async with anyio.create_task_group() as tasks:
            for job in jobs:
                tasks.start_soon(node.runtime.run, job)
        before = node.runtime.worker_pids
        assert len(before) == 2
        async with _beside(node, await node.job(WAITING, "sleep", [AGES], key="daemon", wall_s=None)):
            assert len(node.runtime.worker_pids) == 2
            assert len(set(before) & set(node.runtime.worker_pids)) == 1


async def test_those_beyond_the_cap_run_in_order_of_arrival(warm_directory: Path) -> None:
    ended: list[str] = []
    async with open_node(warm_directory, max_own_workers=2) as node:

        async def run(job: Job) -> None:
            assert (await node.runtime.run(job)).reason is Reason.OK
            ended.append(job.key)

        jobs = [await _waits(node, "loop", "count", ["30000000"], key=f"job-{number}") for number in range(8)]
        async with _beside(node, await node.job(WAITING, "sleep", [AGES], key="daemon", wall_s=None)):
            async with anyio.create_task_group() as tasks:
                for job in jobs:
                    tasks.start_soon(run, job)
            assert len(node.runtime.worker_pids) == 2
    assert ended == [job.key for job in jobs]


async def test_a_guest_that_waits_for_a_worker_can_be_stopped(warm_directory: Path) -> None:
    async with open_node(warm_directory, max_own_workers=2) as node:
        outcomes: dict[str, Outcome] = {}

        async def run(job: Job) -> None:
            outcomes[job.key] = await node.runtime.run(job)

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(run, await node.job(WAITING, "sleep", [AGES], key=f"sleeper-{number}"))
            await node.running("sleeper-0", "sleeper-1")
            for number in reversed(range(4)):
                node.runtime.stop(f"sleeper-{number}")
        assert {outcome.reason for outcome in outcomes.values()} == {Reason.STOPPED}


async def test_a_crash_of_its_worker_is_its_own_and_counts(warm_directory: Path) -> None:
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(open_node(warm_directory, strikes=1, quarantine_s=600))
        job = await node.job("sleeper", "_start", key="neighbour")
        neighbour = await stack.enter_async_context(_beside(node, job))
        (shared,) = node.runtime.worker_pids
        async with _beside(node, await node.job(WAITING, "sleep", [AGES], key="victim"), "neighbour") as victim:
            (own,) = set(node.runtime.worker_pids) - {shared}
            os.kill(own, signal.SIGABRT)
            await node.running("neighbour")
        assert victim[0].reason is Reason.WORKER_CRASHED
        assert "SIGABRT" in (victim[0].error or "")
        assert (await node.run(WAITING, "add", "1", "2")).reason is Reason.QUARANTINED
        assert node.runtime.worker_pids == [shared]
        assert neighbour == []


async def test_a_preloaded_module_is_hot_at_its_first_run(node: Any) -> None:
    for guest, export in (("addition", "main"), (WAITING, "add")):
        job = await node.job(guest, export, ["1", "2"])
        assert await node.runtime.preload(job) is None
        outcome = await node.runtime.run(job)
        assert (outcome.results, outcome.start_kind) == ("3", StartKind.HOT)
    assert len(node.runtime.worker_pids) == 2


async def test_an_invocation_gets_the_next_worker_of_its_own_before_other_jobs(warm_directory: Path) -> None:
    ended: list[str] = []
    async with open_node(warm_directory, max_own_workers=2) as node, anyio.create_task_group() as tasks:

        async def run(job: Job) -> None:
            await node.runtime.run(job)
            ended.append(job.key)

        for number in range(2):
            tasks.start_soon(run, await node.job(WAITING, "sleep", ["1000000"], key=f"long-{number}"))
        await node.running("long-0", "long-1")
        for key, invoked in (("job", False), ("invocation", True)):
            tasks.start_soon(run, await node.job(WAITING, "sleep", ["1"], key=key, invoked=invoked))
        await anyio.wait_all_tasks_blocked()
        node.runtime.stop("long-0")
        with anyio.fail_after(10):
            while "job" not in ended:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert ended == ["long-0", "invocation", "job"]
        node.runtime.stop("long-1")


async def test_preloading_tells_what_would_end_every_run(node: Any) -> None:
    job = await node.job("missing_import")
    refusal = await node.runtime.preload(job)
    assert refusal.reason is Reason.MISSING_IMPORT
    assert refusal.error == (await node.runtime.run(job)).error


async def test_preloading_in_a_worker_that_ends_meanwhile_tells_nothing(node: Any) -> None:
    job, refusals = await node.job("addition", "main", ["1", "2"]), []

    async def preload() -> None:
        refusals.append(await node.runtime.preload(job))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(preload)
            while not node.runtime.worker_pids:
                await anyio.lowlevel.checkpoint()
            os.kill(node.runtime.worker_pids[0], signal.SIGKILL)
    assert refusals == [None]
    assert (await node.runtime.run(job)).results == "3"


async def _waits(node: Any, guest: str, export: str, inputs: list[str], **terms: Any) -> Job:
    """A job of a core module as if it could block."""
    job: Job = await node.job(guest, export, inputs, **terms)
    return replace(job, artefact=replace(job.artefact, waits=True))


@asynccontextmanager
async def _beside(node: Any, job: Job, *others: str) -> AsyncIterator[list[Outcome]]:
    """Run `job` meanwhile, and stop it; its outcome, once it has ended."""
    outcomes: list[Outcome] = []

    async def run() -> None:
        outcomes.append(await node.runtime.run(job))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await node.running(job.key, *others)
        yield outcomes
        node.runtime.stop(job.key)


async def _stopped(node: Any, job: Job, *others: str) -> tuple[Outcome, float]:
    """Stop `job` once it runs; its outcome, and the seconds that took."""
    async with _beside(node, job, *others) as outcomes:
        began = time.monotonic()
    return outcomes[0], time.monotonic() - began
