"""The reference's proplet routes, health, metrics and the node, over a real socket."""

from dataclasses import replace

import pytest

from proplet.agent.wire import Metadata, PropletMetrics
from proplet.manager.api import ApiSettings
from proplet.manager.model import Meta, Proplet, PropletPhase, PropletStatus
from proplet.manager.ports import Liveness
from tests.api.fakes import AwayStore, Node, open_node
from tests.api.http import send
from tests.api.test_api_tasks import create, is_error

pytestmark = pytest.mark.anyio


async def add(node: Node, name: str, liveness: Liveness | None = None) -> None:
    status = PropletStatus(PropletPhase.RUNNING, 1.7e9, Metadata(os="linux", cpu_arch="aarch64"))
    await node.store.create(Proplet(Meta(name), status=status))
    if liveness is not None:
        node.control.alive[name] = liveness


async def test_proplets_are_listed_and_selected_by_life(node: Node) -> None:
    await add(node, "pi-1", Liveness(alive=True, last_seen=1.7e9, task_count=2))
    await add(node, "pi-2")
    body = (await send(node.socket, "GET", "/proplets")).json
    assert (body["total"], [item["id"] for item in body["proplets"]]) == (2, ["pi-1", "pi-2"])
    for status, expected in (("active", ["pi-1"]), ("inactive", ["pi-2"])):
        body = (await send(node.socket, "GET", f"/proplets?status={status}")).json
        assert (body["total"], [item["id"] for item in body["proplets"]]) == (1, expected)
    assert is_error(await send(node.socket, "GET", "/proplets?status=dead"), 400, "invalid")


async def test_a_proplet_shows_what_it_is_and_does(node: Node) -> None:
    await add(node, "pi-1", Liveness(alive=True, last_seen=1.7e9, task_count=2))
    shown = (await send(node.socket, "GET", "/proplets/pi-1")).json
    assert (shown["alive"], shown["task_count"], shown["metadata"]["cpu_arch"]) == (True, 2, "aarch64")


async def test_a_proplet_with_tasks_is_not_forgotten(node: Node) -> None:
    await add(node, "pi-1", Liveness(alive=True, task_count=1))
    assert is_error(await send(node.socket, "DELETE", "/proplets/pi-1"), 409, "has_tasks")
    assert is_error(await send(node.socket, "DELETE", "/api/v1/proplets/default/pi-1"), 409, "has_tasks")
    node.control.alive["pi-1"] = Liveness(alive=True)
    assert (await send(node.socket, "DELETE", "/proplets/pi-1")).status == 204
    assert is_error(await send(node.socket, "DELETE", "/proplets/pi-1"), 404, "not_found")


async def test_heartbeats_and_measurements_are_paged_oldest_first(node: Node) -> None:
    await add(node, "pi-1", Liveness(alive=True, history=(1.0, 2.0, 3.0)))
    node.control.proplets_metrics["pi-1"] = [PropletMetrics("pi-1"), PropletMetrics("pi-1", timestamp=5.0)]
    history = (await send(node.socket, "GET", "/proplets/pi-1/alive-history?offset=1&limit=1")).json
    assert history == {"offset": 1, "limit": 1, "total": 3, "history": ["1970-01-01T00:00:02.000000Z"]}
    metrics = (await send(node.socket, "GET", "/proplets/pi-1/metrics")).json
    assert (metrics["total"], metrics["metrics"][1]["proplet_id"]) == (2, "pi-1")
    assert metrics["metrics"][0]["memory_metrics"]["rss_bytes"] == 0


async def test_a_proplet_is_described_in_sdf(node: Node) -> None:
    await add(node, "pi-1")
    answer = await send(node.socket, "GET", "/proplets/pi-1/sdf")
    thing = answer.json["sdfThing"]["Proplet"]
    assert set(thing["sdfAction"]) == {"start_task", "stop_task"}
    assert set(thing["sdfEvent"]) == {"heartbeat", "task_result"}
    assert set(thing["sdfProperty"]) == {"id", "name", "alive", "task_count", "metadata"}


