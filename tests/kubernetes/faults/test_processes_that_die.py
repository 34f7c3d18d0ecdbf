"""``proplet manager`` when something dies: nothing is lost, nothing runs twice at a time, and it never gives up."""

import base64
from pathlib import Path

import pytest

from tests.kubernetes.faults.managers import Launch, one_run_each
from tests.manager.device import Device
from tests.support.kubernetes_manager import (
    TOPICS,
    Holding,
    Workspace,
    eventually,
    plugged,
    proplet_manifest,
    task_manifest,
)
from tests.support.mosquitto import MosquittoServer
from tests.support.node import NodeProcess

pytestmark = pytest.mark.kubernetes  # the servers here are its own


def test_a_task_outlives_the_api_server(space: Workspace, launch: Launch, broker: MosquittoServer) -> None:
    manager, device = launch(), Holding("proplet-1", TOPICS)
    with plugged(device, broker.link_settings("proplet-1")) as portal:
        space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("add"))
        space.until("tasks", "add", "running")
        space.server.kill()
        eventually(lambda: manager.ask("/readyz")[0] == 503, "it says that the cluster is away")
        assert manager.ask("/healthz") == (200, "ok\n")
        assert "kubernetes: " in manager.ask("/readyz")[1]
        portal.call(device.finish)  # while nobody can write it down
        space.server.start()
        assert space.until("tasks", "add", "completed")["results"] == "42"
        space.apply(task_manifest("again"))
        space.until("tasks", "again", "completed")
        manager.until_ready()
        assert one_run_each(device)


@pytest.mark.slow
def test_what_ends_while_the_cluster_is_long_away_is_told_when_it_is_back(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    manager, device = launch(hasty=True), Holding("proplet-1", TOPICS)
    with plugged(device, broker.link_settings("proplet-1")) as portal:
        space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("add"))
        space.until("tasks", "add", "running")
        space.server.kill()
        eventually(lambda: "steps back" in manager.log, "it leaves the broker")
        eventually(lambda: manager.metric("proplet_mqtt_connected") == 0, "it is not connected")
        portal.call(device.finish)
        space.server.start()
        assert space.until("tasks", "add", "completed")["results"] == "42"
        assert space.status("tasks", "add")["attempts"] == 1
        assert one_run_each(device)


def test_a_task_outlives_the_broker(space: Workspace, launch: Launch, broker: MosquittoServer) -> None:
    manager, device = launch(), Holding("proplet-1", TOPICS)
    with plugged(device, broker.link_settings("proplet-1")) as portal:
        space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("add"))
        space.until("tasks", "add", "running")
        broker.kill()
        broker.forget()
        eventually(lambda: "mqtt: no connection" in manager.ask("/readyz")[1])
        space.apply(task_manifest("later"))  # there is nobody to send it to
        portal.call(device.finish)
        broker.start()
        assert space.until("tasks", "add", "completed")["results"] == "42"
        assert space.until("tasks", "later", "completed")["results"] == "42"
        assert one_run_each(device)


def test_a_manager_starts_while_neither_cluster_nor_broker_is_there(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("add"))
    space.server.kill()
    broker.kill()
    manager = launch()
    status, text = manager.ask("/readyz")
    assert status == 503
    assert "mqtt: no connection" in text
    space.server.start()
    broker.start()
    with plugged(Device("proplet-1", TOPICS), broker.link_settings("proplet-1")):
        assert space.until("tasks", "add", "completed")["results"] == "42"


def test_a_manager_that_is_killed_again_and_again_loses_nothing(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    manager, device = launch(), Holding("proplet-1", TOPICS)
    names = [f"add-{number}" for number in range(6)]
    with plugged(device, broker.link_settings("proplet-1")) as portal:
        space.apply(proplet_manifest("p", "proplet-1", broker.address))
        space.apply(*(task_manifest(name) for name in names[:3]))
        manager.kill()  # before, while or after they are dispatched
        manager.start()
        eventually(lambda: len(device.held) == 3, "three are running")
        manager.kill()
        space.apply(*(task_manifest(name) for name in names[3:]))
        manager.start()
        eventually(lambda: len(device.held) == 6, "six are running")
        manager.kill()
        portal.call(device.finish)
        manager.start()
        for name in names:
            assert space.until("tasks", name, "completed")["results"] == "42"
        assert set(device.runs.values()) == {1}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_manager_that_is_killed_between_any_two_steps_of_a_dispatch_loses_and_repeats_nothing(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    manager, device = launch(), Holding("proplet-1", TOPICS)
    manager.kill()

    def phase(name: str) -> str:
        return str(space.status("tasks", name).get("phase"))

    with plugged(device, broker.link_settings("proplet-1")) as portal:
        space.apply(proplet_manifest("p", "proplet-1", broker.address))
        for step in range(1, 9):  # before and after: recorded as dispatched, sent, recorded as running, as completed
            name, device.holding = f"step-{step}", True
            manager.program = ["tests.kubernetes.dying_manager", str(step)]
            manager.start()
            space.apply(task_manifest(name))
            eventually(lambda name=name: not manager.alive or phase(name) == "running")
            if manager.alive:
                portal.call(device.finish)
            manager.until_dead()
            manager.program = ["proplet.agent", "manager"]
            manager.start()
            eventually(lambda name=name: phase(name) in ("running", "completed"))
            portal.call(device.finish)
            status = space.until("tasks", name, "completed")
            assert (status["results"], status["attempts"]) == ("42", 1), (step, status)
            manager.kill()
    assert one_run_each(device)
    assert len(device.runs) == 8


@pytest.mark.slow
def test_a_device_with_a_cluster_goes_on_without_it(space: Workspace, tmp_path: Path) -> None:
    home = tmp_path / "device"
    config = (
        f'[node]\nid = "pi"\nstate_dir = "{home / "state"}"\ncache_dir = "{home / "cache"}"\n'
        f'runtime_dir = "{home / "run"}"\n[agent]\nliveliness_interval = "1s"\n[broker]\nport = 0\n'
        f'[kubernetes]\nkubeconfig = "{space.server.kubeconfig}"\nnamespaces = ["{space.namespace}"]\n'
        'api_server_timeout = "5s"\n'
    )
    sleeper = (Path(__file__).parents[2] / "modules" / "sleeper.wasm").read_bytes()
    sleeping = {"functionName": "relative", "file": base64.b64encode(sleeper).decode()}
    connection = {"domainId": "local", "channelId": "main", "clientId": "pi", "clientKey": "x", "mqttAddress": "x"}
    with NodeProcess(home, config) as node:
        space.apply(
            proplet_manifest("pi", "pi", "x", connectionConfig=connection),
            task_manifest("short", inputs=[1, 3000], **sleeping),
            task_manifest("long", inputs=[1, 600_000], **sleeping),
        )
        for name in ("short", "long"):
            space.until("tasks", name, "running")
        space.server.kill()
        eventually(lambda: "steps back" in node.log, "the manager waits for the cluster")
        node.kill()  # and the power fails, too: `short` has ended, `long` has not
        node.start()
        space.server.start()
        short = space.until("tasks", "short", "completed")
        assert (short["results"].split()[0], short["attempts"]) == ("0", 1)
        # What was running at a power cut is placed again, and can be stopped.
        eventually(lambda: space.status("tasks", "long").get("attempts") == 2)
        space.until("tasks", "long", "running")
        space.kubectl("delete", "task", "long", "--timeout=30s")
