"""``proplet manager``: the manager of a cluster's resources as a process of its own, with no agent and no broker.

Takes the flags of the reference's operator, of both its eras, so that its Deployments work as they are. They are laid
over the configuration like the flags of ``proplet up``: variables and ``--config`` give the same settings.
"""

import argparse
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from proplet.agent.cli import CONFIG, CliError

#: Flags, as argparse names them, and the settings they give.
_SETTINGS: Mapping[str, str] = {
    "mqtt_address": "mqtt.address",
    "domain_id": "mqtt.domain",
    "channel_id": "mqtt.channel",
    "client_id": "mqtt.client_id",
    "client_key": "mqtt.client_key",
    "client_key_file": "mqtt.client_key_file",
    "mqtt_ca_file": "mqtt.tls.ca_file",
    "mqtt_cert_file": "mqtt.tls.cert_file",
    "mqtt_key_file": "mqtt.tls.key_file",
    "kubeconfig": "kubernetes.kubeconfig",
    "context": "kubernetes.context",
    "api_group": "kubernetes.group",
    "leader_elect": "kubernetes.leader_elect",
    "leader_elect_lease_duration": "kubernetes.lease_duration",
    "leader_elect_renew_deadline": "kubernetes.renew_deadline",
    "leader_elect_retry_period": "kubernetes.retry_period",
    "lease_namespace": "kubernetes.lease_namespace",
    "register": "kubernetes.register",
    "health_probe_bind_address": "kubernetes.health_address",
    "metrics_bind_address": "kubernetes.metrics_address",
    "metrics_token_file": "kubernetes.metrics_token_file",
    "proplet_service_accounts": "kubernetes.proplet_service_accounts",
    "proplet_secrets": "kubernetes.proplet_secrets",
    "mqtt_timeout": "manager.mqtt_timeout",
    "liveliness_interval": "kubernetes.last_seen_interval",
    "last_seen_threshold": "manager.liveliness_timeout",
    "log_level": "node.log_level",
}
_WITHOUT_EFFECT = ("enable_http2", "webhook_cert_path", "webhook_cert_name", "webhook_cert_key")
_SCHEDULERS = ("round-robin", "priority")
_HEALTH = ":8081"
_FALSE = ("false", "False", "FALSE", "f", "F", "0")  # as the reference's language has it


def manager(options: argparse.Namespace) -> int:
    """Run the manager until it is told to end, or only remove its finalizers."""
    from proplet.agent.config import read
    from proplet.agent.systemd import configure_logging

    flags = _flags(options)
    environ = _environ(os.environ)
    if options.remove_finalizers:  # needs the cluster only
        for setting in ("mqtt.address", "mqtt.domain", "mqtt.channel"):
            flags.setdefault(setting, "tcp://localhost" if setting == "mqtt.address" else "none")
    elif "mqtt.address" not in flags and not options.config and not environ.get("PROPLET_MQTT_ADDRESS"):
        raise CliError("no broker: give --mqtt-address (or PROPLET_MQTT_ADDRESS), such as tcp://host:1883", CONFIG)
    loaded = read(Path(options.config) if options.config else None, environ, flags)
    configure_logging(getattr(logging, loaded.settings.node.log_level.name))
    log = logging.getLogger(__name__)
    for warning in (*loaded.warnings, *_ignored(options)):
        log.warning("%s", warning)
    from proplet.agent.daemon import remove_finalizers, run_manager

    return remove_finalizers(loaded.settings) if options.remove_finalizers else run_manager(loaded.settings)


def _flags(options: argparse.Namespace) -> dict[str, str]:
    given = ((setting, getattr(options, flag)) for flag, setting in _SETTINGS.items())
    flags = {setting: text for setting, text in given if text is not None}
    namespaces = [name for given in options.namespace for name in given.split(",")]
    if not namespaces:
        namespaces = os.environ.get("WATCH_NAMESPACE", "").split(",")
    if any(name.strip() for name in namespaces):
        flags["kubernetes.namespaces"] = ",".join(name.strip() for name in namespaces if name.strip())
    flags.setdefault("kubernetes.health_address", _HEALTH)
    if options.metrics_cert_path:
        flags["kubernetes.metrics_cert_file"] = str(Path(options.metrics_cert_path) / options.metrics_cert_name)
        flags["kubernetes.metrics_key_file"] = str(Path(options.metrics_cert_path) / options.metrics_cert_key)
    if options.metrics_secure in _FALSE:  # the reference's word for metrics that everybody may read
        flags["kubernetes.metrics_open"] = "true"
    return flags


def _environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that is a manager and nothing else, and keeps no file of its own."""
    fixed = {"PROPLET_MANAGER": "true", "PROPLET_KUBERNETES": "true", "PROPLET_BROKER": "false"}
    # A container's user may have no home; nothing is written there.
    return {"HOME": "/", **environ, **fixed}


def _ignored(options: argparse.Namespace) -> Iterator[str]:
    """Yield a line for every flag that does not do here what it does in the reference."""
    if options.mqtt_qos not in (None, "1"):
        yield f"--mqtt-qos={options.mqtt_qos}: commands and results always go at QoS 1; attempts tell repetitions"
    if options.scheduler is not None:
        known = "" if options.scheduler in _SCHEDULERS else ", which is none of the reference's"
        yield f"--scheduler={options.scheduler}{known}: among the proplets that fit, the least loaded is always taken"
    if options.metrics_secure not in (None, *_FALSE) and not options.metrics_cert_path:
        yield "--metrics-secure: /metrics is served without TLS, because --metrics-cert-path names no certificate"
    for name in _WITHOUT_EFFECT:
        if getattr(options, name) is not None:
            yield f"--{name.replace('_', '-')}: there are no webhooks here and no HTTP/2; it has no effect"
