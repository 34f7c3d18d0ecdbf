"""The reference's task routes over a real socket."""

import base64
import json
from dataclasses import replace
from urllib.parse import quote

import anyio
import pytest

from proplet.agent.wire import TaskMetrics
from proplet.manager.model import Kind, Task
from proplet.manager.phases import Phase
from tests.api.fakes import Node
from tests.api.http import Answer, send

pytestmark = pytest.mark.anyio

WASM = base64.b64decode("AGFzbQEAAAABBwFgAn9/AX8DAgEABwgBBG1haW4AAAoJAQcAIAAgAWoL")
TASK = {"name": "main", "inputs": [10, 32], "file": base64.b64encode(WASM).decode()}
UNKNOWN = "00000000-0000-4000-8000-000000000000"


def is_error(answer: Answer, status: int, reason: str) -> bool:
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) >= {"error", "reason"}
    assert answer.json["error"]
    assert (answer.status, answer.json["reason"]) == (status, reason), answer.body
    return True


async def create(node: Node, **fields: object) -> dict[str, object]:
    answer = await send(node.socket, "POST", "/tasks", {**TASK, **fields})
    assert answer.status == 201, answer.body
    created: dict[str, object] = answer.json
    return created


async def test_a_task_is_created_read_and_deleted(node: Node) -> None:
    answer = await send(node.socket, "POST", "/tasks", TASK)
    assert answer.status == 201
    task = answer.json
    assert answer.headers["location"] == f"/tasks/{task['id']}"
    assert (task["name"], task["state"], task["inputs"]) == ("main", 0, ["10", "32"])
    assert "<REDACTED>" in task["file"]
    read = await send(node.socket, "GET", f"/tasks/{task['id']}")
    assert (read.status, read.json) == (200, task)
    assert read.headers["etag"] == answer.headers["etag"]
    gone = await send(node.socket, "DELETE", f"/tasks/{task['id']}")
    assert (gone.status, gone.body) == (204, b"")
    assert is_error(await send(node.socket, "GET", f"/tasks/{task['id']}"), 404, "not_found")


async def test_tasks_with_the_same_name_live_side_by_side(node: Node) -> None:
    first, second = await create(node), await create(node)
    assert first["id"] != second["id"]
    assert (await send(node.socket, "GET", "/tasks")).json["total"] == 2


async def test_a_list_is_paged_and_says_how_many_there_are(node: Node) -> None:
    ids = [(await create(node))["id"] for _ in range(5)]
    answer = await send(node.socket, "GET", "/tasks?offset=1&limit=2")
    body = answer.json
    assert (body["offset"], body["limit"], body["total"]) == (1, 2, 5)
    assert [task["id"] for task in body["tasks"]] == ids[1:3]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "offset=-1", "offset=1e3"])
async def test_a_page_that_makes_no_sense_is_refused(node: Node, query: str) -> None:
    assert is_error(await send(node.socket, "GET", f"/tasks?{query}"), 400, "invalid")


async def test_tasks_are_found_by_their_metadata(node: Node) -> None:
    await create(node, metadata={"site": "roof", "nr": 1})
    wanted = await create(node, metadata={"site": "cellar", "nr": 1})
    query = quote(json.dumps({"site": "cellar", "nr": 1}))
    body = (await send(node.socket, "GET", f"/tasks?metadata={query}")).json
    assert (body["total"], body["tasks"][0]["id"]) == (1, wanted["id"])
    for bad in ("[]", "{", "NaN"):
        assert is_error(await send(node.socket, "GET", f"/tasks?metadata={quote(bad)}"), 400, "invalid")


async def test_an_update_keeps_what_it_does_not_name(node: Node) -> None:
    task = await create(node, schedule="*/5 * * * *", is_recurring=True, metadata={"a": 1}, priority=70)
    answer = await send(node.socket, "PUT", f"/tasks/{task['id']}", {"inputs": ["1", "2"]})
    assert answer.status == 200
    changed = answer.json
    assert changed["inputs"] == ["1", "2"]
    same = ("name", "schedule", "is_recurring", "metadata", "priority", "file")
    assert [changed[name] for name in same] == [task[name] for name in same]


