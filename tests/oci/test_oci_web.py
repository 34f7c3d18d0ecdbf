"""Modules by URL: from a real web server over TLS, and never from where a URL must not lead."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from proplet.oci.blobs import PARTIAL
from proplet.oci.digest import Digest
from proplet.oci.errors import (
    AddressRefused,
    DigestMismatch,
    NotFound,
    NotWasm,
    OciError,
    RegistryFailing,
    RegistryUnreachable,
    TlsFailed,
    TooLarge,
    Truncated,
    Unauthorized,
)
from proplet.oci.layout import OciLayout
from proplet.oci.pull import pull
from proplet.oci.pulled import PullPolicy
from proplet.oci.settings import HostSettings, RegistrySettings
from proplet.oci.web import UrlGuard, manifest_of
from tests.support.registry import ADDITION, make_tls_files

MODULE = ADDITION + b"\x00\x82\x80\x04\x01x" + bytes(65536)  # with a custom section
Answer = Callable[["Handler"], None]


@dataclass
class Web:
    """A web server with TLS; `answers` come before the honest one."""

    address: str
    ca: Path
    files: dict[str, bytes] = field(default_factory=lambda: {"/a.wasm": MODULE})
    answers: list[Answer] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)

    def url(self, path: str = "/a.wasm") -> str:
        return f"https://{self.address}{path}"

    def settings(self, **changes: Any) -> RegistrySettings:
        hosts = {self.address: HostSettings(ca_file=self.ca)}
        known: dict[str, Any] = {"local_url_hosts": ("127.0.0.1",), "hosts": hosts, "first_retry_wait_s": 0.01}
        return RegistrySettings(**{**known, "use_docker_config": False, "total_timeout_s": 20, **changes})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self) -> None:
        self.web.ranges.append(self.headers.get("Range"))
        if self.web.answers:
            self.web.answers.pop(0)(self)
            return
        data = self.web.files.get(self.path)
        if data is None:
            self.reply(404, b"")
        elif (asked := self.headers.get("Range")) is not None:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.reply(206, data[start:], **{"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
        else:
            self.reply(200, data)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """What a client breaks off is no news."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tls_files(tmp_path_factory.mktemp("tls"))


@contextmanager
def serving(certificates: Any) -> Iterator[Web]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    handler = type("OwnHandler", (Handler,), {})
    with _Server(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        web = handler.web = Web(f"127.0.0.1:{server.server_address[1]}", certificates.ca)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def web(certificates: Any) -> Iterator[Web]:
    with serving(certificates) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


def cut(keep: int) -> Answer:
    def deliver(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(MODULE)))
        handler.end_headers()
        handler.wfile.write(MODULE[:keep])
        handler.close_connection = True

    return deliver


def status(code: int, **headers: str) -> Answer:
    return lambda handler: handler.reply(code, b"", **headers)


def failing(kind: type[OciError], url: str, store: OciLayout, settings: RegistrySettings) -> str:
    with pytest.raises(kind) as caught:
        pull(url, store, settings)
    assert type(caught.value) is kind
    return str(caught.value)


def test_a_module_by_url_is_an_image_of_the_store(web: Web, store: OciLayout) -> None:
    found = pull(web.url(), store, web.settings())
    raw = manifest_of(Digest.of(MODULE), len(MODULE))
    assert found.path.read_bytes() == MODULE
    assert (found.module_digest, found.manifest_digest) == (Digest.of(MODULE), Digest.of(raw))
    assert store.references()[web.url()].digest == Digest.of(raw)
    for pinned in (found.manifest_digest, found.module_digest, None):
        again = pull(web.url(), store, web.settings(), policy=PullPolicy.NEVER, expected_digest=pinned)
        assert (again.from_cache, again.module_digest) == (True, found.module_digest)
    assert pull(f"{web.url()}#sha256={Digest.of(MODULE).hex}", store, web.settings()).from_cache
    assert web.ranges == [None]


def test_what_a_url_has_now_is_seen_with_always_and_what_is_pinned_is_held_to(web: Web, store: OciLayout) -> None:
    first = pull(web.url(), store, web.settings())
    web.files["/a.wasm"] = ADDITION
    assert pull(web.url(), store, web.settings()).module_digest == first.module_digest
    assert pull(web.url(), store, web.settings(), policy=PullPolicy.ALWAYS).module_digest == Digest.of(ADDITION)
    assert pull(web.url(), store, web.settings(), expected_digest=first.manifest_digest).path == first.path
    with pytest.raises(DigestMismatch):
        pull(web.url(), store, web.settings(), policy=PullPolicy.ALWAYS, expected_digest=first.manifest_digest)
    assert "was changed" in failing(
        DigestMismatch, f"{web.url()}#sha256={first.module_digest.hex}", store, web.settings()
    )


