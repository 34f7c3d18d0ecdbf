"""The types of component functions: what can be built, their text, their JSON form."""

import json
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.wit import (
    DEEPEST,
    LARGEST,
    EnumOf,
    FlagsOf,
    Function,
    Handle,
    ListOf,
    OptionOf,
    Primitive,
    RecordOf,
    ResultOf,
    TupleOf,
    Type,
    Unsupported,
    VariantOf,
    WitError,
    from_json,
    function_from_json,
    function_to_json,
    to_json,
)
from tests.runtime.wave_strategies import types

U8, STRING = Primitive("u8"), Primitive("string")

EVERY_KIND = [
    (U8, "u8", "u8"),
    (ListOf(U8), "list<u8>", {"list": "u8"}),
    (OptionOf(STRING), "option<string>", {"option": "string"}),
    (ResultOf(U8, STRING), "result<u8, string>", {"result": ["u8", "string"]}),
    (ResultOf(None, STRING), "result<_, string>", {"result": [None, "string"]}),
    (ResultOf(U8, None), "result<u8>", {"result": ["u8", None]}),
    (ResultOf(None, None), "result", {"result": [None, None]}),
    (TupleOf((U8, STRING)), "tuple<u8, string>", {"tuple": ["u8", "string"]}),
    (RecordOf((("b", U8), ("a", STRING))), "record { b: u8, a: string }", {"record": [["b", "u8"], ["a", "string"]]}),
    (VariantOf((("n", None), ("x", U8))), "variant { n, x(u8) }", {"variant": [["n", None], ["x", "u8"]]}),
    (EnumOf(("south", "west")), "enum { south, west }", {"enum": ["south", "west"]}),
    (FlagsOf(("read", "write")), "flags { read, write }", {"flags": ["read", "write"]}),
    (Handle(True, "file"), "own<file>", {"own": "file"}),
    (Handle(False, "file"), "borrow<file>", {"borrow": "file"}),
    (Unsupported("stream<u8>"), "stream<u8>", {"unsupported": "stream<u8>"}),
]


@pytest.mark.parametrize(("kind", "text", "document"), EVERY_KIND)
def test_a_type_has_its_text_in_wit_and_its_json_form(kind: Type, text: str, document: object) -> None:
    assert str(kind) == text
    assert to_json(kind) == document
    assert from_json(json.loads(json.dumps(document))) == kind


def test_a_function_keeps_the_order_of_its_parameters_even_if_a_writer_sorts_keys() -> None:
    function = Function((("z", RecordOf((("b", U8), ("a", U8)))), ("a", STRING)), ListOf(U8))
    assert str(function) == "func(z: record { b: u8, a: u8 }, a: string) -> list<u8>"
    assert function_from_json(json.loads(json.dumps(function_to_json(function), sort_keys=True))) == function
    assert str(Function((), None)) == "func()"
    assert function_from_json(function_to_json(Function((), None))) == Function((), None)


@given(types())
def test_every_type_survives_json(kind: Type) -> None:
    assert from_json(json.loads(json.dumps(to_json(kind), sort_keys=True))) == kind
    assert hash(from_json(to_json(kind))) == hash(kind)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["u8", "string", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["list", "option", "result", "tuple", "record", "variant", "enum", "flags", "own", "x"]),
            inner,
            max_size=2,
        )
        | st.fixed_dictionaries({"parameters": inner, "result": inner})
    ),
)


@given(_JSON)
def test_any_other_document_is_refused_with_one_kind_of_error(document: object) -> None:
    for read in (from_json, function_from_json):
        with suppress(WitError):
            read(document)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Primitive("i32"),
        lambda: Primitive(""),
        lambda: TupleOf(()),
        lambda: RecordOf(()),
        lambda: EnumOf(()),
        lambda: FlagsOf(()),
        lambda: VariantOf(()),
        lambda: EnumOf(("a", "a")),
        lambda: FlagsOf(("a", "b", "a")),
        lambda: RecordOf((("a", U8), ("a", STRING))),
        lambda: EnumOf(("",)),
        lambda: EnumOf(("%a",)),
        lambda: EnumOf(("aB",)),
        lambda: EnumOf(("a-",)),
        lambda: EnumOf(("1a",)),
        lambda: EnumOf(("a b",)),
        lambda: EnumOf(("é",)),
        lambda: EnumOf(("a\n",)),
        lambda: EnumOf(tuple(f"a{number}" for number in range(LARGEST))),
    ],
)
def test_a_type_that_cannot_be_is_refused(build: Callable[[], Type]) -> None:
    with pytest.raises(WitError):
        build()


@pytest.mark.parametrize("name", ["a", "HTTP3", "method-GET", "a-2b", "a-2B", "a-22", "q", "abc123", "A-b-C", "err"])
def test_a_label_is_words_each_of_one_case(name: str) -> None:
    assert EnumOf((name,)).names == (name,)


@pytest.mark.parametrize(
    "wrap", [ListOf, OptionOf, lambda kind: RecordOf((("a", kind),)), lambda kind: ResultOf(None, kind)]
)
def test_types_nest_as_deep_as_the_bound_and_no_deeper(wrap: Callable[[Type], Type]) -> None:
    kind: Type = U8
    for _ in range(DEEPEST):
        kind = wrap(kind)
    assert from_json(to_json(kind)) == kind
    assert str(kind).endswith((">", "}"))
    with pytest.raises(WitError, match="nested deeper"):
        wrap(kind)


def test_a_document_nested_too_deep_is_refused() -> None:
    document: object = "u8"
    for _ in range(DEEPEST + 1):
        document = {"list": document}
    with pytest.raises(WitError, match="nested deeper"):
        from_json(document)


def test_a_type_that_doubles_with_every_level_is_refused_before_it_is_large() -> None:
    def double(kind: Type, levels: int) -> Type:
        return double(TupleOf((kind, kind)), levels - 1) if levels else kind

    with pytest.raises(WitError, match="parts"):
        double(U8, DEEPEST)
