"""WASI preview 1: what a command sees, what it says, how it leaves, how it sleeps."""

import time
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from proplet.agent.wire import DirectoryGrant, Permissions, Reason

pytestmark = pytest.mark.anyio

EBADF, EFAULT, EINVAL, ENOTSUP = 8, 21, 28, 58
REALTIME, MONOTONIC = 0, 1
FD_READ, FD_WRITE = 1, 2
HOUR_NS = str(3600 * 10**9)


async def test_a_command_sees_its_arguments_environment_and_input_and_nothing_else(node: Any) -> None:
    outcome = await node.run("echo", "_start", "10", "zwölf", argv=["--flag"], env={"A": "1", "B": "x=y"}, stdin=b"in")
    assert outcome.reason is Reason.OK
    assert outcome.stdout.decode().split("\0") == ["_start", "--flag", "10", "zwölf", "A=1", "B=x=y", "in"]
    assert outcome.exit_code == 0


async def test_a_command_without_environment_and_input_finds_none(node: Any) -> None:
    assert (await node.run("echo", "task")).stdout == b"task\0"


async def test_a_megabyte_of_input_arrives(node: Any) -> None:
    data = b"0123456789" * 100_000
    assert (await node.run("echo", "_start", stdin=data)).stdout == b"_start\0" + data


@pytest.mark.parametrize("terms", [{"env": {"A=B": "1"}}, {"env": {"": "1"}}, {"env": {"A": "\0"}}, {"argv": ["a\0b"]}])
async def test_strings_that_no_guest_can_be_given_are_refused(node: Any, terms: dict[str, Any]) -> None:
    assert (await node.run("echo", "_start", **terms)).reason is Reason.INVALID_ARGUMENTS


@pytest.mark.parametrize("code", [1, 7, 125, 126, 255, 4000000000])
async def test_an_exit_status_is_a_failure_that_says_which_and_what_was_said_last(node: Any, code: int) -> None:
    outcome = await node.run("exit", "_start", str(code))
    assert (outcome.reason, outcome.exit_code) == (Reason.EXIT_CODE, code)
    assert outcome.error == f"exit status {code}: first | second"
    assert outcome.results == "done\n"
    assert (outcome.stdout, outcome.stderr) == (b"done\n", b"first\nsecond\n")


async def test_exit_status_0_is_success_and_the_result_is_both_streams(node: Any) -> None:
    outcome = await node.run("exit", "_start", "0")
    assert (outcome.reason, outcome.exit_code, outcome.error) == (Reason.OK, 0, None)
    assert outcome.results == "done\n\nfirst\nsecond\n"


async def test_output_beyond_the_limit_is_dropped_counted_and_told(node: Any) -> None:
    outcome = await node.run("flood", "_start", output_bytes=100_000)
    assert outcome.reason is Reason.OK
    assert outcome.stdout == b"." * 100_000
    dropped = 160 * 65536 - 100_000
    assert outcome.stderr.startswith(b"." * 100_000 + b"[proplet: ")
    for stream in ("stdout", "stderr"):
        assert f"{dropped} bytes of {stream} above the output limit were dropped" in outcome.stderr.decode()


async def test_a_function_without_a_result_returns_what_it_prints(node: Any) -> None:
    assert (await node.run("printer", "void")).results == "hello"
    outcome = await node.run("printer", "value")
    assert (outcome.results, outcome.stdout) == ("9", b"hello")


async def test_a_relative_sleep_lasts_as_long_as_it_should(node: Any) -> None:
    for clock in (REALTIME, MONOTONIC):
        began = time.monotonic()
        outcome = await node.run("sleeper", "relative", str(clock), "60")
        assert outcome.results == "0\n77\n0\n1"
        assert 0.06 <= outcome.run_s <= time.monotonic() - began
        assert outcome.cpu_s < 0.05


async def test_a_sleep_until_a_moment_never_ends_too_soon(node: Any) -> None:
    for clock in (REALTIME, MONOTONIC):
        late_ns = int((await node.run("sleeper", "until", str(clock), "50")).results)
        assert 0 <= late_ns < 2e9


async def test_a_moment_that_has_passed_is_no_sleep(node: Any) -> None:
    assert 1e9 <= int((await node.run("sleeper", "until", str(REALTIME), "-1000")).results) < 3e9
    assert 0 <= int((await node.run("sleeper", "until", str(MONOTONIC), "0")).results) < 1e9


async def test_clocks_that_cannot_be_waited_for_are_told_in_the_event(node: Any) -> None:
    assert (await node.run("sleeper", "relative", "2", "5")).results == f"0\n77\n{ENOTSUP}\n1"


