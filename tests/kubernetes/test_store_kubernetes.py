"""The store over a Kubernetes API keeps the contract, and what else it says of itself."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import open_api
from proplet.manager.kubernetes_errors import NotServedError
from proplet.manager.manifest import GROUPS
from proplet.manager.model import Key, Kind, Meta, Task, TaskStatus
from proplet.manager.phases import Phase
from proplet.manager.ports import (
    ConflictError,
    NotFoundError,
    RefusedError,
    ResourceTooLargeError,
    Store,
    StoreUnavailableError,
)
from proplet.manager.store_kubernetes import KubernetesStore, open_kubernetes_store
from proplet.manager.store_kubernetes_document import collection_of
from tests.kubernetes.contract import OverKubernetes, opened
from tests.manager_store.contract import FULL_TASK, collect, task
from tests.support.kubernetes import MERGE_PATCH, ApiServer
from tests.support.kubernetes_objects import ensure_namespace, install, recovered, uninstall

pytestmark = pytest.mark.anyio

TASKS = collection_of(Kind.TASK, GROUPS[0])


@pytest.fixture(scope="module")
def cluster(api_server: ApiServer) -> ApiServer:
    install(api_server)
    ensure_namespace(api_server, "lab")
    return api_server


def in_namespace(namespace: str, name: str = "addition") -> Task:
    return Task(Meta(name, namespace), task().spec)


def patch(server: ApiServer, namespace: str, change: dict[str, Any], part: str = "") -> dict[str, Any]:
    """Change the Task "addition" as another program does."""
    return server.call("PATCH", TASKS.path(namespace, "addition", part), change, content_type=MERGE_PATCH)


class TestKubernetesStore(OverKubernetes):
    """On definitions that let anything pass."""


async def test_what_is_read_is_what_kubectl_applied(cluster: ApiServer, namespace: str) -> None:
    manifest = {
        "apiVersion": TASKS.api_version,
        "kind": "Task",
        "metadata": {"name": "addition", "labels": {"a": "b"}},
        "spec": {"name": "add", "inputs": [10, 32], "imageUrl": "oci://example.org/add"},
    }
    async with opened(cluster) as store:
        cluster.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(manifest))
        found = await store.get(Kind.TASK, Key("addition", namespace))  # the watch may not have told it yet
        assert isinstance(found, Task)
        assert (found.spec.name, found.spec.inputs, found.spec.image_url) == (
            "add",
            ("10", "32"),
            "oci://example.org/add",
        )
        assert found.meta.labels == {"a": "b"}
        done = await store.record(replace(found, status=TaskStatus(Phase.COMPLETED, results="42")))
        assert done.meta.generation == 1
        assert cluster.kubectl("get", "tasks", "addition", "-n", namespace, "-o", "jsonpath={.status.results}") == "42"


async def test_fields_of_other_writers_stay_as_they_are(cluster: ApiServer, namespace: str) -> None:
    async with opened(cluster) as store:
        await store.create(in_namespace(namespace))
        patch(cluster, namespace, {"spec": {"newer": {"deep": 1}}, "metadata": {"labels": {"theirs": "1"}}})
        patch(cluster, namespace, {"status": {"newer": [1, 2]}}, "status")
        await store.list(Kind.TASK)
        found = await fresh(store, namespace)
        found = await store.record(replace(found, status=TaskStatus(Phase.SCHEDULED, "pi", 1, message="on its way")))
        labels = {**found.meta.labels, "ours": "2"}
        await store.put(
            replace(found, meta=replace(found.meta, labels=labels), spec=replace(found.spec, inputs=("1",)))
        )
        now = cluster.call("GET", TASKS.path(namespace, "addition"))
        assert now["spec"]["newer"] == {"deep": 1}
        assert now["spec"]["inputs"] == ["1"]
        assert now["status"]["newer"] == [1, 2]
        assert now["status"]["propletId"] == "pi"
        assert now["metadata"]["labels"] == {"theirs": "1", "ours": "2"}


async def fresh(store: Store, namespace: str) -> Task:
    """The Task "addition" as the server has it: a write over an old version makes the store ask."""
    key = Key("addition", namespace)
    found = await store.get(Kind.TASK, key)
    try:
        found = await store.record(replace(found, status=TaskStatus(message="a first try")))  # type: ignore[type-var]
    except ConflictError:
        found = await store.get(Kind.TASK, key)
    assert isinstance(found, Task)
    return found


async def test_a_field_that_is_taken_away_is_gone_from_the_object(cluster: ApiServer, namespace: str) -> None:
    async with opened(cluster) as store:
        made = await store.create(replace(FULL_TASK, meta=Meta("addition", namespace)))
        assert isinstance(made, Task)
        bare = await store.record(replace(made, status=TaskStatus()))
        bare = await store.put(replace(bare, spec=task().spec))  # type: ignore[arg-type]
        assert (bare.spec, bare.status) == (task().spec, TaskStatus())
        assert await store.get(Kind.TASK, bare.meta.key) == bare


async def test_after_a_conflict_the_server_is_asked(cluster: ApiServer, namespace: str) -> None:
    """The watch, which does not run here, may not have told what we collided with."""
    async with open_api(Access(cluster.kubeconfig)) as api:
        store = KubernetesStore(api, group=GROUPS[0], namespaces=(), kinds=[Kind.TASK], clock=lambda: 1.0, history=10)
        (reflector,) = store.reflectors()
        await reflector._list()
        made = await store.create(in_namespace(namespace))
        for number in range(3):
            theirs = patch(cluster, namespace, {"spec": {"priority": number}})
            with pytest.raises(ConflictError):
                await store.record(replace(made, status=TaskStatus(attempt=number + 1)))
            made = await store.get(Kind.TASK, made.meta.key)  # type: ignore[assignment]
            assert made.meta.version == int(theirs["metadata"]["resourceVersion"])
        cluster.kubectl("delete", "task", "addition", "-n", namespace)
        with pytest.raises(NotFoundError):
            await store.record(replace(made, status=TaskStatus(attempt=9)))
        with pytest.raises(NotFoundError):
            await store.get(Kind.TASK, made.meta.key)


async def test_an_unchanged_write_does_not_reach_the_server(cluster: ApiServer, namespace: str) -> None:
    async with opened(cluster) as store:
        made = await store.create(replace(FULL_TASK, meta=Meta("addition", namespace)))
        await store.record(made)
        await store.put(made)
        now = cluster.call("GET", TASKS.path(namespace, "addition"))
        assert int(now["metadata"]["resourceVersion"]) == made.meta.version


async def test_without_definitions_it_says_how_to_get_them_and_goes_on_when_they_are_there(
    api_server: ApiServer,
) -> None:
    group = GROUPS[1]
    uninstall(api_server, Kind.TASK, group=group)
    try:
        async with (
            open_api(Access(api_server.kubeconfig)) as api,
            open_kubernetes_store(api, group=group, kinds=[Kind.TASK]) as store,
        ):
            with pytest.raises(NotServedError, match=r"no Tasks .*absmach\.eu/v1.*proplet crds \| kubectl apply"):
                await store.list(Kind.TASK)
            assert isinstance(store.problem, NotServedError)
            install(api_server, Kind.TASK, group=group)
            await recovered(store)
            made = await store.create(task())
            assert (await store.list(Kind.TASK)).items == (made,)
            shown = api_server.call("GET", collection_of(Kind.TASK, group).path("default", "addition"))
            assert shown["apiVersion"] == f"{group}/v1"
            await store.delete(Kind.TASK, made.meta.key)
    finally:
        uninstall(api_server, Kind.TASK, group=group)


@pytest.fixture
def second_namespace(api_server: ApiServer, namespace: str) -> Iterator[str]:
    name = f"{namespace}-b"
    api_server.create_namespace(name)
    yield name
    api_server.remove_namespace(name)


def allow(server: ApiServer, user: str, *namespaces: str) -> None:
    """Let a user do everything with our objects, in some namespaces only."""
    for namespace in namespaces:
        rules = [{"apiGroups": [GROUPS[0]], "resources": ["*"], "verbs": ["*"]}]
        path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
        server.call("POST", f"{path}/roles", {"metadata": {"name": "manager"}, "rules": rules})
        binding = {
            "metadata": {"name": "manager"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "manager"},
            "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
        }
        server.call("POST", f"{path}/rolebindings", binding)


async def test_with_namespaces_it_needs_no_permission_beyond_them(
    cluster: ApiServer, namespace: str, second_namespace: str
) -> None:
    user = cluster.user_kubeconfig(f"manager-of-{namespace}")
    allow(cluster, f"manager-of-{namespace}", namespace, second_namespace)
    async with open_api(Access(user)) as api, open_kubernetes_store(api, kinds=[Kind.TASK]) as store:
        with pytest.raises(RefusedError, match="Role"):
            await store.list(Kind.TASK)
    async with opened(cluster, kubeconfig=user, namespaces=(namespace, second_namespace)) as store:
        since = (await store.list(Kind.TASK)).version
        made = [
            await store.create(in_namespace(where, f"t{number}"))
            for number in range(3)
            for where in (namespace, second_namespace)
        ]
        changes = await collect(store, Kind.TASK, since, 6)
        assert {change.resource.meta.key for change in changes} == {item.meta.key for item in made}
        versions = [since, *(change.version for change in changes)]
        assert versions == sorted(set(versions))
        assert {item.meta.uid for item in (await store.list(Kind.TASK)).items} == {item.meta.uid for item in made}
        with pytest.raises(NotFoundError):
            await store.get(Kind.TASK, Key("elsewhere"))
        with pytest.raises(RefusedError, match="default"):
            await store.create(task())


async def test_what_the_server_refuses_is_told_with_its_reason(cluster: ApiServer, namespace: str) -> None:
    async with opened(cluster, kinds=[Kind.TASK]) as store:
        with pytest.raises(RefusedError, match=r"metadata\.name"):
            await store.create(in_namespace(namespace, "Not_A_Name"))
        with pytest.raises(NotFoundError, match="no-such-namespace"):
            await store.create(in_namespace("no-such-namespace"))


async def test_an_object_that_cannot_be_read_hides_no_other(
    cluster: ApiServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {
        "apiVersion": TASKS.api_version,
        "kind": "Task",
        "metadata": {"name": "broken"},
        "spec": {"priority": "high"},
    }
    cluster.call("POST", TASKS.path(namespace), broken)
    async with opened(cluster, namespaces=(namespace,)) as store:
        made = await store.create(in_namespace(namespace))
        cluster.call("POST", TASKS.path(namespace), broken | {"metadata": {"name": "broken-too"}})
        last = await store.create(in_namespace(namespace, "last"))
        assert (await store.list(Kind.TASK)).items == (made, last)
        with pytest.raises(StoreUnavailableError, match=r"broken.*spec\.priority"):
            await store.get(Kind.TASK, Key("broken", namespace))
    assert "spec.priority" in caplog.text


async def test_the_end_of_an_object_that_cannot_be_read_any_more_is_told(cluster: ApiServer, namespace: str) -> None:
    async with opened(cluster, namespaces=(namespace,), kinds=[Kind.TASK]) as store:
        made = await store.create(in_namespace(namespace))
        assert (await store.list(Kind.TASK)).items == (made,)
        patch(cluster, namespace, {"spec": {"priority": "high"}})
        cluster.call("DELETE", TASKS.path(namespace, "addition"))
        last = await store.create(in_namespace(namespace, "last"))
        assert (await store.list(Kind.TASK)).items == (last,)


@pytest.mark.parametrize("megabytes", [2, 4])
async def test_what_is_too_large_to_be_kept_is_told_apart(cluster: ApiServer, namespace: str, megabytes: int) -> None:
    async with opened(cluster, namespaces=(namespace,), kinds=[Kind.TASK]) as store:
        made = await store.create(in_namespace(namespace))
        large = replace(made.status, results="x" * (megabytes << 20))
        with pytest.raises(ResourceTooLargeError):
            await store.record(Task(made.meta, made.spec, large))
        assert await store.get(Kind.TASK, made.meta.key) == made
