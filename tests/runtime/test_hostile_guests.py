"""Guests that mean harm: to their neighbours, to the memory of the node, and to whoever reads what is said of them."""

import json
import os
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import anyio
import pytest
from wasmtime import Engine, Store, wat2wasm
from wasmtime.component import Component, Linker

from proplet.agent import host_ffi, wit
from proplet.agent.builder_component import described
from proplet.agent.cache import device_key
from proplet.agent.host_engine import Library, LoadError, configuration
from proplet.agent.host_wit import AnswerTooLargeError, call, unspeakable
from proplet.agent.wire import DirectoryGrant, Permissions, Reason
from proplet.agent.wit import Primitive
from tests.runtime.conftest import open_node
from tests.support.components import echo

pytestmark = pytest.mark.anyio
MIB = 1024 * 1024

# Opens the file ``f`` of its directory again and again, and keeps all of them.
OPENS_ALL = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "f")
  (func (export "main")
    (loop $again
      (drop (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 0) (i64.const 2)
        (i64.const 0) (i32.const 0) (i32.const 128)))
      (br $again))))"""


async def test_a_guest_that_opens_files_without_end_takes_none_from_its_neighbours(
    warm_directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text("x")
    granted = Permissions(dirs=(DirectoryGrant(str(tmp_path), "/d"),))
    async with open_node(warm_directory) as node:
        assert (await node.run("addition", "main", "1", "2")).results == "3"
        hostile = await node.job(bytes(wat2wasm(OPENS_ALL)), permissions=granted, wall_s=60.0)
        fresh = await node.artefact("values")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(node.runtime.run, hostile)
            await node.running(hostile.key)
            await _used_up(node.runtime.worker_of(hostile.key))
            outcome = await node.run("values", "i32", "10")
            assert (outcome.reason, outcome.error) == (Reason.OK, None)
            assert fresh.path.exists()
            node.runtime.stop(hostile.key)


async def _used_up(pid: int | None) -> None:
    """Wait until a process can open no more files."""
    assert pid is not None
    most, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with anyio.fail_after(30):
        while _descriptors(pid) < most:  # noqa: ASYNC110
            await anyio.sleep(0.01)


def _descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


async def test_a_compiled_module_is_not_thrown_away_because_a_process_has_no_descriptors_left(node: Any) -> None:
    artefact = await node.artefact("addition")
    library = Library(device_key(artefact.path.parent.parent.parent / "key"), 64 * MIB)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(LoadError, match="Too many open files"):
            library.get(str(artefact.path), metered=False, stack_bytes=MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert library.get(str(artefact.path), metered=False, stack_bytes=MIB)[1] is False


FORGED = r"""(module
  (func $f (@name "f\0a2026-01-01 00:00:00 ERROR forged\1b[2J") unreachable)
  (func (export "main") call $f))"""


async def test_names_that_a_guest_chose_make_no_line_of_their_own_and_no_endless_message(node: Any) -> None:
    outcome = await node.run(bytes(wat2wasm(FORGED)))
    assert outcome.reason is Reason.TRAP
    assert r"f\n2026-01-01" in outcome.error
    assert outcome.error.isprintable()
    exports = "".join(f'(func (export "{"n" * 90_000}{number}") (param v128))' for number in range(20))
    outcome = await node.run(bytes(wat2wasm(f"(module {exports})")))
    assert outcome.reason is Reason.UNKNOWN_EXPORT
    assert len(outcome.error) < 5000


RECORDS = """(component
  (core module $m (memory (export "memory") 20)
    (func (export "many") (result i32)
      (i32.store (i32.const 16) (i32.const 64)) (i32.store (i32.const 20) (i32.const 1048576)) (i32.const 16)))
  (core instance $i (instantiate $m))
  (type $record (record (field "a" u8))) (export $r "r" (type $record))
  (type $list (list $r))
  (func (export "many") (result $list) (canon lift (core func $i "many") (memory (core memory $i "memory")))))"""


def test_an_answer_of_which_nobody_could_keep_the_text_never_becomes_python() -> None:
    with Engine(configuration(metered=False)) as engine, Store(engine) as store:
        component = Component(engine, wat2wasm(RECORDS))
        kind = wit.function_from_json(described(component, engine).functions["many"])
        store.set_epoch_deadline(1)
        function = Linker(engine).instantiate(store, component).get_func(store, "many")
        assert function is not None
        tracemalloc.start()
        try:
            with pytest.raises(AnswerTooLargeError):
                call(host_ffi.context(store), host_ffi.component_function(function), kind, [], most=MIB)
            assert tracemalloc.get_traced_memory()[1] < MIB
        finally:
            tracemalloc.stop()


async def test_what_the_engine_makes_of_a_large_answer_is_not_made_in_the_shared_worker(node: Any) -> None:
    assert (await node.artefact(bytes(wat2wasm(RECORDS)))).waits
    outcome = await node.run(bytes(wat2wasm(RECORDS)), "many", memory_bytes=8 * MIB)
    assert outcome.reason in (Reason.MEMORY_LIMIT, Reason.OUTPUT_LIMIT), "whichever is seen first"
    assert not (await node.artefact(bytes(wat2wasm(echo([Primitive("u8")]))))).waits
    assert (await node.artefact(bytes(wat2wasm(echo([Primitive("string")]))))).waits


async def test_the_task_is_told_that_its_answer_was_too_large(node: Any) -> None:
    outcome = await node.run(bytes(wat2wasm(RECORDS.replace("1048576", "1000"))), "many", output_bytes=1000)
    assert outcome.reason is Reason.OUTPUT_LIMIT
    assert "more characters than the 1000 allowed" in outcome.error


async def test_a_string_is_as_long_as_the_limit_allows_and_no_longer(node: Any) -> None:
    text = '"' + "x" * 998 + '"'
    component = bytes(wat2wasm(echo([Primitive("string")])))
    assert (await node.run(component, "echo-0", f"[{text}]", output_bytes=1002)).results == f"[{text}]"
    outcome = await node.run(component, "echo-0", f"[{text}]", output_bytes=1001)
    assert outcome.reason is Reason.OUTPUT_LIMIT


def test_a_small_component_cannot_declare_types_without_end() -> None:
    kind = f"(tuple {' '.join(['u8'] * 9000)})"
    lift = '(canon lift (core func $i "f") (memory (core memory $i "memory")) (realloc (core func $i "realloc")))'
    functions = "".join(f'(func (export "f{number}") (param "p" $t) {lift})' for number in range(100))
    text = f"""(component
      (core module $m (memory (export "memory") 1) (func (export "f") (param i32))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0)))
      (core instance $i (instantiate $m))
      (type $t {kind})
      {functions})"""
    with Engine(configuration(metered=False)) as engine:
        found = described(Component(engine, wat2wasm(text)), engine).functions
    assert len(found) == 100
    assert len(json.dumps(found)) < MIB
    assert str(wit.function_from_json(found["f0"]).parameters[0][1]).startswith("tuple<u8, u8")
    assert unspeakable(wit.function_from_json(found["f99"]).parameters[0][1]) is not None
