"""Every limit ends the guest it is for, says so, and touches nobody else."""

import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from wasmtime import wat2wasm

from proplet.agent.host_engine import stack_class
from proplet.agent.wire import Reason

pytestmark = pytest.mark.anyio


async def test_wall_time_ends_a_busy_loop(node: Any) -> None:
    outcome = await node.run("loop", wall_s=0.2)
    assert outcome.reason is Reason.TIMEOUT
    assert "0.2 s" in outcome.error
    assert 0.2 <= outcome.run_s < 5
    assert outcome.cpu_s > 0
    assert outcome.peak_memory_bytes == 2 * 65536


async def test_cpu_time_ends_a_busy_loop(node: Any) -> None:
    outcome = await node.run("loop", cpu_s=0.2)
    assert outcome.reason is Reason.CPU_LIMIT
    assert 0.2 <= outcome.cpu_s < 0.5


async def test_a_start_function_is_under_the_same_limits(node: Any) -> None:
    assert (await node.run("start_loop", wall_s=0.2)).reason is Reason.TIMEOUT


async def test_memory_beyond_the_limit_is_refused_to_the_guest(node: Any) -> None:
    outcome = await node.run("hog", memory_bytes=4 * 1024 * 1024)
    assert outcome.reason is Reason.TRAP
    assert "of the 4194304 bytes allowed" in outcome.error
    assert 3 * 1024 * 1024 < outcome.peak_memory_bytes <= 4 * 1024 * 1024
    assert (await node.run("hog", "grow", "63", memory_bytes=4 * 1024 * 1024)).results == "1"
    assert (await node.run("hog", "grow", "64", memory_bytes=4 * 1024 * 1024)).results == "-1"


async def test_a_module_that_begins_above_the_memory_limit_does_not_begin(node: Any) -> None:
    outcome = await node.run("large")
    assert outcome.reason is Reason.MEMORY_LIMIT
    assert "2000 pages" in outcome.error
    assert (await node.run("large", memory_bytes=256 * 1024 * 1024)).reason is Reason.OK


async def test_a_table_of_a_million_elements_is_too_large(node: Any) -> None:
    assert (await node.run("large_table")).reason is Reason.MEMORY_LIMIT


async def test_a_component_has_the_same_bounds_for_tables_and_a_number_of_instances(node: Any) -> None:
    tables = "(component (core module $m (table 1000000 funcref) {0}) (core instance (instantiate $m)) {1})"
    crowd = "(component (core module $m {0}) " + "(core instance (instantiate $m))" * 150 + " {1})"
    body = (
        '(func (export "f"))',
        '(core instance $i (instantiate $m)) (func (export "main") (canon lift (core func $i "f")))',
    )
    for text in (tables, crowd):
        outcome = await node.run(bytes(wat2wasm(text.format(*body))))
        assert outcome.reason is Reason.MEMORY_LIMIT
        assert "it may have" in outcome.error


async def test_fuel_and_output_of_a_guest_in_a_worker_of_its_own_are_limited_too(node: Any) -> None:
    outcome = await node.run("component_waiting", "spin", fuel=100_000)
    assert outcome.reason is Reason.CPU_LIMIT
    assert "100000 units of fuel" in outcome.error
    flood = await node.run("component_command", "_start", "flood", "100", output_bytes=2048, wall_s=60)
    assert (flood.reason, flood.stdout) == (Reason.OK, b"x" * 2048)


async def test_the_memory_of_a_guest_that_shows_none_is_not_guessed(node: Any) -> None:
    outcome = await node.run("hidden_memory")
    assert (outcome.results, outcome.peak_memory_bytes) == ("0", None)


async def test_endless_recursion_is_a_trap_of_the_guest_alone(node: Any) -> None:
    before = (await node.run("addition", "main", "1", "1")) and list(node.runtime.worker_pids)
    for stack_bytes in (1, 64 * 1024, 512 * 1024, 2 * 1024 * 1024, 2**40):
        outcome = await node.run("recursion", stack_bytes=stack_bytes)
        assert outcome.reason is Reason.TRAP
        assert "call stack exhausted" in outcome.error
        assert f"may have {stack_class(stack_bytes)} bytes of stack (limits.stack)" in outcome.error
    assert node.runtime.worker_pids == before


async def test_a_larger_stack_lets_a_guest_call_deeper(node: Any) -> None:
    assert (await node.run("recursion", "deep", "20000", stack_bytes=64 * 1024)).reason is Reason.TRAP
    assert (await node.run("recursion", "deep", "20000", stack_bytes=2 * 1024 * 1024)).results == "20000"


