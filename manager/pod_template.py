"""The pod of a Proplet of type `k8s`: what it runs, as whom, with which variables. Pure.

Source of the variables: the reference's operator and proplet, both eras; of the restrictions: Kubernetes, "Pod Security
Standards", restricted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from proplet.manager.model import PropletSpec
from proplet.manager.quantity import format_bytes, format_cpu, parse_duration
from proplet.manager.vocabulary import K8S_ENVIRONMENT

USER: Final = 65532
_STATE: Final = "/var/lib/proplet"
_TLS: Final = "/etc/proplet/tls"
_TLS_FILES: Final = (
    ("ca.crt", "PROPLET_MQTT_TLS_CA_CERT"),
    ("tls.crt", "PROPLET_MQTT_TLS_CLIENT_CERT"),
    ("tls.key", "PROPLET_MQTT_TLS_CLIENT_KEY"),
)
_STATE_SIZE, _TMP_SIZE = "2Gi", "256Mi"  # a pod that fills its node's disk would take others with it
_DURATIONS: Final = frozenset({"livelinessInterval", "metricsInterval"})

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a replica is on the broker, and where its key is: in a Secret (name, key), or plain, as in the reference."""

    client_id: str
    secret: tuple[str, str] | None = None
    plain: str = ""


def pod_of(spec: PropletSpec, identity: Identity, tls_keys: Sequence[str]) -> Document:
    """Return what a pod of a Proplet is made of; `tls_keys` are those that its `tlsSecretRef` has."""
    k8s = spec.k8s
    tls = str((k8s.get("tlsSecretRef") or {}).get("name", ""))
    container: Document = {
        "name": "proplet",
        "image": k8s.get("image", ""),
        "imagePullPolicy": k8s.get("imagePullPolicy") or "Always",
        "env": list(_environment(k8s, spec, identity, tls_keys if tls else ())),
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
        "volumes": [
            {"name": "state", "emptyDir": {"sizeLimit": spec.resources.custom.get("ephemeral-storage", _STATE_SIZE)}},
            {"name": "tmp", "emptyDir": {"sizeLimit": _TMP_SIZE}},
        ],
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


def tls_keys_in(deployment: Document | None) -> tuple[str, ...]:
    """Return the keys of its `tlsSecretRef` that a Deployment's pods use, for while the Secret cannot be read."""
    if deployment is None:
        return ()
    containers = deployment["spec"]["template"]["spec"].get("containers") or ()
    names = {variable.get("name") for container in containers for variable in container.get("env") or ()}
    return tuple(key for key, variable in _TLS_FILES if variable in names)


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
