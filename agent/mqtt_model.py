"""What a link to a broker is described with: addresses, settings, messages, events and errors. No library, no I/O."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address

_SCHEMES = {
    "tcp": (False, False, 1883),
    "mqtt": (False, False, 1883),
    "ssl": (True, False, 8883),
    "tls": (True, False, 8883),
    "mqtts": (True, False, 8883),
    "ws": (False, True, 80),
    "wss": (True, True, 443),
}


class AddressError(ValueError):
    """A broker's address cannot be understood; the message names it and the accepted forms."""


class NotConnectedError(Exception):
    """There is no connection, or it was lost before the broker's answer: keep the message and send it again."""


class MessageTooLargeError(Exception):
    """The message exceeds the limit of this link and was not sent; sending it again does not help."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker listens and how it is spoken to; `path` is only of a WebSocket."""

    host: str
    port: int
    tls: bool = False
    websocket: bool = False
    path: str = ""


def parse_address(text: str) -> Address:
    """Return what `text` says: ``scheme://host:port``, ``host:port``, a bare host or ``[v6]:port``.

    Schemes are tcp and mqtt (1883), ssl, tls and mqtts (8883), ws (80) and wss (443).

    Raises:
        AddressError: it is none of these.
    """

    def wrong(why: str) -> AddressError:
        forms = "tcp://host:1883, mqtts://host:8883, wss://host/path, host:port or [v6]:port"
        return AddressError(f"MQTT address {text!r}: {why} (accepted: {forms})")

    scheme, found, rest = text.strip().partition("://")
    if not found:
        scheme, rest = "tcp", text.strip()
    if scheme.lower() not in _SCHEMES:
        raise wrong(f"unknown scheme {scheme!r}, known are {', '.join(_SCHEMES)}")
    tls, websocket, default_port = _SCHEMES[scheme.lower()]
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        raise wrong("credentials do not belong into the address")
    if path and not websocket:
        raise wrong("only ws and wss have a path")
    if any(c.isspace() or c in "?#\\\0" for c in authority) or any(c.isspace() or c in "#\0" for c in path):
        raise wrong("it has a character that no address has")
    host, port = _split_authority(authority, wrong)
    if not websocket:
        slash = path = ""
    elif not path:
        slash, path = "/", "mqtt"
    return Address(host, default_port if port is None else port, tls, websocket, slash + path)


def _split_authority(authority: str, wrong: Callable[[str], AddressError]) -> tuple[str, int | None]:
    if authority.startswith("["):
        host, closed, tail = authority[1:].partition("]")
        if not closed or (tail and not tail.startswith(":")):
            raise wrong("an IPv6 address is written [address]:port")
        port_text = tail[1:] if tail else None
        if not _is_ipv6(host):
            raise wrong(f"{host!r} is no IPv6 address")
    elif _is_ipv6(authority):
        return authority, None
    else:
        host, colon, tail = authority.partition(":")
        port_text = tail if colon else None
    if not host:
        raise wrong("the host is missing")
    if port_text is None:
        return host, None
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 0 < int(port_text) < 65536):
        raise wrong(f"{port_text!r} is no port (1 to 65535)")
    return host, int(port_text)


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """How a link reaches its broker. Times in seconds; `max_packet_bytes` limits both directions.

    An empty `client_id` lets the broker choose one, which MQTT allows only with a clean session.

    Raises:
        AddressError: the address is none.
        ValueError: another value makes no sense.
    """

    address: str = "tcp://localhost:1883"
    client_id: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    keepalive_s: int = 30
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    insecure_skip_verify: bool = False
    max_packet_bytes: int = 10 * 1024 * 1024
    max_inflight: int = 20
    clean_session: bool = False
    backoff_max_s: float = 60.0

    def __post_init__(self) -> None:
        parse_address(self.address)
        if self.key_file and not self.cert_file:
            raise ValueError("a client key needs its certificate: set cert_file beside key_file")
        if not 1 <= self.keepalive_s <= 65535:
            raise ValueError(f"keepalive_s is {self.keepalive_s}; MQTT allows 1 to 65535 seconds")
        if not 1 <= self.max_inflight <= 65535:
            raise ValueError(f"max_inflight is {self.max_inflight}; MQTT allows 1 to 65535 messages")
        if self.max_packet_bytes < 1024:
            raise ValueError(f"max_packet_bytes is {self.max_packet_bytes}; less than 1024 carries no task")
        if not (math.isfinite(self.backoff_max_s) and self.backoff_max_s > 0):
            raise ValueError(f"backoff_max_s is {self.backoff_max_s}; it must be more than 0 seconds")


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes for us when the connection ends without a goodbye."""

    topic: str
    payload: bytes
    qos: int = 1


@dataclass(frozen=True, slots=True)
class Receipt:
    """Names a delivery to the broker. Only of the connection it came over: packet ids are used again."""

    connection: int
    packet_id: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message from the broker, to be acknowledged once it is durable. `duplicate`: it may have come before."""

    topic: str
    payload: bytes
    qos: int
    duplicate: bool
    retained: bool
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker knows us and every subscription. `session_present`: it remembered us from before."""

    session_present: bool


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended or could not be made, for this `reason`; the next attempt follows by itself.

    Told once per reason, not once per attempt.
    """

    reason: str


LinkEvent = Delivery | Connected | Disconnected