async def test_fuel_ends_a_loop_at_the_same_step_each_time(node: Any) -> None:
    outcome = await node.run("loop", fuel=100_000)
    assert outcome.reason is Reason.CPU_LIMIT
    assert "100000 units of fuel" in outcome.error
    assert (await node.run("loop", "count", "100", fuel=100_000)).results == "100"


async def test_a_job_is_stopped_while_it_computes(node: Any) -> None:
    await _stopped_within(node, "loop", 1.0)


async def test_stopping_one_guest_or_its_time_being_up_touches_no_other(node: Any) -> None:
    long = await node.job("loop", "count", ["3000000000"], key="long", wall_s=100)
    outcomes = []

    async def run_long() -> None:
        outcomes.append(await node.runtime.run(long))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_long)
        for _ in range(5):
            assert (await node.run("loop", wall_s=0.05)).reason is Reason.TIMEOUT
            assert (await node.run("loop", cpu_s=0.02)).reason is Reason.CPU_LIMIT
            await _stopped_within(node, "loop", 1.0, "long")
    assert outcomes[0].results == "3000000000"


async def test_stopping_what_is_unknown_or_waiting_is_harmless(node: Any) -> None:
    node.runtime.stop("nobody")
    outcomes: dict[str, Any] = {}

    async def run(job: Any) -> None:
        outcomes[job.key] = await node.runtime.run(job)

    jobs = [await node.job("loop", key=f"loop-{number}") for number in range(12)]  # more than there are slots
    async with anyio.create_task_group() as tasks:
        for job in jobs:
            tasks.start_soon(run, job)
        await node.running(*(f"loop-{number}" for number in range(node.runtime.slots)))
        for number in reversed(range(12)):
            node.runtime.stop(f"loop-{number}")
            node.runtime.stop(f"loop-{number}")
    assert [outcome.reason for outcome in outcomes.values()] == [Reason.STOPPED] * 12


async def test_cancelling_the_call_ends_the_guest(node: Any) -> None:
    with anyio.move_on_after(0.3):
        await node.run("loop", key="cancelled")
    await node.running()


async def test_a_sample_shows_the_cpu_time_and_memory_of_each_live_run(node: Any) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(node.runtime.run, await node.job("loop", key="busy"))
        tasks.start_soon(node.runtime.run, await node.job("sleeper", "_start", key="asleep"))
        await node.running("busy", "asleep")
        await node.run("loop", wall_s=0.3)  # meanwhile the other uses some
        samples = await node.running("busy", "asleep")
        assert samples["busy"].cpu_s > 0.05
        assert samples["busy"].memory_bytes == 2 * 65536
        assert samples["asleep"].memory_bytes == 65536
        assert samples["asleep"].cpu_s < 0.1
        assert samples["asleep"].wall_s > 0
        node.runtime.stop("busy")
        node.runtime.stop("asleep")
    assert await node.runtime.sample() == {}


async def test_daemons_leave_the_slots_to_the_others(node: Any) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            job = await node.job("sleeper", "_start", key=f"daemon-{number}", wall_s=None)
            tasks.start_soon(node.runtime.run, job)
        await node.running(*(f"daemon-{number}" for number in range(20)))
        assert (await node.run("addition", "main", "1", "2")).results == "3"
        for number in range(20):
            node.runtime.stop(f"daemon-{number}")


async def test_a_hundred_daemons_live_in_one_worker_of_less_than_a_hundred_megabytes(node: Any) -> None:
    keys = [f"daemon-{number}" for number in range(100)]
    async with anyio.create_task_group() as tasks:
        for number, key in enumerate(keys):
            job = await node.job(("sleeper", "slow_loop")[number % 2], "_start", key=key, wall_s=None)
            tasks.start_soon(node.runtime.run, job)
        samples = await node.running(*keys)
        (worker,) = node.runtime.worker_pids
        assert _resident_bytes(worker) < 100_000_000
        assert {sample.memory_bytes for sample in samples.values()} == {65536}
        assert (await node.run("addition", "main", "1", "2")).results == "3"
        node.runtime.stop("daemon-50")
        await node.running(*(key for key in keys if key != "daemon-50"))
        for key in keys:
            node.runtime.stop(key)


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split(None, 1)[0]) * 1024


async def _stopped_within(node: Any, guest: str, seconds: float, *others: str) -> None:
    outcomes = []

    async def run() -> None:
        outcomes.append(await node.run(guest, key="to-stop"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await node.running("to-stop", *others)
        began = time.monotonic()
        node.runtime.stop("to-stop")
    assert time.monotonic() - began < seconds
    assert outcomes[0].reason is Reason.STOPPED
    assert outcomes[0].error == "stopped before completion"
