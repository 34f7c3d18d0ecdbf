"""A Proplet of type `k8s` as Deployments: one for each replica, because every replica is a device of its own.

Two pods with one MQTT client id would take the broker from each other for ever. So the first replica has the identity
of the Proplet's connection, and further ones have those of its Secret `identitiesSecretRef` (client id: key), each with
a Proplet resource of its own, which Tasks are placed on like on any other.

Pure: a Proplet and its Secrets' keys in, documents and conditions out. Source of the names: the reference's operator.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proplet.manager.model import Condition, Meta, Owner, Proplet, PropletSpec, Replicas
from proplet.manager.pod_template import Document, Identity, pod_of

PROPLET_LABEL: Final = "propeller.absmach.fr/proplet"
REPLICA_LABEL: Final = "propeller.absmach.fr/replica"
MANAGED_BY: Final = "proplet-manager"
SELECTOR: Final = f"app.kubernetes.io/managed-by={MANAGED_BY},{PROPLET_LABEL}"
_LONGEST_LABEL, _LONGEST_NAME = 63, 253


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
    meta = proplet.meta
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
            "template": {"metadata": {"labels": described}, "spec": pod_of(proplet.spec, identity, secrets.tls or ())},
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
