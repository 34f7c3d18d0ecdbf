"""The HTTP session under a registry client: guarded addresses, time limits that hold, bodies that end.

requests by itself waits for ever, reads any body into memory, takes passwords from ``~/.netrc`` and follows redirects
anywhere. Each is closed here, below everything that oras does with the session. Imports requests: load it late.
"""

import ipaddress
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.adapters
from urllib3 import HTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from proplet.oci.addresses import is_forbidden, is_loopback
from proplet.oci.errors import AddressRefused, RegistryError
from proplet.oci.trust import system_trust
from proplet.oci.watch import Watch

_CHUNK = 1024 * 1024  # measured: smaller ones cost up to a third of the rate, larger ones miss the cache
_MAX_SMALL_BODY = 1024 * 1024
_MAX_REDIRECTS = 5


class AddressGuard:
    """Which addresses a pull may connect to: never link-local or metadata; loopback only for a registry there."""

    def __init__(self, registry_host: str) -> None:
        """Guard a pull from this host (no port, no brackets)."""
        self._registry_host = registry_host
        self._registry_on_loopback = is_loopback(registry_host)

    def admit(self, host: str, address: str) -> None:
        """Let a connection to ``address``, which is what ``host`` stands for, be made.

        Raises:
            AddressRefused: it is one of those a pull never connects to.
        """
        if is_forbidden(address):
            raise AddressRefused(f"{host} is at {address}, a link-local or metadata address: pulls never go there")
        if is_loopback(address) and host != self._registry_host and not self._registry_on_loopback:
            raise AddressRefused(f"the registry sent us to {host} ({address}), on this device itself: not followed")

    def admit_host(self, host: str, port: int | None) -> None:
        """Let a connection to every address of a host be made. A name that does not resolve is left to the connection.

        Raises:
            AddressRefused: one of them is refused.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        for *_, address in found:
            self.admit(host, str(address[0]))


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe, and whom to show a certificate: both are for the registry, not for where it sends us.

    ``verify`` and ``cert`` are what requests calls so. ``netloc`` is the registry's ``host[:port]``. Other hosts, such
    as token services and storage, are believed by the registry's CA file or by the system's; without a check of
    certificates only on the registry's own host.
    """

    netloc: str
    host: str
    verify: str | bool
    cert: tuple[str, str] | str | None = None

    def of(self, url: str) -> tuple[str | bool, tuple[str, str] | str | None]:
        """``verify`` and ``cert`` for a URL."""
        parts = urlsplit(url)
        if parts.netloc == self.netloc and parts.scheme == "https":
            return self.verify, self.cert
        if self.verify is False and parts.hostname != self.host:
            return system_trust() or True, None
        return self.verify, None

    def more(self, host: str) -> str | None:
        """Certificates (PEM) to believe for this host beside those of ``verify``."""
        system = system_trust()
        if host == self.host or not isinstance(self.verify, str) or system is None or system == self.verify:
            return None
        try:
            return Path(system).read_text(encoding="ascii", errors="replace")
        except OSError:
            return None


