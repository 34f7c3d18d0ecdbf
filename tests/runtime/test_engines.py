"""The engines: machine code, and byte code for where memory cannot become executable; both under that restriction."""

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proplet.agent import cache, engines
from proplet.agent.config_schema import Engine
from proplet.agent.wire import Reason
from tests.cli.command import COMMAND, Done, environment
from tests.runtime.conftest import Node, open_node
from tests.support.modules import DIRECTORY, module_digest
from tests.support.no_executable_memory import WRAPPER, is_known_here

pytestmark = pytest.mark.anyio

needs_restriction = pytest.mark.skipif(not is_known_here(), reason="Linux before 6.3 has no PR_SET_MDWE")


def restricted(home: Path, engine: str, *arguments: str) -> Done:
    """``proplet run`` with builder and worker in processes whose memory cannot become executable."""
    return _run(home, engine, *WRAPPER, str(COMMAND), "run", "--quiet", *arguments)


def _run(home: Path, engine: str, *command: str) -> Done:
    done = subprocess.run(
        command,
        capture_output=True,
        check=False,
        env=environment(home, PROPLET_RUNTIME_ENGINE=engine),
        cwd=DIRECTORY,
        timeout=60,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@needs_restriction
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("addition.wasm", "10", "32"), (0, "42\n", "")),
        (("echo.wasm", "a", "b"), (0, "echo.wasm\0a\0b\0", "")),
        # Our own callbacks: the end of a command, and a sleep that is ended.
        (("exit.wasm", "7"), (7, "done\n", "first\nsecond\n")),
        (("--timeout=200ms", "sleeper.wasm"), (124, "", "proplet: error: ended after 0.2 s, its limit of time\n")),
        (("--timeout=200ms", "loop.wasm"), (124, "", "proplet: error: ended after 0.2 s, its limit of time\n")),
        (("component_command.wasm", "environment"), (0, "", "")),
        (("component_command.wasm", "exit", "1"), (1, "", "")),
        (("component_command.wasm", "sleep", "0.01"), (0, "", "")),
    ],
    ids=lambda value: " ".join(value) if all(isinstance(word, str) for word in value) else "",
)
def test_guests_run_as_byte_code_where_memory_cannot_become_executable(
    home: Path, arguments: tuple[str, ...], expected: Done
) -> None:
    assert restricted(home, "pulley", *arguments) == expected


@needs_restriction
def test_a_trap_is_told_where_memory_cannot_become_executable(home: Path) -> None:
    code, out, err = restricted(home, "pulley", "--invoke", "divide", "traps.wasm", "0")
    assert (code, out) == (134, "")
    assert "integer divide by zero" in err


@needs_restriction
def test_machine_code_is_refused_with_the_reason_and_the_remedy(tmp_path: Path) -> None:
    compiled, run_only = "nothing can be compiled here: ", "the WebAssembly engine cannot be used here: "
    for sentence in (compiled, run_only):
        code, out, err = restricted(tmp_path, "cranelift", "addition.wasm", "1", "2")
        assert (code, out) == (1, "")
        assert err.endswith(f"proplet: error: {sentence}{_WHY}\n")
        # The second time it was compiled before somebody forbade it.
        assert _run(tmp_path, "cranelift", str(COMMAND), "run", "-q", "addition.wasm", "1", "2") == (0, "3\n", "")


_WHY = (
    "memory may not be made executable here (MemoryDenyWriteExecute= or the like), which the engine cranelift needs: "
    'set engine = "pulley" in [runtime], or lift the restriction'
)


def test_the_settings_name_the_engines_there_are() -> None:
    assert {engine.value for engine in Engine} == {engines.CRANELIFT, engines.PULLEY}
    assert [engines.refusal(engine.value) for engine in Engine] == [None, None]


async def test_what_is_compiled_for_one_engine_is_not_taken_for_the_others(tmp_path: Path) -> None:
    digest = module_digest((DIRECTORY / "addition.wasm").read_bytes())
    names = {cache.compiled_name(digest, metered=False, engine=engine.value) for engine in Engine}
    assert len(names) == len(Engine)
    for engine in Engine:
        async with open_node(tmp_path, engine=engine.value) as node:
            artefact = await node.artefact("addition")
            assert artefact.path.name == cache.compiled_name(digest, metered=False, engine=engine.value)
            assert (await node.run("addition", "main", "1", "2")).results == "3"
    assert {path.name for path in (tmp_path / "cache" / "compiled").glob("*.cwasm")} == names


async def test_a_compiled_file_under_the_other_engines_name_is_compiled_again(tmp_path: Path) -> None:
    """Its code is over its name, too; were it not, the engine itself would refuse what is not for it."""
    async with open_node(tmp_path) as node:
        native = (await node.artefact("addition")).path
    async with open_node(tmp_path, engine="pulley") as node:
        interpreted = (await node.artefact("addition")).path
        for suffix in (".cwasm", ".json"):
            interpreted.with_suffix(suffix).write_bytes(native.with_suffix(suffix).read_bytes())
        assert (await node.run("addition", "main", "1", "2")).results == "3"
        assert interpreted.read_bytes() != native.read_bytes()


@pytest.fixture
async def interpreting(tmp_path: Path) -> AsyncIterator[Node]:
    async with open_node(tmp_path, engine="pulley", grace_s=2.0) as node:
        yield node


async def test_the_limits_hold_for_byte_code_as_they_do_for_machine_code(interpreting: Node) -> None:
    node = interpreting
    assert (await node.run("loop", wall_s=0.2)).reason is Reason.TIMEOUT
    assert (await node.run("loop", cpu_s=0.2)).reason is Reason.CPU_LIMIT
    assert (await node.run("loop", fuel=1_000_000)).reason is Reason.CPU_LIMIT
    assert (await node.run("large", memory_bytes=65536)).reason is Reason.MEMORY_LIMIT
    for stack_bytes in (64 * 1024, 2 * 1024 * 1024):
        outcome = await node.run("recursion", stack_bytes=stack_bytes)
        assert outcome.reason is Reason.TRAP
        assert "call stack exhausted" in outcome.error
    assert len(node.runtime.worker_pids) == 1


async def test_every_kind_of_trap_is_told_of_byte_code_as_of_machine_code(interpreting: Node, node: Node) -> None:
    for export in ("bounds", "conversion", "divide", "null", "overflow", "table", "unreachable"):
        inputs = ["0"] if export == "divide" else []
        outcome, expected = [await each.run("traps", export, *inputs) for each in (interpreting, node)]
        assert outcome.reason is Reason.TRAP
        assert outcome.error == expected.error
