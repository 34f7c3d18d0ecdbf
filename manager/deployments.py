"""A Proplet of type `k8s` as Deployments: one for each replica, because every replica is a device of its own.

Two pods with one MQTT client id would take the broker from each other for ever. So the first replica has the identity
of the Proplet's connection, and further ones have those of its Secret `identitiesSecretRef` (client id: key), each with
a Proplet resource of its own, which Tasks are placed on like on any other.

Pure: a Proplet and what its Secrets hold in, documents and conditions out. Source of the names and variables: the
reference's operator; of the pod's restrictions: Kubernetes, "Pod Security Standards", restricted.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from proplet.manager.model import Condition, Meta, Owner, Proplet, PropletSpec, Replicas
from proplet.manager.quantity import format_bytes, format_cpu, parse_duration
from proplet.manager.vocabulary import K8S_ENVIRONMENT

PROPLET_LABEL: Final = "propeller.absmach.fr/proplet"
REPLICA_LABEL: Final = "propeller.absmach.fr/replica"
MANAGED_BY: Final = "proplet-manager"
SELECTOR: Final = f"app.kubernetes.io/managed-by={MANAGED_BY},{PROPLET_LABEL}"
USER: Final = 65532
_STATE: Final = "/var/lib/proplet"
_TLS: Final = "/etc/proplet/tls"
_TLS_FILES: Final = (
    ("ca.crt", "PROPLET_MQTT_TLS_CA_CERT"),
    ("tls.crt", "PROPLET_MQTT_TLS_CLIENT_CERT"),
    ("tls.key", "PROPLET_MQTT_TLS_CLIENT_KEY"),
)
_DURATIONS: Final = frozenset({"livelinessInterval", "metricsInterval"})
_LONGEST_LABEL, _LONGEST_NAME = 63, 253

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a replica is on the broker, and where its key is: in a Secret (name, key), or plain, as in the reference."""

    client_id: str
    secret: tuple[str, str] | None = None
    plain: str = ""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What is known of the Secrets that a Proplet names: their keys, never a value. None is one that cannot be read."""

    identities: Sequence[str] | None = ()
    tls: Sequence[str] | None = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a Proplet is to be: its replicas' identities, in order, and why there are not as many as were asked for."""

    identities: tuple[Identity, ...]
    problem: str = ""


def plan(proplet: Proplet, secrets: Secrets) -> Plan:
    """Return who the replicas of a Proplet are. Replica 0 is the connection's identity, whether it runs or not."""
    own, wanted = own_identity(proplet), replicas_wanted(proplet)
    reference = str((proplet.spec.k8s.get("identitiesSecretRef") or {}).get("name", ""))
    if wanted <= 1:
        return Plan((own,))
    if not reference:
        return Plan(
            (own,),
            f"{wanted} replicas need {wanted} MQTT identities: name a Secret with them (client id: key) in "
            "spec.k8s.identitiesSecretRef; one replica runs",
        )
    if secrets.identities is None:
        return Plan((own,), f"the Secret {reference} cannot be read; one replica runs")
    others = [Identity(name, (reference, name)) for name in sorted(secrets.identities) if name != own.client_id]
    problem = ""
    if len(others) < wanted - 1:
        problem = f"{wanted} replicas, but the Secret {reference} has identities for {len(others) + 1}; so many run"
    return Plan((own, *others[: wanted - 1]), problem)


def replicas_wanted(proplet: Proplet) -> int:
    """How many replicas a Proplet asks for."""
    return int(proplet.spec.k8s.get("replicas", 1))


def own_identity(proplet: Proplet) -> Identity:
    """The identity of the Proplet's connection."""
    connection = proplet.spec.connection
    reference = connection.get("apiKeySecretRef") or connection.get("clientKeySecretRef")
    if reference:
        return Identity(proplet.id, (str(reference.get("name", "")), str(reference.get("key", ""))))
    return Identity(proplet.id, plain=str(connection.get("apiKey") or connection.get("clientKey") or ""))


# --- documents --------------------------------------------------------------------------------------------------------


def deployment_name(proplet: str, replica: int) -> str:
    """The name of a replica's Deployment; replica 0 has the reference's."""
    return fitted(f"{proplet}-proplet" if replica == 0 else f"{proplet}-proplet-{replica}", _LONGEST_NAME)


def sibling_name(proplet: str, replica: int) -> str:
    """The name of the Proplet resource of a further replica."""
    return fitted(f"{proplet}-{replica}", _LONGEST_NAME)


