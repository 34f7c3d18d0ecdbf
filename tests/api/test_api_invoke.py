"""Invocations over a real socket: the reference's route and our own."""

import json

import pytest

from proplet.manager.model import Kind
from tests.api.fakes import Node
from tests.api.http import send
from tests.api.test_api_tasks import UNKNOWN, create, is_error

pytestmark = pytest.mark.anyio


async def test_the_references_route_answers_in_its_shape(node: Node) -> None:
    task = await create(node, latent=True)
    answer = await send(
        node.socket, "POST", f"/tasks/{task['id']}/invoke", {"inputs": [1, "b", 2.5], "env": {"A": "x"}}
    )
    assert (answer.status, answer.json) == (200, {"invoked": True, "results": "1 b 2.5 {'A': 'x'}"})
    empty = await send(node.socket, "POST", f"/tasks/{task['id']}/invoke")
    assert (empty.status, empty.json["results"]) == (200, " {}")


async def test_our_own_route_says_what_it_cost_and_what_failed(node: Node) -> None:
    task = await create(node, latent=True)
    path = f"/api/v1/tasks/default/{(await node.store.find(Kind.TASK, str(task['id']))).meta.name}/invoke"
    answer = (await send(node.socket, "POST", path, {"inputs": ["a"]})).json
    assert answer == {
        "invoked": True, "proplet_id": "pi-1", "results": "a {}", "error": None, "reason": "ok",
        "usage": {"cpu_seconds": 0.5},
    }  # fmt: skip
    failed = await send(node.socket, "POST", path, {"inputs": ["trap"]})
    assert failed.status == 200
    assert (failed.json["invoked"], failed.json["error"], failed.json["reason"]) == (False, "it trapped", "trap")


async def test_failures_have_a_status_and_a_word(node: Node) -> None:
    task, plain = await create(node, latent=True), await create(node)
    path = f"/tasks/{task['id']}/invoke"
    assert is_error(await send(node.socket, "POST", path, {"inputs": ["trap"]}), 502, "trap")
    slow = await send(node.socket, "POST", path, {"inputs": ["silence"], "timeout_seconds": 0.5})
    assert is_error(slow, 504, "no_answer")
    assert "within 0.5 s" in slow.json["error"]
    assert is_error(await send(node.socket, "POST", f"/tasks/{plain['id']}/invoke"), 409, "not_latent")
    assert is_error(await send(node.socket, "POST", f"/tasks/{UNKNOWN}/invoke"), 404, "not_found")
    missing = await send(node.socket, "POST", "/api/v1/tasks/default/nothing/invoke")
    assert is_error(missing, 404, "not_found")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"inputs": [None]}, "inputs[0]"),
        ({"inputs": "1"}, "inputs"),
        ({"env": {"A": 1}}, "env"),
        ({"input": ["1"]}, "there is no member 'input'"),
        ({"timeout_seconds": 31}, "timeout_seconds must be a number above 0, at most 30"),
        ({"timeout_seconds": True}, "timeout_seconds"),
        ([], "must be a JSON object"),
    ],
)
async def test_a_body_that_makes_no_sense_is_refused(node: Node, body: object, told: str) -> None:
    task = await create(node, latent=True)
    answer = await send(node.socket, "POST", f"/tasks/{task['id']}/invoke", body)
    assert is_error(answer, 400, "invalid")
    assert told in answer.json["error"]


async def test_a_web_page_cannot_invoke_by_sending_text(node: Node) -> None:
    task = await create(node, latent=True)
    body = json.dumps({"inputs": ["1"]}).encode()
    answer = await send(
        node.socket, "POST", f"/tasks/{task['id']}/invoke", body, {"Content-Type": "text/plain", "Host": "localhost"}
    )
    assert is_error(answer, 415, "unsupported_media_type")