@pytest.mark.parametrize("path", ["", "/sdf", "/metrics", "/alive-history"])
async def test_an_unknown_proplet_is_not_found(node: Node, path: str) -> None:
    assert is_error(await send(node.socket, "GET", f"/proplets/nobody{path}"), 404, "not_found")


async def test_health_passes_with_store_and_broker(node: Node) -> None:
    answer = await send(node.socket, "GET", "/health")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/health+json")
    body = answer.json
    assert (body["status"], body["version"], body["description"]) == ("pass", "1.2.3", "manager service")
    head = await send(node.socket, "HEAD", "/health")
    assert (head.status, head.body) == (200, b"")


async def test_health_warns_without_the_broker(node: Node) -> None:
    node.state = replace(node.state, mqtt_connected=False)
    answer = await send(node.socket, "GET", "/health")
    assert (answer.status, answer.json["status"], answer.json["checks"]["mqtt"][0]["status"]) == (200, "warn", "warn")


async def test_without_its_store_the_node_says_so_and_when_to_come_back(settings: ApiSettings) -> None:
    store = AwayStore()
    async with open_node(settings, store) as node:
        store.away = True
        health = await send(node.socket, "GET", "/health")
        assert (health.status, health.json["status"]) == (503, "fail")
        assert "the disk is full" in health.json["checks"]["store"][0]["output"]
        for method, path, body in (
            ("GET", "/tasks", None),
            ("GET", "/tasks/x", None),
            ("POST", "/tasks", {"name": "main", "image_url": "localhost:5000/x:1"}),
            ("GET", "/metrics", None),
            ("GET", "/api/v1/tasks", None),
        ):
            answer = await send(node.socket, method, path, body)
            assert is_error(answer, 503, "store_unavailable")
            assert int(answer.headers["retry-after"]) > 0


async def test_metrics_count_tasks_proplets_and_requests(node: Node) -> None:
    await add(node, "pi-1", Liveness(alive=True))
    task = await create(node)
    await send(node.socket, "POST", f"/tasks/{task['id']}/start")
    await send(node.socket, "GET", "/tasks/unknown")
    answer = await send(node.socket, "GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.body.decode().splitlines()
    for line in (
        'proplet_build_info{version="1.2.3"} 1',
        "proplet_mqtt_connected 1",
        'proplet_tasks{phase="running"} 1',
        'proplet_tasks{phase="failed"} 0',
        'proplet_proplets{state="alive"} 1',
        'proplet_http_requests_total{method="POST",route="/tasks",code="201"} 1',
        'proplet_http_requests_total{method="GET",route="/tasks/{id}",code="404"} 1',
    ):
        assert line in lines, answer.body.decode()
    memory = next(line for line in lines if line.startswith("process_resident_memory_bytes "))
    assert float(memory.split()[1]) > 1_000_000


async def test_the_node_says_what_it_is(node: Node) -> None:
    body = (await send(node.socket, "GET", "/api/v1/node")).json
    assert (body["version"], body["proplet_id"], body["services"]) == ("1.2.3", "pi-1", ["agent", "broker", "manager"])
    assert body["broker"] == {"address": "mqtt://127.0.0.1:1883", "connected": True}
    node.state = replace(node.state, broker_address="mqtts://me:p@ss@broker.example:8883")
    body = (await send(node.socket, "GET", "/api/v1/node")).json
    assert body["broker"]["address"] == "mqtts://broker.example:8883"


async def test_what_is_not_there_is_said_in_json(node: Node) -> None:
    assert is_error(await send(node.socket, "GET", "/nothing"), 404, "no_such_route")
    assert is_error(await send(node.socket, "GET", "/tasks/"), 404, "no_such_route")
    wrong = await send(node.socket, "PATCH", "/tasks")
    assert is_error(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    options = await send(node.socket, "OPTIONS", "/tasks")
    assert (options.status, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
