"""The pages of metrics of a real agent, and of a real node with a manager, as Prometheus and probes read them."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent import wire
from proplet.agent.topics import Route
from proplet.manager.model import PropletSpec
from proplet.manager.pod_template import Identity, pod_of
from tests.api.http import send
from tests.manifests.test_manifest_corpus import SAMPLES
from tests.node.conftest import agent_config
from tests.node.test_jobs_on_a_node import Hub, hub, task  # noqa: F401
from tests.node.test_latent_tasks import LOOP, deploy, invoke
from tests.support import prometheus
from tests.support.modules import ADDITION, padded
from tests.support.mosquitto import CHANNEL, DOMAIN, PROPLET, MosquittoServer, free_port, mosquitto  # noqa: F401
from tests.support.node import NodeProcess, Peer
from tests.support.registry import running_registry

pytestmark = [pytest.mark.anyio, pytest.mark.mosquitto]

API = "propeller.propeller.abstractmachines.fr/v1"


@pytest.fixture
def agent(tmp_path: Path, mosquitto: MosquittoServer) -> Iterator[NodeProcess]:  # noqa: F811
    config = agent_config(mosquitto) + 'metrics_address = "127.0.0.1:0"\n'
    with NodeProcess(tmp_path / "node", config) as node:
        yield node


async def page(node: NodeProcess, path: str = "/metrics") -> str:
    port = re.findall(r"metrics on [\d.*]+:(\d+)", node.log)[-1]

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            said: str = answer.read().decode()
            return said

    return await anyio.to_thread.run_sync(read)


async def hub_page(hub: Hub) -> str:  # noqa: F811
    return (await send(hub.directory / "run/proplet.sock", "GET", "/metrics")).body.decode()


def measured(hub: Hub, kind: str, what: str) -> None:  # noqa: F811
    deadline = time.monotonic() + 30
    while not all(what in one for one in json.loads(hub.done("top", kind, "-o", "json"))):
        assert time.monotonic() < deadline


async def test_an_agent_tells_what_it_has_done_and_what_runs_now(agent: NodeProcess, peer: Peer) -> None:
    for number in range(3):
        await peer.start(f"t{number}")
        await peer.result(f"t{number}")
    await peer.start("bad", name="missing", inputs=("1",))
    await peer.result("bad")
    await deploy(peer)
    await invoke(peer)
    terms = wire.StartTerms(attempt=1, topics=("progress",))
    await peer.start("busy", file=LOOP, inputs=(), ext=terms)
    await peer.until(lambda: [p for p in peer.all(Route.PROGRESS, "busy") if p.stage == "running"])
    found = prometheus.read(await page(agent))
    at = lambda name, **labels: prometheus.value(found, name, **labels)  # noqa: E731
    assert at("proplet_tasks_started_total") == 5
    assert at("proplet_tasks_completed_total") == 3
    assert at("proplet_tasks_failed_total") == 1
    assert at("proplet_tasks_running") == at("proplet_latent_tasks") == at("proplet_invocations_total") == 1
    assert at("proplet_starts_total", kind="cold") == 1
    assert at("proplet_modules_prepared_total", **{"from": "build"}) == 2
    assert at("proplet_modules_prepared_total", **{"from": "cache"}) == 4
    assert at("proplet_mqtt_reconnects_total") == 1
    assert at("proplet_workers") >= 1
    assert at("proplet_memory_rss_bytes") > 1_000_000
    first = at("proplet_task_cpu_seconds_total", task="busy")
    assert found["proplet_task_cpu_seconds_total"].keys() == {frozenset({("task", "busy")})}
    again = prometheus.read(await page(agent))
    assert prometheus.value(again, "proplet_task_cpu_seconds_total", task="busy") > first, "measured when asked"
    assert json.loads(await page(agent, "/health")) == {"status": "ok", "running_tasks": 1}
    await peer.send(Route.STOP, wire.Stop("busy"))
    await peer.result("busy")
    after = prometheus.read(await page(agent))
    assert not after["proplet_task_cpu_seconds_total"], "what has ended leaves no series behind"
    assert prometheus.value(after, "proplet_tasks_stopped_total") == 1


async def test_what_is_fetched_is_counted_once_however_many_tasks_wait_for_it(
    agent: NodeProcess, peer: Peer, tmp_path: Path
) -> None:
    wasm = padded(ADDITION, 3_000_000)
    with running_registry(tmp_path / "registry") as registry:
        registry.push("wasm/large", "1", wasm)
        for number in range(3):
            await peer.start(f"t{number}", image_url=f"{registry.address}/wasm/large:1")
        for number in range(3):
            assert (await peer.result(f"t{number}")).results == "42"
    fetched = prometheus.value(prometheus.read(await page(agent)), "proplet_wasm_fetch_bytes_total")
    assert fetched == len(wasm)


async def test_a_pod_whose_template_switches_metrics_on_can_be_probed(
    tmp_path: Path,
    mosquitto: MosquittoServer,  # noqa: F811
) -> None:
    port = free_port()
    k8s = {"image": "i", "env": {"metricsEnabled": True, "metricsPort": port}}
    connection = {"tenantId": DOMAIN, "channelId": CHANNEL, "mqttAddress": mosquitto.address}
    pod = pod_of(PropletSpec("k8s", connection=connection, k8s=k8s), Identity("proplet-1", None, PROPLET.password), ())
    (container,) = pod["containers"]
    environ = {each["name"]: each["value"] for each in container["env"] if each["name"] != "HOME"}
    state = '[node]\nstate_dir = "state"\ncache_dir = "cache"\nruntime_dir = "run"\n'
    with NodeProcess(tmp_path / "node", state, environ) as node:
        assert container["readinessProbe"]["tcpSocket"]["port"] == port
        async with await anyio.connect_tcp("127.0.0.1", port):
            pass
        assert "proplet_tasks_started_total 0" in await page(node)


async def test_an_address_in_use_ends_the_node_with_what_to_do(
    tmp_path: Path,
    mosquitto: MosquittoServer,  # noqa: F811
) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as taken:
        port: Any = taken.extra(anyio.abc.SocketAttribute.local_port)
        config = agent_config(mosquitto) + f'metrics_address = "127.0.0.1:{port}"\n'
        with pytest.raises(AssertionError) as ended, NodeProcess(tmp_path / "node", config):
            pass
        assert "choose another [agent] metrics_address" in str(ended.value)


async def test_a_node_with_a_manager_tells_of_all_tasks_and_proplets_and_of_its_own_agent(
    hub: Hub,  # noqa: F811
) -> None:
    hub.done("apply", "-f", str(SAMPLES / "addition.yaml"))
    hub.done("wait", "task/addition")
    profile = {"monitoringProfile": {"interval": "1s"}, "daemon": True}
    applied = {"kind": "Task", "metadata": {"name": "busy"}, "spec": task("main", 1, LOOP, inputs=[], **profile)}
    hub.done("apply", "-f", "-", stdin=json.dumps({"apiVersion": API, **applied}).encode())
    hub.runs("busy")
    labels = {"namespace": "default", "task": "busy", "proplet": "pi"}
    measured(hub, "tasks", "cpu_percent")
    measured(hub, "proplets", "memory_bytes")
    found = prometheus.read(await hub_page(hub))
    assert prometheus.value(found, "proplet_task_cpu_usage_ratio", **labels) > 0.1
    assert prometheus.value(found, "proplet_task_cpu_seconds_total", **labels) > 0.1
    assert prometheus.value(found, "proplet_memory_rss_bytes", proplet="pi") > 1_000_000
    assert prometheus.value(found, "proplet_tasks", phase="completed") == 1
    assert prometheus.value(found, "proplet_tasks_completed_total") == 1
    (row,) = json.loads(hub.done("top", "-o", "json"))
    assert (row["name"], row["proplet"], row["attempt"]) == ("busy", "pi", 1)
    assert row["cpu_percent"] > 10
    (node,) = json.loads(hub.done("top", "proplets", "-o", "json"))
    assert (node["name"], node["tasks"], node["alive"]) == ("pi", 1, True)
    hub.done("stop", "busy")
    hub.done("wait", "--for", "finished", "busy")
    assert hub.done("top") == "no tasks are under way\n"


def test_what_a_task_cost_is_described(hub: Hub) -> None:  # noqa: F811
    hub.done("apply", "-f", str(SAMPLES / "limits.yaml"))
    hub.done("wait", "task/limited")
    status = hub.get("task", "limited")["status"]
    assert status["startedAt"] < status["finishedAt"], "its run took time"
    said = hub.done("describe", "task", "limited")
    for line in ("Usage:", "CPU Seconds:", "Peak Memory Bytes:", "Start Kind:", "Wall Seconds:"):
        assert f"  {line}" in said