async def test_an_update_of_what_was_read_changes_nothing(node: Node) -> None:
    task = await create(node)
    answer = await send(node.socket, "PUT", f"/tasks/{task['id']}", task)
    assert (answer.status, answer.json) == (200, task)


async def test_an_update_of_another_version_than_expected_is_refused(node: Node) -> None:
    task = await create(node)
    path = f"/tasks/{task['id']}"
    seen = (await send(node.socket, "GET", path)).headers["etag"]
    assert (await send(node.socket, "PUT", path, {"priority": 1}, {"If-Match": seen})).status == 200
    assert is_error(await send(node.socket, "PUT", path, {"priority": 2}, {"If-Match": seen}), 412, "changed")
    assert is_error(await send(node.socket, "DELETE", path, headers={"If-Match": seen}), 412, "changed")


async def test_updates_at_the_same_time_all_take_effect(node: Node) -> None:
    task = await create(node)
    changes = [{"priority": 9}, {"inputs": ["7"]}, {"metadata": {"k": "v"}}, {"timezone": "Europe/Paris"}] * 3
    answers: list[Answer] = []

    async def change(body: dict[str, object]) -> None:
        answers.append(await send(node.socket, "PUT", f"/tasks/{task['id']}", body))

    async with anyio.create_task_group() as group:
        for body in changes:
            group.start_soon(change, body)
    assert {answer.status for answer in answers} == {200}
    final = (await send(node.socket, "GET", f"/tasks/{task['id']}")).json
    assert (final["priority"], final["inputs"], final["metadata"]) == (9, ["7"], {"k": "v"})


async def test_what_runs_does_not_change_its_module(node: Node) -> None:
    task = await create(node)
    await send(node.socket, "POST", f"/tasks/{task['id']}/start")
    answer = await send(node.socket, "PUT", f"/tasks/{task['id']}", {"inputs": ["9"]})
    assert is_error(answer, 409, "frozen")
    assert (await send(node.socket, "PUT", f"/tasks/{task['id']}", {"priority": 9})).status == 200


def multipart(filename: str, content: bytes, name: str = "file", boundary: str = "XbX") -> tuple[bytes, dict[str, str]]:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
    body = f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + content
    return body + f"\r\n--{boundary}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


async def test_a_module_is_uploaded_byte_for_byte(node: Node) -> None:
    task = await create(node)
    content = WASM + bytes(range(256)) + b"\r\n--Xb\r\n\r\n\n"
    body, headers = multipart("add.wasm", content)
    answer = await send(node.socket, "PUT", f"/tasks/{task['id']}/upload", body, headers)
    assert answer.status == 200, answer.body
    stored = await node.store.find(Kind.TASK, str(task["id"]))
    assert isinstance(stored, Task)
    assert stored.spec.file == content
    plain = await send(node.socket, "PUT", f"/tasks/{task['id']}/upload", WASM, {"Content-Type": "application/wasm"})
    assert plain.status == 200


async def test_an_upload_keeps_the_schedule(node: Node) -> None:
    task = await create(node, schedule="0 4 * * *")
    body, headers = multipart("add.wasm", WASM)
    answer = await send(node.socket, "PUT", f"/tasks/{task['id']}/upload", body, headers)
    assert answer.json["schedule"] == "0 4 * * *"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        multipart("add.txt", WASM),
        multipart("add.wasm", b"MZ not wasm"),
        multipart("add.wasm", WASM, name="other"),
        (b"--XbX\r\nbroken", {"Content-Type": "multipart/form-data; boundary=XbX"}),
        (b"nothing here", {"Content-Type": "multipart/form-data; boundary=XbX"}),
        (b"", {"Content-Type": "multipart/form-data"}),
        (b"", {"Content-Type": "application/wasm"}),
    ],
)
async def test_an_upload_that_is_no_module_is_refused(node: Node, body: bytes, headers: dict[str, str]) -> None:
    task = await create(node)
    assert is_error(await send(node.socket, "PUT", f"/tasks/{task['id']}/upload", body, headers), 400, "invalid")


