"""``proplet run``: the guest's output, its status, its cost; what cannot be run, and why."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from tests.cli.command import COMMAND, Done, environment, proplet_now
from tests.support.modules import module
from tests.support.registry import ADDITION, PASSWORD, USER, running_registry

ADD = '(func (export "main") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add)'
LOOP = '(func (export "main") (loop (br 0)))'
WASI = '(import "wasi_snapshot_preview1" "{name}" (func ${name} {shape}))'
EXIT = WASI.format(name="proc_exit", shape="(param i32)")
FOUR = "(param i32 i32 i32 i32) (result i32)"
# Says "out" on stdout and "err" on stderr, then ends with 7.
SPEAK = f"""
{WASI.format(name="fd_write", shape=FOUR)} {EXIT}
(memory (export "memory") 1) (data (i32.const 64) "out\\nerr\\n")
(data (i32.const 0) "\\40\\00\\00\\00\\04\\00\\00\\00") (data (i32.const 8) "\\44\\00\\00\\00\\04\\00\\00\\00")
(func (export "_start")
  (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
  (drop (call $fd_write (i32.const 2) (i32.const 8) (i32.const 1) (i32.const 32)))
  (call $proc_exit (i32.const 7)))
"""
# Copies up to 1,000 bytes from stdin to stdout.
CAT = f"""
{WASI.format(name="fd_write", shape=FOUR)} {WASI.format(name="fd_read", shape=FOUR)}
(memory (export "memory") 1) (data (i32.const 0) "\\40\\00\\00\\00\\e8\\03\\00\\00")
(func (export "_start")
  (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 4)))
  (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32))))
