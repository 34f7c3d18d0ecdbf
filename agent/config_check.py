"""Rules between settings, checked once all of them can be read: each problem says what to change."""

import ipaddress
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from proplet.agent.config_permissions import check_permissions
from proplet.agent.config_reader import Problem
from proplet.agent.config_schema import (
    AgentTable,
    ApiTable,
    BrokerTable,
    HttpTable,
    KubernetesTable,
    MirrorTable,
    ModulesTable,
    MqttTable,
    NodeSettings,
)
from proplet.agent.mqtt_model import AddressError, parse_address
from proplet.oci.errors import InvalidPolicy
from proplet.oci.policy import load_policy

# unix(7): sun_path holds 108 bytes, the last of them zero.
_MAX_SOCKET_PATH = 107
_MAX_ID = 128
_MIN_TOKEN = 16  # of the manager's API
_MAX_PORT = 65535


def check(settings: NodeSettings, origins: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what does not fit together. `origins` says where each setting was given."""
    for setting, message in _rules(settings):
        # A rule about a table is best found by the first value given in it.
        inside = (origin for path, origin in origins.items() if path.startswith(f"{setting}."))
        yield Problem(origins.get(setting) or next(inside, ""), setting, message)


def _rules(settings: NodeSettings) -> Iterator[tuple[str, str]]:
    yield from _identity(settings)
    yield from _mqtt(settings.mqtt, own_broker=settings.broker is not None)
    yield from _agent(settings.agent)
    yield from check_permissions(settings)
    yield from _http(settings.runtime.http)
    if settings.broker is not None:
        yield from _broker(settings.broker)
    if settings.manager is not None:
        yield from _api(settings.manager.api)
        if settings.manager.mirror is not None:
            yield from _mirror(settings.manager.mirror)
        if len(bytes(settings.manager.socket)) > _MAX_SOCKET_PATH:
            yield "manager.socket", f"a Unix socket's path has at most {_MAX_SOCKET_PATH} bytes; set a shorter one"
    if settings.kubernetes is not None:
        yield from _kubernetes(settings.kubernetes, managed=settings.manager is not None)
    for host, registry in settings.registries.items():
        if not _is_place(host) or "/" in host:
            yield f'registries."{host}"', "must be named as in images: host or host:port, without a scheme or a path"
        for mirror in registry.mirrors:
            if not _is_place(mirror):
                yield f'registries."{host}".mirrors', f'"{mirror}" must be host, host:port or host:port/prefix, no URL'
        if (registry.username is None) != (registry.password is None):
            yield f'registries."{host}"', "username and password (or password_file) belong together: give both or none"
        table = f'registries."{host}"'
        yield from _readable(f"{table}.ca_file", registry.ca_file)
        files = registry.client_cert_file, registry.client_key_file
        yield from _pair(f"{table}.client_cert_file", files[0], f"{table}.client_key_file", files[1])
    yield from _policy(settings.modules)


def _is_place(text: str) -> bool:
    """Whether it can be a registry; with a scheme, a user or spaces nothing would ever be asked there."""
    host = text.partition("/")[0]
    return bool(host) and "://" not in text and not any(sign.isspace() or sign in "@?#" for sign in text)


def _policy(modules: ModulesTable) -> Iterator[tuple[str, str]]:
    """Whoever writes a policy learns here what is wrong with it, and not when an image is refused."""
    try:
        load_policy(modules.signature_policy, signed_only=modules.signed_only)
    except InvalidPolicy as error:
        yield "modules.signed_only" if modules.signature_policy is None else "modules.signature_policy", str(error)


def _identity(settings: NodeSettings) -> Iterator[tuple[str, str]]:
    node, client_id = settings.node, settings.mqtt.client_id
    if client_id is not None and client_id != node.id:
        yield (
            "node.id",
            f'is "{node.id}", but mqtt.client_id is "{client_id}": they are one thing, set only one of them',
        )
    yield from _topic_part("node.id", node.id)
    if len(node.id) > _MAX_ID:
        yield "node.id", f"must have at most {_MAX_ID} characters"
    if not node.namespace.strip():
        yield "node.namespace", 'must not be empty; the usual one is "default"'


def _topic_part(setting: str, text: str) -> Iterator[tuple[str, str]]:
    # MQTT 3.1.1 section 4.7: a level of a topic holds no separator and, in a name, no wildcard.
    if not text or not text.isprintable() or any(character in "/+# " for character in text):
        yield setting, "must be a part of MQTT topics: at least one character, none of them / + # or a space"


def _mqtt(mqtt: MqttTable, *, own_broker: bool) -> Iterator[tuple[str, str]]:
    if mqtt.address is None:
        if not own_broker:
            yield "mqtt.address", "is missing: name a broker (tcp://host:1883), or run one here with a [broker] table"
            return
    else:
        yield from _address(mqtt.address)
    for setting, text, variable in (
        ("mqtt.domain", mqtt.domain, "PROPLET_DOMAIN_ID"),
        ("mqtt.channel", mqtt.channel, "PROPLET_CHANNEL_ID"),
    ):
        if not text:
            yield setting, f"is missing: the broker at mqtt.address needs it ({variable})"
        else:
            yield from _topic_part(setting, text)
    yield from _readable("mqtt.tls.ca_file", mqtt.tls.ca_file)
    yield from _pair("mqtt.tls.cert_file", mqtt.tls.cert_file, "mqtt.tls.key_file", mqtt.tls.key_file)


def _address(address: str) -> Iterator[tuple[str, str]]:
    if "@" in address:
        # Said before anything shows the address: it holds a password.
        yield "mqtt.address", "must not hold a user and a password: use mqtt.client_id and mqtt.client_key_file"
        return
    try:
        parse_address(address)
    except AddressError as error:
        yield "mqtt.address", str(error)


def _agent(agent: AgentTable) -> Iterator[tuple[str, str]]:
    if agent.metrics_address not in (None, "", "0") and bind_address(str(agent.metrics_address)) is None:
        yield (
            "agent.metrics_address",
            f'"{agent.metrics_address}" is no address to listen on: 127.0.0.1:port, :port for everybody, or 0 for none',
        )
    for key in ("memory_bytes", "cpu_s", "wall_s", "output_bytes", "stack_bytes", "fuel"):
        default, ceiling = getattr(agent.limits, key), getattr(agent.ceilings, key)
        if ceiling is not None and (math.inf if default is None else default) > ceiling:
            name = key.removesuffix("_s").removesuffix("_bytes")
            yield (
                f"agent.ceilings.{name}",
                f"is below agent.limits.{name}, what a task gets by default: lower that, too",
            )


def _http(http: HttpTable) -> Iterator[tuple[str, str]]:
    try:
        ipaddress.ip_address(http.host)
    except ValueError:
        yield "runtime.http.host", f'"{http.host}" is no IP address; 127.0.0.1 is this machine only, 0.0.0.0 everyone'
    if http.last_port is not None and http.last_port < http.first_port:
        yield "runtime.http.last_port", f"is below first_port, {http.first_port}"


def _broker(broker: BrokerTable) -> Iterator[tuple[str, str]]:
    yield from _pair("broker.tls_cert_file", broker.tls_cert_file, "broker.tls_key_file", broker.tls_key_file)
    if not is_loopback(broker.host) and broker.tls_cert_file is None:
        yield (
            "broker.host",
            f"{broker.host} is not loopback: give tls_cert_file and tls_key_file, or use 127.0.0.1",
        )
    for name in broker.proplets:
        for _, message in _topic_part("broker.proplets", name):
            yield "broker.proplets", f'"{name}" {message}'


def _api(api: ApiTable) -> Iterator[tuple[str, str]]:
    yield from _pair("manager.api.tls_cert_file", api.tls_cert_file, "manager.api.tls_key_file", api.tls_key_file)
    if api.host is not None and not is_loopback(api.host) and api.tls_cert_file is None:
        yield "manager.api.host", f"{api.host} is not loopback: give tls_cert_file and tls_key_file, or use 127.0.0.1"
    if api.host is not None:
        yield from _token(api)


def _mirror(mirror: MirrorTable) -> Iterator[tuple[str, str]]:
    files = mirror.tls_cert_file, mirror.tls_key_file
    yield from _pair("manager.mirror.tls_cert_file", files[0], "manager.mirror.tls_key_file", files[1])
    if (mirror.username is None) != (mirror.password is None):
        yield "manager.mirror", "username and password (or password_file) belong together: give both or none"
    if not is_loopback(mirror.host) and (mirror.tls_cert_file is None or mirror.password is None):
        yield (
            "manager.mirror.host",
            f"{mirror.host} is not loopback: give tls_cert_file, tls_key_file, username and password_file",
        )


def _token(api: ApiTable) -> Iterator[tuple[str, str]]:
    if api.token is None:
        yield "manager.api.host", "a listener on TCP needs manager.api.token_file: a file with at least 16 characters"
        return
    token = api.token.reveal()
    plain = token.isascii() and token.isprintable() and not any(character in token for character in " /?#%:")
    if len(token) < _MIN_TOKEN or not plain:
        yield (
            "manager.api.token",
            f"must have at least {_MIN_TOKEN} ASCII characters, none of them / ? # % : or a space (a URL may hold it)",
        )


def _kubernetes(cluster: KubernetesTable, *, managed: bool) -> Iterator[tuple[str, str]]:
    if not managed:
        yield "kubernetes", "is about the manager, which is off here: remove it, or run a manager"
    yield from _readable("kubernetes.kubeconfig", cluster.kubeconfig)
    for name in cluster.namespaces:
        if not _is_name(name):
            yield "kubernetes.namespaces", f'"{name}" is no namespace\'s name: lower-case letters, digits and dashes'
    if not all(_is_name(part) for part in cluster.group.split(".")):
        yield "kubernetes.group", f'"{cluster.group}" is no API group, such as propeller.propeller.absmach.eu'
    yield from _patience(cluster)
    for setting, address in (
        ("kubernetes.health_address", cluster.health_address),
        ("kubernetes.metrics_address", cluster.metrics_address),
    ):
        if address not in (None, "", "0") and bind_address(str(address)) is None:
            yield setting, f'"{address}" is no address to listen on: host:port, :port, or 0 for none'
    first, second = cluster.metrics_cert_file, cluster.metrics_key_file
    yield from _pair("kubernetes.metrics_cert_file", first, "kubernetes.metrics_key_file", second)
    yield from _readable("kubernetes.metrics_token_file", cluster.metrics_token_file)


def _patience(cluster: KubernetesTable) -> Iterator[tuple[str, str]]:
    if not cluster.lease_duration_s.is_integer():
        yield "kubernetes.lease_duration", "must be whole seconds, as a Lease has them"
    for shorter, longer in (
        ("renew_deadline", "lease_duration"),
        ("retry_period", "renew_deadline"),
        ("api_server_timeout", "refused_hold"),
    ):
        less, more = getattr(cluster, f"{shorter}_s"), getattr(cluster, f"{longer}_s")
        if less >= more:
            yield f"kubernetes.{shorter}", f"{less:g} s is not less than kubernetes.{longer}, {more:g} s: change one"


def _is_name(text: str) -> bool:
    # RFC 1123: a label of a DNS name.
    plain = text.isascii() and all(c.isdigit() or c.islower() or c == "-" for c in text)
    return plain and 0 < len(text) <= 63 and text.strip("-") == text


def bind_address(text: str) -> tuple[str, int] | None:
    """Return host ("" is every one) and port of an address to listen on; None if it is none."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > _MAX_PORT:
        return None
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether a listener on `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _pair(first: str, certificate: Path | None, second: str, key: Path | None) -> Iterator[tuple[str, str]]:
    if (certificate is None) != (key is None):
        yield (second, f"belongs to {first}: give both") if key is None else (first, f"belongs to {second}: give both")
        return
    yield from _readable(first, certificate)
    yield from _readable(second, key)


def _readable(setting: str, path: Path | None) -> Iterator[tuple[str, str]]:
    if path is None:
        return
    try:
        with path.open("rb"):
            return
    except (OSError, ValueError) as error:
        yield setting, f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
