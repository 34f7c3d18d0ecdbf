"""Programs that nobody here wrote, in C, C++, Rust, Go, Python and AssemblyScript, as their authors built them."""

import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent.ports import ModuleError, ModuleWanted
from proplet.agent.wire import DirectoryGrant, Permissions, Reason
from tests.runtime.conftest import Node, open_node
from tests.support.guests import componentized, foreign

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

SAT = """
(set-logic QF_BV) (set-option :produce-models true)
(declare-fun x () (_ BitVec 16)) (declare-fun y () (_ BitVec 16))
(assert (= (bvmul x y) #x0c4d)) (assert (bvult #x0001 x)) (assert (bvult x y)) (assert (bvult y #x0100))
(check-sat) (get-value (x)) (get-value (y))
"""
RED = '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="4"><rect width="8" height="4" fill="#ff0000"/></svg>'


def granted(directory: Path, *, read_only: bool = True) -> Permissions:
    return Permissions(dirs=(DirectoryGrant(str(directory), "/data", read_only=read_only),))


async def test_assemblyscript_computes_with_64_bits_and_strings_and_checks_its_bounds(node: Node) -> None:
    assert (await node.run("assemblyscript", "fibonacci", "90")).results == "2880067194370816120"
    assert (await node.run("assemblyscript", "digits", "1000")).results == "13500"
    assert (await node.run("assemblyscript", "beyond")).reason is Reason.TRAP


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["cranelift", "pulley"])
async def test_a_solver_in_cpp_reads_a_file_and_ends_with_its_own_status(tmp_path: Path, engine: str) -> None:
    (tmp_path / "problem.smt2").write_text(SAT)
    async with open_node(tmp_path / "node", engine=engine) as node:
        outcome = await node.run(foreign("boolector"), "_start", "/data/problem.smt2", permissions=granted(tmp_path))
        # 47 times 67; the solver's status for "satisfiable" is 10.
        assert (outcome.reason, outcome.exit_code) == (Reason.EXIT_CODE, 10)
        assert outcome.stdout.decode().splitlines() == ["sat", "((x #b0000000000101111))", "((y #b0000000001000011))"]
        outcome = await node.run(foreign("boolector"), "_start", "/data/none.smt2", permissions=granted(tmp_path))
        assert outcome.exit_code == 1
        assert "none.smt2" in (outcome.stdout + outcome.stderr).decode()


@pytest.mark.slow
async def test_a_renderer_in_rust_writes_a_picture_only_where_it_may(node: Node, tmp_path: Path) -> None:
    (tmp_path / "red.svg").write_text(RED)
    render = ("_start", "/data/red.svg", "/data/red.png")
    outcome = await node.run(foreign("resvg"), *render, permissions=granted(tmp_path))
    assert "not permitted" in outcome.stderr.decode()
    outcome = await node.run(foreign("resvg"), *render, permissions=granted(tmp_path, read_only=False))
    assert outcome.reason is Reason.OK, outcome.error
    picture = (tmp_path / "red.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert (int.from_bytes(picture[16:20]), int.from_bytes(picture[20:24])) == (8, 4)
    at = picture.index(b"IDAT")
    assert zlib.decompress(picture[at + 4 : at + 4 + int.from_bytes(picture[at - 4 : at])])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "export", "inputs"), [("pii-shield", "allocate", ["64"]), ("quickjs", "malloc", ["64"])]
)
async def test_reactors_in_go_and_c_are_initialized_before_their_functions(
    node: Node, name: str, export: str, inputs: list[str]
) -> None:
    for _ in range(3):
        outcome = await node.run(foreign(name), export, *inputs)
        assert outcome.reason is Reason.OK, outcome.error
        assert int(outcome.results or 0) > 0
    if name == "quickjs":
        assert (await node.run(foreign(name), "qjs_init")).results == "0"


@pytest.fixture(scope="module")
def cpython() -> bytes:
    return foreign("cpython")


async def python(node: Node, cpython: bytes, code: str, **terms: Any) -> Any:
    return await node.run(cpython, "_start", "-c", code, **terms)


