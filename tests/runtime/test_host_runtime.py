"""The host runtime: every guest in the real wasmtime program, with `cli_args` as its flags."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent.ports import Job, Output
from proplet.agent.program_runtime import EitherRuntime, ProgramSettings, open_programs
from proplet.agent.wire import DirectoryGrant, Permissions, Reason
from tests.runtime.conftest import Node

pytestmark = pytest.mark.anyio
MIB = 1024 * 1024


@pytest.fixture(scope="session")
def program_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("program")


@pytest.fixture
async def runtime(node: Node, program_cache: Path) -> AsyncIterator[EitherRuntime]:
    settings = ProgramSettings(runs_all=True, cache_dir=program_cache)
    async with open_programs(settings, node.runtime, 2) as opened:
        yield opened
    assert node.runtime.worker_pids == []


async def test_a_function_is_called_with_its_arguments(node: Node, runtime: EitherRuntime) -> None:
    outcome = await runtime.run(await node.job("addition", "main", ["2", "-40"]))
    assert (outcome.reason, outcome.results, outcome.exit_code) == (Reason.OK, "-38\n", 0)
    assert outcome.cpu_s > 0
    assert outcome.peak_memory_bytes > MIB


async def test_a_program_has_its_arguments_and_its_environment_and_nothing_of_ours(
    node: Node, runtime: EitherRuntime
) -> None:
    outcome = await runtime.run(await node.job("component_command", "_start", ["arguments", "one", "--two"]))
    assert outcome.reason is Reason.OK, outcome
    assert "one" in outcome.results
    assert "--two" in outcome.results
    outcome = await runtime.run(
        await node.job("component_command", "_start", ["environment"], env={"A": "1", "PATH": "mine"})
    )
    assert sorted(outcome.results.split()) == ["A=1", "PATH=mine"]


async def test_a_components_function_is_called_in_wave(node: Node, runtime: EitherRuntime) -> None:
    outcome = await runtime.run(await node.job("component_waiting", "add", ["1", "2"]))
    assert (outcome.reason, outcome.results) == (Reason.OK, "3\n")


async def test_an_exit_status_and_a_trap_are_told_in_the_references_words(node: Node, runtime: EitherRuntime) -> None:
    outcome = await runtime.run(await node.job("exit", "_start", ["7"]))
    assert outcome.reason is Reason.EXIT_CODE
    assert outcome.error.startswith(f"Process exited with status: exit status: {outcome.exit_code}, stderr: ")
    outcome = await runtime.run(await node.job("traps", "unreachable"))
    assert outcome.reason is Reason.TRAP
    assert "unreachable" in outcome.error
    outcome = await runtime.run(await node.job("addition", "nowhere", ["1"]))
    assert outcome.reason is Reason.UNKNOWN_EXPORT, outcome
    outcome = await runtime.run(await node.job("addition", "main", ["x", "1"]))
    assert outcome.reason is Reason.INVALID_ARGUMENTS, outcome
    outcome = await runtime.run(await node.job("missing_import", "main"))
    assert outcome.reason is Reason.MISSING_IMPORT, outcome


async def test_limits_of_time_memory_and_fuel_hold(node: Node, runtime: EitherRuntime) -> None:
    outcome = await runtime.run(await node.job("loop", "main", wall_s=0.5))
    assert (outcome.reason, outcome.error) == (Reason.TIMEOUT, "ended after 0.5 s, its limit of time")
    outcome = await runtime.run(await node.job("loop", "main", cpu_s=0.2))
    assert outcome.reason is Reason.CPU_LIMIT
    outcome = await runtime.run(await node.job("loop", "main", fuel=100_000))
    assert outcome.reason is Reason.CPU_LIMIT
    argv = [f"-Wmax-memory-size={1024 * MIB}", "-W", "fuel=18446744073709551615", "-Wmax-wasm-stack=1048576"]
    for pages, grown in ((100, "1"), (130, "-1")):
        job = await node.job("hog", "grow", [str(pages)], memory_bytes=8 * MIB, argv=argv, fuel=10_000_000)
        assert (await runtime.run(job)).results == f"{grown}\n"


async def test_more_output_than_a_pipe_holds_is_read_and_what_is_too_much_is_left_out(
    node: Node, runtime: EitherRuntime
) -> None:
    told = 0

    def hear(notice: Any) -> None:
        nonlocal told
        told += len(notice.data) if isinstance(notice, Output) else 0

    outcome = await runtime.run(await node.job("flood", "_start", output_bytes=100_000, wall_s=3.0), hear)
    assert outcome.reason in (Reason.OK, Reason.TIMEOUT)
    assert len(outcome.stdout) == 100_000
    assert told > 1_000_000


async def test_a_daemon_runs_until_it_is_stopped(node: Node, runtime: EitherRuntime) -> None:
    job = await node.job("loop", "main", wall_s=None, cpu_s=None)
    outcomes = []
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            outcomes.append(await runtime.run(job))

        tasks.start_soon(run)
        with anyio.fail_after(20):
            while not (sample := (await runtime.sample()).get(job.key)) or not sample.cpu_s:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        runtime.stop(job.key)
    assert outcomes[0].reason is Reason.STOPPED


async def test_no_more_run_at_once_than_the_node_allows_and_one_that_waits_can_be_stopped(
    node: Node, runtime: EitherRuntime
) -> None:
    jobs = [await node.job("loop", "main", wall_s=60.0) for _ in range(3)]
    outcomes: dict[str, Any] = {}
    async with anyio.create_task_group() as tasks:

        async def run(job: Job) -> None:
            outcomes[job.key] = await runtime.run(job)

        for job in jobs:
            tasks.start_soon(run, job)
        with anyio.fail_after(20):
            while len(runtime.programs.pids) < 2:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        (waiting,) = {job.key for job in jobs} - set(await runtime.sample())
        runtime.stop(waiting)
        with anyio.fail_after(20):
            while waiting not in outcomes:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert len(outcomes) == 1
        for job in jobs:
            runtime.stop(job.key)
    assert {outcome.reason for outcome in outcomes.values()} == {Reason.STOPPED}


async def test_a_tasks_flags_open_nothing_that_it_was_not_granted(
    node: Node, runtime: EitherRuntime, tmp_path: Path
) -> None:
    for argv in (
        ["--dir", "/"],
        ["--dir=/etc::/etc"],
        ["-Sinherit-network"],
        ["-S", "inherit-env=y"],
        ["--allow-precompiled"],
        ["/etc/passwd"],
        ["--env", "HOME"],
        ["--config=/etc/x"],
    ):
        outcome = await runtime.run(await node.job("files", "_start", argv=argv))
        assert outcome.reason is Reason.PERMISSION_DENIED, argv
        assert argv[0] in outcome.error or argv[0][:2] in outcome.error, outcome.error
    granted = Permissions(dirs=(DirectoryGrant(str(tmp_path), "/data", read_only=False),))
    argv = ["--dir", f"{tmp_path}::/data"]
    outcome = await runtime.run(
        await node.job("component_command", "_start", ["write", "/data/x", "y"], permissions=granted, argv=argv)
    )
    assert outcome.reason is Reason.OK, outcome


async def test_a_text_that_no_program_can_be_given_is_refused(node: Node, runtime: EitherRuntime) -> None:
    for terms in ({"env": {"A=B": "1"}}, {"env": {"A": "x\0y"}}, {"inputs": ["\0"]}, {"env": {"": "x"}}):
        job = await node.job("addition", "main", **terms)
        outcome = await runtime.run(job)
        assert outcome.reason is Reason.INVALID_ARGUMENTS, (terms, outcome)


async def test_a_node_without_the_program_says_so(node: Node, tmp_path: Path) -> None:
    settings = ProgramSettings(runs_all=True, program=str(tmp_path / "none"))
    async with open_programs(settings, node.runtime, 2) as runtime:
        outcome = await runtime.run(await node.job("addition", "main", ["1", "2"]))
        assert (outcome.reason, outcome.error) == (
            Reason.NOT_SUPPORTED,
            f"there is no program {tmp_path / 'none'}, which [runtime] program names",
        )


async def test_nobody_else_writes_what_the_program_has_compiled(node: Node, tmp_path: Path) -> None:
    for place in (tmp_path / "program", tmp_path / "program/compiled"):
        place.mkdir()
        place.chmod(0o777)
    settings = ProgramSettings(runs_all=True, cache_dir=tmp_path / "program")
    async with open_programs(settings, node.runtime, 1) as runtime:
        assert (await runtime.run(await node.job("addition", "main", ["1", "2"]))).reason is Reason.OK
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("program", "program/compiled")] == [0o700, 0o700]
