"""PropellerJobs on a real API server, as kubectl shows them, with scripted proplets."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proplet.manager.job_plan import HELD, JOB_LABEL, STOP
from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import open_api
from proplet.manager.kubernetes_events import open_kubernetes_events
from proplet.manager.membership import Membership
from proplet.manager.store_kubernetes import open_kubernetes_store
from proplet.manager.works import open_works
from tests.kubernetes.test_task_orders import POLICY, Space
from tests.manager.fakes import open_node
from tests.support.kubernetes import ApiServer, KubectlError
from tests.support.kubernetes_manager import GROUP, install_crds

pytestmark = pytest.mark.anyio

MODES = ("parallel", "sequential", "configurable")


@pytest.fixture(scope="module")
def cluster(api_server: ApiServer) -> ApiServer:
    install_crds(api_server)
    return api_server


@pytest.fixture
async def space(cluster: ApiServer, namespace: str) -> AsyncIterator[Space]:
    async with (
        open_api(Access(cluster.kubeconfig)) as api,
        open_kubernetes_store(api, namespaces=(namespace,)) as store,
    ):
        await store.ready()
        membership = Membership(register=False, channel=("d", "c"))
        async with (
            open_node(store, policy=POLICY, membership=membership) as node,
            open_kubernetes_events(api, GROUP) as events,
            open_works(store, events, collect_garbage=False),
        ):
            node.namespace = namespace
            space = Space(cluster, namespace, node)
            await space.apply("Proplet", "pi")
            await space.until("proplet", "pi", "Ready", "PropletInitializing")
            yield space


def task(name: str, *depends_on: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "imageUrl": "registry.test/add:1", "inputs": [1, 2], "dependsOn": list(depends_on), **more}


async def apply(space: Space, mode: str, *tasks: dict[str, Any], **annotations: str) -> None:
    spec = {"name": "sums", "executionMode": mode, "tasks": list(tasks)}
    meta = {"name": "sums", "annotations": annotations}
    document = {"apiVersion": f"{GROUP}/v1", "kind": "PropellerJob", "metadata": meta, "spec": spec}
    await space.kubectl("apply", "-f", "-", given=json.dumps(document))


async def ended(space: Space, which: str, reason: str) -> dict[str, Any]:
    await space.until("propellerjob", "sums", which, reason)
    return await space.status("propellerjob", "sums")


@pytest.mark.parametrize("mode", MODES)
async def test_a_job_completes_and_kubectl_shows_the_references_columns(space: Space, mode: str) -> None:
    space.node.proplet("pi", instant=True)
    deps = ["b"] if mode == "configurable" else []
    await apply(space, mode, task("a", *deps), task("b"))
    status = await ended(space, "Complete", "Completed")
    assert (status["phase"], status["taskCount"], status["completedCount"]) == ("Completed", 2, 2)
    head, row = (await space.kubectl("get", "pjob")).splitlines()
    assert re.split(r"\s{2,}", head.strip()) == ["NAME", "PHASE", "MODE", "TASKS", "COMPLETED", "FAILED", "AGE"]
    assert re.match(rf"sums +Completed +{mode} +2 +2 +\d+", row), row
    child = json.loads(await space.kubectl("get", "task", "sums-a", "-o", "json"))
    (owner,) = child["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("PropellerJob", "sums", True)
    assert child["metadata"]["labels"][JOB_LABEL] == "sums"
    assert child["spec"]["jobId"] == owner["uid"]
    assert child["spec"].get("dependsOn", []) == [f"sums-{name}" for name in deps]
    with pytest.raises(KubectlError):
        await space.kubectl("patch", "pjob", "sums", "--type=merge", "-p", '{"spec": {"name": "other"}}')


async def test_a_held_job_shows_its_tasks_starts_without_the_annotation_and_stops_with_another(space: Space) -> None:
    pi = space.node.proplet("pi")
    await apply(space, "sequential", task("a"), task("b"), **{HELD: "true"})
    await space.until("propellerjob", "sums", "Running", "NotStarted")
    await space.until("task", "sums-b", "Scheduled", "Suspended")
    assert not pi.held
    await space.kubectl("annotate", "pjob", "sums", f"{HELD}-")
    await space.until("task", "sums-a", "Started", "Running")
    await space.kubectl("annotate", "pjob", "sums", f"{STOP}=true")
    status = await ended(space, "Failed", "Stopped")
    assert (status["interruptedCount"], status["skippedCount"], len(pi.stopped)) == (1, 1, 1)
    told = await space.kubectl("get", "events", "--field-selector", "involvedObject.name=sums")
    assert "Started" in told
