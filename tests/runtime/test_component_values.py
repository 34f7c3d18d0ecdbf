"""Values of every type, into a component and back: through the engine itself, and as text through a run."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmtime import Engine, Store, wat2wasm
from wasmtime.component import Component, Linker

from proplet.agent import host_ffi, wit
from proplet.agent.builder_component import described
from proplet.agent.host_engine import configuration
from proplet.agent.host_wit import call
from proplet.agent.wave import Case, Err, Ok, Some, Value, show
from proplet.agent.wit import (
    EnumOf,
    FlagsOf,
    ListOf,
    OptionOf,
    Primitive,
    RecordOf,
    ResultOf,
    TupleOf,
    Type,
    VariantOf,
)
from tests.runtime.wave_strategies import types, values
from tests.support.components import echo, echo_function

U8, S64, F32, F64, CHAR, STRING, BOOL = map(Primitive, ["u8", "s64", "f32", "f64", "char", "string", "bool"])
COLOR = EnumOf(("red", "green"))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(configuration(metered=False)) as made:
        yield made


def through_the_engine(engine: Engine, kind: Type, items: list[Value]) -> Value:
    component = Component(engine, wat2wasm(echo([kind])))
    recorded = wit.function_from_json(described(component, engine).functions["echo-0"])
    assert recorded == echo_function(kind)
    store = Store(engine)
    try:
        store.set_epoch_deadline(1)
        function = Linker(engine).instantiate(store, component).get_func(store, "echo-0")
        assert function is not None
        return call(host_ffi.context(store), host_ffi.component_function(function), recorded, [items])
    finally:
        store.close()


@settings(deadline=None)
@given(data=st.data(), kind=types())
def test_any_value_of_any_type_comes_back_from_a_component(engine: Engine, data: st.DataObject, kind: Type) -> None:
    items = data.draw(st.lists(values(kind), max_size=4))
    # As text, for a NaN differs from itself and -0.0 does not from 0.0; which NaN it is may change on the way.
    assert show(through_the_engine(engine, kind, items), ListOf(kind)) == show(items, ListOf(kind))


VALUES = [
    (BOOL, True, "true"),
    (U8, 255, "255"),
    (S64, -(1 << 63), "-9223372036854775808"),
    (F32, 0.5, "0.5"),
    (F64, -math.inf, "-inf"),
    (CHAR, "\U0001f600", "'\U0001f600'"),
    (STRING, 'a "b"\n', '"a \\"b\\"\\n"'),
    (ListOf(U8), [1, 2], "[1, 2]"),
    (TupleOf((U8, STRING)), (1, "x"), '(1, "x")'),
    (RecordOf((("name", STRING), ("age", OptionOf(U8)))), {"name": "x", "age": Some(3)}, '{name: "x", age: some(3)}'),
    (VariantOf((("circle", F64), ("none", None))), Case("circle", 1.5), "circle(1.5)"),
    (COLOR, "green", "green"),
    (FlagsOf(("read", "write")), frozenset({"write"}), "{write}"),
    (OptionOf(OptionOf(U8)), Some(None), "some(none)"),
    (ResultOf(STRING, STRING), Err("no"), 'err("no")'),
    (ResultOf(None, None), Ok(), "ok"),
]


@pytest.mark.parametrize(("kind", "value", "text"), VALUES, ids=[text for *_, text in VALUES])
def test_a_value_keeps_its_case_and_its_text(engine: Engine, kind: Type, value: Value, text: str) -> None:
    assert through_the_engine(engine, kind, [value, value]) == [value, value]
    assert show(value, kind) == text


@pytest.mark.anyio
async def test_arguments_and_results_of_a_run_are_text_of_every_type(node: Any) -> None:
    component = bytes(wat2wasm(echo([kind for kind, *_ in VALUES])))
    for number, (_, _, text) in enumerate(VALUES):
        outcome = await node.run(component, f"echo-{number}", f"[{text}, {text}]")
        assert (outcome.error, outcome.results) == (None, f"[{text}, {text}]")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (U8, "[256]", "from 0 to 255"),
        (COLOR, "[blue]", "blue"),
        (RecordOf((("a", U8),)), "[{b: 1}]", "b"),
        (STRING, "[hello]", "hello"),
        (U8, "", "echo-0"),
    ],
)
async def test_an_argument_that_is_not_of_the_type_is_refused_before_the_call(
    node: Any, kind: Type, text: str, words: str
) -> None:
    outcome = await node.run(bytes(wat2wasm(echo([kind]))), "echo-0", text)
    assert (outcome.reason.value, outcome.results) == ("invalid_arguments", "")
    assert "Failed to parse WAVE argument" in outcome.error
    assert words in outcome.error
