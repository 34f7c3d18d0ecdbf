"""The manager's HTTP API: a Unix socket for this machine's users, and optionally TCP for everybody with the token.

`open_api` is the service. Starlette and uvicorn are imported when it starts, so a node without a manager does not pay
for them.
"""

import ipaddress
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from proplet.manager.ports import Control, Store

if TYPE_CHECKING:
    from proplet.manager.api_routes import Application, Context, NodeState
    from proplet.manager.api_server import Listener

log = logging.getLogger(__name__)

_MIN_TOKEN = 16
_GRACE_S = 3
_BODIES_AT_ONCE = 4  # largest ones


class ApiError(Exception):
    """The API cannot be opened as configured; the message says what to change."""


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Where the API listens and how much it takes on.

    Attributes:
        socket: path of the Unix socket; None switches it off.
        host: address of the TCP listener; None switches it off. Other than loopback needs TLS.
        port: its port; 0 takes any free one.
        token: what clients must show there, at least 16 characters.
        allowed_hosts: further names the TCP listener answers to, besides loopback's, `host`, and its own addresses.
        allowed_origins: origins (``https://console.example``) of web pages that may use it.
        tls_certificate: PEM file with the certificate chain.
        tls_key: PEM file with its key.
        max_body_bytes: the largest request body.
        max_connections: per listener; one more gets a 503.
        max_watchers: open watches in all.
        request_timeout_s: the most an answer may take, and a body to arrive; watches excepted.
        head_timeout_s: the most a request's head may take to arrive.
        stall_timeout_s: after this a peer that does not read its answer loses its connection.
        heartbeat_s: how often a quiet watch says that it is alive.
    """

    socket: Path | None = None
    host: str | None = None
    port: int = 7070
    token: str = field(default="", repr=False)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    max_body_bytes: int = 16 * 1024 * 1024
    max_connections: int = 128
    max_watchers: int = 64
    request_timeout_s: float = 60.0
    head_timeout_s: float = 10.0
    stall_timeout_s: float = 30.0
    heartbeat_s: float = 15.0

    def check(self) -> None:
        """Raise ApiError where these settings would not be safe, or make no sense."""
        if self.socket is None and self.host is None:
            raise ApiError("the API has neither a socket nor a TCP address: configure one")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ApiError("TLS needs both a certificate and a key: configure the other one, too")
        if self.host is None:
            return
        if self.tls_certificate is None and not _is_loopback(self.host):
            raise ApiError(
                f"the API does not listen on {self.host} without TLS: configure a certificate and a key, "
                "or listen on 127.0.0.1 behind a TLS proxy"
            )
        if len(self.token) < _MIN_TOKEN or not self.token.isascii() or not self.token.isprintable():
            raise ApiError(f"the API's TCP listener needs a token of at least {_MIN_TOKEN} printable ASCII characters")
        if any(char in self.token for char in " /?#%:"):
            raise ApiError("the API's token must not contain any of: space / ? # % :  (it may be part of a URL)")


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name can be pointed anywhere


@dataclass(frozen=True, slots=True)
class Api:
    """An open API. `address` is the TCP listener's, as bound; `url` is what clients use there, without the token."""

    socket: Path | None
    address: tuple[str, int] | None
    url: str | None


@asynccontextmanager
async def open_api(
    settings: ApiSettings, store: Store, control: Control, node: "Callable[[], NodeState]"
) -> AsyncIterator[Api]:
    """Serve the API while the context is open; yields when connections are accepted.

    On leaving, watches end at once, other requests have three seconds; the socket's file is removed.

    Raises:
        ApiError: it cannot be opened as configured.
    """
    settings.check()
    from proplet.manager.api_routes import Application

    context = _context(settings, store, control, node)
    with ExitStack() as sockets:
        api, listeners = _listen(settings, Application(context), sockets)
        async with anyio.create_task_group() as group:
            try:
                for listener in listeners:
                    await group.start(listener.run_until_stopped)
                log.info("the API listens on %s", " and ".join(str(place) for place in (api.socket, api.url) if place))
                yield api
            finally:
                context.closing.set()
                with anyio.move_on_after(_GRACE_S + 2, shield=True):
                    for listener in listeners:
                        listener.stop()
                    for listener in listeners:
                        await listener.finished.wait()
                for listener in listeners:
                    listener.abandon()


def _context(settings: ApiSettings, store: Store, control: Control, node: "Callable[[], NodeState]") -> "Context":
    from proplet.manager.api_http import BodyBudget, BodyRules
    from proplet.manager.api_routes import Context
    from proplet.manager.api_table import OPERATIONS

    budget = BodyBudget(settings.max_body_bytes * _BODIES_AT_ONCE)
    return Context(
        store=store,
        control=control,
        node=node,
        body=BodyRules(settings.max_body_bytes, settings.request_timeout_s, budget),
        timeout_s=settings.request_timeout_s,
        max_watchers=settings.max_watchers,
        heartbeat_s=settings.heartbeat_s,
        operations=OPERATIONS,
    )


def _listen(settings: ApiSettings, app: "Application", sockets: ExitStack) -> "tuple[Api, list[Listener]]":
    from proplet.manager.api_guard import DoorRules, Guard
    from proplet.manager.api_server import Listener, ListenError, Patience, Tls, remove_socket, tcp_socket, unix_socket

    patience = Patience(settings.max_connections, settings.head_timeout_s, settings.stall_timeout_s, _GRACE_S)
    listeners: list[Listener] = []
    address = url = None
    try:
        if settings.socket is not None:
            sock = sockets.enter_context(closing(unix_socket(settings.socket)))
            sockets.callback(remove_socket, settings.socket, settings.socket.stat())
            listeners.append(Listener(Guard(app, None), sock, patience, None))
        if settings.host is not None:
            tls = None
            if settings.tls_certificate is not None and settings.tls_key is not None:
                tls = Tls(settings.tls_certificate, settings.tls_key)
            sock = sockets.enter_context(closing(tcp_socket(settings.host, settings.port)))
            rules = DoorRules.build(settings.token, settings.host, settings.allowed_hosts, settings.allowed_origins)
            listeners.append(Listener(Guard(app, rules), sock, patience, tls))
            host, port = sock.getsockname()[:2]
            address = (host, port)
            url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    except ListenError as error:
        raise ApiError(str(error)) from error
    return Api(settings.socket, address, url), listeners
