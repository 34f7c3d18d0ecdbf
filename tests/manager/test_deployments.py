"""What a Proplet of type k8s asks of a cluster, as documents."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proplet.manager.deployments import Secrets, deployment, deployment_name, fitted, plan, seen, sibling
from proplet.manager.model import Meta, Proplet, PropletSpec, Resources
from proplet.manager.pod_template import Identity

API_VERSION = "propeller.propeller.abstractmachines.fr/v1"
CONNECTION = {
    "mqttAddress": "tcp://broker:1883",
    "domainId": "d",
    "channelId": "c",
    "clientId": "one",
    "clientKeySecretRef": {"name": "keys", "key": "one"},
}


def proplet(name: str = "farm", resources: Resources | None = None, **k8s: Any) -> Proplet:
    spec = PropletSpec(
        "k8s", resources=resources or Resources(), connection=CONNECTION, k8s={"image": "example.org/p:1", **k8s}
    )
    return Proplet(Meta(name, "here", uid="u-1"), spec)


def made(asked: Proplet, secrets: Secrets | None = None) -> dict[str, Any]:
    return deployment(asked, 0, plan(asked, Secrets()).identities[0], secrets or Secrets(), API_VERSION)


def pod(asked: Proplet, secrets: Secrets | None = None) -> dict[str, Any]:
    return dict(made(asked, secrets)["spec"]["template"]["spec"])


def env(asked: Proplet, secrets: Secrets | None = None) -> dict[str, Any]:
    listed = pod(asked, secrets)["containers"][0]["env"]
    assert len({e["name"] for e in listed}) == len(listed)
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in listed}


def test_durations_are_whole_seconds_and_flags_are_words() -> None:
    said = env(
        proplet(env={"livelinessInterval": "1m30s", "metricsInterval": "10ms", "halEnabled": True, "traceRatio": "0.5"})
    )
    assert said["PROPLET_LIVELINESS_INTERVAL"] == "90"
    assert said["PROPLET_METRICS_INTERVAL"] == "1"  # never none at all
    assert said["PROPLET_HAL_ENABLED"] == "true"
    assert said["PROPLET_TRACE_RATIO"] == "0.5"
    assert said["PROPLET_MQTT_TIMEOUT"] == "30"


def test_an_empty_runtime_is_said_and_an_absent_one_is_not() -> None:
    assert env(proplet(env={"externalWasmRuntime": ""}))["PROPLET_EXTERNAL_WASM_RUNTIME"] == ""
    assert "PROPLET_EXTERNAL_WASM_RUNTIME" not in env(proplet())


def test_what_is_asked_for_is_the_limit_too() -> None:
    asked = Resources(cpu=0.25, memory_bytes=128 * 1024**2, custom={"example.org/npu": "1"})
    resources = pod(proplet(resources=asked))["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"] == {"cpu": "250m", "memory": "128Mi", "example.org/npu": "1"}


def test_a_certificate_is_mounted_and_named_as_far_as_the_secret_has_it() -> None:
    asked = proplet(tlsSecretRef={"name": "broker-tls"})
    said = env(asked, Secrets(tls=("ca.crt",)))
    assert said["PROPLET_MQTT_TLS_CA_CERT"] == "/etc/proplet/tls/ca.crt"
    assert "PROPLET_MQTT_TLS_CLIENT_CERT" not in said
    volumes = {v["name"]: v for v in pod(asked)["volumes"]}
    assert volumes["tls"]["secret"]["secretName"] == "broker-tls"


def test_the_pods_own_wishes_are_passed_on() -> None:
    asked = proplet(
        imagePullPolicy="Never", imagePullSecrets=["r"], serviceAccountName="sa", nodeSelector={"disk": "ssd"}
    )
    spec = pod(asked)
    assert spec["containers"][0]["imagePullPolicy"] == "Never"
    assert (spec["imagePullSecrets"], spec["serviceAccountName"]) == ([{"name": "r"}], "sa")
    assert spec["nodeSelector"] == {"disk": "ssd"}


def test_only_a_port_that_there_is_is_probed() -> None:
    assert "livenessProbe" not in pod(proplet())["containers"][0]
    probed = pod(proplet(env={"metricsEnabled": True, "metricsPort": 9100}))["containers"][0]
    assert {probed[p]["tcpSocket"]["port"] for p in ("startupProbe", "livenessProbe", "readinessProbe")} == {9100}


def test_an_inline_key_is_passed_on_as_the_reference_does() -> None:
    asked = proplet()
    connection = {**CONNECTION, "clientKey": "plain"}
    del connection["clientKeySecretRef"]
    said = env(replace(asked, spec=replace(asked.spec, connection=connection)))
    assert said["PROPLET_CLIENT_KEY"] == said["PROPLET_API_KEY"] == "plain"


def test_replicas_have_the_connections_identity_and_then_those_of_the_secret() -> None:
    asked = proplet(replicas=3, identitiesSecretRef={"name": "ids"})
    whole = plan(asked, Secrets(identities=("three", "one", "two", "zero")))
    assert [i.client_id for i in whole.identities] == ["one", "three", "two"]
    assert whole.problem == ""
    short = plan(asked, Secrets(identities=("one", "two")))
    assert [i.client_id for i in short.identities] == ["one", "two"]
    assert "has identities for 2" in short.problem
    unread = plan(asked, Secrets(identities=None))
    assert (len(unread.identities), "cannot be read" in unread.problem) == (1, True)


def test_a_further_replica_is_a_proplet_of_its_own_with_no_replicas_of_its_own() -> None:
    asked = proplet(replicas=2, identitiesSecretRef={"name": "ids"})
    other = sibling(asked, 1, Identity("two", ("ids", "two")))
    assert (other.id, other.meta.name, other.meta.owner and other.meta.owner.uid) == ("two", "farm-1", "u-1")
    assert other.spec.connection["clientKeySecretRef"] == {"name": "ids", "key": "two"}
    assert "clientKey" not in other.spec.connection
    assert other.spec.k8s == {"image": "example.org/p:1"}


def test_what_deployments_show_is_one_condition() -> None:
    def ready(replicas: int, wanted: int, problem: str = "") -> str:
        document = {"status": {"replicas": wanted, "readyReplicas": replicas}}
        return seen([document], wanted, problem, 0.0)[1][0].reason

    assert ready(2, 2) == "DeploymentReady"
    assert ready(1, 2) == "DeploymentPartiallyReady"
    assert ready(0, 2) == "DeploymentNotReady"
    assert ready(0, 0) == "DeploymentScaledToZero"
    assert ready(1, 2, "no identities") == "IdentitiesMissing"
    assert seen([], 1, "", 0.0)[1][0].reason == "DeploymentScalingUp"
    stalled = {"status": {"conditions": [{"type": "Progressing", "status": "False", "message": "quota"}]}}
    assert (seen([stalled], 1, "", 0.0)[1][1].reason, seen([stalled], 1, "", 0.0)[1][1].message) == (
        "DeploymentStalled",
        "quota",
    )


@given(st.text("abcdefghij-.", min_size=1, max_size=300), st.integers(0, 99))
def test_names_fit_and_differ(name: str, replica: int) -> None:
    assert len(deployment_name(name, replica)) <= 253
    assert len(fitted(name, 63)) <= 63
    if len(name) > 63:
        assert fitted(name, 63) != fitted(name + "x", 63)
