"""Several managers: one works, and whatever becomes of it, the next takes over and never meets it at the broker."""

import os
import signal

import pytest

from tests.kubernetes.faults.managers import LEASE, Launch, one_run_each
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


def takeovers(broker: MosquittoServer) -> int:
    """How often a manager connected while another was. It ends the broker, which tells all only then."""
    broker.stop()
    log = broker.config.with_name("log").read_text()
    assert "as manager " in log
    return log.count("Client manager already connected")


@pytest.mark.slow
def test_of_two_managers_one_works_and_the_other_takes_over(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    first = launch("first", *LEASE, hasty=True)
    eventually(lambda: first.metric("proplet_leader") == 1, "it leads")
    assert space.kubectl("get", "leases", "-o", "jsonpath={.items[*].spec.leaseDurationSeconds}") == "8"
    second = launch("second", *LEASE, hasty=True)
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


@pytest.mark.slow
def test_a_leader_that_cannot_renew_its_lease_leaves_the_broker_to_the_next(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    manager = launch("manager", *LEASE, hasty=True)
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
def test_a_leader_that_was_frozen_finds_out_and_leaves_the_broker_to_the_next(
    space: Workspace, launch: Launch, broker: MosquittoServer
) -> None:
    first = launch("first", *LEASE, hasty=True)
    eventually(lambda: first.metric("proplet_mqtt_connected") == 1, "it leads")
    second = launch("second", *LEASE, hasty=True)
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
