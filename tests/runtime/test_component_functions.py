"""Exported functions of components: how they are named, how they end, what they may use."""

from typing import Any

import anyio
import pytest
from wasmtime import wat2wasm

from proplet.agent.ports import GuestLimits, Job, ModuleKind, ModuleWanted, StartKind
from proplet.agent.wire import Reason
from proplet.agent.wit import Primitive
from tests.support.components import echo
from tests.support.modules import module

pytestmark = pytest.mark.anyio

EXPORTS = "component_exports"
RESOURCE = """(component
  (type $t (resource (rep i32)))
  (export $counter "counter" (type $t))
  (core module $m (func (export "get") (param i32) (result i32) (i32.const 7)))
  (core instance $i (instantiate $m))
  (func (export "get") (param "of" (borrow $counter)) (result u32) (canon lift (core func $i "get")))
  (core func $new (canon resource.new $t))
  (core module $n (import "" "new" (func $new (param i32) (result i32)))
    (func (export "make") (result i32) (call $new (i32.const 1))))
  (core instance $j (instantiate $n (with "" (instance (export "new" (func $new))))))
  (func (export "make") (result (own $counter)) (canon lift (core func $j "make"))))"""
STREAM = """(component
  (core module $m (func (export "f") (param i32)))
  (core instance $i (instantiate $m))
  (type $s (stream u8))
  (func (export "f") (param "bytes" $s) (canon lift (core func $i "f"))))"""
ASYNCHRONOUS = """(component
  (core func $ret (canon task.return (result u32)))
  (core module $m (import "" "ret" (func $ret (param i32)))
    (func (export "f") (result i32) (call $ret (i32.const 7)) (i32.const 0))
    (func (export "again") (param i32 i32 i32) (result i32) unreachable))
  (core instance $i (instantiate $m (with "" (instance (export "ret" (func $ret))))))
  (func (export "f") async (result u32)
    (canon lift (core func $i "f") async (callback (core func $i "again")))))"""
HTTP = """(component
  (import "wasi:http/types@0.2.0" (instance $x
    (export "fields" (type $f (sub resource)))
    (export "[constructor]fields" (func (result (own $f))))))
  (core func $new (canon lower (func $x "[constructor]fields")))
  (core module $m
    (import "" "new" (func $new (result i32)))
    (func (export "request") (drop (call $new)))
    (func (export "other") (result i32) (i32.const 5)))
  (core instance $i (instantiate $m (with "" (instance (export "new" (func $new))))))
  (func (export "request") (canon lift (core func $i "request")))
  (func (export "other") (result u32) (canon lift (core func $i "other"))))"""


def memories(count: int, pages: int) -> bytes:
    """A component of `count` memories; ``grow`` lets the last one have so many pages more and returns its size."""
    several = " ".join("(core instance (instantiate $m))" for _ in range(count - 1))
    return bytes(
        wat2wasm(f"""(component
          (core module $m (memory {pages})
            (func (export "grow") (param i32) (result i32) (drop (memory.grow (local.get 0))) (memory.size)))
          {several} (core instance $i (instantiate $m))
          (func (export "grow") (param "pages" u32) (result u32) (canon lift (core func $i "grow"))))""")
    )


@pytest.mark.parametrize(
    ("name", "inputs", "result"),
    [
        ("add", ("40", "2"), "42"),
        ("demo:numbers/math@1.2.0#sum", ("4000000000", "2"), "4000000002"),
        ("demo:numbers/math#sum", ("1", "2"), "3"),
        ("demo:numbers/small#sum", ("1", "2"), "3"),
        ("only-here", ("1", "2"), "3"),
        ("nothing", (), ""),
    ],
)
async def test_a_function_is_found_by_its_name_and_its_instance(
    node: Any, name: str, inputs: tuple[str, ...], result: str
) -> None:
    outcome = await node.run(EXPORTS, name, *inputs)
    assert (outcome.reason, outcome.results, outcome.error) == (Reason.OK, result, None)
    assert outcome.exit_code is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sub", "Export 'sub' not found in component; it exports add, deep, demo:numbers/math@1.2.0#only-here"),
        ("demo:numbers/math@1.1.0#sum", "Export 'demo:numbers/math@1.1.0#sum' not found"),
        ("sum", "may be any of demo:numbers/math@1.2.0#sum, demo:numbers/small#sum"),
        ("_start", "the component is no command (wasi:cli/run); it exports add"),
        ("fl-round-1", "is no command"),
    ],
)
async def test_a_name_that_means_nothing_is_told_with_what_there_is(node: Any, name: str, words: str) -> None:
    outcome = await node.run(EXPORTS, name, "1", "2")
    assert outcome.reason is Reason.UNKNOWN_EXPORT
    assert words in outcome.error


async def test_a_wrong_number_of_arguments_is_told_as_the_reference_tells_it(node: Any) -> None:
    outcome = await node.run(EXPORTS, "add", "1")
    assert outcome.reason is Reason.INVALID_ARGUMENTS
    assert outcome.error == "Argument count mismatch for 'add': expected 2 but got 1"


