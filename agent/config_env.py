"""The environment as a layer of configuration: ``PROPLET_<TABLE>_<KEY>``, and the variables the reference knows.

Source of the latter: absmach/propeller, worker configuration of both its eras (docs, compose files and code).
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from proplet.agent.config_reader import Given, Problem, Tree, did_you_mean, key_of, overlay, settings_of, table_of
from proplet.agent.config_schema import NodeSettings
from proplet.agent.config_values import parse_bool

PREFIX = "PROPLET_"

#: The four credentials of the reference under the names of both its eras; they are also the keys of its file.
CREDENTIALS: Mapping[str, str] = {
    "domain_id": "mqtt.domain",
    "tenant_id": "mqtt.domain",
    "channel_id": "mqtt.channel",
    "client_id": "mqtt.client_id",
    "entity_id": "mqtt.client_id",
    "client_key": "mqtt.client_key",
    "api_key": "mqtt.client_key",
}

#: Variables of the reference whose names differ from ours.
REFERENCE: Mapping[str, str] = {
    **{PREFIX + key.upper(): path for key, path in CREDENTIALS.items()},
    "PROPLET_LOG_LEVEL": "node.log_level",
    "PROPLET_DESCRIPTION": "node.description",
    "PROPLET_TAGS": "node.tags",
    "PROPLET_LOCATION": "node.location",
    "PROPLET_COLLECT_SYSTEM_INFO": "node.collect_system_info",
    "PROPLET_MANAGER_K8S_NAMESPACE": "node.namespace",
    "PROPLET_MQTT_MAX_PACKET_SIZE": "mqtt.max_packet_size",
    "PROPLET_MQTT_TLS_CA_CERT": "mqtt.tls.ca_file",
    "PROPLET_MQTT_TLS_CLIENT_CERT": "mqtt.tls.cert_file",
    "PROPLET_MQTT_TLS_CLIENT_KEY": "mqtt.tls.key_file",
    "PROPLET_LIVELINESS_INTERVAL": "agent.liveliness_interval",
    "PROPLET_METRICS_INTERVAL": "agent.metrics_interval",
    "PROPLET_ENABLE_MONITORING": "agent.enable_monitoring",
    "PROPLET_EXTERNAL_WASM_RUNTIME": "runtime.external",
    "PROPLET_HTTP_ENABLED": "runtime.http.enabled",
    "PROPLET_HTTP_PROXY_PORT": "runtime.http.first_port",
}

#: Variables of the reference that this program knows and does nothing with.
WITHOUT_EFFECT = frozenset(
    PREFIX + name
    for name in (
        "INSTANCE_ID MQTT_TIMEOUT MQTT_INFLIGHT MQTT_REQUEST_CHANNEL_CAPACITY HTTP_TLS_CA_CERT "
        "HTTP_TLS_INSECURE_SKIP_VERIFY PULL_CONCURRENT_LIMIT HAL_ENABLED KBS_URI AA_CONFIG_PATH "
        "LAYER_STORE_PATH USB_ENABLED PLUGIN_DIR OTEL_URL TRACE_RATIO"
    ).split()
)

#: The reference's directories, between colons: every guest has them, at the same path, to read and to write.
DIRS = "PROPLET_DIRS"

#: The reference's page of metrics, for everybody who reaches the port: on where one of these is given and says so.
METRICS = ("PROPLET_METRICS_ENABLED", "PROPLET_METRICS_PORT")
_METRICS_PORT = "9092"

#: Variables that are not settings: where the configuration is, and those of the command line.
OTHER = frozenset({"PROPLET_CONFIG_FILE", "PROPLET_CONFIG_SECTION", "PROPLET_DEBUG", "PROPLET_SOCKET", "PROPLET_TOKEN"})

#: Tables that may be absent: ``PROPLET_BROKER=true`` is an empty table, ``false`` takes the file's away.
SWITCHES: Mapping[str, str] = {
    "PROPLET_BROKER": "broker",
    "PROPLET_MANAGER": "manager",
    "PROPLET_KUBERNETES": "kubernetes",
}


@dataclass(slots=True)
class Environment:
    """What the variables say: `settings` as a layer, tables switched on or off, and what was wrong or unknown."""

    settings: Tree = field(default_factory=dict)
    switches: dict[str, bool] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def setting_paths(schema: type = NodeSettings, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every setting; a table with free keys is one setting."""
    hints = get_type_hints(schema)
    for entry in settings_of(schema):
        path = prefix + key_of(entry.name)
        table = table_of(hints[entry.name])
        if table is not None and Mapping not in _origins(hints[entry.name]):
            yield from setting_paths(table, path + ".")
        else:
            yield path


