"""A cluster whose people and policies work against a manager: they change, delete and refuse under its hands."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from proplet.agent.topics import Route
from proplet.agent.wire import Alive
from tests.kubernetes.faults.managers import Launch, one_run_each
from tests.support.kubernetes import MERGE_PATCH, ApiError, ApiServer
from tests.support.kubernetes_manager import (
    CRDS,
    GROUP,
    TOPICS,
    Holding,
    Workspace,
    eventually,
    install_crds,
    plugged,
    proplet_manifest,
    task_manifest,
)
from tests.support.mosquitto import MosquittoServer

pytestmark = pytest.mark.kubernetes  # the servers here are its own


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


@pytest.mark.slow
def test_a_task_whose_status_the_cluster_refuses_holds_up_no_other(
    space: Workspace, launch: Launch, broker: MosquittoServer, policy: Callable[[str], None]
) -> None:
    manager, device = launch(hasty=True), Holding("proplet-1", TOPICS)
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
