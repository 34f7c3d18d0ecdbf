"""The manifests under packaging/kubernetes: accepted by a real API server, and enough for the manager, and no more."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.test_pods import Cluster, give_secret, pod_proplet
from tests.manager.device import Device
from tests.support.kubernetes import ApiServer, KubectlError
from tests.support.kubernetes_manager import (
    GROUP,
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

pytestmark = pytest.mark.source

OVERLAYS = Path(__file__).parents[2] / "packaging/kubernetes/overlays"
SYSTEM = "propeller-k8s-operator-system"
ALL = ["default", "namespaced", "tls", "production"]
ACCOUNT = "propeller-k8s-operator-controller-manager"


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> MosquittoServer:
    server: MosquittoServer = request.getfixturevalue("mosquitto")
    return server


def rendered(server: ApiServer, overlay: str) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(server.kubectl("kustomize", str(OVERLAYS / overlay))) if d]


def placed(documents: list[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    """Without the namespace itself, in another one, as `kustomize edit set namespace` would do it."""
    kept = [d for d in documents if d["kind"] not in ("Namespace", "CustomResourceDefinition")]
    for document in kept:
        if "namespace" in document["metadata"]:
            document["metadata"]["namespace"] = namespace
        for subject in document.get("subjects", ()):
            subject["namespace"] = namespace
    return kept


def apply(server: ApiServer, documents: list[dict[str, Any]], *more: str) -> str:
    return server.kubectl("apply", "--server-side", *more, "-f", "-", input=yaml.safe_dump_all(documents))


@pytest.fixture(scope="module")
def crds(api_server: ApiServer) -> str:
    return install_crds(api_server)


@pytest.fixture
def system(api_server: ApiServer, namespace: str, crds: str) -> Iterator[str]:
    api_server.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    yield namespace
    for kind in ("clusterrole", "clusterrolebinding"):
        api_server.kubectl("delete", kind, "-l", "app.kubernetes.io/name=propeller-k8s-operator", "--ignore-not-found")


def test_the_default_has_the_names_of_the_reference(api_server: ApiServer) -> None:
    documents = rendered(api_server, "default")
    kinds = {(d["kind"], d["metadata"]["name"]) for d in documents}
    assert {
        ("Namespace", SYSTEM),
        ("ServiceAccount", ACCOUNT),
        ("Deployment", ACCOUNT),
        *(
            ("CustomResourceDefinition", f"{kind}.{GROUP}")
            for kind in ("federatedjobs", "propellerjobs", "proplets", "tasks", "trainingrounds")
        ),
    } <= kinds
    assert {d["metadata"].get("namespace", SYSTEM) for d in documents} == {SYSTEM}


@pytest.mark.parametrize("overlay", ALL)
def test_an_overlay_is_accepted(api_server: ApiServer, system: str, overlay: str) -> None:
    documents = placed(rendered(api_server, overlay), system)
    said = apply(api_server, documents, "--dry-run=server")
    assert "Warning" not in said
    assert said.count("serverside-applied (server dry run)") == len(documents)
    deployment = next(d for d in documents if d["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    pod = {"metadata": {"name": "pod", "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
    path = f"/api/v1/namespaces/{system}/pods?dryRun=All"
    assert api_server.call("POST", path, pod)["kind"] == "Pod"  # pod security "restricted" is in force there


def test_the_arguments_of_every_overlay_are_known_to_the_command(api_server: ApiServer) -> None:
    from proplet.agent.cli_parser import build

    for overlay in ALL:
        deployment = next(d for d in rendered(api_server, overlay) if d["kind"] == "Deployment")
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        assert container["command"] == ["/manager"]
        build().parse_args(["manager", *container["args"]])


@pytest.mark.parametrize("overlay", ALL)
def test_the_managers_pod_is_bounded_probed_and_kept_apart_from_its_like(api_server: ApiServer, overlay: str) -> None:
    deployment = next(d for d in rendered(api_server, overlay) if d["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    container = pod["containers"][0]
    for bounds in (container["resources"]["requests"], container["resources"]["limits"]):
        assert set(bounds) == {"cpu", "memory", "ephemeral-storage"}
    ports = {port["name"] for port in container["ports"]}
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"]["path"] == path
        assert container[probe]["httpGet"]["port"] in ports
    assert all(volume["emptyDir"].get("sizeLimit") for volume in pod["volumes"] if "emptyDir" in volume)
    (apart,) = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    wanted = apart["podAffinityTerm"]["labelSelector"]["matchLabels"]
    assert wanted.items() <= labels.items()
    assert deployment["spec"]["replicas"] == (2 if overlay == "production" else 1)


def one(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (d for d in documents if d["kind"] == kind)
    return found


def test_in_production_one_of_two_stays_and_only_what_is_needed_is_reached(api_server: ApiServer, system: str) -> None:
    documents = placed(rendered(api_server, "production"), system)
    apply(api_server, documents)
    template = one(documents, "Deployment")["spec"]["template"]
    labels, container = template["metadata"]["labels"], template["spec"]["containers"][0]
    name = one(documents, "PodDisruptionBudget")["metadata"]["name"]
    path = f"/apis/policy/v1/namespaces/{system}/poddisruptionbudgets"
    budget = api_server.call("GET", f"{path}/{name}")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    path = f"/apis/networking.k8s.io/v1/namespaces/{system}/networkpolicies"
    policy = api_server.call("GET", f"{path}/{one(documents, 'NetworkPolicy')['metadata']['name']}")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    by_name = {port["name"]: port["containerPort"] for port in container["ports"]}
    let_in = {port["port"]: rule.get("from") for rule in policy["ingress"] for port in rule["ports"]}
    assert let_in.keys() == set(by_name.values())
    assert let_in[by_name["probes"]] is None
    assert let_in[by_name["metrics"]] == [{"namespaceSelector": {"matchLabels": {"metrics": "enabled"}}}]
    reached = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert reached == {53, 443, 6443, 1883, 8883}


def test_the_components_fit_the_overlay_for_one_namespace_too(
    api_server: ApiServer, system: str, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(OVERLAYS.parent, tmp_path / "kubernetes"))
    file = copied / "overlays/namespaced/kustomization.yaml"
    more = "components: [../../components/two-replicas, ../../components/network-policy]\n"
    file.write_text(file.read_text() + more)
    documents = [d for d in yaml.safe_load_all(api_server.kubectl("kustomize", str(file.parent))) if d]
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        meta = one(documents, kind)["metadata"]
        assert (meta["name"], meta["namespace"]) == (ACCOUNT, "propeller-workloads")
    assert one(documents, "Deployment")["spec"]["replicas"] == 2
    assert "Warning" not in apply(api_server, placed(documents, system), "--dry-run=server")


@pytest.mark.parametrize("overlay", ["default", "namespaced"])
def test_its_permissions_are_enough_for_the_manager_and_no_more(
    api_server: ApiServer, system: str, broker: MosquittoServer, tmp_path: Path, overlay: str
) -> None:
    apply(api_server, placed(rendered(api_server, overlay), system))
    space = Workspace(api_server, system)
    config = api_server.token_kubeconfig(api_server.service_account_token(system, ACCOUNT))
    more = ["--namespace", system] if overlay == "namespaced" else []
    arguments = [a for a in manager_arguments(broker, api_server, *more) if not a.startswith("--kubeconfig")]
    lease = f"--lease-namespace={system}"
    give_secret(space, "identities", {"proplet-2": "two"})
    process = ManagerProcess(tmp_path / "m", [*arguments, f"--kubeconfig={config}", "--leader-elect", lease])
    with process as manager:
        eventually(lambda: manager.metric("proplet_leader") == 1, f"it leads:\n{manager.log[-3000:]}")
        with plugged(Device("proplet-1", TOPICS), broker.link_settings("proplet-1")):
            space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("add"))
            space.until("tasks", "add", "completed")
            space.apply(task_manifest("brief", ttlSecondsAfterFinished=0))
            eventually(lambda: "brief" not in space.kubectl("get", "tasks", "-o", "name"), "it deletes")
            job = {"name": "job", "executionMode": "parallel", "tasks": [task_manifest("one")["spec"]]}
            meta = {"metadata": {"name": "job"}, "apiVersion": f"{GROUP}/v1", "kind": "PropellerJob"}
            space.apply({**meta, "spec": job})
        cluster = Cluster(space)
        space.apply(pod_proplet(space, broker, replicas=2, identitiesSecretRef={"name": "identities"}))
        eventually(lambda: {"farm-proplet", "farm-proplet-1"} <= set(cluster.names()), manager.log[-2000:])
        space.apply(task_manifest("lost", propletSelector={"propletId": "nobody"}))
        eventually(lambda: "task/lost" in space.kubectl("get", "events").lower(), f"it tells events: {manager.log}")
        assert "grant it with a Role" not in manager.log, manager.log
    denied = ("list secrets", "get pods", "create pods", "delete namespaces", "get configmaps", "update deployments")
    for verb, what in (pair.split() for pair in (*denied, f"delete propellerjobs.{GROUP}")):
        assert refused(api_server, config, "auth", "can-i", verb, what, "-n", system), (verb, what)
    if overlay == "namespaced":
        assert refused(api_server, config, "auth", "can-i", "list", f"tasks.{GROUP}", "-n", "default")


def refused(server: ApiServer, config: Path, *arguments: str) -> bool:
    try:
        server.kubectl(*arguments, kubeconfig=config)
    except KubectlError:
        return True
    return False