def fitted(text: str, longest: int) -> str:
    """Return a name, shortened where it is too long, with a hash so that two do not become one."""
    if len(text) <= longest:
        return text
    return f"{text[: longest - 9].rstrip('-._')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def deployment(proplet: Proplet, replica: int, identity: Identity, secrets: Secrets, api_version: str) -> Document:
    """Return the Deployment of a replica; to be applied, so that fields of others stay."""
    k8s, meta = proplet.spec.k8s, proplet.meta
    labels = {PROPLET_LABEL: fitted(meta.name, _LONGEST_LABEL), REPLICA_LABEL: str(replica)}
    described = {
        "app.kubernetes.io/name": "proplet",
        "app.kubernetes.io/instance": fitted(meta.name, _LONGEST_LABEL),
        "app.kubernetes.io/component": "worker",
        "app.kubernetes.io/managed-by": MANAGED_BY,
        **labels,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": deployment_name(meta.name, replica),
            "namespace": meta.namespace,
            "labels": described,
            "ownerReferences": [_owner(meta, api_version)],
        },
        "spec": {
            "replicas": 1 if replica < replicas_wanted(proplet) else 0,
            # The old pod goes before the new one comes: they have one identity.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": described}, "spec": _pod(k8s, proplet.spec, identity, secrets)},
        },
    }


def _owner(meta: Meta, api_version: str) -> Document:
    return {
        "apiVersion": api_version,
        "kind": "Proplet",
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
        "blockOwnerDeletion": False,  # true needs a permission on the Proplet's finalizers
    }


def _pod(k8s: Mapping[str, Any], spec: PropletSpec, identity: Identity, secrets: Secrets) -> Document:
    tls = str((k8s.get("tlsSecretRef") or {}).get("name", ""))
    container: Document = {
        "name": "proplet",
        "image": k8s.get("image", ""),
        "imagePullPolicy": k8s.get("imagePullPolicy") or "Always",
        "env": list(_environment(k8s, spec, identity, secrets.tls or () if tls else ())),
        "resources": _resources(spec),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        },
        "volumeMounts": [{"name": "state", "mountPath": _STATE}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
        **_probes(k8s),
    }
    pod: Document = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service named proplet would look like our variables
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "state", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
        "terminationGracePeriodSeconds": 30,
    }
    if tls:
        container["volumeMounts"].append({"name": "tls", "mountPath": _TLS, "readOnly": True})
        pod["volumes"].append({"name": "tls", "secret": {"secretName": tls, "defaultMode": 0o440}})
    if k8s.get("imagePullSecrets"):
        pod["imagePullSecrets"] = [{"name": name} for name in k8s["imagePullSecrets"]]
    for field in ("serviceAccountName", "nodeSelector"):
        if k8s.get(field):
            pod[field] = k8s[field]
    return pod


def _resources(spec: PropletSpec) -> Document:
    """What is asked for is also the limit. Nothing said is little asked for and a bound that a small task fits in."""
    asked = {}
    if spec.resources.cpu is not None:
        asked["cpu"] = format_cpu(spec.resources.cpu)
    if spec.resources.memory_bytes is not None:
        asked["memory"] = format_bytes(spec.resources.memory_bytes)
    asked |= spec.resources.custom
    return {
        "requests": {"cpu": "50m", "memory": "64Mi"} | asked,
        "limits": {"cpu": "1", "memory": "512Mi"} | asked,
    }


def _probes(k8s: Mapping[str, Any]) -> Document:
    """Probes of the one port that a proplet may have, that of its metrics; without it only heartbeats tell."""
    environment = k8s.get("env") or {}
    port = environment.get("metricsPort")
    if not (environment.get("metricsEnabled") and port):
        return {}
    check = {"tcpSocket": {"port": port}, "timeoutSeconds": 5}
    return {
        "startupProbe": {**check, "periodSeconds": 2, "failureThreshold": 30},
        "livenessProbe": {**check, "periodSeconds": 20, "failureThreshold": 3},
        "readinessProbe": {**check, "periodSeconds": 10, "failureThreshold": 3},
    }


