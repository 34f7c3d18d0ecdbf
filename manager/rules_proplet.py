"""The rules of a Proplet's spec."""

from collections.abc import Callable, Mapping
from typing import Final

from proplet.manager.model import Kind, Proplet
from proplet.manager.quantity import parse_duration
from proplet.manager.reading import Rule

_KEYS: Final = ("clientKey", "apiKey", "clientKeySecretRef", "apiKeySecretRef")


def _proplet(name: str, path: str, broken: Callable[[Proplet], bool], message: str) -> Rule:
    return Rule(name, Kind.PROPLET, path, broken, message)


def _connection_lacks(*names: str) -> Callable[[Proplet], bool]:
    return lambda p: bool(p.spec.connection) and not any(p.spec.connection.get(name) for name in names)


def _bad_timeout(proplet: Proplet) -> bool:
    try:
        return parse_duration(str(proplet.spec.connection.get("mqttTimeout", "30s"))) <= 0
    except ValueError:
        return True


def _bad_reference(proplet: Proplet) -> bool:
    references = [r for n, r in proplet.spec.connection.items() if n.endswith("SecretRef")]
    return not all(isinstance(r, Mapping) and r.get("name") and r.get("key") for r in references)


PROPLET_RULES: Final = (
    _proplet("type is known", "spec.type", lambda p: p.spec.type not in ("external", "k8s"), "must be external or k8s"),
    _proplet(
        "type k8s has its block",
        "spec.k8s.image",
        lambda p: p.spec.type == "k8s" and not p.spec.k8s.get("image"),
        "is required when type is k8s",
    ),
    _proplet(
        "type external has no k8s block",
        "spec.k8s",
        lambda p: p.spec.type == "external" and bool(p.spec.k8s),
        "belongs to type k8s; remove it, or change the type",
    ),
    _proplet(
        "type k8s has no external block",
        "spec.external",
        lambda p: p.spec.type == "k8s" and bool(p.spec.device_type is not None or p.spec.capabilities),
        "belongs to type external; remove it, or change the type",
    ),
    _proplet(
        "replicas are in range",
        "spec.k8s.replicas",
        lambda p: not 0 <= p.spec.k8s.get("replicas", 1) <= 100,
        "must be from 0 to 100",
    ),
    _proplet(
        "log level is known",
        "spec.k8s.logLevel",
        lambda p: p.spec.k8s.get("logLevel", "info") not in ("debug", "info", "warn", "error"),
        "must be one of debug, info, warn, error",
    ),
    _proplet(
        "connection names its domain",
        "spec.connectionConfig.domainId",
        _connection_lacks("domainId", "tenantId"),
        "domainId (or tenantId) is required",
    ),
    _proplet(
        "connection names its channel",
        "spec.connectionConfig.channelId",
        _connection_lacks("channelId"),
        "is required",
    ),
    _proplet(
        "connection names its client",
        "spec.connectionConfig.clientId",
        _connection_lacks("clientId", "entityId"),
        "clientId (or entityId) is required",
    ),
    _proplet(
        "one source of the key",
        "spec.connectionConfig",
        lambda p: bool(p.spec.connection) and sum(1 for name in _KEYS if p.spec.connection.get(name)) != 1,
        f"exactly one of {', '.join(_KEYS)} is required",
    ),
    _proplet(
        "one name of the domain",
        "spec.connectionConfig.tenantId",
        lambda p: {"domainId", "tenantId"} <= p.spec.connection.keys(),
        "is the newer name of domainId; give one of the two",
    ),
    _proplet(
        "one name of the client",
        "spec.connectionConfig.entityId",
        lambda p: {"clientId", "entityId"} <= p.spec.connection.keys(),
        "is the newer name of clientId; give one of the two",
    ),
    _proplet(
        "secret reference is whole",
        "spec.connectionConfig",
        _bad_reference,
        "a secret reference needs a name and a key",
    ),
    _proplet(
        "timeout is a duration",
        "spec.connectionConfig.mqttTimeout",
        _bad_timeout,
        "must be a duration of more than 0, such as 30s",
    ),
    _proplet(
        "QoS is in range",
        "spec.connectionConfig.mqttQos",
        lambda p: p.spec.connection.get("mqttQos", 0) not in (0, 1, 2),
        "must be 0, 1 or 2",
    ),
)