@pytest.mark.parametrize(
    ("name", "inputs", "words"),
    [
        ("unreachable", (), "unreachable"),
        ("divide", ("1", "0"), "integer divide by zero"),
        ("deep", ("1",), "bytes of stack (limits.stack)"),
        ("outside", (), "out of bounds memory access"),
    ],
)
async def test_a_trap_is_told_with_its_cause(node: Any, name: str, inputs: tuple[str, ...], words: str) -> None:
    outcome = await node.run(EXPORTS, name, *inputs)
    assert outcome.reason is Reason.TRAP
    assert outcome.error.startswith(f"Failed to call function '{name}': wasm trap: ")
    assert words in outcome.error
    assert (await node.run(EXPORTS, "add", "1", "2")).results == "3"


async def test_names_that_a_guest_gives_its_functions_are_no_reasons(node: Any) -> None:
    for name in ("all fuel consumed", "unknown import: `wasi:http/x`", "Caused by: exceeds memory limits"):
        outcome = await node.run(
            bytes(
                wat2wasm(f"""(component
                  (core module $m (func $"{name}" (export "f") unreachable)) (core instance $i (instantiate $m))
                  (func (export "f") (canon lift (core func $i "f"))))""")
            ),
            "f",
        )
        assert (outcome.reason, "unreachable" in outcome.error) == (Reason.TRAP, True)


async def test_a_busy_component_is_ended_by_its_limits_and_by_a_stop(node: Any) -> None:
    assert (await node.run(EXPORTS, "loop", wall_s=0.2)).reason is Reason.TIMEOUT
    assert (await node.run(EXPORTS, "loop", cpu_s=0.1)).reason is Reason.CPU_LIMIT
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            assert (await node.run(EXPORTS, "loop", key="busy")).reason is Reason.STOPPED

        tasks.start_soon(run)
        await node.running("busy")
        node.runtime.stop("busy")


async def test_fuel_is_counted_in_components(node: Any) -> None:
    artefact = await node.artefact(EXPORTS, metered=True)
    outcome = await node.runtime.run(Job("metered", artefact, "loop", limits=GuestLimits(fuel=100_000)))
    assert outcome.reason is Reason.CPU_LIMIT
    assert "100000 units of fuel" in outcome.error


async def test_a_component_has_no_more_memory_than_its_limit(node: Any) -> None:
    assert (await node.run(EXPORTS, "grow", "15", memory_bytes=16 << 16)).results == "16"
    assert (await node.run(EXPORTS, "grow", "16", memory_bytes=16 << 16)).results == "1"


async def test_several_memories_share_the_limit(node: Any) -> None:
    assert (await node.run(memories(4, 1), "grow", "3", memory_bytes=16 << 16)).results == "4"
    assert (await node.run(memories(4, 1), "grow", "4", memory_bytes=16 << 16)).results == "1"
    refused = await node.run(memories(4, 5), "grow", "1", memory_bytes=16 << 16)
    assert refused.reason is Reason.MEMORY_LIMIT


async def test_an_answer_beyond_the_limit_of_output_is_refused(node: Any) -> None:
    text = "[" + ", ".join(["1"] * 1000) + "]"
    component = bytes(wat2wasm(echo([Primitive("u8")])))
    assert (await node.run(component, "echo-0", text)).results == text
    outcome = await node.run(component, "echo-0", text, output_bytes=1000)
    assert (outcome.reason, outcome.results) == (Reason.OUTPUT_LIMIT, "")


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (RESOURCE, "get", "parameter of is of the type borrow<resource>"),
        (RESOURCE, "make", "its result is of the type own<resource>"),
        (STREAM, "f", "parameter bytes is of the type stream"),
        (ASYNCHRONOUS, "f", "'f' is an async function"),
    ],
)
async def test_what_no_text_can_stand_for_is_refused(node: Any, text: str, name: str, words: str) -> None:
    outcome = await node.run(bytes(wat2wasm(text)), name)
    assert outcome.reason is Reason.NOT_SUPPORTED
    assert words in outcome.error


async def test_http_without_the_permission_traps_and_names_it(node: Any) -> None:
    component = bytes(wat2wasm(HTTP))
    assert (await node.run(component, "other")).results == "5"
    outcome = await node.run(component, "request")
    assert outcome.reason is Reason.PERMISSION_DENIED
    assert 'permissions: {http: ["*"]}' in outcome.error


@pytest.mark.parametrize("name", ["elastic:hal/gpu@0.1.0", "wasi:cli/environment@0.3.0", "wasi:nn/tensor@0.2.0"])
async def test_an_import_that_nothing_provides_is_named_before_anything_runs(node: Any, name: str) -> None:
    outcome = await node.run(bytes(wat2wasm(f'(component (import "{name}" (instance (export "f" (func)))))')), "main")
    assert outcome.reason is Reason.MISSING_IMPORT
    assert name in outcome.error


async def test_what_is_known_of_a_component_is_the_same_each_time_it_is_made_ready(node: Any) -> None:
    for name, waits in ((EXPORTS, False), ("component_command", True)):
        first = await node.artefact(name)
        again = node.modules.ready(ModuleWanted(first.module_digest))
        assert (again.kind, again.waits, again.serves_http) == (ModuleKind.COMPONENT, waits, False)
        assert again.start_kind is StartKind.WARM
        assert again.wasm.read_bytes() == module(name)
