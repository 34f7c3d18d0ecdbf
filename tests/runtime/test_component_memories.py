"""The memories of a component, counted in its binary, are those that the engine makes."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmtime import Engine, Store, WasmtimeError, wat2wasm
from wasmtime.component import Component, Linker

from proplet.agent.builder_memories import UNKNOWN, memory_count
from proplet.agent.host_engine import configuration
from tests.support.modules import module

# A component as a list of what it instantiates: a module with a memory, one without, or a component inside.
TREES = st.recursive(
    st.sampled_from(["memory", "none"]), lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=12
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(configuration(metered=False)) as made:
        yield made


def text_of(tree: object, depth: int = 0) -> str:
    """The text of a component that defines two modules, which those inside take from it."""
    outer = '(core module $memory (memory 1)) (core module $none (func (export "f")))'
    if depth:
        outer = "(alias outer 1 $memory (core module $memory)) (alias outer 1 $none (core module $none))"
    parts = []
    for number, inner in enumerate(tree if isinstance(tree, tuple) else (tree,)):
        if isinstance(inner, tuple):
            parts.append(f"(component $c{number} {text_of(inner, depth + 1)}) (instance (instantiate $c{number}))")
        else:
            parts.append(f"(core instance (instantiate ${inner}))")
    return f"{outer} {' '.join(parts)}"


def memories_of(tree: object) -> int:
    return sum(map(memories_of, tree)) if isinstance(tree, tuple) else int(tree == "memory")


@settings(deadline=None)
@given(tree=TREES)
def test_as_many_are_counted_as_the_engine_makes(engine: Engine, tree: object) -> None:
    data = bytes(wat2wasm(f"(component {text_of(tree)})"))
    count = memory_count(data)
    assert count == memories_of(tree)
    for allowed in {count, max(count - 1, 0)}:
        with Store(engine) as store:
            store.set_limits(memories=allowed)
            store.set_epoch_deadline(1)
            if allowed == count:
                Linker(engine).instantiate(store, Component(engine, data))
            else:
                with pytest.raises(WasmtimeError, match="memory count too high"):
                    Linker(engine).instantiate(store, Component(engine, data))


ONE = '(core module $m (memory (export "x") 1)) (core instance $i (instantiate $m))'
EXPORTS = '(core instance (export "x" (memory $i "x")))'
# A component inside, exported and instantiated under the name of its export, too.
EXPORTED = (
    f'(component $c {ONE}) (export $d "d" (component $c)) (instance (instantiate $d)) (instance (instantiate $c))'
)
# One that is handed to another.
HANDED = f"""(component $c {ONE}) (component $d (import "c" (component $e)) (instance (instantiate $e)))
(instance (instantiate $d (with "c" (component $c))))"""
IMPORTED = """(import "x" (instance $x (export "m" (core module))))
(alias export $x "m" (core module $m)) (core instance (instantiate $m))"""


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("(core module (memory 1))", 0),
        (f"{ONE} {EXPORTS}", 1),
        (EXPORTED, 2),
        (HANDED, UNKNOWN),
        (IMPORTED, UNKNOWN),
        ('(type $t (func)) (import "f" (func $f (type $t))) (import "t" (type (sub resource)))', 0),
    ],
)
def test_definitions_instances_aliases_and_exports_are_told_apart(text: str, count: int) -> None:
    assert memory_count(bytes(wat2wasm(f"(component {text})"))) == count


@pytest.mark.parametrize("name", ["component_command", "component_greeter", "component_requester"])
def test_what_a_toolchain_makes_has_one(name: str) -> None:
    assert memory_count(module(name)) == 1


@given(data=st.binary(max_size=60))
def test_any_bytes_have_a_count(data: bytes) -> None:
    assert memory_count(b"\0asm\x0d\0\1\0" + data) >= 0
