"""Hypothesis strategies for the types of component functions, and for values of a type."""

from typing import cast

from hypothesis import strategies as st

from proplet.agent.host_values import single
from proplet.agent.wave import Case, Err, Ok, Some, Value
from proplet.agent.wave_values import KEYWORDS
from proplet.agent.wit import (
    INTEGERS,
    PRIMITIVES,
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

_NAMES = ["a", "b", "q1", "two-words", "HTTP3", "method-GET", "a-2b", "x-2B-5d", *sorted(KEYWORDS)]


def labels() -> st.SearchStrategy[str]:
    """Names of every shape, and every keyword."""
    return st.sampled_from(_NAMES)


def types() -> st.SearchStrategy[Type]:
    """Any type whose values have a text."""
    names = st.lists(labels(), min_size=1, max_size=4, unique=True).map(tuple)
    leaves = st.sampled_from(sorted(PRIMITIVES)).map(Primitive) | names.map(EnumOf) | names.map(FlagsOf)

    def composites(inner: st.SearchStrategy[Type]) -> st.SearchStrategy[Type]:
        maybe = st.none() | inner
        return st.one_of(
            inner.map(ListOf),
            inner.map(OptionOf),
            st.builds(ResultOf, maybe, maybe),
            st.lists(inner, min_size=1, max_size=3).map(tuple).map(TupleOf),
            st.lists(st.tuples(labels(), inner), min_size=1, max_size=3, unique_by=lambda pair: pair[0])
            .map(tuple)
            .map(RecordOf),
            st.lists(st.tuples(labels(), maybe), min_size=1, max_size=3, unique_by=lambda pair: pair[0])
            .map(tuple)
            .map(VariantOf),
        )

    return st.recursive(cast("st.SearchStrategy[Type]", leaves), composites, max_leaves=8)


def values(kind: Type) -> st.SearchStrategy[Value]:
    """Any value of the type `kind`."""
    match kind:
        case Primitive(name):
            return _primitives(name)
        case ListOf(element):
            return st.lists(values(element), max_size=3)
        case OptionOf(some):
            return st.none() | values(some).map(Some)
        case ResultOf(ok, err):
            return _payloads(ok).map(Ok) | _payloads(err).map(Err)
        case TupleOf(parts):
            return st.tuples(*map(values, parts))
        case RecordOf(fields):
            return st.fixed_dictionaries({name: values(part) for name, part in fields})
        case VariantOf(cases):
            return st.one_of([st.builds(Case, st.just(name), _payloads(part)) for name, part in cases])
        case EnumOf(names):
            return st.sampled_from(names)
        case FlagsOf(names):
            return st.frozensets(st.sampled_from(names))
        case _:
            raise AssertionError(kind)


def _payloads(kind: Type | None) -> st.SearchStrategy[Value]:
    return st.none() if kind is None else values(kind)


def _primitives(name: str) -> st.SearchStrategy[Value]:
    if name in INTEGERS:
        return st.integers(*INTEGERS[name])
    return {
        "bool": st.booleans(),
        "f32": st.floats(width=32).map(single),
        "f64": st.floats(),
        "char": st.characters(exclude_categories=["Cs"]),
        "string": st.text(st.characters(exclude_categories=["Cs"])),
    }[name]
