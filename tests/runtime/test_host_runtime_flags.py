"""What a task may say to the wasmtime program, and what is said to it: flags, addresses, command lines."""

import ipaddress
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.ports import Artefact, GuestLimits, Job, ModuleKind
from proplet.agent.program_args import Terms, running, serving
from proplet.agent.program_flags import FlagError, check_directories, checked
from proplet.agent.program_ports import AddressError, Allowed, Asked, asked_by, granted
from proplet.agent.wire import DirectoryGrant, Permissions, Reason

NOTHING = Permissions()
DATA = Permissions(dirs=(DirectoryGrant("/srv/data", "/data", read_only=False),))


def job(kind: ModuleKind = ModuleKind.CORE, export: str = "main", **terms: Any) -> Job:
    artefact = Artefact("sha256:m", Path("/m.cwasm"), kind, wasm=Path("/store/m.wasm"))
    return Job("k", artefact, export, **terms)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ([], ()),
        (
            ["-S", "nn", "-Wsimd=y", "--wasi=http", "--optimize", "opt-level=2"],
            ("-Snn", "-Wsimd=y", "-Shttp", "-Oopt-level=2"),
        ),
        (["--invoke", "f", "--env=A=b=c"], ("--invoke=f", "--env=A=b=c")),
        (["-S=cli,http"], ("-Scli,http",)),
        (["-Ccranelift-debug-verifier"], ("-Ccranelift-debug-verifier",)),
        (["-Wmax-memory-size=9,gc=n"], ("-Wmax-memory-size=9,gc=n",)),
        (["-Sinherit-network=n,tcp=n"], ("-Sinherit-network=n,tcp=n",)),
    ],
)
def test_harmless_flags_are_kept_each_in_one_piece(arguments: list[str], kept: tuple[str, ...]) -> None:
    assert checked(arguments, NOTHING) == kept


@pytest.mark.parametrize(
    "arguments",
    [
        ["/tmp/other.wasm"],
        ["--"],
        ["-"],
        [""],
        ["-Scli,inherit-env"],
        ["-Scli,nn-graph=onnx::/etc"],
        ["-S", "listenfd"],
        ["-Stcplisten=0.0.0.0:1"],
        ["-Ccache-config=/etc/x"],
        ["-C", "cache"],
        ["-Ccranelift-enable_probestack=false"],
        ["-C", "compiler=cranelift,cranelift-enable_heap_access_spectre_mitigation=n"],
        ["-Wall-proposals"],
        ["-Wstack-switching=y"],
        ["-W", "shared-memory,threads"],
        ["-Sthreads"],
        ["-Dcoredump=/tmp/x"],
        ["-D", "log-to-files"],
        ["-Ddebugger=/x"],
        ["--allow-precompiled"],
        ["--config", "x"],
        ["--preload", "a=/etc/x.wasm"],
        ["--profile=guest,/tmp/x"],
        ["-g", "1234"],
        ["-Rpath=/tmp/x"],
        ["--target", "x"],
        ["--env", "SECRET"],
        ["--dir", "/srv/data"],
        ["--dir=/srv::/data"],
        ["--invoke"],
        ["-W"],
    ],
)
def test_whatever_could_reach_further_is_refused(arguments: list[str]) -> None:
    with pytest.raises(FlagError):
        checked(arguments, DATA)


def test_a_directory_is_taken_if_it_was_granted_just_so_and_sockets_with_the_permission() -> None:
    assert checked(["--dir", "/srv/data::/data"], DATA) == ()
    assert checked(["-Sinherit-network"], Permissions(tcp=("*",))) == ("-Sinherit-network",)
    with pytest.raises(FlagError, match=r"permissions\.tcp"):
        checked(["-Sinherit-network"], NOTHING)


def test_a_directory_that_is_named_by_a_link_is_the_one_that_was_granted(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    real, link = tmp_path / "real", tmp_path / "link"
    granted_dirs = Permissions(dirs=(DirectoryGrant(str(real), "/data"),))
    assert checked([f"--dir={link}::/data"], granted_dirs) == ()
    (tmp_path / "other").mkdir()
    link.unlink()
    link.symlink_to("other")
    for argument in (f"--dir={link}::/data", f"--dir={real}::/", f"--dir={real}/..::/data"):
        with pytest.raises(FlagError):
            checked([argument], granted_dirs)


@given(st.lists(st.text(alphabet=string.ascii_lowercase + "-=:/,SWCDO", max_size=12), max_size=6))
def test_what_is_kept_is_always_one_of_the_known_flags_and_is_read_again_as_the_same(arguments: list[str]) -> None:
    try:
        kept = checked(arguments, NOTHING)
    except FlagError:
        return
    assert all(flag[:2] in {"-S", "-W", "-C", "-D", "-O"} or flag.startswith(("--invoke=", "--env=")) for flag in kept)
    assert checked(kept, NOTHING) == kept


def test_a_refused_option_of_a_flag_is_told_from_a_refused_flag() -> None:
    with pytest.raises(FlagError, match=r"^-S inherit-env=y: a task may not give this option of -S "):
        checked(["-S", "cli,inherit-env=y"], NOTHING)
    with pytest.raises(FlagError, match=r"^--config=x: a task may not give this flag .*allowed: -O -C"):
        checked(["--config=x"], NOTHING)


def test_a_directory_with_two_colons_in_its_name_cannot_be_said() -> None:
    with pytest.raises(FlagError, match="'::'"):
        check_directories(Permissions(dirs=(DirectoryGrant("/srv/a::b", "/data"),)))


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], Asked()),
        (["--port", "9000"], Asked(port=9000)),
        (["--port=9000", "-Shttp", "-S", "nn"], Asked(port=9000, rest=("-Shttp", "-S", "nn"))),
        (["--dir", "/srv", "--wasi=cli", "--env=A=b"], Asked(rest=("--dir", "/srv", "--wasi=cli", "--env=A=b"))),
        (["--env", "--prot", "word"], Asked(rest=("--env", "--prot", "word"))),
        (["--addr", "0.0.0.0:9000"], Asked(ipaddress.ip_address("0.0.0.0"), 9000)),
        (["--addr=[::1]:9000"], Asked(ipaddress.ip_address("::1"), 9000)),
        (["--addr=localhost:0"], Asked(ipaddress.ip_address("127.0.0.1"))),
        (["--port=1", "--port=2"], Asked(port=2)),
    ],
)
def test_what_a_task_asks_for_is_read(arguments: list[str], asked: Asked) -> None:
    assert asked_by(arguments) == asked