"""
# Ends with the number of arguments or variables, or with the error of asking for a first directory.
COUNT = f"""
{WASI.format(name="NAME", shape="(param i32 i32) (result i32)")} {EXIT}
(memory (export "memory") 1)
(func (export "_start") (drop (call $NAME (i32.const 0) (i32.const 4))) (call $proc_exit (i32.load (i32.const 0))))
"""
DIRECTORY = f"""
{WASI.format(name="fd_prestat_get", shape="(param i32 i32) (result i32)")} {EXIT}
(memory (export "memory") 1)
(func (export "_start") (call $proc_exit (call $fd_prestat_get (i32.const 3) (i32.const 0))))
"""
GROW = '(memory (export "memory") 1) (func (export "main") (result i32) (memory.grow (i32.const 100)))'


def run(home: Path, text: str, *arguments: str, options: tuple[str, ...] = (), stdin: bytes = b"") -> Done:
    path = home / "guest.wasm"
    path.write_bytes(wat2wasm(f"(module {text})"))
    return proplet_now(home, ["run", *options, path, *arguments], stdin)


def test_a_functions_result_is_on_stdout_and_its_cost_on_stderr(home: Path) -> None:
    code, out, err = run(home, ADD, "10", "32")
    assert (code, out) == (0, "42\n")
    assert err.splitlines()[0].startswith("compiling")
    assert err.splitlines()[-1].startswith("compile ")
    assert "(cold start), CPU " in err
    assert "(warm start), CPU " in run(home, ADD, "10", "32").err


def test_arguments_after_the_module_are_the_guests_even_with_a_dash(home: Path) -> None:
    assert run(home, ADD, "-10", "-32", options=("-q",)) == (0, "-42\n", "")


def test_a_commands_output_goes_where_it_went_and_its_status_is_ours(home: Path) -> None:
    assert run(home, SPEAK, options=("--quiet",)) == (7, "out\n", "err\n")


def test_standard_input_reaches_the_guest(home: Path) -> None:
    assert run(home, CAT, options=("-q", "-i"), stdin=b"over\n") == (0, "over\n", "")
    assert run(home, CAT, options=("-q",), stdin=b"over\n") == (0, "over\n", "")


def test_arguments_variables_and_directories_reach_the_guest(home: Path) -> None:
    assert run(home, COUNT.replace("NAME", "args_sizes_get"), "a", "b").code == 3
    assert run(home, COUNT.replace("NAME", "environ_sizes_get"), options=("--env", "A=1", "--env", "B=")).code == 2
    assert run(home, COUNT.replace("NAME", "environ_sizes_get")).code == 0
    assert run(home, DIRECTORY, options=("--dir", f"{home}::/data")).code == 0
    assert run(home, DIRECTORY).code == 8  # EBADF: there is none
    (home / "link").symlink_to(".")
    assert run(home, DIRECTORY, options=("--dir", f"{home}/link::/data::ro")).code == 0


@pytest.mark.registry
def test_a_component_makes_http_requests_only_with_the_flag(home: Path) -> None:
    requester = home / "requester.wasm"
    requester.write_bytes(module("component_requester"))
    refused = proplet_now(home, ["run", "-q", requester, "127.0.0.1:9"])
    assert refused.code == 1
    assert "without a permission for outbound HTTP" in refused.err
    with running_registry(home / "registry") as registry:
        done = proplet_now(home, ["run", "-q", "--http", requester, registry.address])
    assert (done.code, done.out) == (0, "200\n")


@pytest.mark.parametrize(
    ("text", "options", "code", "message"),
    [
        ('(func (export "main") unreachable)', (), 134, "unreachable"),
        (LOOP, ("--timeout", "200ms"), 124, "ended after 0.2 s"),
        (ADD, (), 1, "expected 2 arguments but got 0"),
        (ADD, ("--invoke", "mian"), 1, "exports no function `mian`; did you mean `main`?; it exports main"),
        (ADD, ("--timeout", "soon"), 2, "is no duration"),
        (ADD, ("--memory", "much"), 2, "is no size"),
        (ADD, ("--env", "=A"), 2, "write NAME=VALUE"),
        (ADD, ("--dir", "/nowhere::/x"), 1, "is no directory here"),
        ('(import "env" "print" (func)) (func (export "main"))', (), 1, "env"),
    ],
)
def test_what_ends_badly_has_a_status_and_a_reason(
    home: Path, text: str, options: tuple[str, ...], code: int, message: str
) -> None:
    done = run(home, text, options=options)
    assert (done.code, done.out) == (code, "")
    assert message in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_memory_is_limited_as_asked(home: Path) -> None:
    assert run(home, GROW, options=("-q",)).out == "1\n"
    assert run(home, GROW, options=("-q", "--memory", "1Mi")).out == "-1\n"


def test_what_is_no_module_is_said(home: Path) -> None:
    (home / "half.wasm").write_bytes(wat2wasm(f"(module {ADD})")[:30])
    (home / "text.wasm").write_text("hello")
    for name in ("half.wasm", "text.wasm"):
        code, out, err = proplet_now(home, ["run", "-q", name])
        assert (code, out, err.count("\n")) == (1, "", 1)
    assert proplet_now(home, ["run", "none.wasm"]) == (1, "", "proplet: error: none.wasm: No such file or directory\n")


def test_a_registry_that_does_not_answer_is_said(home: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        code, out, err = proplet_now(home, ["run", "-q", f"127.0.0.1:{port}/math/add:1"])
    assert (code, out) == (1, "")
    assert err.startswith(f"proplet: error: registry 127.0.0.1:{port}")


@pytest.mark.registry
def test_an_image_is_pulled_with_the_credentials_of_the_configuration(home: Path) -> None:
    with running_registry(home / "registry", basic=True) as registry:
        registry.push("math/add", "1", ADDITION)
        image = f"{registry.address}/math/add:1"
        refused = proplet_now(home, ["run", "-q", image, "10", "32"])
        assert (refused.code, refused.out) == (1, "")
        (home / "password").write_text(PASSWORD)
        (home / "password").chmod(0o600)
        (home / "p.toml").write_text(
            f"[broker]\n[registries.'{registry.address}']\nusername = '{USER}'\npassword_file = 'password'\n"
        )
        options = ("--config", "p.toml", "--invoke")
        pulled = proplet_now(home, ["run", *options, "main", image, "10", "32"])
        assert (pulled.code, pulled.out) == (0, "42\n")
        assert pulled.err.startswith("fetching")
        assert "fetch " in pulled.err.splitlines()[-1]
        mistyped = proplet_now(home, ["run", "-q", *options, "mian", image, "10", "32"])
    assert (mistyped.code, "did you mean `main`?" in mistyped.err) == (1, True)
    again = proplet_now(home, ["run", "-q", image, "1", "2"])
    assert again == (0, "3\n", "")


def test_a_component_that_is_no_command_needs_an_export_to_be_chosen(home: Path) -> None:
    (home / "guest.wasm").write_bytes(module("component_exports"))
    code, out, err = proplet_now(home, ["run", "-q", "guest.wasm"])
    assert (code, out) == (1, "")
    assert "the component is no command (it exports no wasi:cli/run); choose an export with --invoke: add," in err


def test_a_module_without_the_usual_functions_needs_an_export_to_be_chosen(home: Path) -> None:
    code, out, err = run(home, '(func (export "alpha")) (func (export "beta"))', options=("-q",))
    assert (code, out) == (1, "")
    assert "the module exports no function main, run or _start; choose an export with --invoke: alpha, beta" in err
    assert "it exports no functions" in run(home, "", options=("-q",)).err


def test_an_empty_file_is_said_to_be_empty(home: Path) -> None:
    (home / "empty.wasm").write_bytes(b"")
    code, out, err = proplet_now(home, ["run", "empty.wasm"])
    assert (code, out, err) == (1, "", "proplet: error: not a WebAssembly module: it is empty\n")


def test_without_a_buffer_no_output_is_lost_and_a_reader_that_goes_away_is_noticed(home: Path) -> None:
    """A pipe takes a part of a large write when its reader ends; Python's unbuffered streams forget the rest."""
    environ = environment(home, PYTHONUNBUFFERED="1")
    (home / "flood.wasm").write_bytes(module("flood"))
    arguments = [COMMAND, "run", "-q", "flood.wasm"]
    read, write = os.pipe()
    with subprocess.Popen(arguments, stdout=write, stderr=subprocess.DEVNULL, env=environ, cwd=home) as command:
        os.close(write)
        assert os.read(read, 10)
        os.close(read)
        assert command.wait(60) == 141
