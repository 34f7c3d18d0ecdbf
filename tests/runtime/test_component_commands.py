"""Commands of WASI preview 2, made by Rust's own toolchain: what they are given, what they print, how they end."""

import socket
from pathlib import Path
from typing import Any

import anyio
import pytest
from wasmtime import wat2wasm

from proplet.agent.wire import DirectoryGrant, Permissions, Reason

pytestmark = pytest.mark.anyio

COMMAND = "component_command"
EXIT = """(component
  (import "wasi:cli/exit@0.2.0" (instance $x (export "exit-with-code" (func (param "status-code" u8)))))
  (core func $exit (canon lower (func $x "exit-with-code")))
  (core module $m
    (import "" "exit" (func $exit (param i32)))
    (func (export "run") (result i32) (call $exit (i32.const STATUS)) unreachable))
  (core instance $i (instantiate $m (with "" (instance (export "exit" (func $exit))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $r (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $r)))"""


async def run(node: Any, *words: str, name: str = "_start", **terms: Any) -> Any:
    return await node.run(COMMAND, name, *words, **terms)


async def test_inputs_are_arguments_under_any_name_that_is_no_export(node: Any) -> None:
    for name in ("_start", "fl-round-3", "my-task"):
        outcome = await run(node, "arguments", "zwei", "ö", name=name)
        assert outcome.results == f'["{name}", "arguments", "zwei", "ö"]\n'
        assert (outcome.reason, outcome.exit_code) == (Reason.OK, 0)


async def test_only_the_tasks_own_environment_is_seen(node: Any) -> None:
    assert (await run(node, "environment", env={"A": "1", "B": ""})).results == "A=1\nB=\n"
    assert (await run(node, "environment")).results == ""


async def test_standard_input_is_read_to_its_end(node: Any) -> None:
    assert (await run(node, "input", stdin=b"hello")).results == "HELLO"
    assert (await run(node, "input")).results == ""


async def test_the_result_is_standard_output_and_then_standard_error(node: Any) -> None:
    outcome = await run(node, "both")
    assert (outcome.results, outcome.stdout, outcome.stderr) == ("to stdout\nto stderr", b"to stdout", b"to stderr")


async def test_output_is_capped_and_what_was_dropped_is_counted(node: Any) -> None:
    outcome = await run(node, "flood", "100", output_bytes=2048)
    assert outcome.stdout == b"x" * 2048
    assert b"100352 bytes of stdout" in outcome.stderr


async def test_a_command_says_success_or_failure_and_preview_2_has_no_other_status(node: Any) -> None:
    assert (await run(node, "exit", "0")).reason is Reason.OK
    for code in ("1", "7"):
        outcome = await run(node, "exit", code)
        assert (outcome.reason, outcome.exit_code) == (Reason.EXIT_CODE, 1)
    failed = await run(node, "fail")
    assert (failed.reason, failed.exit_code) == (Reason.EXIT_CODE, 1)
    assert "as it was told" in failed.error


async def test_a_status_of_its_own_is_kept_where_the_guest_can_say_one(node: Any) -> None:
    for code in (0, 7, 255):
        outcome = await node.run(bytes(wat2wasm(EXIT.replace("STATUS", str(code)))), "_start")
        assert (outcome.exit_code, outcome.reason) == (code, Reason.EXIT_CODE if code else Reason.OK)


async def test_each_of_many_at_once_ends_with_its_own_status_and_output(node: Any) -> None:
    components = [bytes(wat2wasm(EXIT.replace("STATUS", str(code)))) for code in (3, 4)]
    ends: list[tuple[int, int | None]] = []

    async def end(number: int) -> None:
        ends.append((number % 2 + 3, (await node.run(components[number % 2], "_start")).exit_code))

    async def greet(number: int) -> None:
        outcome = await node.run("component_greeter", "greet", f'"{number}"')
        assert outcome.results == f'"Hello, {number}!"'

    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(end, number)
            tasks.start_soon(greet, number)
    assert len(ends) == 200
    assert all(wanted == got for wanted, got in ends)


async def test_a_panic_is_a_trap_and_what_it_printed_is_kept(node: Any) -> None:
    outcome = await run(node, "panic")
    assert (outcome.reason, outcome.exit_code) == (Reason.TRAP, None)
    assert b"as it was told" in outcome.stderr
    assert "as it was told" in outcome.error


async def test_directories_are_read_only_unless_granted_and_nothing_else_is_there(node: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("content")
    for read_only in (True, False):
        permissions = Permissions(dirs=(DirectoryGrant(str(tmp_path), "/data", read_only),))
        assert (await run(node, "read", "/data/a", permissions=permissions)).results == "content"
        written = await run(node, "write", "/data/new", "text", permissions=permissions)
        assert written.reason is (Reason.EXIT_CODE if read_only else Reason.OK)
        assert (tmp_path / "new").exists() is not read_only
        for path in ("/etc/passwd", "/data/../etc/passwd", "/data/../../../../etc/passwd"):
            assert (await run(node, "read", path, permissions=permissions)).reason is Reason.EXIT_CODE
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert (await run(node, "read", "/data/link", permissions=permissions)).reason is Reason.EXIT_CODE


async def test_memory_beyond_the_limit_ends_the_command_alone(node: Any) -> None:
    assert (await run(node, "fill", "10")).results == "10\n"
    outcome = await run(node, "fill", "200")
    assert outcome.reason in {Reason.TRAP, Reason.MEMORY_LIMIT}
    assert b"memory allocation of 209715200 bytes failed" in outcome.stderr


async def test_clocks_run_and_a_short_sleep_ends(node: Any) -> None:
    assert (await run(node, "clock")).results == "true\n"
    slept = await run(node, "sleep", "0.1")
    assert slept.reason is Reason.OK
    assert slept.run_s >= 0.1


async def test_a_command_that_sleeps_or_computes_too_long_is_ended(node: Any) -> None:
    assert (await run(node, "spin", cpu_s=0.1)).reason is Reason.CPU_LIMIT
    assert (await run(node, "sleep", "3600", wall_s=0.2)).reason is Reason.TIMEOUT
    assert (await run(node, "clock")).results == "true\n"


async def test_no_address_can_be_reached_without_the_permission(node: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = await run(node, "connect", f"127.0.0.1:{server.getsockname()[1]}")
        assert "Permission denied" in outcome.results


async def test_what_the_engine_cannot_grant_is_refused_rather_than_denied_in_silence(node: Any) -> None:
    outcome = await run(node, "clock", permissions=Permissions(tcp=("*",)))
    assert outcome.reason is Reason.NOT_SUPPORTED
    assert "cannot open sockets" in outcome.error
