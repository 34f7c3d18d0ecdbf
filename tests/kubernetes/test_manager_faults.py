"""``proplet manager`` when something dies: nothing is lost, nothing runs twice at a time, and it never gives up."""

import base64
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from proplet.agent.topics import Route
from proplet.agent.wire import Alive
from tests.kubernetes.relay import RelayThread, open_relay_thread
from tests.manager.device import Device
from tests.support.kubernetes import MERGE_PATCH, ApiError, ApiServer
from tests.support.kubernetes_manager import (
    CRDS,
    GROUP,
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
from tests.support.mosquitto import MosquittoServer
from tests.support.node import NodeProcess

pytestmark = pytest.mark.kubernetes  # the servers here are its own


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[MosquittoServer]:
    """One that notes who connects."""
    server = MosquittoServer(tmp_path / "broker", extra=["connection_messages true"])
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """One that may be killed, for this module: each test leaves it running."""
    from tests.support.kubernetes import open_api_server

    with open_api_server() as opened:
        install_crds(opened)
        yield opened


@pytest.fixture
def space(server: ApiServer, request: pytest.FixtureRequest) -> Iterator[Workspace]:
    name = request.node.originalname[:60].replace("_", "-").rstrip("-").lower()
    server.create_namespace(name)
    yield Workspace(server, name)
    server.start()  # whatever the test has done to it
    server.remove_namespace(name)


Launch = Callable[..., ManagerProcess]


@pytest.fixture
def launch(tmp_path: Path, broker: MosquittoServer, space: Workspace, hasty: str) -> Iterator[Launch]:
    """Starts managers of the workspace; they end with the test."""
    with ExitStack() as stack:

        def start(name: str = "manager", *more: str) -> ManagerProcess:
            arguments = manager_arguments(
                broker, space.server, f"--namespace={space.namespace}", f"--lease-namespace={space.namespace}", *more
            )
            process = ManagerProcess(tmp_path / name, arguments)
            process.program = [hasty] if hasty else process.program
            return stack.enter_context(process)

        yield start


@pytest.fixture
def hasty() -> str:
    """The program of managers that wait for less, where a test asks for that; else it is the real one."""
    return ""


HASTY = pytest.mark.parametrize("hasty", ["tests.kubernetes.hasty_manager"], ids=["hasty"])


def takeovers(broker: MosquittoServer) -> int:
    """How often a manager connected while another was. It ends the broker, which tells all only then."""
    broker.stop()
    log = broker.config.with_name("log").read_text()
    assert "as manager " in log
    return log.count("Client manager already connected")


def through(relay: RelayThread, server: ApiServer) -> str:
    """The argument with which a manager reaches the server through the relay."""
    config = server.kubeconfig.with_name(f"kubeconfig-{relay.port}")
    config.write_text(server.kubeconfig.read_text().replace(f":{server.port}", f":{relay.port}"))
    return f"--kubeconfig={config}"


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


@HASTY
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


@HASTY
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
    assert takeovers(broker) == 0  # never were two connected


@HASTY
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


@HASTY
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
    assert takeovers(broker) == 1  # the broker ended the connection that the frozen one still had


@pytest.mark.slow
def test_a_device_with_a_cluster_goes_on_without_it(space: Workspace, tmp_path: Path) -> None:
    home = tmp_path / "device"
    config = (
        f'[node]\nid = "pi"\nstate_dir = "{home / "state"}"\ncache_dir = "{home / "cache"}"\n'
        f'runtime_dir = "{home / "run"}"\n[agent]\nliveliness_interval = "1s"\n[broker]\nport = 0\n'
        f'[kubernetes]\nkubeconfig = "{space.server.kubeconfig}"\nnamespaces = ["{space.namespace}"]\n'
    )
    sleeper = (Path(__file__).parents[1] / "modules" / "sleeper.wasm").read_bytes()
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


@HASTY
@pytest.mark.slow
def test_nothing_is_lost_while_no_packet_gets_through(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    device = Holding("proplet-1", TOPICS)
    with (
        open_relay_thread(space.server.port) as cluster,
        open_relay_thread(broker.port) as mqtt,
        plugged(device, broker.link_settings("proplet-1")) as portal,
    ):
        reached = f"--mqtt-address=tcp://127.0.0.1:{mqtt.port}"
        manager = launch("manager", "--leader-elect", through(cluster, space.server), reached)
        space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("add"))
        space.until("tasks", "add", "running")
        for relay in (cluster, mqtt):
            relay.hold()
        eventually(lambda: manager.metric("proplet_leader") == 0, "the lease is lost")
        assert manager.ask("/healthz")[0] == 200
        portal.call(device.finish)
        space.apply(task_manifest("meanwhile"))
        for relay in (cluster, mqtt):
            relay.release()
        for name in ("add", "meanwhile"):
            status = space.until("tasks", name, "completed")
            assert (status["results"], status["attempts"]) == ("42", 1)
        assert one_run_each(device)


def test_what_the_server_forgot_meanwhile_is_listed_again(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    device = Holding("proplet-1", TOPICS)
    with (
        open_relay_thread(space.server.port) as cluster,
        plugged(device, broker.link_settings("proplet-1")) as portal,
    ):
        manager = launch("manager", through(cluster, space.server))
        space.apply(proplet_manifest("p", "proplet-1", broker.address))
        space.apply(task_manifest("add"), task_manifest("unwanted", propletSelector={"propletId": "nobody"}))
        space.until("tasks", "add", "running")
        eventually(lambda: space.condition("tasks", "unwanted", "Scheduled").get("reason") == "NoProplet")
        cluster.hold()
        cluster.cut()
        space.kubectl("delete", "task", "unwanted")
        space.apply(task_manifest("late"))
        space.server.compact()
        cluster.release()
        eventually(lambda: "listing the tasks again" in manager.log, "it was told 410 Gone")
        space.until("tasks", "late", "running")
        eventually(lambda: manager.metric('proplet_tasks{phase="pending"}') == 0, "what was deleted is not kept")
        portal.call(device.finish)
        for name in ("add", "late"):
            assert space.until("tasks", name, "completed")["results"] == "42"
        assert one_run_each(device)


@contextmanager
def storm(space: Workspace, *names: str) -> Iterator[dict[str, int]]:
    """Somebody who changes metadata and spec of these Tasks without a pause, in a thread.

    Yields the last number that each was given.
    """
    over, last = threading.Event(), dict.fromkeys(names, 0)

    def write() -> None:
        for number in count(1):
            if over.is_set():
                return
            for name in names:
                change: dict[str, Any] = {
                    "metadata": {"labels": {"n": str(number)}},
                    "spec": {"priority": number % 100},
                }
                path = f"/apis/{GROUP}/v1/namespaces/{space.namespace}/tasks/{name}"
                try:
                    space.server.call("PATCH", path, change, content_type=MERGE_PATCH)
                except ApiError as refused:
                    if refused.status not in (404, 409):
                        raise
                else:
                    last[name] = number

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield last
    finally:
        over.set()
        writer.join()


def test_somebody_who_changes_tasks_all_the_time_keeps_none_from_its_end(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    launch()
    device, names = Holding("proplet-1", TOPICS), [f"add-{number}" for number in range(4)]
    with (
        plugged(device, broker.link_settings("proplet-1")) as portal,
        storm(space, *names, "daemon") as last,
    ):
        space.apply(proplet_manifest("p", "proplet-1", broker.address))
        space.apply(*(task_manifest(name) for name in names), task_manifest("daemon", daemon=True))
        for name in (*names, "daemon"):
            space.until("tasks", name, "running")
        space.kubectl("delete", "task", "daemon", "--timeout=30s")
        assert len(device.stopped) == 1
        portal.call(device.finish)
        for name in names:
            status = space.until("tasks", name, "completed")
            assert (status["results"], status["attempts"]) == ("42", 1)
        before = dict(last)
        eventually(lambda: all(last[name] > before[name] for name in names), "others go on writing")
        assert one_run_each(device)
    for name in names:  # nothing of theirs was taken back
        found = space.get("tasks", name)
        assert found["metadata"]["labels"]["n"] == str(last[name])
        assert found["spec"]["priority"] == last[name] % 100


def test_a_task_that_is_deleted_is_stopped_and_a_proplet_that_is_gone_does_not_hold_it(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    launch("manager", "--last-seen-threshold=6s")
    here, there = Holding("proplet-1", TOPICS), Holding("proplet-2", TOPICS)
    with plugged(here, broker.link_settings("proplet-1")):
        with plugged(there, broker.link_settings("proplet-2")):
            for name, proplet_id in (("here", "proplet-1"), ("there", "proplet-2")):
                wanted = task_manifest(name, daemon=True, propletSelector={"propletId": name})
                space.apply(proplet_manifest(name, proplet_id, broker.address), wanted)
                space.until("tasks", name, "running")
                assert space.get("tasks", name)["metadata"]["finalizers"]
            space.kubectl("delete", "task", "here", "--timeout=30s")
            assert (len(here.stopped), here.held) == (1, {})
        space.kubectl("delete", "task", "there", "--timeout=50s")
    assert there.stopped == []


@pytest.mark.slow
def test_definitions_that_are_deleted_under_a_manager_go_with_everything_and_may_come_back(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    manager, device = launch(), Holding("proplet-1", TOPICS)
    with plugged(device, broker.link_settings("proplet-1")) as portal:
        space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("daemon", daemon=True))
        space.until("tasks", "daemon", "running")
        try:
            space.kubectl("delete", "-f", str(CRDS), "--timeout=50s")  # which ends when nothing is left
            assert (len(device.stopped), device.held) == (1, {})
            eventually(lambda: manager.ask("/readyz")[0] == 503, "it says what it lacks")
        finally:
            install_crds(space.server)
        manager.until_ready()
        space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("add"))
        space.until("tasks", "add", "running")
        portal.call(device.finish)
        assert space.until("tasks", "add", "completed")["results"] == "42"
        assert one_run_each(device)


@pytest.fixture
def policy(server: ApiServer) -> Iterator[Callable[[str], None]]:
    """Makes the cluster refuse every status of Tasks of a name from now on, as policies of administrators may."""
    admission = "/apis/admissionregistration.k8s.io/v1"
    kinds = ("validatingadmissionpolicybindings", "validatingadmissionpolicies")
    rule = {
        "apiGroups": [GROUP], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": ["tasks/status"],
    }  # fmt: skip

    def refuse(name: str) -> None:
        spec = {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": f"object.metadata.name != '{name}'", "message": "not this one"}],
        }
        server.call("POST", f"{admission}/{kinds[1]}", {"metadata": {"name": "no"}, "spec": spec})
        bound = {"policyName": "no", "validationActions": ["Deny"]}
        server.call("POST", f"{admission}/{kinds[0]}", {"metadata": {"name": "no"}, "spec": bound})

    yield refuse
    for kind in kinds:
        server.kubectl("delete", kind, "no", "--ignore-not-found")


@HASTY
@pytest.mark.slow
def test_a_task_whose_status_the_cluster_refuses_holds_up_no_other(
    space: Workspace, launch: Launch, broker: MosquittoServer, policy: Callable[[str], None]
) -> None:
    manager, device = launch(), Holding("proplet-1", TOPICS)
    with plugged(device, broker.link_settings("proplet-1")) as portal:
        space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("poison"))
        space.until("tasks", "poison", "running")
        policy("poison")

        def is_refused() -> bool:
            path = f"/apis/{GROUP}/v1/namespaces/{space.namespace}/tasks/poison/status?dryRun=All"
            try:
                space.server.call("PATCH", path, {"status": {"error": "x"}}, content_type=MERGE_PATCH)
            except ApiError as refused:
                return "not this one" in str(refused)
            return False

        eventually(is_refused, "the policy is in force")
        portal.call(device.finish)
        eventually(lambda: "not this one" in manager.log, "the result is refused")
        for _ in range(10 * broker.settings.max_inflight):  # as its many proplets say in a moment
            portal.call(device.say, Route.ALIVE, Alive("proplet-1"))
        space.apply(task_manifest("next"))
        assert space.until("tasks", "next", "completed")["results"] == "42"
        assert one_run_each(device)