def test_a_pinned_module_goes_on_where_its_transfer_broke(web: Web, store: OciLayout) -> None:
    pinned = f"{web.url()}#sha256={Digest.of(MODULE).hex}"
    web.answers += [cut(40_000)]
    with pytest.raises((Truncated, RegistryUnreachable)):
        pull(pinned, store, web.settings(max_attempts=1))
    (part,) = (store.root / "blobs" / "sha256").glob(f"{PARTIAL}*")
    assert part.stat().st_size == 40_000
    assert pull(pinned, store, web.settings()).path.read_bytes() == MODULE
    assert web.ranges == [None, None, "bytes=40000-"]


def test_a_broken_transfer_is_tried_again_and_a_busy_server_waited_for(web: Web, store: OciLayout) -> None:
    web.answers += [cut(1000), status(503), status(429, Retry_After="0"), cut(0)]
    assert pull(web.url(), store, web.settings()).path.read_bytes() == MODULE
    web.answers += [status(500)] * 4
    with pytest.raises(RegistryFailing):
        pull(web.url("/b.wasm"), store, web.settings())


def test_each_refusal_says_what_it_is(web: Web, store: OciLayout) -> None:
    settings = web.settings()
    assert "does not exist" in failing(NotFound, web.url("/none.wasm"), store, settings)
    web.answers += [status(401)]
    assert "no login" in failing(Unauthorized, web.url(), store, settings)
    web.files["/text.wasm"] = b"(module)"
    failing(NotWasm, web.url("/text.wasm"), store, settings)
    failing(TooLarge, web.url(), store, replace(settings, max_module_bytes=1000))
    failing(TlsFailed, web.url(), store, replace(settings, hosts={}))
    assert not [name for name in store.references() if "text" in name]


def test_an_endless_body_ends_at_the_limit(web: Web, store: OciLayout) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        while True:
            handler.wfile.write(bytes(65536))

    web.answers += [endless]
    failing(TooLarge, web.url(), store, web.settings(max_module_bytes=1_000_000))


def test_a_url_never_leads_to_this_device_unless_its_host_is_allowed(web: Web, store: OciLayout) -> None:
    port = web.address.partition(":")[2]
    strict = web.settings(local_url_hosts=())
    for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"):
        assert "local_url_hosts" in failing(AddressRefused, f"https://{host}:{port}/a.wasm", store, strict)
    for host in ("169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "100.100.100.200"):
        failing(AddressRefused, f"https://{host}/a.wasm", store, strict)
    assert web.ranges == []


def test_a_redirect_is_held_to_the_same(web: Web, store: OciLayout) -> None:
    port = web.address.partition(":")[2]
    web.answers += [status(302, Location="/a.wasm")]
    assert pull(web.url("/moved.wasm"), store, web.settings()).size == len(MODULE)
    for where in (f"https://localhost:{port}/a.wasm", "https://169.254.169.254/x", "http://127.0.0.1/a.wasm"):
        web.answers += [status(307, Location=where)]
        failing(AddressRefused, web.url("/elsewhere.wasm"), store, web.settings())


@pytest.mark.parametrize("allowed", ["box.lan", "BOX.lan.", "[::1]"])
def test_the_guard_lets_only_allowed_hosts_be_local(allowed: str) -> None:
    guard = UrlGuard((allowed,))
    guard.admit(allowed.strip("[]").lower().rstrip("."), "127.0.0.1")
    guard.admit("other.lan", "192.168.1.1")
    for address in ("127.0.0.1", "::1", "169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::7f00:1"):
        with pytest.raises(AddressRefused):
            guard.admit("other.lan", address)


def test_away_the_server_leaves_what_the_url_had(certificates: Any, store: OciLayout) -> None:
    with serving(certificates) as web:
        first = pull(web.url(), store, web.settings())
    away = pull(web.url(), store, web.settings(), policy=PullPolicy.ALWAYS)
    assert away.module_digest == first.module_digest
    assert any("is used" in line for line in away.warnings)
    failing(RegistryUnreachable, web.url("/b.wasm"), store, web.settings())