async def test_an_upload_as_json_is_refused(node: Node) -> None:
    task = await create(node)
    answer = await send(node.socket, "PUT", f"/tasks/{task['id']}/upload", {"file": "x"})
    assert is_error(answer, 415, "unsupported_media_type")


async def test_a_task_is_started_and_stopped(node: Node) -> None:
    path = f"/tasks/{(await create(node))['id']}"
    assert is_error(await send(node.socket, "POST", f"{path}/stop"), 409, "not_running")
    started = await send(node.socket, "POST", f"{path}/start")
    assert (started.status, started.json) == (200, {"started": True})
    assert (await send(node.socket, "GET", path)).json["state"] == Phase.RUNNING.number
    stopped = await send(node.socket, "POST", f"{path}/stop")
    assert (stopped.status, stopped.json) == (200, {"stopped": True})


async def test_results_always_have_a_body(node: Node) -> None:
    task = await create(node)
    path = f"/tasks/{task['id']}/results"
    assert (await send(node.socket, "GET", path)).json == {"results": None}
    stored = await node.store.find(Kind.TASK, str(task["id"]))
    assert isinstance(stored, Task)
    await node.store.record(replace(stored, status=replace(stored.status, phase=Phase.COMPLETED, results="42")))
    assert (await send(node.socket, "GET", path)).json == {"results": "42"}


async def test_a_tasks_measurements_are_paged(node: Node) -> None:
    task = await create(node)
    uid = str(task["id"])
    node.control.tasks_metrics[uid] = [TaskMetrics(uid, "pi-1", timestamp=float(second)) for second in range(1, 4)]
    body = (await send(node.socket, "GET", f"/tasks/{uid}/metrics?limit=1&offset=2")).json
    assert (body["total"], len(body["metrics"])) == (3, 1)
    assert body["metrics"][0]["timestamp"] == "1970-01-01T00:00:03.000000Z"


@pytest.mark.parametrize("path", ["", "/results", "/metrics"])
async def test_reading_an_unknown_task_is_not_found(node: Node, path: str) -> None:
    assert is_error(await send(node.socket, "GET", f"/tasks/{UNKNOWN}{path}"), 404, "not_found")


async def test_changing_an_unknown_task_is_not_found(node: Node) -> None:
    for method, path, body in (
        ("PUT", "", {"priority": 1}),
        ("DELETE", "", None),
        ("POST", "/start", None),
        ("POST", "/stop", None),
    ):
        assert is_error(await send(node.socket, method, f"/tasks/{UNKNOWN}{path}", body), 404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"name": NaN}',
        b'{"name": "x", "metadata": {"a": 1e999}}',
        b'{"name": "\\ud800", "image_url": "r/x"}',
        b"[" * 100_000,
        b'{"name": 5, "image_url": "r/x"}',
        b'{"image_url": "r/x"}',
        b'{"name": "x", "file": "not base64!"}',
        b'{"name": "x", "priority": 101, "image_url": "r/x"}',
        b'{"name": "x", "inputs": 1' + b"0" * 5000 + b"}",
    ],
)
async def test_a_body_that_is_no_task_is_refused_with_the_reason(node: Node, body: bytes) -> None:
    answer = await send(node.socket, "POST", "/tasks", body, {"Content-Type": "application/json"})
    assert is_error(answer, 400, "invalid")


async def test_a_body_of_another_type_is_refused(node: Node) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = await send(node.socket, "POST", "/tasks", b"{}", {"Content-Type": kind})
        assert is_error(answer, 415, "unsupported_media_type")
    assert is_error(await send(node.socket, "POST", "/tasks", b"{}"), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/fl/experiments"),
        ("GET", "/fl/rounds/r/complete"),
    ],
)
async def test_what_a_later_version_does_is_refused_clearly(node: Node, method: str, path: str) -> None:
    assert is_error(await send(node.socket, method, path), 501, "not_implemented")