@pytest.mark.slow
async def test_python_runs_sqlite_in_memory_and_in_a_granted_directory(
    node: Node, cpython: bytes, tmp_path: Path
) -> None:
    code = (
        "import sqlite3, sys; base = sqlite3.connect(sys.stdin.readline().strip()); base.execute('create table t(a)');"
        "base.executemany('insert into t values(?)', [(n,) for n in range(1000)]); base.commit();"
        "print(base.execute('select sum(a) from t').fetchone()[0])"
    )
    grant = granted(tmp_path, read_only=False)
    for place in (":memory:", "/data/file.db"):
        outcome = await python(node, cpython, code, stdin=f"{place}\n".encode(), permissions=grant)
        assert (outcome.reason, outcome.stdout) == (Reason.OK, b"499500\n"), outcome.error
    assert (tmp_path / "file.db").read_bytes().startswith(b"SQLite format 3\0")


@pytest.mark.slow
async def test_python_sees_what_it_is_given_and_ends_as_it_says(node: Node, cpython: bytes) -> None:
    code = "import os, sys; print(os.environ['GREETING'], sys.argv[1:], sys.stdin.read()); sys.exit(77)"
    outcome = await node.run(cpython, "_start", "-c", code, "ö", env={"GREETING": "hello"}, stdin=b"in")
    assert (outcome.exit_code, outcome.stdout.decode()) == (77, "hello ['ö'] in\n")
    outcome = await python(node, cpython, "open('/etc/passwd')")
    assert outcome.exit_code == 1
    assert "FileNotFoundError" in outcome.error
    outcome = await python(node, cpython, "import socket; socket.create_connection(('127.0.0.1', 1))")
    assert outcome.exit_code == 1


@pytest.mark.slow
async def test_python_is_held_to_its_limits(node: Node, cpython: bytes) -> None:
    assert (await python(node, cpython, "while True: pass", wall_s=0.5)).reason is Reason.TIMEOUT
    assert (await python(node, cpython, "while True: pass", cpu_s=0.3)).reason is Reason.CPU_LIMIT
    outcome = await python(node, cpython, "bytearray(100_000_000)", memory_bytes=64 * 1024 * 1024)
    assert outcome.exit_code == 1
    assert "MemoryError" in outcome.error
    outcome = await python(node, cpython, "print('x' * 1_000_000)", output_bytes=1000)
    assert (outcome.reason, len(outcome.stdout)) == (Reason.OK, 1000)


@pytest.mark.slow
async def test_python_that_sleeps_is_stopped_at_once(node: Node, cpython: bytes) -> None:
    job = await node.job(cpython, "_start", ["-c", "import time; time.sleep(1e6)"], key="sleeper")
    outcomes = []

    async def run() -> None:
        outcomes.append(await node.runtime.run(job))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await node.running("sleeper")
        began = time.monotonic()
        node.runtime.stop("sleeper")
    assert time.monotonic() - began < 1
    assert outcomes[0].reason is Reason.STOPPED


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Node]:
    """A node whose builders may use little memory."""
    async with open_node(tmp_path, compile_memory_bytes=128 * 1024 * 1024) as node:
        yield node


@pytest.mark.slow
async def test_a_component_made_by_componentize_py_answers_and_traps_and_answers(node: Node) -> None:
    words = componentized()
    assert (await node.run(words, "count", '"b a b"')).results == '[("a", 1), ("b", 2)]'
    assert (await node.run(words, "count", '" "')).reason is Reason.TRAP
    assert (await node.run(words, "count", '"c"')).results == '[("c", 1)]'


@pytest.mark.slow
async def test_what_cannot_be_compiled_within_the_devices_memory_says_what_it_needs(small: Node) -> None:
    words = componentized()
    digest = await small.modules.keep(words)
    with pytest.raises(ModuleError) as caught:
        await small.modules.prepare(ModuleWanted(digest), lambda _: None)
    assert caught.value.reason is Reason.MEMORY_LIMIT
    print(caught.value)
    assert "128 MiB" in str(caught.value)
    assert "compile_memory" in str(caught.value)
    assert (await small.run("addition", "main", "1", "2")).results == "3"