class GuardedAdapter(requests.adapters.HTTPAdapter):
    """Connections that ask the guard and obey the watch, and bodies of bounded length unless they are streamed."""

    def __init__(self, guard: AddressGuard, watch: Watch, trust: Trust) -> None:
        """Keep no more than a few connections: a pull speaks to two or three hosts."""
        self._guard = guard
        self._pools = _pools(guard.admit_host, guard.admit, watch, trust)
        # A proxy is the operator's choice and may well be on loopback: only its connections are watched.
        self._proxy_pools = _pools(lambda _host, _port: None, lambda _host, _address: None, watch, trust)
        super().__init__(pool_connections=4, pool_maxsize=2)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool manager use our connections."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Make a proxy's pool manager use our connections."""
        proxies = super().proxy_manager_for(proxy, **kwargs)
        proxies.pool_classes_by_scheme = self._proxy_pools
        return proxies

    def send(  # noqa: PLR0917 - the signature of requests
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        """Send one request; a redirect's own body is dropped, any other that is not streamed is read up to 1 MiB.

        Raises:
            AddressRefused: the URL names a refused address.
            RegistryError: the body is longer.
        """
        host = urlsplit(request.url or "").hostname or ""
        with suppress(ValueError):
            self._guard.admit(str(host), str(ipaddress.ip_address(str(host))))
        response = super().send(request, True, timeout, verify, cert, proxies)
        if response.is_redirect:
            _replace_body(response, b"")
        elif not stream:
            with response:
                body = read_body(response, _MAX_SMALL_BODY)
            _replace_body(response, body)
        return response


class GuardedSession(requests.Session):
    """A session for one pull: a timeout on every request, no ``.netrc``, credentials never sent to another host."""

    def __init__(
        self, guard: AddressGuard, watch: Watch, trust: Trust, connect_s: float, read_s: float, *, proxies: bool
    ) -> None:
        """``proxies``: use those of the environment (not for a registry on loopback)."""
        super().__init__()
        self._watch = watch
        self._trust = trust
        self._connect_s = connect_s
        self._read_s = read_s
        self.trust_env = proxies
        self.last_status = 0  # oras tells only that it got no token, not why
        self.auth = _keep_headers  # otherwise requests looks into ~/.netrc
        self.max_redirects = _MAX_REDIRECTS
        # Digests are of the bytes as stored; compression would only hide how many there are.
        self.headers["Accept-Encoding"] = "identity"
        adapter = GuardedAdapter(guard, watch, trust)
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send, with time limits even where the caller (oras) sets none.

        Raises:
            PullCancelled, PullTimeout: the pull must stop.
        """
        self._watch.check()
        left = self._watch.remaining()
        if not kwargs.get("timeout"):
            kwargs["timeout"] = (min(self._connect_s, left), min(self._read_s, left))
        # For every request anew, since requests would keep them on the way to wherever a redirect leads.
        kwargs["verify"], kwargs["cert"] = self._trust.of(str(request.url))
        response = super().send(request, **kwargs)
        self.last_status = response.status_code
        return response

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Decide about a redirect: no credentials for another host, no step down from https.

        Raises:
            AddressRefused: it leads from https to http.
        """
        old, new = str(response.request.url), str(prepared_request.url)
        if old.startswith("https:") and not new.startswith("https:"):
            where = urlsplit(new).hostname
            raise AddressRefused(f"the registry redirects from https to plain http at {where}: not followed")
        if self.should_strip_auth(old, new):
            prepared_request.headers.pop("Authorization", None)


def body_chunks(response: requests.Response) -> Iterator[bytes]:
    """The body as it arrives, undecoded. One read of the socket each, so that a trickle cannot outlast a time limit."""
    while chunk := response.raw.read1(_CHUNK, decode_content=False):
        yield chunk


def read_start(response: requests.Response, limit: int) -> bytes:
    """The beginning of a body of which no more is wanted."""
    body = bytearray()
    for chunk in body_chunks(response):
        body += chunk
        if len(body) >= limit:
            break
    response.close()
    return bytes(body[:limit])


def read_body(response: requests.Response, limit: int) -> bytes:
    """A small body.

    Raises:
        RegistryError: it is longer than ``limit`` bytes.
    """
    body = bytearray()
    for chunk in body_chunks(response):
        body += chunk
        if len(body) > limit:
            raise RegistryError(
                f"{urlsplit(str(response.url)).hostname} answers with more than {limit} bytes: not read"
            )
    return bytes(body)


def _replace_body(response: requests.Response, body: bytes) -> None:
    response.close()
    headers: Mapping[str, str] = {key: value for key, value in response.headers.items() if key.lower() == "location"}
    response.raw = HTTPResponse(BytesIO(body), headers=headers, status=response.status_code, preload_content=False)


def _keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _pools(
    admit_host: Callable[[str, int | None], None], admit: Callable[[str, str], None], watch: Watch, trust: Trust
) -> dict[str, type[HTTPConnectionPool]]:
    """Connection pools whose connections ask before and after they connect.

    Before, so that a refused host never sees a packet; after, because a name may have come to mean something else.
    """

    def connected(host: str, connection: socket.socket) -> socket.socket:
        try:
            admit(host, str(connection.getpeername()[0]))
        except BaseException:
            connection.close()
            raise
        watch.adopt(connection)
        return connection

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            admit_host(self.host, self.port)
            return connected(self.host, super()._new_conn())

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            self.ca_cert_data = trust.more(self.host)
            super().connect()

        def _new_conn(self) -> socket.socket:
            admit_host(self.host, self.port)
            return connected(self.host, super()._new_conn())

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
