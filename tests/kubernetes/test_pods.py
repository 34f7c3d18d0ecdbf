"""Proplets of type k8s become Deployments. No controller manager runs here: what it would say, the tests say."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proplet.manager.pod_grants import SECRET_LABEL
from tests.manager.device import Device
from tests.support.kubernetes import MERGE_PATCH, ApiError, ApiServer
from tests.support.kubernetes_manager import (
    TOPICS,
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
def crds(api_server: ApiServer) -> str:
    return install_crds(api_server)


@pytest.fixture
def space(api_server: ApiServer, namespace: str, crds: str) -> Workspace:
    # The pods that the Deployments describe have to pass this where a controller manager makes them.
    api_server.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return Workspace(api_server, namespace)


@pytest.fixture
def manager(tmp_path: Path, broker: MosquittoServer, space: Workspace) -> Iterator[ManagerProcess]:
    with ManagerProcess(tmp_path / "m", manager_arguments(broker, space.server, "-n", space.namespace)) as process:
        process.until_ready()
        yield process


def pod_proplet(space: Workspace, broker: MosquittoServer, name: str = "farm", **k8s: Any) -> dict[str, Any]:
    """A Proplet of type k8s; the Secret of its key is there, and given to proplets."""
    give_secret(space, "broker", {"proplet-1": "one"})
    manifest = proplet_manifest(name, "proplet-1", broker.address)
    spec = manifest["spec"]
    del spec["external"], spec["connectionConfig"]["clientKey"]
    spec["connectionConfig"]["clientKeySecretRef"] = {"name": "broker", "key": "proplet-1"}
    return {**manifest, "spec": {**spec, "type": "k8s", "k8s": {"image": "example.org/proplet:1", **k8s}}}


PLAIN_POD = {"metadata": {"name": "plain"}, "spec": {"containers": [{"name": "c", "image": "example.org/i:1"}]}}


class Cluster:
    """The Deployments of a namespace, and the part of a controller manager that the tests play."""

    def __init__(self, space: Workspace) -> None:
        self.space = space
        self.path = f"/apis/apps/v1/namespaces/{space.namespace}/deployments"

    def get(self, name: str) -> dict[str, Any]:
        return self.space.server.call("GET", f"{self.path}/{name}")

    def names(self) -> list[str]:
        return sorted(d["metadata"]["name"] for d in self.space.server.call("GET", self.path)["items"])

    def until(self, *names: str) -> None:
        eventually(lambda: self.names() == sorted(names), f"Deployments {names}")

    def ready(self, name: str, replicas: int = 1) -> None:
        status = {
            "replicas": 1, "readyReplicas": replicas, "availableReplicas": replicas, "observedGeneration": 1,
            "conditions": [{"type": "Available", "status": "True" if replicas else "False"}],
        }  # fmt: skip
        self.patch(f"{name}/status", {"status": status})

    def patch(self, name: str, patch: dict[str, Any]) -> None:
        self.space.server.call("PATCH", f"{self.path}/{name}", patch, content_type=MERGE_PATCH)

    def run_pod_of(self, name: str) -> None:
        """Make the pod that a Deployment describes: the API server's pod security admission judges it."""
        template = self.get(name)["spec"]["template"]
        pod = {"metadata": {"name": name, "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
        self.space.server.call("POST", f"/api/v1/namespaces/{self.space.namespace}/pods", pod)


def secret(space: Workspace, name: str, **values: str) -> None:
    give_secret(space, name, {key.replace("_", "-"): value for key, value in values.items()})


def give_secret(space: Workspace, name: str, values: dict[str, str], label: str = SECRET_LABEL) -> None:
    """Make a Secret that Proplets may name, or let them name the one that is there."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    document = {"metadata": {"name": name, "labels": {label: "true"}}, "data": data}
    path = f"/api/v1/namespaces/{space.namespace}/secrets"
    try:
        space.server.call("POST", path, document)
    except ApiError as refused:
        if refused.status != 409:
            raise
        labels = {"metadata": document["metadata"]}
        space.server.call("PATCH", f"{path}/{name}", labels, content_type=MERGE_PATCH)


def test_a_k8s_proplet_is_a_deployment_and_runs_tasks(
    space: Workspace, manager: ManagerProcess, broker: MosquittoServer
) -> None:
    cluster = Cluster(space)
    space.apply(pod_proplet(space, broker, env={"livelinessInterval": "5s"}))
    cluster.until("farm-proplet")
    made, uid = cluster.get("farm-proplet"), space.get("proplets", "farm")["metadata"]["uid"]
    assert [(o["uid"], o["controller"]) for o in made["metadata"]["ownerReferences"]] == [(uid, True)]
    env = {
        e["name"]: e.get("value", e.get("valueFrom")) for e in made["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert env["PROPLET_CLIENT_ID"] == env["PROPLET_ENTITY_ID"] == "proplet-1"
    assert env["PROPLET_CLIENT_KEY"] == {"secretKeyRef": {"name": "broker", "key": "proplet-1"}}
    assert (env["PROPLET_MQTT_TIMEOUT"], env["PROPLET_LIVELINESS_INTERVAL"]) == ("30", "5")
    with pytest.raises(ApiError, match="PodSecurity"):  # it is in force
        space.server.call("POST", f"/api/v1/namespaces/{space.namespace}/pods", PLAIN_POD)
    cluster.run_pod_of("farm-proplet")
    eventually(lambda: space.condition("proplets", "farm", "Ready").get("status") == "False")
    cluster.ready("farm-proplet")
    eventually(lambda: space.condition("proplets", "farm", "Ready").get("reason") == "DeploymentReady")
    assert space.status("proplets", "farm")["k8sStatus"] == {"readyReplicas": 1, "availableReplicas": 1}
    assert space.condition("proplets", "farm", "Healthy")["reason"] == "DeploymentAvailable"
    with plugged(Device("proplet-1", TOPICS), broker.link_settings("proplet-1")):  # as its pod would
        space.apply(task_manifest("add", preferredPropletType="k8s"))
        assert space.until("tasks", "add", "completed")["results"] == "42"
        eventually(lambda: space.condition("proplets", "farm", "Connected").get("status") == "True")
        assert space.condition("proplets", "farm", "Ready")["reason"] == "DeploymentReady"


def test_a_deployment_that_somebody_changes_or_deletes_is_put_right(
    space: Workspace, manager: ManagerProcess, broker: MosquittoServer
) -> None:
    cluster = Cluster(space)
    space.apply(pod_proplet(space, broker))
    cluster.until("farm-proplet")
    cluster.patch("farm-proplet", {"spec": {"replicas": 3}})
    eventually(lambda: cluster.get("farm-proplet")["spec"]["replicas"] == 1, "drift is repaired")
    uid = cluster.get("farm-proplet")["metadata"]["uid"]
    space.server.call("DELETE", f"{cluster.path}/farm-proplet")
    eventually(lambda: "farm-proplet" in cluster.names() and cluster.get("farm-proplet")["metadata"]["uid"] != uid)
    space.apply(pod_proplet(space, broker, image="example.org/proplet:2"))
    eventually(lambda: cluster.get("farm-proplet")["spec"]["template"]["spec"]["containers"][0]["image"].endswith(":2"))
    space.kubectl("scale", "proplet/farm", "--replicas=0")
    eventually(lambda: cluster.get("farm-proplet")["spec"]["replicas"] == 0, "it is scaled to nothing")
    eventually(lambda: space.condition("proplets", "farm", "Ready")["reason"] == "DeploymentScaledToZero")
    space.kubectl("delete", "proplet", "farm")
    cluster.until()
    manager.kill()
    space.apply(pod_proplet(space, broker))
    manager.start()  # finds a Proplet without its Deployment
    cluster.until("farm-proplet")
    manager.kill()
    space.server.call("DELETE", f"{cluster.path}/farm-proplet")
    manager.start()
    cluster.until("farm-proplet")


def test_every_replica_has_an_identity_of_its_own(
    space: Workspace, manager: ManagerProcess, broker: MosquittoServer
) -> None:
    cluster = Cluster(space)
    space.apply(pod_proplet(space, broker, replicas=2))
    told = eventually(lambda: space.condition("proplets", "farm", "Ready").get("reason") == "IdentitiesMissing")
    assert told
    cluster.until("farm-proplet")
    eventually(lambda: "IdentitiesMissing" in space.kubectl("describe", "proplet", "farm").split("Events:")[1])
    secret(space, "identities", proplet_1="one", proplet_2="two")
    space.apply(pod_proplet(space, broker, replicas=2, identitiesSecretRef={"name": "identities"}))
    cluster.until("farm-proplet", "farm-proplet-1")
    pod = cluster.get("farm-proplet-1")["spec"]["template"]["spec"]
    keys = [e["valueFrom"] for e in pod["containers"][0]["env"] if e["name"] == "PROPLET_CLIENT_KEY"]
    assert keys == [{"secretKeyRef": {"name": "identities", "key": "proplet-2"}}]
    for name in cluster.names():
        cluster.run_pod_of(name)
        cluster.ready(name)
    eventually(lambda: space.status("proplets", "farm")["k8sStatus"]["readyReplicas"] == 2)
    eventually(lambda: space.condition("proplets", "farm-1", "Ready").get("reason") == "DeploymentReady")
    with plugged(Device("proplet-2", TOPICS), broker.link_settings("proplet-2")):
        space.apply(task_manifest("add"))
        assert space.until("tasks", "add", "completed")["assignedProplet"] == "farm-1"
    space.kubectl("scale", "proplet/farm", "--replicas=1")
    cluster.until("farm-proplet")
    eventually(lambda: gone(space, "proplets", "farm-1"), "the record of the replica goes with it")


def test_a_key_that_everybody_can_read_is_warned_of(
    space: Workspace, manager: ManagerProcess, broker: MosquittoServer
) -> None:
    manifest = pod_proplet(space, broker)
    connection = manifest["spec"]["connectionConfig"]
    connection.pop("clientKeySecretRef")
    space.apply({**manifest, "spec": {**manifest["spec"], "connectionConfig": {**connection, "clientKey": "secret-1"}}})
    eventually(lambda: "KeyInline" in space.kubectl("get", "events"))
    assert "secret-1" not in space.kubectl("get", "events", "-o", "yaml")


def gone(space: Workspace, kind: str, name: str) -> bool:
    try:
        space.get(kind, name)
    except ApiError as refused:
        return refused.status == 404
    return False


def test_a_deployment_of_somebody_else_is_left_alone(
    space: Workspace, manager: ManagerProcess, broker: MosquittoServer
) -> None:
    cluster = Cluster(space)
    foreign = ["create", "deployment", "farm-proplet", "--image=example.org/other:1"]
    space.kubectl(*foreign)
    space.apply(proplet_manifest("barn-1", "somebody", broker.address))  # the name of a replica
    secret(space, "identities", proplet_1="one", proplet_2="two")
    space.apply({**pod_proplet(space, broker, "barn", replicas=2, identitiesSecretRef={"name": "identities"})})
    eventually(lambda: "NameTaken" in space.kubectl("get", "events"))
    assert space.get("proplets", "barn-1")["spec"]["type"] == "external"
    space.kubectl("delete", "proplet", "barn")
    space.apply(pod_proplet(space, broker))
    eventually(lambda: space.condition("proplets", "farm", "Ready").get("reason") == "DeploymentRefused")
    assert cluster.get("farm-proplet")["spec"]["template"]["spec"]["containers"][0]["image"] == "example.org/other:1"


def test_replicas_stay_while_the_secret_of_their_identities_cannot_be_read(
    space: Workspace, manager: ManagerProcess, broker: MosquittoServer
) -> None:
    cluster = Cluster(space)
    secret(space, "identities", proplet_1="one", proplet_2="two")
    named: dict[str, Any] = {"replicas": 2, "identitiesSecretRef": {"name": "identities"}}
    space.apply(pod_proplet(space, broker, **named))
    cluster.until("farm-proplet", "farm-proplet-1")
    eventually(lambda: space.get("proplets", "farm-1"))
    space.kubectl("delete", "secret", "identities")
    for level in ("debug", "warn"):  # when the second is there, the first look is over
        space.apply(pod_proplet(space, broker, logLevel=level, **named))
        eventually(lambda: {"name": "PROPLET_LOG_LEVEL", "value": level} in environment(cluster.get("farm-proplet")))  # noqa: B023
    eventually(lambda: "SecretMissing" in space.kubectl("get", "events"))
    assert cluster.names() == ["farm-proplet", "farm-proplet-1"]
    assert space.get("proplets", "farm-1")["spec"]["type"] == "k8s"


def environment(deployment: dict[str, Any]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return listed
