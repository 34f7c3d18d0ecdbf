"""Our own routes over a real socket: apply, read, delete, start, stop, logs."""

import json

import anyio
import pytest

from proplet.agent.wire import LogLines
from proplet.manager.model import Key, Kind, Task
from proplet.manager.ports import StoreUnavailableError
from proplet.manager.store_memory import MemoryStore
from tests.api.fakes import Node, open_node
from tests.api.http import Answer, send
from tests.api.test_api_tasks import is_error

pytestmark = pytest.mark.anyio

YAML = {"Content-Type": "application/yaml"}
MANIFEST = """
apiVersion: propeller.propeller.abstractmachines.fr/v1
kind: Task
metadata: {name: %s}
spec: {name: main, imageUrl: "localhost:5000/add:1", inputs: [%s]}
"""


def manifest(name: str, value: object = 1) -> str:
    return MANIFEST % (name, value)


async def apply(node: Node, text: str, query: str = "") -> Answer:
    return await send(node.socket, "POST", f"/api/v1/apply{query}", text.encode(), YAML)


def actions(answer: Answer) -> list[tuple[str, str]]:
    assert answer.status == 200, answer.body
    return [(item["name"], item["action"]) for item in answer.json["items"]]


async def test_applying_creates_then_leaves_then_configures(node: Node) -> None:
    both = manifest("a") + "---" + manifest("b")
    assert actions(await apply(node, both)) == [("a", "created"), ("b", "created")]
    assert actions(await apply(node, both)) == [("a", "unchanged"), ("b", "unchanged")]
    other = manifest("a", 2) + "---" + manifest("b")
    assert actions(await apply(node, other)) == [("a", "configured"), ("b", "unchanged")]


async def test_an_applied_task_is_not_held(node: Node) -> None:
    await apply(node, manifest("a"))
    task = await node.store.get(Kind.TASK, Key("a"))
    assert isinstance(task, Task)
    assert not task.spec.held


async def test_manifests_are_applied_as_json_too(node: Node) -> None:
    await apply(node, manifest("a"))
    shown = (await send(node.socket, "GET", "/api/v1/tasks/default/a")).json
    answer = await send(node.socket, "POST", "/api/v1/apply", {"apiVersion": "v1", "kind": "List", "items": [shown]})
    assert actions(answer) == [("a", "unchanged")]


async def test_the_same_applied_by_many_at_once_is_there_once_and_nobody_fails(node: Node) -> None:
    seen: list[str] = []

    async def one(value: int) -> None:
        seen.extend(action for _, action in actions(await apply(node, manifest("a", value))))

    async with anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(one, number % 3)
    assert seen.count("created") == 1
    assert len(seen) == 12
    assert len((await send(node.socket, "GET", "/api/v1/tasks")).json["items"]) == 1


async def test_a_dry_run_changes_nothing(node: Node) -> None:
    assert actions(await apply(node, manifest("a"), "?dryRun=true")) == [("a", "created")]
    assert (await send(node.socket, "GET", "/api/v1/tasks")).json["items"] == []
    assert is_error(await apply(node, manifest("a"), "?dryRun=maybe"), 400, "invalid")


async def test_nothing_is_applied_when_one_is_wrong(node: Node) -> None:
    answer = await apply(node, manifest("a") + "---" + manifest("B_AD") + "---" + manifest("c", "[1]"))
    assert is_error(answer, 400, "invalid")
    assert "B_AD" in answer.json["error"]
    assert (await send(node.socket, "GET", "/api/v1/tasks")).json["items"] == []


async def test_a_dispatched_task_keeps_its_module_and_nothing_else_is_applied(node: Node) -> None:
    await apply(node, manifest("a"))
    await send(node.socket, "POST", "/api/v1/tasks/default/a/start")
    answer = await apply(node, manifest("new") + "---" + manifest("a", 9))
    assert is_error(answer, 409, "frozen")
    assert "spec.inputs" in answer.json["error"]
    assert (await send(node.socket, "GET", "/api/v1/tasks/default/new")).status == 404