@pytest.mark.parametrize(
    "argument",
    ["--port", "--port=", "--port=x", "--port=65536", "--port=-1", "--addr=9000", "--addr=host:1", "--addr=:1"],
)
def test_what_is_no_address_is_refused(argument: str) -> None:
    with pytest.raises(AddressError) as refused:
        asked_by([argument])
    assert refused.value.reason is Reason.INVALID_ARGUMENTS
    assert argument in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--prot", "18223"], "did you mean --port?"),
        (["--adr=0.0.0.0:80"], "did you mean --addr?"),
        (["--port", "9000", "-p"], "--addr HOST:PORT or --port N"),
        (["-Shttp", "--verbose"], "--addr HOST:PORT or --port N"),
    ],
)
def test_a_flag_that_nothing_knows_is_refused_and_not_ignored(arguments: list[str], hint: str) -> None:
    with pytest.raises(AddressError) as refused:
        asked_by(arguments)
    assert refused.value.reason is Reason.INVALID_ARGUMENTS
    assert hint in str(refused.value)


hosts = st.one_of(
    st.ip_addresses(), st.sampled_from(list(map(ipaddress.ip_address, ["0.0.0.0", "::", "127.0.0.1", "::1"])))
)


@given(st.none() | hosts, st.none() | st.integers(1, 65535), hosts)
def test_a_task_never_serves_where_the_node_does_not_allow(host: Any, port: int | None, ceiling: Any) -> None:
    try:
        given_host, given_port = granted(Asked(host, port), Allowed(host=str(ceiling)))
    except AddressError:
        return
    assert given_port == port
    assert port is None or port >= 1024
    if not ceiling.is_unspecified:
        assert given_host == ceiling or given_host.is_loopback
    elif given_host.is_unspecified:
        assert ceiling.version == 6 or given_host.version == 4
    if host is not None and not host.is_unspecified:
        assert given_host == host


def test_secrets_are_not_in_the_command_line_and_what_means_something_to_the_program_is_not_in_its_environment() -> (
    None
):
    env = {"TOKEN": "s3cret", "LD_PRELOAD": "/x.so", "RUST_LOG": "trace", "PATH": "/p", "LOCAL_TOKEN": "s3cret"}
    for invocation in (running(job(env=env), [], Terms()), serving(job(env=env), "127.0.0.1:1", Terms())):
        assert not any("s3cret" in argument for argument in invocation.arguments)
        assert invocation.environment["TOKEN"] == "s3cret"
        assert set(invocation.environment) == {"TOKEN", "LOCAL_TOKEN", "PATH", "LANG", "NO_COLOR"}
        assert invocation.environment["PATH"] != "/p"
        for name in ("LD_PRELOAD", "RUST_LOG", "PATH"):
            assert f"--env={name}={env[name]}" in invocation.arguments


def test_the_nodes_limits_stand_behind_the_tasks_flags_where_they_win() -> None:
    limits = GuestLimits(memory_bytes=65536, stack_bytes=1024, fuel=7)
    line = running(job(limits=limits, inputs=["1", "-2"]), ["-Wmax-memory-size=9"], Terms()).arguments
    assert line.index("-Wmax-memory-size=9") < line.index("-Wmax-memory-size=65536,max-wasm-stack=1024,fuel=7")
    assert line[-3:] == ("/store/m.wasm", "1", "-2")


def test_a_function_is_named_once_and_a_components_with_its_arguments() -> None:
    assert "--invoke=main" in running(job(), [], Terms()).arguments
    assert not any("main" in a for a in running(job(), ["--invoke=other"], Terms()).arguments)
    for name in ("_start", "", "fl-round-7"):
        assert not any("--invoke" in a for a in running(job(export=name), [], Terms()).arguments)
    line = running(job(ModuleKind.COMPONENT, "greet", inputs=['"a, b"', "[1]"]), [], Terms()).arguments
    assert '--invoke=greet("a, b", [1])' in line
    assert line[-1] == "/store/m.wasm"