def _environment(
    k8s: Mapping[str, Any], spec: PropletSpec, identity: Identity, tls: Sequence[str]
) -> Iterator[Document]:
    """Yield a pod's variables, of both eras; a proplet that knows both takes them, because they say the same."""
    connection, given = spec.connection, k8s.get("env") or {}
    domain = str(connection.get("tenantId") or connection.get("domainId") or "")
    plain = {
        "PROPLET_LOG_LEVEL": k8s.get("logLevel") or "info",
        "PROPLET_MQTT_ADDRESS": connection.get("mqttAddress", ""),
        # The reference's proplet reads a number of seconds, and keeps its default where it finds "30s".
        "PROPLET_MQTT_TIMEOUT": _seconds(connection.get("mqttTimeout") or "30s"),
        "PROPLET_MQTT_QOS": str(connection.get("mqttQos", 0)),
        "PROPLET_DOMAIN_ID": domain,
        "PROPLET_TENANT_ID": domain,
        "PROPLET_CHANNEL_ID": connection.get("channelId", ""),
        "PROPLET_CLIENT_ID": identity.client_id,
        "PROPLET_ENTITY_ID": identity.client_id,
        "HOME": _STATE,
    }
    if k8s.get("pluginDir"):
        plain["PROPLET_PLUGIN_DIR"] = k8s["pluginDir"]
    plain |= {variable: f"{_TLS}/{key}" for key, variable in _TLS_FILES if key in tls}
    for name, (variable, _) in K8S_ENVIRONMENT.items():
        if given.get(name) is not None:
            plain[variable] = _text(name, given[name])
    for name, value in plain.items():
        yield {"name": name, "value": str(value)}
    for name in ("PROPLET_CLIENT_KEY", "PROPLET_API_KEY"):
        if identity.secret is not None:
            secret, key = identity.secret
            yield {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        else:
            yield {"name": name, "value": identity.plain}


def _text(name: str, value: Any) -> str:
    if name in _DURATIONS:
        return _seconds(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _seconds(text: Any) -> str:
    """A duration as whole seconds, at least one; what is none as it is."""
    try:
        return str(max(1, round(parse_duration(str(text)))))
    except ValueError:
        return str(text)


def sibling(proplet: Proplet, replica: int, identity: Identity) -> Proplet:
    """Return the Proplet resource of a further replica: where Tasks find it, and its heartbeats belong."""
    connection = {
        key: value
        for key, value in proplet.spec.connection.items()
        if key not in ("clientId", "entityId", "clientKey", "apiKey", "clientKeySecretRef", "apiKeySecretRef")
    }
    assert identity.secret is not None
    secret, key = identity.secret
    newer = "tenantId" in connection
    connection["entityId" if newer else "clientId"] = identity.client_id
    connection["apiKeySecretRef" if newer else "clientKeySecretRef"] = {"name": secret, "key": key}
    labels = {PROPLET_LABEL: fitted(proplet.meta.name, _LONGEST_LABEL), REPLICA_LABEL: str(replica)}
    meta = Meta(
        name=sibling_name(proplet.meta.name, replica),
        namespace=proplet.meta.namespace,
        labels={**proplet.meta.labels, **labels},
        owner=Owner("Proplet", proplet.meta.name, proplet.meta.uid),
    )
    k8s = {key: value for key, value in proplet.spec.k8s.items() if key not in ("replicas", "identitiesSecretRef")}
    return Proplet(meta, PropletSpec(type="k8s", resources=proplet.spec.resources, connection=connection, k8s=k8s))


def sibling_of(proplet: Proplet) -> str | None:
    """The name of the Proplet whose further replica this one is, or None: it stands for itself."""
    owner = proplet.meta.owner
    return (
        owner.name if owner is not None and owner.kind == "Proplet" and REPLICA_LABEL in proplet.meta.labels else None
    )


# --- what is seen -----------------------------------------------------------------------------------------------------


def seen(found: Sequence[Document], wanted: int, problem: str, wall: float) -> tuple[Replicas, list[Condition]]:
    """Return the replicas and the conditions that Deployments show, as the reference has them, and `problem`."""
    ready = sum(_count(document, "readyReplicas") for document in found)
    available = sum(_count(document, "availableReplicas") for document in found)
    running = sum(_count(document, "replicas") for document in found)
    if wanted and ready >= wanted:
        told = (True, "DeploymentReady", "")
    elif problem:
        told = (False, "IdentitiesMissing", problem)
    elif wanted == 0:
        told = (False, "DeploymentScaledToZero", "no replica is asked for")
    elif ready:
        told = (False, "DeploymentPartiallyReady", f"{ready} of {wanted} replicas are ready")
    elif running:
        told = (False, "DeploymentNotReady", f"none of {wanted} replicas is ready")
    else:
        told = (False, "DeploymentScalingUp", f"{wanted} replicas are to come")
    return Replicas(ready, available), [Condition("Ready", *told, wall), _healthy(found, wall)]


def _healthy(found: Sequence[Document], wall: float) -> Condition:
    conditions = [
        condition
        for document in found
        for condition in (document.get("status") or {}).get("conditions") or ()
        if isinstance(condition, Mapping)
    ]
    for condition in conditions:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return Condition("Healthy", False, "ReplicaFailure", str(condition.get("message", "")), wall)
        if condition.get("type") == "Progressing" and condition.get("status") == "False":
            return Condition("Healthy", False, "DeploymentStalled", str(condition.get("message", "")), wall)
    states = [condition.get("status") == "True" for condition in conditions if condition.get("type") == "Available"]
    if states and all(states):
        return Condition("Healthy", True, "DeploymentAvailable", "", wall)
    return Condition("Healthy", False, "DeploymentNotAvailable", "", wall)


def _count(document: Document, name: str) -> int:
    value = (document.get("status") or {}).get(name)
    return value if type(value) is int else 0
