"""A reverse proxy before a real registry that damages its answers on demand and counts what went through.

Each request is answered by the registry itself; what reaches the client of that is up to the next `Fault` planned for
its path. The counts are of bytes of bodies that were handed to the client's connection.
"""

import http.client
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.registry import TlsFiles

_PIECE = 16 * 1024
_DROPPED = {"connection", "transfer-encoding", "date", "server"}


@dataclass
class Exchange:
    """One request and the registry's honest answer to it, which a fault may change or withhold."""

    handler: "_Handler"
    path: str
    status: int
    headers: dict[str, str]
    body: bytes
    range: str | None = None
    sent: int = 0

    def send(self, body: bytes | None = None, *, length: int | None = None) -> None:
        """The head, then the body (the honest one), announced with its own length or another."""
        body = self.body if body is None else body
        self.head(**{"Content-Length": str(len(body) if length is None else length)})
        self.put(body)
        self.handler.close_connection = length is not None

    def head(self, **changes: str) -> None:
        self.handler.send_response(self.status)
        for name, value in {**self.headers, **changes}.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()

    def put(self, data: bytes) -> None:
        proxy = self.handler.proxy
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            room = proxy.room(len(piece))
            self.handler.wfile.write(piece[:room])
            self._count(room)
            if room < len(piece):
                proxy.reached()
                self.handler.wfile.write(piece[room:])
                self._count(len(piece) - room)

    def cut(self) -> None:
        """End the connection now, in the middle of whatever it is in."""
        self.handler.close_connection = True
        with suppress(OSError):
            self.handler.connection.shutdown(socket.SHUT_RDWR)

    def _count(self, count: int) -> None:
        self.sent += count
        self.handler.proxy.served += count


Fault = Callable[[Exchange], None]


@dataclass
class RegistryProxy:
    """``plan`` says what becomes of the next answers; ``exchanges`` has them all, ``served`` their bytes."""

    upstream: str
    tls: TlsFiles | None = None
    exchanges: list[Exchange] = field(default_factory=list)
    served: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    _plans: dict[str, deque[Fault]] = field(default_factory=dict)
    _staying: set[str] = field(default_factory=set)
    _mark: tuple[int, Callable[[], None]] | None = None
    _open: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._open.set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def plan(self, what: str, *faults: Fault, always: bool = False) -> None:
        """``what`` is a part of the path (``/manifests/``, a digest). With ``always`` the last fault stays."""
        self._plans[what] = deque(faults)
        self._staying.discard(what)
        if always:
            self._staying.add(what)

    def fault(self, path: str) -> Fault | None:
        for what, faults in self._plans.items():
            if what in path and faults:
                return faults[0] if what in self._staying and len(faults) == 1 else faults.popleft()
        return None

    def clear(self) -> None:
        """No more faults, and nothing counted yet."""
        self._plans.clear()
        self.exchanges.clear()

    def at(self, served: int, action: Callable[[], None]) -> None:
        """Do something once when so many bytes more have been served."""
        self._mark = (self.served + served, action)

    def forget_mark(self) -> None:
        self._mark = None

    def hold(self) -> None:
        """Answer nothing until `release`."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def wait_until_open(self) -> None:
        self._open.wait(30)

    def room(self, wanted: int) -> int:
        """How many of these bytes may go out before the mark is reached."""
        return wanted if self._mark is None else max(0, min(wanted, self._mark[0] - self.served))

    def reached(self) -> None:
        mark, self._mark = self._mark, None
        if mark is not None:
            mark[1]()

    def requests(self, what: str) -> list[Exchange]:
        return [one for one in self.exchanges if what in one.path]


class _Handler(BaseHTTPRequestHandler):
    proxy: RegistryProxy
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        with suppress(OSError):  # little is on its way when a connection is cut or its reader killed
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _PIECE)

    def do_GET(self) -> None:
        self.proxy.wait_until_open()
        exchange = self._ask()
        self.proxy.exchanges.append(exchange)
        fault = self.proxy.fault(self.path)
        with suppress(OSError):  # a client that had enough
            if fault is not None:
                fault(exchange)
            else:
                exchange.send()
            return
        self.close_connection = True

    def _ask(self) -> Exchange:
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=20)
        try:
            kept = {name: value for name, value in self.headers.items() if name.lower() not in {"host", "connection"}}
            upstream.request(self.command, self.path, headers=kept)
            answer = upstream.getresponse()
            body = answer.read()
        finally:
            upstream.close()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _DROPPED}
        return Exchange(self, self.path, answer.status, headers, body, self.headers.get("Range"))

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    context: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a client that gives up in the handshake holds up nobody else."""
        with suppress(OSError):
            if self.context is not None:
                request = self.context.wrap_socket(request, server_side=True)
            super().finish_request(request, client_address)
        if self.context is not None:
            with suppress(OSError):
                request.close()


