"""``proplet manager`` when something dies: nothing is lost, nothing runs twice at a time, and it never gives up."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.manager.device import Device
from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_manager import (
    TOPICS,
    Holding,
    ManagerProcess,
    Workspace,
    eventually,
    install_crds,
    manager_arguments,
    plugged,
    proplet_manifest,
    task_manifest,
)
from tests.support.mosquitto import MosquittoServer, mosquitto  # noqa: F401


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> MosquittoServer:
    server: MosquittoServer = request.getfixturevalue("mosquitto")
    return server


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """One that may be killed, for this module: each test leaves it running."""
    from tests.support.kubernetes import open_api_server

    with open_api_server() as opened:
        install_crds(opened)
        yield opened


@pytest.fixture
def space(server: ApiServer, request: pytest.FixtureRequest) -> Iterator[Workspace]:
    name = request.node.name[:60].replace("_", "-").rstrip("-").lower()
    server.create_namespace(name)
    yield Workspace(server, name)
    server.start()  # whatever the test has done to it
    server.remove_namespace(name)


Launch = Callable[..., ManagerProcess]


@pytest.fixture
def launch(tmp_path: Path, broker: MosquittoServer, space: Workspace) -> Iterator[Launch]:
    """Starts managers of the workspace; they end with the test."""
    with ExitStack() as stack:

        def start(name: str = "manager", *more: str) -> ManagerProcess:
            arguments = manager_arguments(
                broker, space.server, f"--namespace={space.namespace}", f"--lease-namespace={space.namespace}", *more
            )
            return stack.enter_context(ManagerProcess(tmp_path / name, arguments))

        yield start


def one_run_each(device: Device) -> bool:
    """Whether every attempt ran once, and no task had two attempts."""
    tasks = [task for task, _ in device.runs]
    return set(device.runs.values()) <= {1} and len(tasks) == len(set(tasks))


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
    manager, device = launch(), Holding("proplet-1", TOPICS)
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
def test_of_two_managers_one_works_and_the_other_takes_over(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    first = launch("first", "--leader-elect")
    eventually(lambda: first.metric("proplet_leader") == 1, "it leads")
    second = launch("second", "--leader-elect")
    second.until_ready()
    assert "lease: standby" in second.ask("/readyz")[1]
    assert (first.metric("proplet_leader"), second.metric("proplet_leader")) == (1, 0)
    assert second.metric("proplet_mqtt_connected") == 0  # it would take the leader's connection away
    device = Holding("proplet-1", TOPICS)
    with plugged(device, broker.link_settings("proplet-1")) as portal:
        space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("add"))
        space.until("tasks", "add", "running")
        first.kill()
        portal.call(device.finish)
        assert space.until("tasks", "add", "completed")["results"] == "42"
        assert second.metric("proplet_leader") == 1
        assert one_run_each(device)
        first.start()
        first.until_ready()
        assert "lease: standby" in first.ask("/readyz")[1]
        assert second.stop() == 0
        space.apply(task_manifest("after"))  # a leader that ends in order is followed at once
        space.until("tasks", "after", "completed")


@pytest.mark.slow
def test_a_leader_that_cannot_renew_its_lease_leaves_the_broker_to_the_next(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    manager = launch("manager", "--leader-elect")
    eventually(lambda: manager.metric("proplet_mqtt_connected") == 1, "it leads")
    space.server.pause()
    try:
        eventually(lambda: manager.metric("proplet_leader") == 0, "the lease is lost")
        assert manager.metric("proplet_mqtt_connected") == 0
    finally:
        space.server.resume()
    manager.until_ready()
    eventually(lambda: manager.metric("proplet_leader") == 1, "it is the leader again")


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
def test_a_leader_that_was_frozen_finds_out_and_leaves_the_broker_to_the_next(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    first = launch("first", "--leader-elect")
    eventually(lambda: first.metric("proplet_mqtt_connected") == 1, "it leads")
    second = launch("second", "--leader-elect")
    device = Holding("proplet-1", TOPICS)
    with plugged(device, broker.link_settings("proplet-1")) as portal:
        space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("add"))
        space.until("tasks", "add", "running")
        os.kill(first.pid, signal.SIGSTOP)
        try:
            eventually(lambda: second.metric("proplet_mqtt_connected") == 1, "the other leads")
            space.apply(task_manifest("meanwhile"))
            space.until("tasks", "meanwhile", "running")
        finally:
            os.kill(first.pid, signal.SIGCONT)
        eventually(lambda: first.metric("proplet_leader") == 0, "it is no leader any more")
        portal.call(device.finish)
        for name in ("add", "meanwhile"):
            assert space.until("tasks", name, "completed")["results"] == "42"
        assert second.metric("proplet_leader") == 1
        assert one_run_each(device)
