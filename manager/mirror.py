"""The node's store as a registry on the network: read-only, pull-through for what a list allows.

Place in the flow: `open_mirror` listens and puts the door before `mirror_routes`. Who may have what:

* Without a password the listener is on loopback only, and every program of this machine reaches it, guests with network
  access among them. So it gives what was meant to be given: repositories of the allow-list, and images that carry
  the mirror's own name (``localhost/...`` or ``HOST:PORT/...``). What the node has pulled from a private registry with
  its own credentials stays private, as long as nobody hostile owns an allowed repository: its manifests may name any
  blob by its digest, and one that the store has is then served as theirs.
* With the password, the whole store, but nothing without a name: modules that came with a task are nobody else's.
* Pulled through are only repositories of the allow-list, for anybody who may ask; whoever asks spends the node's
  credentials and disk.

Beyond loopback it needs TLS and a password: the rule is the configuration's, and checked here again.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import anyio.to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from proplet.manager.api_guard import Guard, answers_to
from proplet.manager.api_server import Listener, ListenError, Tls, tcp_socket
from proplet.manager.api_server import Patience as ListenerPatience
from proplet.manager.images import Images
from proplet.manager.mirror_names import Naming
from proplet.manager.mirror_routes import KNOWN, MirrorRoutes, RefusedError
from proplet.manager.mirror_shelf import Shelf
from proplet.manager.mirror_through import Patience, open_through
from proplet.oci.errors import OciError
from proplet.oci.layout import OciLayout
from proplet.oci.settings import RegistrySettings

log = logging.getLogger(__name__)

_GRACE_S = 3
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class MirrorError(Exception):
    """The mirror cannot be opened as configured; the message says what to change."""


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """Where the mirror listens and what it gives away.

    Attributes:
        store_dir: the OCI image layout it serves.
        host: address to listen on. Other than loopback needs TLS and a password.
        port: its port; 0 takes any free one.
        username: with `password`, what clients must show; None lets everybody in who reaches it.
        password: see `username`.
        tls_certificate: PEM file with the certificate chain.
        tls_key: PEM file with its key.
        allow: patterns of repositories (``ghcr.io/org/*``) that are pulled on demand.
        max_connections: one more gets a 503.
        patience: how long answers of registries count, and how long clients wait for one.
    """

    store_dir: Path
    host: str = "127.0.0.1"
    port: int = 5000
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    allow: tuple[str, ...] = ()
    max_connections: int = 128
    patience: Patience = field(default_factory=Patience)

    def check(self) -> None:
        """Raise MirrorError where these settings would not be safe."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise MirrorError("the mirror's TLS needs both a certificate and a key: configure the other one, too")
        if bool(self.username) != bool(self.password):
            raise MirrorError("the mirror needs both a user name and a password, or neither")
        if not _is_loopback(self.host) and (self.tls_certificate is None or not self.password):
            raise MirrorError(
                f"the mirror does not listen on {self.host} without TLS and a password: configure both, "
                "or listen on 127.0.0.1"
            )


@dataclass(frozen=True, slots=True)
class Mirror:
    """An open mirror. `address` is ``host:port`` as an image reference on this machine has it."""

    address: str
    url: str


@asynccontextmanager
async def open_mirror(settings: MirrorSettings, images: Images) -> AsyncIterator[Mirror]:
    """Serve the mirror while the context is open; yields when connections are accepted.

    Raises:
        MirrorError: it cannot be opened as configured.
    """
    settings.check()
    try:
        layout = await anyio.to_thread.run_sync(OciLayout, settings.store_dir.absolute())
    except OciError as error:
        raise MirrorError(f"the mirror has no store: {error}") from error
    try:
        sock = tcp_socket(settings.host, settings.port)
    except ListenError as error:
        raise MirrorError(f"the mirror {error}") from error
    with closing(sock):
        host, port = sock.getsockname()[:2]
        shelf = Shelf(layout)
        naming = Naming(own_registries(host, port), settings.allow)
        async with open_through(images, settings.patience, shelf.refresh) as through:
            door = _Door(MirrorRoutes(shelf, naming, through), settings)
            listener = _listener(Guard(door, None), sock, settings)
            async with anyio.create_task_group() as group:
                await group.start(listener.run_until_stopped)
                try:
                    address = f"{f'[{host}]' if ':' in host else host}:{port}"
                    url = f"{'https' if settings.tls_certificate else 'http'}://{address}"
                    log.info("the mirror of the module store listens on %s", url)
                    yield Mirror(address, url)
                finally:
                    listener.stop()
                    with anyio.move_on_after(_GRACE_S + 2, shield=True):
                        await listener.finished.wait()
                    listener.abandon()


def _listener(app: ASGIApp, sock: socket.socket, settings: MirrorSettings) -> Listener:
    tls = None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        tls = Tls(settings.tls_certificate, settings.tls_key)
    try:
        return Listener(app, sock, ListenerPatience(settings.max_connections, grace_s=_GRACE_S), tls)
    except ListenError as error:
        raise MirrorError(str(error).replace("the API's", "the mirror's")) from error


def own_registries(host: str, port: int) -> frozenset[str]:
    """Return the names, as in image references, under which a mirror that listens there is itself."""
    name = socket.gethostname().lower()
    hosts = {*_LOOPBACK, f"[{host}]" if ":" in host else host, name, f"{name}.local"}
    return frozenset({f"{each}:{port}" for each in hosts} | {"localhost"})


def without_own(registry: RegistrySettings, host: str, port: int) -> RegistrySettings:
    """Return the settings for pulls on behalf of this mirror: it is not asked itself, even where the node asks it."""
    own = own_registries(host, port)

    def others(mirrors: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(mirror for mirror in mirrors if mirror.partition("/")[0].lower() not in own)

    hosts = {name: replace(given, mirrors=others(given.mirrors)) for name, given in registry.hosts.items()}
    return replace(registry, hosts=hosts)


class _Door:
    """Who may come in: with a password whoever shows it; without, whoever is on this machine and is no web page."""

    def __init__(self, app: ASGIApp, settings: MirrorSettings) -> None:
        self._app = app
        self._wanted = _hashed(settings.username, settings.password)
        self._hosts = frozenset({"localhost", "127.0.0.1", "::1", settings.host.lower()})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            if self._wanted is None:
                self._only_local(headers, scope)
            else:
                _only_known(headers, self._wanted)
        except RefusedError as refused:
            await refused.response()(scope, receive, send)
        else:
            await self._app({**scope, KNOWN: self._wanted is not None}, receive, send)

    def _only_local(self, headers: Headers, scope: Scope) -> None:
        """Refuse what a page of another site, or a name that was pointed here, makes a browser ask."""
        if not answers_to(self._hosts, headers.get("host", ""), scope):
            raise RefusedError(421, "DENIED", "without a password this mirror answers to loopback names only")
        if "origin" in headers or headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            raise RefusedError(403, "DENIED", "requests from pages of another origin are refused")


def _only_known(headers: Headers, wanted: bytes) -> None:
    if not _shows(headers.get("authorization"), wanted):
        raise RefusedError(
            401,
            "UNAUTHORIZED",
            "this mirror asks for a user name and a password",
            {"WWW-Authenticate": 'Basic realm="proplet mirror", charset="UTF-8"'},
        )


def _hashed(username: str | None, password: str | None) -> bytes | None:
    if not password:
        return None
    return hashlib.sha256(f"{username}:{password}".encode()).digest()


def _shows(authorization: str | None, wanted: bytes) -> bool:
    scheme, _, value = (authorization or "").partition(" ")
    try:
        given = base64.b64decode(value.strip(), validate=True) if scheme.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        given = b""
    # Digests of one length: the time tells nothing of what is right, nor of how long it is.
    return hmac.compare_digest(hashlib.sha256(given).digest(), wanted)


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name can be pointed anywhere
