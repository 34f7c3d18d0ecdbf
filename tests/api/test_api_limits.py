"""Bodies, heads, connections and bytes that are too much, and rubbish: never a 500, never a hang."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from proplet.manager.api import ApiSettings
from proplet.manager.api_multipart import MultipartError, file_part
from tests.api.fakes import TOKEN, Node, open_node
from tests.api.http import Raw, _exchange, send
from tests.api.test_api_tasks import TASK, create, is_error, multipart

pytestmark = pytest.mark.anyio


async def test_a_body_that_is_too_large_is_refused_by_its_length_alone(settings: ApiSettings) -> None:
    async with open_node(replace(settings, max_body_bytes=1000)) as node:
        with Raw(node.socket) as raw:
            head = "POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1001\r\n\r\n"
            raw.socket.sendall(head.encode())
            answer = await raw.read_until(b"}")
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert b'"reason":"too_large"' in answer
            assert b"connection: close" in answer.lower()


async def test_a_body_of_unknown_length_is_cut_off(settings: ApiSettings) -> None:
    async with open_node(replace(settings, max_body_bytes=1000)) as node:
        with Raw(node.socket) as raw:
            head = b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            raw.socket.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n400\r\n" + b" " * 1024 + b"\r\n")
            assert (await raw.read_until(b"}")).startswith(b"HTTP/1.1 413 ")


async def test_a_twenty_megabyte_body_is_refused(node: Node) -> None:
    answer = await send(node.socket, "POST", "/tasks", b" " * 20_000_000, {"Content-Type": "application/json"})
    assert is_error(answer, 413, "too_large")
    assert (await send(node.socket, "GET", "/tasks")).status == 200


async def test_a_refusal_of_a_large_body_reaches_its_sender_over_tcp(node: Node) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    for _ in range(3):
        answer = await send(("127.0.0.1", node.port), "POST", "/tasks", b" " * 20_000_000, headers)
        assert is_error(answer, 413, "too_large")


async def test_a_body_that_never_arrives_times_out(settings: ApiSettings) -> None:
    async with open_node(replace(settings, request_timeout_s=0.1)) as node:
        with Raw(node.socket) as raw:
            head = "POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
            raw.socket.sendall(head.encode())
            answer = await raw.read_until(b"}")
            assert answer.split()[1] in {b"408", b"503"}


async def test_many_large_bodies_at_once_are_refused_before_memory_runs_out(settings: ApiSettings) -> None:
    async with open_node(replace(settings, max_body_bytes=1000)) as node:
        head = "POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        slow = [Raw(node.socket) for _ in range(4)]
        for raw in slow:
            raw.socket.sendall(head.encode())
        with anyio.fail_after(5):
            while (answer := await send(node.socket, "POST", "/tasks", TASK)).status != 503:
                pass
        assert is_error(answer, 503, "busy")
        for raw in slow:
            raw.socket.close()
        with anyio.fail_after(5):
            while (await send(node.socket, "POST", "/tasks", TASK)).status != 201:
                pass


async def test_a_head_that_is_too_large_is_refused(node: Node) -> None:
    with Raw(node.socket) as raw:
        raw.socket.sendall(b"GET /tasks HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000)
        assert b" 400 " in (await raw.read_until(b"\r\n"))


@pytest.mark.parametrize("rubbish", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/x\r\n\r\n", b"\0" * 64])
async def test_what_is_no_http_is_refused(node: Node, rubbish: bytes) -> None:
    with Raw(node.socket) as raw:
        raw.socket.sendall(rubbish + b"\r\n\r\n")
        assert b" 400 " in (await raw.read_until(b"\r\n"))
    assert (await send(node.socket, "GET", "/tasks")).status == 200


async def test_a_head_that_never_ends_is_not_waited_for(settings: ApiSettings) -> None:
    async with open_node(replace(settings, head_timeout_s=0.1)) as node:
        for beginning in (b"", b"GET /ta", b"GET /tasks HTTP/1.1\r\nHost: x\r\n"):
            with Raw(node.socket) as raw:
                raw.socket.sendall(beginning)
                assert await raw.read_until(b"never") == b""


async def test_one_connection_too_many_is_told_so(settings: ApiSettings) -> None:
    async with open_node(replace(settings, max_connections=3)) as node:
        idle = [Raw(node.socket) for _ in range(3)]
        with anyio.fail_after(5):
            while (await send(node.socket, "GET", "/tasks")).status != 503:
                pass
        for raw in idle:
            raw.socket.close()
        with anyio.fail_after(5):
            while (await send(node.socket, "GET", "/tasks")).status != 200:
                pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = (
    "name kind image_url file inputs cli_args env daemon latent broadcast encrypted proplet_id priority metadata "
    "schedule timezone is_recurring monitoring_profile limits permissions restart_policy pull_policy "
    "resource_requirements proplet_selector labels active_deadline_seconds depends_on run_if mode"
).split()
BODIES = JSON | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5).map(
    lambda fields: {"name": "main", "image_url": "localhost:5000/x:1", **fields}
)


def answers_well(where: Path, method: str, path: str, body: bytes, kind: str, good: int) -> None:
    answer = _exchange(where, method, path, body, {"Content-Type": kind})
    assert answer.status in {good, 400, 409}, (body, answer.body)
    if answer.status != good:
        assert set(answer.json) >= {"error", "reason"}


async def fuzz(node: Node, method: str, path: str, kind: str, bodies: st.SearchStrategy[bytes], good: int) -> None:
    @hypothesis_settings(max_examples=150)
    @given(bodies)
    def run(body: bytes) -> None:
        answers_well(node.socket, method, path, body, kind, good)

    await anyio.to_thread.run_sync(run)
    assert (await send(node.socket, "GET", "/tasks?limit=1000")).status == 200
    assert (await send(node.socket, "GET", "/api/v1/tasks")).status == 200


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


async def test_no_body_makes_creating_a_task_fail_in_an_unforeseen_way(node: Node) -> None:
    await fuzz(node, "POST", "/tasks", "application/json", BODIES.map(as_json), 201)


async def test_no_body_makes_changing_a_task_fail_in_an_unforeseen_way(node: Node) -> None:
    task = await create(node)
    await fuzz(node, "PUT", f"/tasks/{task['id']}", "application/json", BODIES.map(as_json), 200)


async def test_no_text_makes_applying_fail_in_an_unforeseen_way(node: Node) -> None:
    meta = {"name": "a"}
    api = "propeller.propeller.abstractmachines.fr/v1"
    documents = JSON.map(lambda spec: {"apiVersion": api, "kind": "Task", "metadata": meta, "spec": spec})
    labels = JSON.map(lambda labels: {"apiVersion": api, "kind": "Proplet", "metadata": {**meta, "labels": labels}})
    await fuzz(node, "POST", "/api/v1/apply", "application/json", (documents | labels | JSON).map(as_json), 200)
    await fuzz(node, "POST", "/api/v1/apply", "application/yaml", st.binary(max_size=60), 200)
    await fuzz(node, "POST", "/api/v1/apply", "application/yaml", st.text(max_size=60).map(str.encode), 200)


async def test_no_query_makes_listing_fail_in_an_unforeseen_way(node: Node) -> None:
    @hypothesis_settings(max_examples=150)
    @given(
        st.sampled_from(["limit", "offset", "metadata", "status"]), st.text(st.characters(codec="utf-8"), max_size=20)
    )
    def run(name: str, value: str) -> None:
        from urllib.parse import quote

        for path in ("/tasks", "/proplets"):
            answer = _exchange(node.socket, "GET", f"{path}?{name}={quote(value)}", None, {})
            assert answer.status in {200, 400}, answer.body
        part = quote(value, safe="")
        for path in (f"/tasks/{part}", f"/proplets/{part}", f"/api/v1/tasks/{part}/x", f"/api/v1/{part}", f"/{part}"):
            answer = _exchange(node.socket, "GET", path, None, {})
            assert answer.status in {200, 404}, (path, answer.body)

    await anyio.to_thread.run_sync(run)


@hypothesis_settings(max_examples=300)
@given(st.binary(max_size=300))
def test_a_file_comes_out_of_a_multipart_body_as_it_went_in(content: bytes) -> None:
    body, headers = multipart("x.wasm", content, boundary="a-boundary-that-no-content-has")
    assert file_part(headers["Content-Type"], body, "file").content == content


@hypothesis_settings(max_examples=300)
@given(
    st.text(max_size=80),
    st.lists(
        st.sampled_from([b"--b", b"\r\n", b"--", b"x", b'Content-Disposition: form-data; name="file"; filename="a"'])
    ),
)
def test_a_broken_multipart_body_is_a_multipart_error(content_type: str, pieces: list[bytes]) -> None:
    for kind in (content_type, "multipart/form-data; boundary=b"):
        with contextlib.suppress(MultipartError):
            file_part(kind, b"".join(pieces), "file")
