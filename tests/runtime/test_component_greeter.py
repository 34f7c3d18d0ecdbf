"""A component made with wit-bindgen: every kind of type in its functions, called as tasks call them."""

from typing import Any

import pytest

from proplet.agent.wire import Reason

pytestmark = pytest.mark.anyio

GREETER = "component_greeter"


@pytest.mark.parametrize(
    ("name", "inputs", "result"),
    [
        ("greet", ('"wörld"',), '"Hello, wörld!"'),
        ("bounds", ("[{x: 1, y: 2}, {y: 9, x: -5}]",), "some(({x: -5, y: 2}, {x: 1, y: 9}))"),
        ("demo:greeter/shapes#bounds", ("[]",), "none"),
        ("describe", ("circle(1.5)", "red"), '"a Color::Red circle of radius 1.5"'),
        ("describe", ("line(({x: 1, y: 2}, {x: 3, y: 4}))", "blue"), '"a Color::Blue line from 1,2 to 3,4"'),
        ("describe", ("nothing", "green"), '"nothing"'),
        ("divide", ("7", "2"), "ok(3)"),
        ("divide", ("7", "0"), 'err("division by zero")'),
        ("both", ("{read, write}", "{write}"), "{write}"),
        ("demo:greeter/shapes@0.1.0#sum", ("[1, 2, 255]",), "258"),
        ("zeros", ("3",), "[0, 0, 0]"),
    ],
)
async def test_a_function_takes_and_returns_text(node: Any, name: str, inputs: tuple[str, ...], result: str) -> None:
    outcome = await node.run(GREETER, name, *inputs)
    assert (outcome.reason, outcome.results, outcome.error) == (Reason.OK, result, None)


async def test_each_call_has_a_fresh_instance(node: Any) -> None:
    for _ in range(3):
        assert (await node.run(GREETER, "sum", "[1]")).results == "1"
        assert (await node.run(GREETER, "zeros", "4000000000")).reason is Reason.TRAP


async def test_an_answer_too_large_to_be_handed_over_is_refused_and_costs_no_worker(node: Any) -> None:
    assert (await node.run(GREETER, "greet", '"x"')).reason is Reason.OK
    workers = node.runtime.worker_pids
    outcome = await node.run(GREETER, "zeros", "50000000", memory_bytes=64 << 20)
    assert outcome.reason is Reason.OUTPUT_LIMIT
    assert "too much data" in outcome.error
    assert set(workers) <= set(node.runtime.worker_pids)