def _origins(hint: Any) -> tuple[Any, ...]:
    return (
        getattr(hint, "__origin__", types.NoneType),
        *(getattr(part, "__origin__", None) for part in get_args(hint)),
    )


def variable_of(path: str) -> str:
    """Return our own variable for a setting."""
    return PREFIX + path.replace(".", "_").upper()


def read_environment(environ: Mapping[str, str]) -> Environment:
    """Return the settings that ``PROPLET_*`` variables give; empty ones count as absent (compose files carry many)."""
    found = Environment()
    ours = {variable_of(path): path for path in setting_paths()}
    names: dict[str, list[str]] = {}
    unused, unknown = [], []
    metrics: dict[str, str] = {}
    for name in sorted(environ):
        text = environ[name]
        if not name.startswith(PREFIX) or name in OTHER or not text:
            continue
        path = REFERENCE.get(name) or ours.get(name)
        if path is not None:
            names.setdefault(path, []).append(name)
        elif name == DIRS:
            found.settings = overlay(found.settings, leaf("agent.permissions.dirs", _always(text)))
        elif name in METRICS:
            metrics[name] = text
        elif name in SWITCHES:
            _switch(found, name, text)
        elif name in WITHOUT_EFFECT:
            unused.append(name)
        else:
            unknown.append(name)
    if metrics and "agent.metrics_address" not in names:
        _metrics(found, metrics)
    for path, given in names.items():
        if len({environ[name] for name in given}) > 1:
            found.problems.append(Problem(" and ".join(given), path, "they differ; set only one of them"))
        layer = leaf(path, Given(environ[given[0]], given[0], text=True, base=Path.cwd()))
        found.settings = overlay(found.settings, layer)
    if unused:
        found.warnings.append(f"known to the reference, without effect here: {', '.join(unused)}")
    known = [*ours, *REFERENCE, *SWITCHES, *OTHER, *METRICS, DIRS]
    found.warnings.extend(f"unknown variable {name}, ignored{did_you_mean(name, known)}" for name in unknown)
    return found


def _always(text: str) -> Given:
    def given(raw: Any) -> Given:
        return Given(raw, DIRS, base=Path.cwd())

    paths = [part for part in text.split(":") if part]
    return given([{"host": given(path), "read_only": given(False), "always": given(True)} for path in paths])


def _metrics(found: Environment, given: Mapping[str, str]) -> None:
    """Take the reference's two variables as an address."""
    switch, where = METRICS
    try:
        on = parse_bool(given.get(switch, "true"))
    except ValueError as error:
        found.problems.append(Problem(switch, "agent.metrics_address", str(error)))
        return
    address = f":{given.get(where, _METRICS_PORT)}" if on else "0"
    layer = leaf("agent.metrics_address", Given(address, where if where in given else switch, text=True))
    found.settings = overlay(found.settings, layer)


def _switch(found: Environment, name: str, text: str) -> None:
    try:
        found.switches[SWITCHES[name]] = parse_bool(text)
    except ValueError as error:
        found.problems.append(Problem(name, SWITCHES[name], str(error)))


def leaf(path: str, node: Any) -> Tree:
    """Return the tree that holds `node` at a dotted path."""
    for key in reversed(path.split(".")):
        node = {key: node}
    return dict(node)
