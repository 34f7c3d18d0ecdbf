"""The controller on a real API server, with the definitions as they are shipped and scripted proplets."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync

from proplet.manager.deletion import FINALIZER
from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import open_api
from proplet.manager.membership import Membership
from proplet.manager.phases import Phase
from proplet.manager.store_kubernetes import open_kubernetes_store
from tests.manager.fakes import FAST, Node, eventually, open_node
from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_manager import GROUP, install_crds

pytestmark = pytest.mark.anyio

POLICY = replace(FAST, silence_s=60.0, finalizers=True, finalize_after_s=0.3, last_seen_every_s=30.0)
CONNECTION = {"domainId": "d", "channelId": "c", "clientKey": "k", "mqttAddress": "tcp://broker.test:1883"}


@pytest.fixture(scope="module")
def cluster(api_server: ApiServer) -> ApiServer:
    install_crds(api_server)
    return api_server


class Space:
    """A namespace as kubectl shows it, and the controller that works in it."""

    def __init__(self, cluster: ApiServer, name: str, node: Node) -> None:
        self.node = node
        self.cluster = cluster
        self.name = name

    async def kubectl(self, *arguments: str, given: str | None = None) -> str:
        return await run_sync(lambda: self.cluster.kubectl("-n", self.name, *arguments, input=given))

    async def apply(self, kind: str, name: str, **spec: Any) -> None:
        if kind == "Task":
            spec = {"name": name, "imageUrl": "registry.test/add:1", **spec}
        else:
            spec = {"type": "external", "external": {}, **spec}
            spec["connectionConfig"] = {**CONNECTION, "clientId": name, **spec.get("connectionConfig", {})}
        document = {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        await self.kubectl("apply", "-f", "-", given=json.dumps(document))

    async def status(self, kind: str, name: str) -> dict[str, Any]:
        return json.loads(await self.kubectl("get", kind, name, "-o", "json")).get("status") or {}

    async def condition(self, kind: str, name: str, which: str) -> tuple[str, str, str] | None:
        status = await self.status(kind, name)
        for condition in status.get("conditions", ()):
            if condition["type"] == which:
                return condition["status"], condition["reason"], condition.get("message", "")
        return None

    async def until(self, kind: str, name: str, which: str, reason: str) -> tuple[str, str, str]:
        with anyio.fail_after(20):
            while True:
                found = await self.condition(kind, name, which)
                if found is not None and found[1] == reason:
                    return found
                await anyio.sleep(0.05)


@pytest.fixture
async def space(cluster: ApiServer, namespace: str) -> AsyncIterator[Space]:
    membership = Membership(register=False, channel=("d", "c"))
    async with (
        open_api(Access(cluster.kubeconfig)) as api,
        open_kubernetes_store(api, namespaces=(namespace,)) as store,
    ):
        await store.ready()
        async with open_node(store, policy=POLICY, membership=membership) as node:
            node.namespace = namespace
            yield Space(cluster, namespace, node)


async def test_a_task_says_what_the_tutorial_shows_and_that_it_completed(space: Space) -> None:
    await space.apply("Proplet", "docker-proplet", connectionConfig={"clientId": "4711"})
    await space.until("proplet", "docker-proplet", "Ready", "PropletInitializing")
    space.node.proplet("4711", instant=True)
    told = await space.until("proplet", "docker-proplet", "Ready", "PropletReady")
    assert told == ("True", "PropletReady", "External proplet is ready and connected")
    await space.apply("Task", "addition", inputs=[10, 32], propletSelector={"propletId": "docker-proplet"})
    await space.node.ended("addition")
    status = await space.status("task", "addition")
    shown = [(c["type"], c["status"], c["reason"], c["message"]) for c in status["conditions"]]
    assert shown[1:] == [
        ("Started", "True", "Running", "External task is running"),
        ("Completed", "True", "Completed", "Task completed successfully"),
    ]
    assert (status["phase"], status["results"], status["assignedProplet"]) == ("completed", "42", "docker-proplet")
    assert status["updatedAt"]
    marks = await space.kubectl("get", "task", "addition", "-o", "jsonpath={.metadata.finalizers}")
    assert marks == ""


async def test_kubectl_delete_waits_until_a_daemon_was_stopped(space: Space) -> None:
    await space.apply("Proplet", "pi")
    pi = space.node.proplet("pi")
    await space.apply("Task", "daemon", daemon=True)
    await eventually(lambda: bool(pi.held))
    assert FINALIZER in await space.kubectl("get", "task", "daemon", "-o", "jsonpath={.metadata.finalizers}")
    await space.kubectl("delete", "task", "daemon", "--timeout=20s")
    assert (len(pi.stopped), pi.held) == (1, {})


async def test_a_task_that_lasts_is_marked_and_a_short_one_after_it_is_not(space: Space) -> None:
    await space.apply("Proplet", "pi")
    pi = space.node.proplet("pi")
    await space.apply("Task", "lasting")
    marked = await space.node.until("lasting", lambda t: bool(t.meta.finalizers), 20)
    assert marked.status.phase is Phase.RUNNING
    pi.finish(marked.id)
    await space.node.until("lasting", lambda t: t.status.phase is Phase.COMPLETED and not t.meta.finalizers, 20)
    await space.kubectl("delete", "task", "lasting", "--timeout=10s")


async def test_a_schedule_can_be_changed_and_suspended_after_a_run_and_a_bad_one_is_told_of(space: Space) -> None:
    await space.apply("Proplet", "pi")
    space.node.proplet("pi", instant=True)
    await space.apply("Task", "nightly", schedule="0 3 * * *", isRecurring=True)
    assert (await space.until("task", "nightly", "Scheduled", "WaitingForSchedule"))[0] == "False"
    first = (await space.status("task", "nightly"))["nextRun"]
    assert "T03:00:00" in first
    await space.kubectl("patch", "task", "nightly", "--type=merge", "-p", '{"spec": {"timezone": "Asia/Tokyo"}}')
    planned = await space.node.until("nightly", lambda t: t.status.next_run % 86_400 == 18 * 3600, 20)
    assert planned.status.attempt == 0
    await space.kubectl("patch", "task", "nightly", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    await space.until("task", "nightly", "Scheduled", "Suspended")
    await space.apply("Task", "odd", schedule="0 0 30 2 *")
    assert "would never run" in (await space.until("task", "odd", "Scheduled", "InvalidSchedule"))[2]


async def test_a_workflow_runs_in_its_order(space: Space) -> None:
    await space.apply("Proplet", "pi")
    pi = space.node.proplet("pi", instant=True)
    await space.apply("Task", "second", dependsOn=["first"], workflowId="w")
    await space.until("task", "second", "Scheduled", "WaitingForDependencies")
    await space.apply("Task", "first", workflowId="w")
    await space.node.ended("second", 20)
    assert [start.name for start in pi.started] == ["first", "second"]


async def test_what_keeps_a_proplet_from_being_ready_is_in_its_condition(space: Space) -> None:
    await space.apply("Proplet", "one", connectionConfig={"clientId": "same"})
    await space.until("proplet", "one", "Ready", "PropletInitializing")
    await space.apply("Proplet", "two", connectionConfig={"clientId": "same"})
    await space.apply("Proplet", "far", connectionConfig={"channelId": "elsewhere"})
    duplicate = await space.until("proplet", "two", "Ready", "DuplicateIdentity")
    assert duplicate[2] == f"same is the client id of the Proplet {space.name}/one, too"
    assert (await space.until("proplet", "far", "Ready", "OtherChannel"))[0] == "False"
    await space.kubectl("delete", "proplet", "one", "--timeout=10s")
    await space.until("proplet", "two", "Ready", "PropletInitializing")


async def test_nothing_is_written_while_nothing_happens(space: Space) -> None:
    await space.apply("Proplet", "pi")
    pi = space.node.proplet("pi")
    await space.apply("Task", "lasting")
    await space.apply("Task", "waiting", propletSelector={"propletId": "nobody"})
    await space.node.until("lasting", lambda t: bool(t.meta.finalizers), 20)
    await space.until("task", "waiting", "Scheduled", "NoProplet")
    await eventually(lambda: space.node.controller._roster.idle and space.node.controller._queue.idle)
    versions = "jsonpath={.items[*].metadata.resourceVersion}"
    before = await space.kubectl("get", "tasks,proplets", "-o", versions)
    for _ in range(20):
        pi.beat()
        pi.inventory()
        await anyio.sleep(0.1)
    assert await space.kubectl("get", "tasks,proplets", "-o", versions) == before