async def test_a_write_that_fails_says_what_was_done_before(settings: object) -> None:
    class Filling(MemoryStore):
        async def create(self, resource):  # type: ignore[no-untyped-def]
            if resource.meta.name == "b":
                raise StoreUnavailableError("the disk is full")
            return await super().create(resource)

    async with open_node(settings, Filling()) as node:  # type: ignore[arg-type]
        answer = await apply(node, manifest("a") + "---" + manifest("b"))
        assert is_error(answer, 503, "store_unavailable")
        assert [(item["name"], item["action"]) for item in answer.json["items"]] == [("a", "created")]


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"", "application/yaml", 400, "invalid"),
        (b"a: [", "application/yaml", 400, "invalid"),
        (b"\xff", "application/yaml", 400, "invalid"),
        (b"{", "application/json", 400, "invalid"),
        (b"a: 1", "application/json", 400, "invalid"),
        (b"x: &a [1]\ny: *a\nkind: 3", "application/yaml", 400, "invalid"),
        (b"kind: Pod", "text/plain", 415, "unsupported_media_type"),
    ],
)
async def test_what_is_no_manifest_is_refused(node: Node, body: bytes, kind: str, status: int, reason: str) -> None:
    answer = await send(node.socket, "POST", "/api/v1/apply", body, {"Content-Type": kind})
    assert is_error(answer, status, reason)


async def test_a_list_names_the_version_a_watch_goes_on_from(node: Node) -> None:
    await apply(node, manifest("a"))
    await apply(node, manifest("b").replace("{name: b}", "{name: b, namespace: other}"))
    body = (await send(node.socket, "GET", "/api/v1/tasks")).json
    assert [item["metadata"]["name"] for item in body["items"]] == ["a", "b"]
    assert body["version"] >= int(body["items"][1]["metadata"]["resourceVersion"])
    only = (await send(node.socket, "GET", "/api/v1/tasks?namespace=other")).json
    assert [item["metadata"]["name"] for item in only["items"]] == ["b"]
    assert is_error(await send(node.socket, "GET", "/api/v1/pods"), 404, "no_such_kind")


async def test_a_resource_is_deleted_by_name_and_shown_a_last_time(node: Node) -> None:
    await apply(node, manifest("a"))
    answer = await send(node.socket, "DELETE", "/api/v1/tasks/default/a")
    assert (answer.status, answer.json["metadata"]["name"]) == (200, "a")
    assert is_error(await send(node.socket, "DELETE", "/api/v1/tasks/default/a"), 404, "not_found")


async def test_a_task_is_started_and_stopped_by_name(node: Node) -> None:
    await apply(node, manifest("a"))
    started = await send(node.socket, "POST", "/api/v1/tasks/default/a/start")
    assert (started.status, started.json["status"]["phase"]) == (200, "running")
    stopped = await send(node.socket, "POST", "/api/v1/tasks/default/a/stop")
    assert stopped.json["status"]["phase"] == "interrupted"
    assert is_error(await send(node.socket, "POST", "/api/v1/tasks/default/a/stop"), 409, "not_running")
    assert is_error(await send(node.socket, "POST", "/api/v1/tasks/default/b/start"), 404, "not_found")


async def test_logs_are_shown_by_name(node: Node) -> None:
    await apply(node, manifest("a"))
    uid = (await node.store.get(Kind.TASK, Key("a"))).meta.uid
    node.control.logs[uid] = [LogLines("pi-1", uid, 1, "stderr", ("one", "\u2603"))]
    items = (await send(node.socket, "GET", "/api/v1/tasks/default/a/logs")).json["items"]
    assert [(item["stream"], item["lines"]) for item in items] == [("stderr", ["one", "\u2603"])]
    assert is_error(await send(node.socket, "GET", "/api/v1/tasks/default/b/logs"), 404, "not_found")


async def test_values_that_json_cannot_say_do_not_get_in_through_yaml(node: Node) -> None:
    for value in (".nan", ".inf", "2020-01-01", "!!binary AAAA", "{1: 2}"):
        text = manifest("a").replace("inputs: [1]", f"metadata: {{k: {value}}}")
        answer = await apply(node, text)
        assert answer.status in {200, 400}, answer.body
        shown = await send(node.socket, "GET", "/api/v1/tasks")
        assert shown.status == 200
        json.loads(shown.body)
