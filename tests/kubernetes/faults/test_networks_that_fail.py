"""A manager between which and its servers nothing gets through for a while, and nobody says so."""

import pytest

from tests.kubernetes.faults.managers import LEASE, Launch, one_run_each
from tests.kubernetes.relay import RelayThread, open_relay_thread
from tests.support.kubernetes import ApiServer
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

pytestmark = pytest.mark.kubernetes  # the servers here are its own


def through(relay: RelayThread, server: ApiServer) -> str:
    """The argument with which a manager reaches the server through the relay."""
    config = server.kubeconfig.with_name(f"kubeconfig-{relay.port}")
    config.write_text(server.kubeconfig.read_text().replace(f":{server.port}", f":{relay.port}"))
    return f"--kubeconfig={config}"


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
        manager = launch("manager", *LEASE, through(cluster, space.server), reached, hasty=True)
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


@pytest.mark.slow
@pytest.mark.parametrize("lease", [(), LEASE], ids=["alone", "of several"])
def test_a_cluster_that_is_silent_is_away_although_nobody_has_ended_a_connection(
    space: Workspace, launch: Launch, broker: MosquittoServer, lease: tuple[str, ...]
) -> None:
    device = Holding("proplet-1", TOPICS)
    with (
        open_relay_thread(space.server.port) as cluster,
        plugged(device, broker.link_settings("proplet-1")) as portal,
    ):
        manager = launch("manager", *lease, through(cluster, space.server), hasty=True)
        space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("add"))
        space.until("tasks", "add", "running")
        cluster.hold()
        eventually(lambda: manager.metric("proplet_mqtt_connected") == 0, "it leaves the broker", within_s=12)
        eventually(lambda: manager.ask("/readyz")[0] == 503, "it says so")
        assert "kubernetes: nothing was heard of the API server for 5 s" in manager.ask("/readyz")[1]
        portal.call(device.finish)  # the broker keeps it for who can write it down
        space.apply(task_manifest("meanwhile"))
        cluster.release()
        for name in ("add", "meanwhile"):
            ended = space.until("tasks", name, "completed")
            assert (ended["results"], ended["attempts"]) == ("42", 1)
        manager.until_ready()
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
