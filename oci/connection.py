"""A connection to one registry: requests with authorization, asked again while the registry is busy, and their bodies.

oras-py 0.2.43 gives the session (here) and the Basic and token protocols (`proplet.oci.login`); everything that decides
about bytes is done by us: it checks no digest, sets no time limit and no size limit, answers a Basic challenge with the
token protocol by default, then sleeps for 131 s between retries (its ``do_request``), and makes nothing of an index.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, TypeVar
from urllib.parse import urljoin, urlsplit

from proplet.oci.addresses import is_forbidden, is_loopback
from proplet.oci.errors import (
    AddressRefused,
    ConnectionBroken,
    ManifestUnknown,
    OciError,
    PullTimeout,
    RegistryError,
    RegistryFailing,
    RegistryUnreachable,
    RepositoryUnknown,
    Truncated,
)
from proplet.oci.headers import retry_after
from proplet.oci.login import Login
from proplet.oci.reference import DOCKER_HUB, Reference
from proplet.oci.settings import RegistrySettings
from proplet.oci.trust import certificates, client_certificate, is_plain
from proplet.oci.watch import Watch

if TYPE_CHECKING:
    import requests

_HUB_API = "registry-1.docker.io"
_RETRIED = {429, 500, 502, 503, 504}
_RETRIED_PATCH = {429}  # whether a failed part of an upload was taken nobody knows
_MAX_ERROR_BYTES = 64 * 1024
_LEAST_PROGRESS = 64 * 1024  # of one attempt that is not counted
_Result = TypeVar("_Result")
_Body = bytes | IO[bytes] | None


class Connection:
    """A session with the registry of one reference; a context manager.

    ``namespace``: the registry whose images a mirror is asked for; containerd tells mirrors so, in ``?ns=``.
    ``actions``: ``pull,push`` asks the token service for both. ``watch``: of a larger whole, which also closes it.

    Raises:
        AddressRefused: the registry is at a link-local or metadata address.
        TlsFailed: the CA file or the client certificate cannot be used.
    """

    def __init__(
        self,
        reference: Reference,
        settings: RegistrySettings,
        cancelled: Callable[[], bool] = lambda: False,
        *,
        actions: str = "pull",
        namespace: str | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Load oras and prepare a session; nothing is sent yet."""
        host = settings.host(reference.registry)
        if is_forbidden(reference.host):
            raise AddressRefused(f"registry {reference.registry} is a link-local or metadata address: never used")
        self.reference = reference
        self.settings = settings
        self._namespace = namespace
        self._answered = False
        plain = is_plain(reference, host)
        api = _HUB_API if reference.registry == DOCKER_HUB else reference.registry
        self.root = f"{'http' if plain else 'https'}://{api}/v2/{reference.repository}"
        verify = certificates(reference, host)
        cert = client_certificate(host, reference.registry)

        import oras.provider

        from proplet.oci import faults, transport

        # What oras logs about refused logins reaches the user as our errors.
        logging.getLogger("oras.logger").setLevel(logging.CRITICAL + 1)
        self._faults, self._transport = faults, transport
        self._owns_watch = watch is None
        self.watch = watch or Watch(settings.total_timeout_s, cancelled)
        name = str(urlsplit(self.root).hostname)
        self._oras = oras.provider.Registry(api, insecure=plain, tls_verify=verify)
        session = transport.GuardedSession(
            transport.AddressGuard(name),
            self.watch,
            transport.Trust(api, name, verify, cert),
            settings.connect_timeout_s,
            settings.read_timeout_s,
            proxies=not is_loopback(name),
        )
        session.cookies = self._oras.session.cookies  # oras' policy: keep none
        self._oras.session.close()
        self._oras.session = self._session = session
        self._login = Login(reference, settings, session, plain=plain, actions=actions)

    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: _Body = None,
        accept: str = "*/*",
    ) -> "requests.Response":
        """The registry's answer, whatever its status, asked again while it is busy; its body is still to be read.

        ``url``: a path below ``/v2/<repository>`` that begins with "/", or what a ``Location`` said (absolute, or
        ``/v2/...``). Credentials are shown to the registry only. ``data``: bytes, or a file that can be rewound to
        where it is now. The caller closes the answer.

        Raises:
            RegistryFault: no answer could be had.
            InvalidCredentials: the registry wants credentials, and a file or helper with them cannot be used.
        """
        try:
            target = self._target(url)
        except ValueError:  # an address in brackets that is none
            raise RegistryError(
                f"registry {self.reference.registry} sends us to {url[:80]!r}, which is no URL"
            ) from None
        start = data.tell() if data is not None and not isinstance(data, bytes) else None
        sent = {"Accept": accept, **(headers or {})}
        retried = _RETRIED_PATCH if method == "PATCH" else _RETRIED
        for number in range(1, self.settings.max_attempts + 1):
            try:
                with self._faults.mapped(self.reference.registry, self.watch):
                    response = self._authorized(method, target, sent, data, start)
            except RegistryFailing:  # of the token service
                if number == self.settings.max_attempts:
                    raise
                self.watch.pause(self.backoff(number))
                continue
            self._answered = True
            if response.status_code not in retried or number == self.settings.max_attempts:
                break
            wait = retry_after(response.headers)
            if wait is not None and wait > min(self.settings.max_retry_wait_s, self.watch.remaining()):
                break
            response.close()
            self.watch.pause(self.backoff(number) if wait is None else wait)
        return response

    def _target(self, url: str) -> str:
        if url.startswith("/") and not url.startswith("/v2/"):
            url = self.root + url
        elif not urlsplit(url).scheme:
            url = urljoin(self.root, url)
        root, target = urlsplit(self.root), urlsplit(url)
        if root.scheme == "https" and target.scheme == "http":
            if target.netloc != root.netloc:
                raise AddressRefused(
                    f"the registry sends us from https to plain http at {target.hostname}: not followed"
                )
            url = target._replace(scheme="https").geturl()  # a registry that does not know of the TLS before it
        if self._namespace is not None and target.netloc == root.netloc:
            url += f"{'&' if target.query else '?'}ns={self._namespace}"
        return url

    def _authorized(
        self, method: str, url: str, headers: Mapping[str, str], data: _Body, start: int | None
    ) -> "requests.Response":
        response = self._request(method, url, headers, data, start)
        # A challenge from wherever the registry redirected to is not for our credentials.
        own = urlsplit(self.root).netloc
        if response.status_code != 401 or {urlsplit(url).netloc, urlsplit(response.url).netloc} != {own}:
            return response
        try:
            known_more = self._login.answer(response)
        except BaseException:
            response.close()
            raise
        if not known_more:
            return response
        response.close()
        return self._request(method, url, headers, data, start)

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], data: _Body, start: int | None
    ) -> "requests.Response":
        if start is not None and data is not None and not isinstance(data, bytes):
            data.seek(start)
        own = urlsplit(url).netloc == urlsplit(self.root).netloc
        shown = {**headers, **(self._login.headers if own else {})}
        response: requests.Response = self._oras.session.request(method, url, headers=shown, data=data, stream=True)
        return response

    def chunks(self, response: "requests.Response") -> Iterator[bytes]:
        """The body. Only the reading is under the mapping of network errors: the disk and the caller have their own."""
        chunks = self._transport.body_chunks(response)
        while True:
            with self._faults.mapped(self.reference.registry, self.watch):
                chunk = next(chunks, b"")
            self.watch.check()  # a connection shut by the watch may look like the end of the body
            if not chunk:
                return
            yield chunk

    def retrying(self, attempt: Callable[[], _Result], reached: Callable[[], int] = lambda: 0) -> _Result:
        """Repeat what broke in the middle of a transfer; a refused connection is not worth it.

        ``reached``: how far the transfer is. Attempts that brought it further are not counted: what is cut again and
        again, and continued, ends some time. A transfer that came to a halt is continued, a silent registry is not.
        """
        number, best = 1, reached()
        while True:
            try:
                return attempt()
            except (Truncated, RegistryUnreachable, PullTimeout) as error:
                if isinstance(error, PullTimeout) and reached() <= best:
                    raise
                broken = isinstance(error, ConnectionBroken) or self._answered
                if isinstance(error, RegistryUnreachable) and not broken:
                    raise
                if reached() >= best + _LEAST_PROGRESS:
                    number = 1
                if number >= self.settings.max_attempts:
                    raise
            best = max(best, reached())
            self.watch.pause(self.backoff(number))
            number += 1

    def refusal(self, response: "requests.Response", what: str) -> OciError:
        """The error for a refusal. Many registries do not say whether tag or repository is missing: ask again."""
        with self._faults.mapped(self.reference.registry, self.watch):
            body = self._transport.read_start(response, _MAX_ERROR_BYTES)
        login = self._login
        error = self._faults.answered(
            self.reference, response, body, what, identity=login.identity, advice=login.advice
        )
        if isinstance(error, ManifestUnknown):
            listing = self.exchange("GET", "/tags/list?n=1")
            listing.close()
            if listing.status_code == 404:
                where = self.reference
                return RepositoryUnknown(
                    f"registry {where.registry} has no repository {where.repository}: check the name"
                )
        return error

    def backoff(self, number: int) -> float:
        """Seconds before attempt ``number + 1``: doubling, with jitter so that a fleet does not return in step."""
        wait = self.settings.first_retry_wait_s * 2.0 ** (number - 1)
        return float(min(wait, self.settings.max_retry_wait_s)) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load only

    def close(self) -> None:
        """Let go of the sockets and, unless it is another's, the watch."""
        self._session.close()
        if self._owns_watch:
            self.watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
