"""``/healthz``, ``/readyz`` and ``/metrics`` over HTTP, for probes and Prometheus.

A few lines instead of the HTTP API's framework, which would cost a manager without that API 5 MB. It reads of a
GET its first line and who asks, answers once and closes; what is sent to it cannot change anything.
"""

import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from proplet.manager.health_guard import Caller, FileError, Guard, Kept, kept_certificate

log = logging.getLogger(__name__)

PATIENCE_S: Final = 5.0
_MOST: Final = 8192  # bytes of a request
_CONNECTIONS: Final = 32
_TEXT: Final = "text/plain; charset=utf-8"
_METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
_WORDS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class HealthError(Exception):
    """An address cannot be listened on; the message says which, why, and how to choose another."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page says."""

    text: str
    ok: bool = True
    content_type: str = _TEXT


Page = Callable[[], Answer | Awaitable[Answer]]


def metrics_page(lines: Callable[[], str | Awaitable[str]]) -> Page:
    """The page of metrics in Prometheus' format."""

    async def page() -> Answer:
        text = lines()
        return Answer(text if isinstance(text, str) else await text, content_type=_METRICS)

    return page


@dataclass(frozen=True, slots=True)
class Site:
    """Where pages are served: host ("" for every one), port (0 for a free one) and, for TLS, certificate and key.

    `guards` are asked before their pages; `patience_s` is how long a request may take.
    """

    host: str
    port: int
    pages: Mapping[str, Page]
    certificate: tuple[str, str] | None = None
    guards: Mapping[str, Guard] = field(default_factory=dict)
    setting: str = ""
    patience_s: float = PATIENCE_S


@asynccontextmanager
async def open_site(site: Site) -> AsyncIterator[int]:
    """Serve pages while the context is open; yields the port.

    Raises:
        HealthError: the address or the certificate cannot be used.
    """
    try:
        tls = kept_certificate(site.certificate) if site.certificate else None
        # One socket for both families where there are both ("" is every address).
        listener = await anyio.create_tcp_listener(local_host=site.host or None, local_port=site.port)
    except FileError as error:
        raise HealthError(f"the certificate for {', '.join(site.pages)} cannot be used: {error}") from error
    except OSError as error:
        where = f"{site.host}:{site.port}"
        raise HealthError(f"{where} cannot be listened on ({error}): choose another {site.setting}, or 0") from error
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, partial(_serve, site, tls, deque()))
        yield int(listener.extra(SocketAttribute.local_port))  # noqa: S610 - no Django here
        tasks.cancel_scope.cancel()


async def _serve(
    site: Site, tls: Kept[ssl.SSLContext] | None, open_ones: deque[anyio.CancelScope], raw: SocketStream
) -> None:
    async with raw:
        try:
            with anyio.move_on_after(site.patience_s) as scope:
                # The oldest goes: who asks is done in no time, who only holds connections must not keep a probe out.
                if len(open_ones) >= _CONNECTIONS:
                    open_ones.popleft().cancel()
                open_ones.append(scope)
                stream: ByteStream = raw
                if tls is not None:
                    stream = await TLSStream.wrap(
                        raw, server_side=True, ssl_context=tls.get(), standard_compatible=False
                    )
                peer = raw.extra(SocketAttribute.remote_address, ("", 0))  # noqa: S610 - no Django here
                await stream.send(await _response(site, await _request(stream), str(peer[0])))
        except (OSError, ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
            pass  # it went away
        finally:
            if scope in open_ones:
                open_ones.remove(scope)


async def _request(stream: ByteStream) -> bytes:
    """Return a request's head, all of it, so that closing does not reset the connection."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _MOST:
        head += await stream.receive(_MOST)
    return head.partition(b"\r\n\r\n")[0]


async def _response(site: Site, head: bytes, peer: str) -> bytes:
    line, *headers = head.split(b"\r\n")
    parts = line.decode("latin-1").split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        return _page(400, Answer("this is no HTTP/1 request\n"))
    if parts[0] not in ("GET", "HEAD"):
        return _page(405, Answer("only GET\n"))
    path = parts[1].partition("?")[0]
    page = site.pages.get(path)
    if page is None:
        return _page(404, Answer(f"here are {', '.join(site.pages)}\n"))
    guard = site.guards.get(path)
    refusal = guard.refusal(Caller(peer, _authorization(headers))) if guard is not None else None
    if refusal is not None:
        return _page(refusal[0], Answer(refusal[1]))
    try:
        answer = page()
        if not isinstance(answer, Answer):
            answer = await answer
    except Exception:
        log.exception("a defect of this program: %s", parts[1])
        return _page(500, Answer("the log says why\n"))
    return _page(200 if answer.ok else 503, answer, body=parts[0] == "GET")


def _authorization(headers: Sequence[bytes]) -> bytes:
    for header in headers:
        name, _, value = header.partition(b":")
        if name.lower() == b"authorization":
            return value.strip()
    return b""


def _page(status: int, answer: Answer, *, body: bool = True) -> bytes:
    data = answer.text.encode()
    challenge = "WWW-Authenticate: Bearer\r\n" if status == 401 else ""
    head = (
        f"HTTP/1.1 {status} {_WORDS[status]}\r\nContent-Type: {answer.content_type}\r\nContent-Length: {len(data)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n{challenge}\r\n"
    )
    return head.encode() + (data if body else b"")