async def test_polling_with_impossible_arguments_is_an_error_number(node: Any) -> None:
    for arguments, errno in [
        ("0 1024 0 2048", EINVAL),
        ("0 1024 100000 2048", EINVAL),
        ("65530 1024 1 2048", EFAULT),
        ("0 65530 1 2048", EFAULT),
        ("0 1024 1 65535", EFAULT),
        ("-1 -1 1 -1", EFAULT),
    ]:
        assert (await node.run("sleeper", "raw", *arguments.split())).results == str(errno)


async def test_descriptors_are_ready_or_bad_at_once(node: Any) -> None:
    async def poll(tag: int, fd: int, **terms: Any) -> list[str]:
        return str((await node.run("sleeper", "descriptor", str(tag), str(fd), **terms)).results).split("\n")

    assert await poll(FD_READ, 0) == ["0", "1", "0", "0", "1"]  # end of file
    assert await poll(FD_READ, 0, stdin=b"x") == ["0", "1", "0", "1", "0"]
    assert await poll(FD_WRITE, 1) == ["0", "1", "0", "1", "0"]
    assert (await poll(FD_READ, 1))[2] == str(EBADF)
    assert (await poll(FD_READ, 9))[2] == str(EBADF)
    assert (await poll(7, 0))[2] == str(EINVAL)


async def test_a_sleeping_guest_is_stopped_at_once(node: Any) -> None:
    for export in ("_start", "stubborn"):
        job = await node.job("sleeper", export, key=export)
        outcomes = []

        async def run() -> None:
            outcomes.append(await node.runtime.run(job))  # noqa: B023

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            while not (await node.running(export))[export].memory_bytes:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            began = time.monotonic()
            node.runtime.stop(export)
        assert time.monotonic() - began < 1
        assert outcomes[0].reason is Reason.STOPPED
        assert outcomes[0].peak_memory_bytes == 65536


async def test_the_memory_of_a_guest_is_known_even_if_it_is_stopped_before_it_has_any(node: Any) -> None:
    jobs = [await node.job("sleeper", "_start", key=f"early-{number}") for number in range(20)]
    outcomes = []

    async def run(job: Any) -> None:
        outcomes.append(await node.runtime.run(job))

    async with anyio.create_task_group() as tasks:
        for number, job in enumerate(jobs):
            tasks.start_soon(run, job)
            for _ in range(number):
                await anyio.lowlevel.checkpoint()
            while len(outcomes) <= number:
                node.runtime.stop(job.key)  # not heard before the runtime knows of the job
                await anyio.sleep(0.001)
    assert {outcome.reason for outcome in outcomes} == {Reason.STOPPED}
    assert {outcome.memory_note for outcome in outcomes} == {None}


async def test_sleep_counts_as_wall_time_and_not_as_cpu_time(node: Any) -> None:
    outcome = await node.run("sleeper", "_start", wall_s=0.3, cpu_s=0.1)
    assert outcome.reason is Reason.TIMEOUT
    assert "0.3 s" in outcome.error
    assert 0.3 <= outcome.run_s < 2
    assert outcome.cpu_s < 0.1


async def test_a_granted_directory_can_be_read_and_written_only_as_granted(node: Any, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "note").write_text("x")
    (tmp_path / "secret").write_text("x")
    grants = {
        read_only: Permissions(dirs=(DirectoryGrant(str(tmp_path / "inside"), "/data", read_only=read_only),))
        for read_only in (True, False)
    }
    assert (await node.run("files", "read", permissions=grants[True])).results == "0"
    assert (await node.run("files", "create", permissions=grants[True])).results != "0"
    assert (await node.run("files", "create", permissions=grants[False])).results == "0"
    assert (await node.run("files", "escape", permissions=grants[False])).results != "0"
    assert (await node.run("files", "read")).results == str(EBADF)


async def test_a_directory_that_is_not_there_is_named(node: Any, tmp_path: Path) -> None:
    grant = Permissions(dirs=(DirectoryGrant(str(tmp_path / "nowhere"), "/data"),))
    outcome = await node.run("files", "read", permissions=grant)
    assert outcome.reason is Reason.INVALID_ARGUMENTS
    assert "nowhere" in outcome.error


async def test_a_granted_directory_that_became_a_link_meanwhile_is_not_opened(node: Any, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "note").write_text("x")
    (tmp_path / "shared").symlink_to("private")
    grant = Permissions(dirs=(DirectoryGrant(str(tmp_path / "shared"), "/data"),))
    outcome = await node.run("files", "read", permissions=grant)
    assert outcome.reason is Reason.INVALID_ARGUMENTS
    assert "shared" in outcome.error