@contextmanager
def registry_proxy(upstream: str, *, tls: TlsFiles | None = None) -> Iterator[RegistryProxy]:
    """The proxy in a thread; every connection is ended afterwards."""
    proxy = RegistryProxy(upstream, tls)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    if tls is not None:
        server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.context.load_cert_chain(tls.certificate, tls.key)
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()


def cut_after(count: int) -> Fault:
    """The right head, ``count`` bytes of the body, then the connection ends."""

    def fault(exchange: Exchange) -> None:
        exchange.head(**{"Content-Length": str(len(exchange.body))})
        exchange.put(exchange.body[:count])
        exchange.cut()

    return fault


def cut_before_the_answer(exchange: Exchange) -> None:
    """Nothing comes back."""
    exchange.cut()


def cut_in_the_head(exchange: Exchange) -> None:
    """Half a header line."""
    exchange.handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Len")
    exchange.cut()


def status(code: int, body: bytes = b"{}", **headers: str) -> Fault:
    """Another answer altogether, ``Retry_After="1"`` among its headers."""

    def fault(exchange: Exchange) -> None:
        exchange.status = code
        exchange.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        exchange.send(body)

    return fault


def redirect(location: str) -> Fault:
    """Elsewhere."""
    return status(307, b"", Location=location)


def changed(change: Callable[[bytes], bytes]) -> Fault:
    """Another body with the length that fits it."""
    return lambda exchange: exchange.send(change(exchange.body))


def header(**headers: str) -> Fault:
    """The honest answer with other headers."""

    def fault(exchange: Exchange) -> None:
        exchange.headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        exchange.send()

    return fault


def announced(length: Callable[[int], int]) -> Fault:
    """The honest body, announced with another length."""
    return lambda exchange: exchange.send(length=length(len(exchange.body)))


def without_length(change: Callable[[bytes], bytes] = lambda body: body) -> Fault:
    """A body that ends with the connection."""

    def fault(exchange: Exchange) -> None:
        exchange.headers = {name: value for name, value in exchange.headers.items() if name != "Content-Length"}
        exchange.head(Connection="close")
        exchange.put(change(exchange.body))
        exchange.cut()

    return fault


def endless(exchange: Exchange) -> None:
    """A chunked body that goes on until the client has had enough."""
    exchange.headers = {name: value for name, value in exchange.headers.items() if name != "Content-Length"}
    exchange.head(**{"Transfer-Encoding": "chunked"})
    while not exchange.handler.proxy.stopping.is_set():
        exchange.handler.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        exchange.sent += 0x10000


def slow(pieces: int, pause_s: float) -> Fault:
    """The honest body in so many pieces with pauses between."""

    def fault(exchange: Exchange) -> None:
        exchange.head(**{"Content-Length": str(len(exchange.body))})
        size = -(-len(exchange.body) // pieces)
        for at in range(0, len(exchange.body), size):
            exchange.put(exchange.body[at : at + size])
            if exchange.handler.proxy.stopping.wait(pause_s):
                return

    return fault


def silent(exchange: Exchange) -> None:
    """A connection that is kept, and nothing on it."""
    exchange.handler.proxy.stopping.wait(60)
    exchange.cut()


def garbage(data: bytes) -> Fault:
    """These bytes instead of any HTTP."""

    def fault(exchange: Exchange) -> None:
        exchange.handler.wfile.write(data)
        exchange.cut()

    return fault
