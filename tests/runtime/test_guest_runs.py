"""What core modules compute, how they fail, and what is said about it."""

from typing import Any

import anyio
import pytest

from proplet.agent.ports import ModuleError, StartKind
from proplet.agent.wire import Reason
from tests.support.modules import ADDITION, module

pytestmark = pytest.mark.anyio


async def test_the_addition_of_10_and_32_is_42(node: Any) -> None:
    outcome = await node.run(ADDITION, "main", "10", "32")
    assert (outcome.reason, outcome.results, outcome.error) == (Reason.OK, "42", None)
    assert outcome.peak_memory_bytes == 0  # it has no memory, and we can tell
    assert 0 < outcome.cpu_s < 1


async def test_values_of_every_type_pass_both_ways(node: Any) -> None:
    for export, text in [
        ("i32", "-2147483648"),
        ("i64", "9223372036854775807"),
        ("f32", "0.1"),
        ("f64", "-0.1"),
        ("f64", "NaN"),
        ("f32", "-inf"),
    ]:
        assert (await node.run("values", export, text)).results == text
    assert (await node.run("values", "f64", "2.0")).results == "2"


async def test_several_results_stand_on_a_line_each(node: Any) -> None:
    assert (await node.run("values", "pair", "-5", "2.5")).results == "-5\n2.5\n-7"


async def test_no_result_is_empty_text_and_vectors_and_references_are_empty_lines(node: Any) -> None:
    assert (await node.run("values", "nothing", "1")).results == ""
    assert (await node.run("values", "vector")).results == "\n5"
    assert (await node.run("values", "reference")).results == ""
    assert (await node.run("values", "function")).results == ""


async def test_arguments_that_do_not_fit_are_refused_before_anything_runs(node: Any) -> None:
    for export, inputs, words in [
        ("i32", ["4294967295"], "from -2147483648 to 2147483647"),
        ("i32", ["x"], "Failed to parse 'x' as i32"),
        ("i32", [], "expected 1 arguments but got 0"),
        ("takes_vector", ["1"], "Unsupported Wasm value type for arg '1'"),
    ]:
        outcome = await node.run("values", export, *inputs)
        assert outcome.reason is Reason.INVALID_ARGUMENTS
        assert words in outcome.error
        assert outcome.results == ""


async def test_an_unknown_export_falls_back_to_main_then_run_then_start(node: Any) -> None:
    assert (await node.run("addition", "my-task", "1", "2")).results == "3"
    assert (await node.run("run_only", "my-task")).results == "7"
    outcome = await node.run("no_entry", "gamma")
    assert outcome.reason is Reason.UNKNOWN_EXPORT
    assert "gamma, main, run, _start" in outcome.error
    assert "alpha, beta" in outcome.error


async def test_a_memory_cannot_be_called(node: Any) -> None:
    assert (await node.run("run_only", "memory")).results == "7"


async def test_a_reactor_is_initialized_once_before_the_call(node: Any) -> None:
    for _ in range(2):
        assert (await node.run("initialize", "main")).results == "42"


@pytest.mark.parametrize(
    ("export", "words"),
    [
        ("unreachable", "unreachable"),
        ("divide", "divide by zero"),
        ("overflow", "integer overflow"),
        ("conversion", "invalid conversion to integer"),
        ("bounds", "out of bounds memory access"),
        ("null", "uninitialized element"),
        ("table", "undefined element"),
    ],
)
async def test_a_trap_is_told_with_its_cause_and_place(node: Any, export: str, words: str) -> None:
    outcome = await node.run("traps", export, *(["0"] if export == "divide" else []))
    assert outcome.reason is Reason.TRAP
    assert outcome.error.startswith(f"Failed to call function '{export}': wasm trap: ")
    assert words in outcome.error
    assert "(in " in outcome.error
    assert "\n" not in outcome.error
    assert outcome.results == ""


async def test_an_import_that_nobody_provides_is_named(node: Any) -> None:
    outcome = await node.run("missing_import")
    assert outcome.reason is Reason.MISSING_IMPORT
    assert "`env::print`, `env::beep`" in outcome.error
    outcome = await node.run("missing_wasi")
    assert outcome.reason is Reason.MISSING_IMPORT
    assert "wasi_snapshot_preview1::fd_fly" in outcome.error


async def test_a_module_cut_at_any_byte_is_invalid_and_says_so(node: Any) -> None:
    whole = module("addition")
    said = {length: await _refusal(node, whole[:length]) for length in range(len(whole))}
    assert set(said.values()) <= {Reason.INVALID_MODULE, Reason.UNKNOWN_EXPORT}
    # Cut after the preamble or after its types, it is a module that exports nothing.
    assert [length for length, reason in said.items() if reason is Reason.UNKNOWN_EXPORT] == [8, 17]


@pytest.mark.parametrize("data", [b"", b"hello, world", b"\x7fELF", b"\0asm\2\0\0\0", b"\0asm"])
async def test_bytes_that_are_no_module_are_refused_without_a_builder(node: Any, data: bytes) -> None:
    with pytest.raises(ModuleError) as caught:
        await node.run(data)
    assert caught.value.reason is Reason.INVALID_MODULE


@pytest.mark.parametrize("name", ["memory64", "two_memories", "shared_memory"])
async def test_features_that_no_limit_could_hold_are_off(node: Any, name: str) -> None:
    with pytest.raises(ModuleError) as caught:
        await node.run(name)
    assert caught.value.reason in {Reason.NOT_SUPPORTED, Reason.INVALID_MODULE}


async def test_the_first_run_is_warm_or_cold_and_the_second_is_hot(node: Any) -> None:
    first = await node.run("initialize")
    assert first.start_kind in {StartKind.COLD, StartKind.WARM}
    assert (await node.run("initialize")).start_kind is StartKind.HOT


async def test_many_callers_at_once_get_each_their_own_result(node: Any) -> None:
    results: dict[int, str] = {}

    async def call(number: int) -> None:
        results[number] = (await node.run("addition", "main", str(number), "1000")).results

    async with anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(call, number)
    assert results == {number: str(number + 1000) for number in range(300)}


async def test_a_key_that_is_running_cannot_be_run_again(node: Any) -> None:
    job = await node.job("loop", key="one")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(node.runtime.run, job)
        await anyio.lowlevel.checkpoint()
        with pytest.raises(ValueError, match="running already"):
            await node.runtime.run(job)
        node.runtime.stop("one")


async def test_export_names_of_any_script_can_be_called(node: Any) -> None:
    from wasmtime import wat2wasm

    guest = bytes(wat2wasm('(module (func (export "größe") (result i32) (i32.const 3)))'))
    assert (await node.run(guest, "größe")).results == "3"


async def _refusal(node: Any, data: bytes) -> Reason:
    try:
        return (await node.run(data, "main", "1", "2")).reason
    except ModuleError as error:
        return error.reason
