"""Lists of tasks that carry their modules: neither the node's memory nor its other work suffers."""

import base64
import json
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.manager.api import ApiSettings
from proplet.manager.model import Kind, Meta, Task, TaskSpec
from proplet.manager.rest import redacted
from tests.api.fakes import Node, open_node
from tests.api.http import Raw, send

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
JSON = {"Content-Type": "application/json"}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096


async def test_a_list_of_tasks_with_modules_is_never_in_memory_as_a_whole(settings: ApiSettings) -> None:
    async with open_node(settings) as node:
        for number in range(20):
            await node.store.create(Task(Meta(f"t{number}"), TaskSpec(name="x", file=b"\0asm" + bytes(4 * MIB))))
        before, most = resident(), 0

        async def look() -> None:
            nonlocal most
            while True:
                most = max(most, resident())
                await anyio.sleep(0.005)

        with Raw(node.socket) as raw:
            raw.socket.sendall(b"GET /api/v1/tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(look)
                size = await anyio.to_thread.run_sync(lambda: sum(map(len, iter(lambda: raw.socket.recv(MIB), b""))))
                tasks.cancel_scope.cancel()
        assert size > 100 * MIB
        assert most - before < 50 * MIB


async def test_a_list_made_piece_by_piece_is_one_json_document(node: Node) -> None:
    assert (await send(node.socket, "GET", "/api/v1/tasks")).json == {"items": [], "version": 0}
    for number in range(300):
        await node.store.create(Task(Meta(f"t{number}", labels={"a": "ü" * 50}), TaskSpec(name="x", image_url="r/x:1")))
    answer = await send(node.socket, "GET", "/api/v1/tasks")
    assert answer.headers["content-type"] == "application/json"
    listed = json.loads(answer.body)
    assert [item["metadata"]["name"] for item in listed["items"]] == [f"t{n}" for n in range(300)]
    assert listed["version"] == (await node.store.list(Kind.TASK)).version
    assert (await send(node.socket, "HEAD", "/api/v1/tasks")).body == b""


@pytest.mark.parametrize("many", [b"1," * 300_000 + b"1", b"[{}]," * 150_000 + b"1", b"[" * 100_000 + b"{" * 200_000])
@pytest.mark.parametrize("path", ["/tasks", "/api/v1/apply"])
async def test_a_body_of_very_many_values_is_refused_before_it_is_read(node: Node, path: str, many: bytes) -> None:
    answer = await send(node.socket, "POST", path, b'{"name":"x","inputs":[' + many + b"]}", JSON)
    assert (answer.status, answer.json["reason"]) == (413, "too_large")


async def test_a_body_of_many_values_is_taken(node: Node) -> None:
    body = b'{"name":"x","image_url":"r.test/x:1","inputs":[' + b"1," * 100_000 + b"1]}"
    assert (await send(node.socket, "POST", "/tasks", body, JSON)).status == 201


async def test_a_request_with_two_lengths_is_refused_and_nothing_after_it_is_read(node: Node) -> None:
    head = b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\n"
    smuggled = b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with Raw(node.socket) as raw:
        raw.socket.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + smuggled)
        answer = await raw.read_until(b"no end but that of the connection")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


@given(st.binary(max_size=200))
def test_a_module_is_redacted_to_the_ends_of_its_base64(module: bytes) -> None:
    text = base64.b64encode(module).decode()
    assert redacted(module) == (text if len(text) <= 20 else f"{text[:10]}<REDACTED>{text[-10:]}")
