"""A small registry that misbehaves on demand: a scripted HTTP server in a thread, loopback only."""

import hashlib
import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.registry import ADDITION, OCI_MANIFEST, WASM, WASM_CONFIG, descriptor

REPOSITORY = "demo/add"


@dataclass
class Answer:
    """What goes out for one request: ``deliver`` writes it, given the honest body and its type."""

    deliver: Callable[["_Handler", bytes, str], None]


@dataclass
class Seen:
    """One request as it came in."""

    path: str
    headers: dict[str, str]


@dataclass
class FaultyRegistry:
    """One module under one tag. ``script`` sets what the next requests for a kind of path get; the last one stays."""

    module: bytes = ADDITION
    media_type: str = WASM
    server: Any = None
    scripts: dict[str, deque[Answer]] = field(default_factory=lambda: defaultdict(deque))
    seen: list[Seen] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    sent: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"

    @property
    def reference(self) -> str:
        return f"{self.address}/{REPOSITORY}:v1"

    @property
    def manifest(self) -> bytes:
        config = descriptor(b"{}", WASM_CONFIG)
        layer = descriptor(self.module, self.media_type)
        return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}).encode()

    @property
    def manifest_digest(self) -> str:
        return "sha256:" + hashlib.sha256(self.manifest).hexdigest()

    def script(self, what: str, *answers: Answer) -> None:
        """``what``: ``manifests``, ``blobs``, ``tags``, ``token`` or ``referrers``."""
        self.scripts[what] = deque(answers)

    def requests(self, what: str) -> list[Seen]:
        return [one for one in self.seen if f"/{what}" in one.path]


class _Handler(BaseHTTPRequestHandler):
    registry: FaultyRegistry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        registry = self.registry
        registry.seen.append(Seen(self.path, dict(self.headers.items())))
        if length := int(self.headers.get("Content-Length") or 0):
            registry.bodies.append(self.rfile.read(length))
        for what in ("manifests", "blobs", "tags", "token", "referrers"):
            if f"/{what}" in self.path:
                body, media_type = self._honest(what)
                script = registry.scripts[what]
                answer = (script.popleft() if len(script) > 1 else script[0]) if script else ok()
                with suppress(BrokenPipeError, ConnectionResetError):
                    answer.deliver(self, body, media_type)
                return
        self.send_error(404)

    do_POST = do_PUT = do_PATCH = do_HEAD = do_GET  # noqa: N815 - http.server's names

    def _honest(self, what: str) -> tuple[bytes, str]:
        if what == "manifests":
            return self.registry.manifest, OCI_MANIFEST
        if what == "blobs":
            return self.registry.module, "application/octet-stream"
        return b'{"tags": ["v1"], "token": "t0ken"}', "application/json"

    def reply(self, status: int, body: bytes, media_type: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.put(body)

    def put(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        self.registry.sent += len(data)

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that had enough
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def faulty_registry(**how: Any) -> Iterator[FaultyRegistry]:
    """A server in a thread, with everything ended afterwards."""
    registry = FaultyRegistry(**how)
    handler = type("Handler", (_Handler,), {"registry": registry})
    registry.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    registry.server.daemon_threads = True
    thread = threading.Thread(target=registry.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield registry
    finally:
        registry.stopping.set()
        registry.server.shutdown()
        thread.join()
        registry.server.server_close()


def ok(**headers: str) -> Answer:
    return Answer(lambda handler, body, kind: handler.reply(200, body, kind, **headers))


def other(body: bytes, kind: str | None = None, **headers: str) -> Answer:
    """Another body, with a length that is right for it."""
    return Answer(lambda handler, _, honest: handler.reply(200, body, kind or honest, **headers))


def status(code: int, body: bytes = b"{}", **headers: str) -> Answer:
    return Answer(lambda handler, _body, _kind: handler.reply(code, body, "application/json", **headers))


def redirect(location: str) -> Answer:
    return status(307, b"", Location=location)


def truncated(keep: int) -> Answer:
    """The right length is announced, then the connection ends."""

    def deliver(handler: _Handler, body: bytes, kind: str) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.put(body[:keep])
        handler.close_connection = True

    return Answer(deliver)


def until_close(change: Callable[[bytes], bytes]) -> Answer:
    """No length at all: the body ends with the connection."""

    def deliver(handler: _Handler, body: bytes, kind: str) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.put(change(body))
        handler.close_connection = True

    return Answer(deliver)


def endless(code: int = 200, **headers: str) -> Answer:
    """A chunked body that does not end by itself."""

    def deliver(handler: _Handler, _body: bytes, kind: str) -> None:
        handler.send_response(code)
        handler.send_header("Content-Type", kind)
        handler.send_header("Transfer-Encoding", "chunked")
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        while not handler.registry.stopping.is_set():
            handler.put(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    return Answer(deliver)


def hanging() -> Answer:
    """Nothing at all until the test is over."""
    return Answer(lambda handler, _body, _kind: _wait(handler))


def raw(data: bytes) -> Answer:
    """Exactly these bytes, then the end of the connection."""

    def deliver(handler: _Handler, _body: bytes, _kind: str) -> None:
        handler.put(data)
        handler.close_connection = True

    return Answer(deliver)


def dripping() -> Answer:
    """A byte of the body every 50 ms: never slow enough for a read timeout."""

    def deliver(handler: _Handler, body: bytes, kind: str) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for value in body:
            handler.put(bytes([value]))
            if handler.registry.stopping.wait(0.05):
                return

    return Answer(deliver)


def dripping_headers() -> Answer:
    """A header line that grows by a byte every 50 ms."""

    def deliver(handler: _Handler, _body: bytes, _kind: str) -> None:
        handler.put(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not handler.registry.stopping.wait(0.05):
            handler.put(b"x")

    return Answer(deliver)


def _wait(handler: _Handler) -> None:
    handler.registry.stopping.wait(60)
    handler.close_connection = True
