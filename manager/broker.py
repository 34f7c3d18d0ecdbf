"""The node's own MQTT broker: one port, two engines.

mosquitto runs as a supervised child where it is installed, else amqtt in this process.

Nobody is anonymous. Plain text stays on loopback; beyond it the broker speaks TLS, and only mosquitto does. Nothing
in the product depends on the broker's memory: it may be killed and its state deleted.
"""

import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Protocol

from proplet.agent.topics import Topics
from proplet.manager.broker_rules import (
    CredentialsError,
    Identity,
    Role,
    Rules,
    load_or_create_identities,
    rules_of,
)

__all__ = [
    "Broker",
    "BrokerError",
    "BrokerSettings",
    "CredentialsError",
    "Identity",
    "Role",
    "Rules",
    "TlsFiles",
    "find_mosquitto",
    "load_or_create_identities",
    "open_broker",
    "rules_of",
]

MIB = 1024 * 1024
Engine = Literal["auto", "mosquitto", "amqtt"]


class BrokerError(Exception):
    """The broker cannot be run as wished, or has failed for good; the message says what to do."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a TLS listener. With `ca_file`, clients need a certificate that it has signed."""

    cert_file: Path
    key_file: Path
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """What the broker is to be. Port 0 takes a free one. Sizes in bytes, queue bounds per client.

    With `tls`, `host` and `port` speak TLS, and the node itself uses a second, plain listener on loopback
    (`local_port`). A queue that is full drops the newest message, as every MQTT broker does.

    Raises:
        BrokerError: plain text was asked for beyond loopback.
        InvalidTopicError: domain or channel cannot be topic levels.
    """

    state_dir: Path
    domain: str
    channel: str
    engine: Engine = "auto"
    host: str = "127.0.0.1"
    port: int = 1883
    tls: TlsFiles | None = None
    local_port: int = 0
    max_connections: int = 1000
    max_message_bytes: int = 10 * MIB
    max_queued_bytes: int = 16 * MIB
    max_queued_messages: int = 10_000
    max_inflight: int = 64
    autosave_s: int = 1800
    connect_timeout_s: float = 10.0  # the embedded engine only; mosquitto has its own

    def __post_init__(self) -> None:
        base = Topics(self.domain, self.channel).base
        if not base.isprintable() or any(level != level.strip() for level in (self.domain, self.channel)):
            raise BrokerError(f"domain {self.domain!r} or channel {self.channel!r} has control characters or space")
        if not self.tls and not is_loopback(self.host):
            raise BrokerError(
                f"the broker would listen on {self.host} in plain text: give it a certificate ([broker] tls_cert_file "
                "and tls_key_file), or keep it on 127.0.0.1"
            )


class Broker(Protocol):
    """A running broker."""

    @property
    def address(self) -> str:
        """Where this node reaches it, as ``tcp://127.0.0.1:1883``. The same for as long as it runs."""
        ...

    @property
    def engine(self) -> Literal["mosquitto", "amqtt"]:
        """Which engine runs."""
        ...

    @property
    def pid(self) -> int | None:
        """The process it runs in, if that is not ours; None between a crash and the restart, too."""
        ...

    async def update(self, identities: Sequence[Identity]) -> None:
        """Replace who may connect, while it runs: new ones soon come in, removed ones are cut.

        Raises:
            BrokerError: two share a name, or the state directory cannot be written; nothing changes then.
        """
        ...

    async def failed(self) -> None:
        """Wait for ever, or until the engine has died beyond repair: then raise BrokerError."""
        ...


def is_loopback(host: str) -> bool:
    """Whether listening on `host` reaches only this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def find_mosquitto() -> str | None:
    """The mosquitto program, also where Debian puts it (``/usr/sbin`` is not on a user's path)."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def check_port(host: str, port: int) -> int:
    """Return `port`, or a free one for 0.

    Raises:
        BrokerError: it is occupied, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BrokerError(
                f"port {port} on {host} cannot be used for the broker ({error.strerror}): stop the other program "
                "(a mosquitto of the system: systemctl disable --now mosquitto), or set [broker] port, or use that "
                "broker by [mqtt] address"
            ) from None
        return int(probe.getsockname()[1])


def check_names(identities: Sequence[Identity]) -> None:
    """Raise BrokerError where two identities share a user name."""
    names = [identity.username for identity in identities]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
    if twice:
        raise BrokerError(f"two identities share a user name: {', '.join(twice)}")


def url(host: str, port: int) -> str:
    """The address of a plain listener."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


@asynccontextmanager
async def open_broker(settings: BrokerSettings, identities: Sequence[Identity]) -> AsyncIterator[Broker]:
    """Run a broker that accepts connections before this yields, and end it afterwards.

    Raises:
        BrokerError: the engine is not installed, refuses what is asked, or its port is occupied.
    """
    check_names(identities)
    program = find_mosquitto() if settings.engine != "amqtt" else None
    if program is not None:
        from proplet.manager.broker_mosquitto import run_mosquitto

        async with run_mosquitto(program, settings, identities) as mosquitto:
            yield mosquitto
    elif settings.engine == "mosquitto":
        raise BrokerError("mosquitto is not installed: apt-get install mosquitto, or set [broker] engine to auto")
    else:
        from proplet.manager.broker_amqtt import run_amqtt

        async with run_amqtt(settings, identities) as amqtt:
            yield amqtt
