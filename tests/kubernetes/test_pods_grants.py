"""What Proplets of type k8s may name: Secrets that are given to proplets, and service accounts that are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.test_pods import Cluster, give_secret, pod_proplet
from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_manager import ManagerProcess, Workspace, eventually, install_crds, manager_arguments
from tests.support.mosquitto import MosquittoServer, mosquitto  # noqa: F401

LABEL = "propeller.absmach.fr/for-proplets"


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> MosquittoServer:
    server: MosquittoServer = request.getfixturevalue("mosquitto")
    return server


@pytest.fixture(scope="module")
def crds(api_server: ApiServer) -> str:
    return install_crds(api_server)


@pytest.fixture
def space(api_server: ApiServer, namespace: str, crds: str) -> Workspace:
    return Workspace(api_server, namespace)


@pytest.fixture
def more() -> list[str]:
    """Arguments of the manager."""
    return []


@pytest.fixture
def manager(tmp_path: Path, broker: MosquittoServer, space: Workspace, more: list[str]) -> Iterator[ManagerProcess]:
    arguments = manager_arguments(broker, space.server, "-n", space.namespace, *more)
    with ManagerProcess(tmp_path / "m", arguments) as process:
        process.until_ready()
        yield process


def refused(space: Workspace, name: str, reason: str) -> str:
    """The message of condition Ready once it has this reason."""

    def message() -> str:
        ready = space.condition("proplets", name, "Ready")
        return str(ready["message"]) if ready.get("reason") == reason else ""

    found: str = eventually(message, f"{name} {reason}")
    return found


@pytest.mark.parametrize(
    ("line", "k8s"),
    [
        ("spec.k8s.tlsSecretRef.name", {"tlsSecretRef": {"name": "theirs"}}),
        ("spec.k8s.identitiesSecretRef.name", {"replicas": 2, "identitiesSecretRef": {"name": "theirs"}}),
        ("spec.k8s.imagePullSecrets[0]", {"imagePullSecrets": ["theirs"]}),
        ("spec.connectionConfig.clientKeySecretRef.name", {}),
    ],
    ids=lambda case: str(case).split(".")[2].partition("S")[0] if isinstance(case, str) else "",
)
def test_a_secret_that_nobody_gave_to_proplets_is_in_no_pod_until_it_is_given(
    space: Workspace, manager: ManagerProcess, broker: MosquittoServer, line: str, k8s: dict[str, Any]
) -> None:
    space.kubectl("create", "secret", "generic", "theirs", "--from-literal=name-of-a-key=value")
    manifest = pod_proplet(space, broker, **k8s)
    if not k8s:
        manifest["spec"]["connectionConfig"]["clientKeySecretRef"]["name"] = "theirs"
    space.apply(manifest)
    message = refused(space, "farm", "SecretNotAllowed")
    advice = f"kubectl -n {space.namespace} label secret theirs {LABEL}=true"
    assert message.startswith(f"{line}: the Secret theirs is not for proplets; if it is to be, {advice}, or")
    assert "--proplet-secrets=theirs" in message
    assert Cluster(space).names() == []
    assert space.kubectl("get", "proplets", "-o", "name").count("/") == 1
    seen = space.kubectl("get", "proplets", "-o", "yaml") + space.kubectl("get", "events", "-o", "yaml")
    assert "name-of-a-key" not in seen
    eventually(lambda: "SecretNotAllowed" in space.kubectl("get", "events"))
    space.kubectl(*advice.split()[3:])
    space.kubectl("annotate", "proplet", "farm", "look=now")
    eventually(lambda: "farm-proplet" in Cluster(space).names())
    eventually(lambda: space.condition("proplets", "farm", "Ready").get("reason") != "SecretNotAllowed")


def test_a_service_account_that_is_not_for_proplets_is_refused(
    space: Workspace, manager: ManagerProcess, broker: MosquittoServer
) -> None:
    space.apply(pod_proplet(space, broker, serviceAccountName="deployer"))
    message = refused(space, "farm", "ServiceAccountNotAllowed")
    assert message.startswith("spec.k8s.serviceAccountName: the service account deployer is not for proplets")
    assert "--proplet-service-accounts=default,deployer" in message
    assert Cluster(space).names() == []
    space.apply(pod_proplet(space, broker, serviceAccountName="default"))
    Cluster(space).until("farm-proplet")


@pytest.mark.parametrize("more", [["--proplet-secrets=theirs,farm-*", "--proplet-service-accounts=farm?"]])
def test_whoever_installs_the_manager_gives_secrets_and_accounts_by_name(
    space: Workspace, manager: ManagerProcess, broker: MosquittoServer
) -> None:
    for name in ("theirs", "farm-tls"):
        space.kubectl("create", "secret", "generic", name, "--from-literal=ca.crt=none")
    named = {"tlsSecretRef": {"name": "farm-tls"}, "imagePullSecrets": ["theirs"], "serviceAccountName": "farm1"}
    space.apply(pod_proplet(space, broker, **named))
    Cluster(space).until("farm-proplet")
    pod = Cluster(space).get("farm-proplet")["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["imagePullSecrets"]) == ("farm1", [{"name": "theirs"}])
    space.apply(pod_proplet(space, broker, **named | {"serviceAccountName": "farm12"}))
    refused(space, "farm", "ServiceAccountNotAllowed")


def test_what_runs_stays_when_its_proplet_comes_to_name_what_it_may_not(
    space: Workspace, manager: ManagerProcess, broker: MosquittoServer
) -> None:
    cluster = Cluster(space)
    space.apply(pod_proplet(space, broker))
    cluster.until("farm-proplet")
    before = cluster.get("farm-proplet")["metadata"]["generation"]
    space.apply(pod_proplet(space, broker, imagePullSecrets=["absent"]))
    message = refused(space, "farm", "SecretMissing")
    assert "spec.k8s.imagePullSecrets[0]: there is no Secret" in message
    assert LABEL in message
    assert cluster.get("farm-proplet")["metadata"]["generation"] == before
    give_secret(space, "absent", {})
    space.apply(pod_proplet(space, broker, imagePullSecrets=["absent"], logLevel="debug"))
    eventually(lambda: cluster.get("farm-proplet")["metadata"]["generation"] > before)
