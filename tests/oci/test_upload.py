"""Uploads to registries that differ: places, limits, broken connections, wrong answers."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proplet.oci.connection import Connection
from proplet.oci.digest import Digest
from proplet.oci.errors import DigestMismatch, OciError, RegistryError, TooLarge, Unauthorized
from proplet.oci.reference import Reference
from proplet.oci.settings import RegistrySettings
from proplet.oci.upload import Blob, Uploads

DATA = bytes(range(256)) * 400
DIGEST = Digest.of(DATA)
SETTINGS = RegistrySettings(use_docker_config=False, first_retry_wait_s=0.001, total_timeout_s=20, max_attempts=3)


class Registry:
    """What one does that takes blobs; its attributes are how it differs from others."""

    def __init__(self) -> None:
        self.address = ""
        self.location = "/v2/x/blobs/uploads/1?state=a%2Fb"  # relative, with a query that must stay
        self.largest = 10**9  # bytes of one request
        self.patches = True
        self.status = 0  # of everything that is written
        self.told = ""  # digest, instead of the right one
        self.cut_after: list[int] = []  # of the bodies to come: bytes until the connection is cut
        self.least_chunk = ""
        self.upload = b""
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.seen: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    registry: Registry
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes | None:
        length = int(self.headers.get("Content-Length", "0"))
        if length and self.registry.cut_after:
            cut = self.registry.cut_after.pop(0)
            if cut < length:
                came, start = self.rfile.read(cut), self.headers.get("Content-Range", "0-").partition("-")[0]
                if int(start) == len(self.registry.upload):  # else it is out of step, and nothing of it counts
                    self.registry.upload += came
                self.close_connection = True
                self.connection.close()
                return None
        return self.rfile.read(length)

    def do_HEAD(self) -> None:
        known = self.registry.blobs.get(self.path.rpartition("/")[2])
        self.registry.seen.append("HEAD")
        if known is None:
            self.answer(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(known)))
            self.end_headers()

    def do_GET(self) -> None:
        registry = self.registry
        registry.seen.append("GET")
        if "/manifests/" in self.path:
            known = registry.manifests.get(self.path.rpartition("/")[2])
            self.answer(200 if known else 404, known or b"")
        elif "/uploads/" in self.path:
            self.answer(204, Range=f"0-{max(len(registry.upload) - 1, 0)}", Location=registry.location)
        else:
            self.answer(404)

    def do_POST(self) -> None:
        registry = self.registry
        registry.seen.append("POST")
        if registry.status:
            self.answer(registry.status, b'{"errors":[{"code":"DENIED","message":"no"}]}')
            return
        registry.upload = b""
        more = {"OCI_Chunk_Min_Length": registry.least_chunk} if registry.least_chunk else {}
        self.answer(202, Location=registry.location, **more)

    def do_PATCH(self) -> None:
        registry = self.registry
        registry.seen.append("PATCH")
        length = int(self.headers["Content-Length"])
        if not registry.patches or length > registry.largest:
            self.body()
            self.answer(405 if not registry.patches else 413)
            return
        start = int(self.headers["Content-Range"].partition("-")[0])
        body = self.body()
        if body is None:
            return
        if start != len(registry.upload):
            self.answer(416, Range=f"0-{len(registry.upload) - 1}", Location=registry.location)
            return
        registry.upload += body
        self.answer(202, Range=f"0-{len(registry.upload) - 1}", Location=registry.location)

    def do_PUT(self) -> None:
        registry = self.registry
        registry.seen.append("PUT")
        body = self.body()
        if body is None:
            return
        if "/manifests/" in self.path:
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            registry.manifests[self.path.rpartition("/")[2]] = body
            self.answer(201, Docker_Content_Digest=registry.told or digest)
            return
        if len(body) > registry.largest:
            self.answer(413)
            return
        asked = parse_qs(urlsplit(self.path).query)
        assert "?" not in registry.location or asked["state"] == ["a/b"]
        whole = registry.upload + body if not body or registry.seen[-2] == "PATCH" else body
        digest = f"sha256:{hashlib.sha256(whole).hexdigest()}"
        if digest != asked["digest"][0]:
            self.answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match"}]}')
            return
        registry.blobs[digest] = whole
        self.answer(201, Docker_Content_Digest=registry.told or digest)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Registry]:
    registry = Registry()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"registry": registry}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections are cut on purpose
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    registry.address = f"127.0.0.1:{server.server_port}"
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving() as running:
        yield running


def blob(data: bytes = DATA, home: str | None = None) -> Blob:
    return Blob(
        Digest.of(data), len(data), lambda at: iter([data[at:][n : n + 9000] for n in range(0, len(data), 9000)]), home
    )


@contextmanager
def uploads(registry: Registry, **how: Any) -> Iterator[tuple[Uploads, list[int]]]:
    told: list[int] = []
    with Connection(Reference.parse(f"{registry.address}/x:1"), SETTINGS, actions="pull,push") as connection:
        yield Uploads(connection, told.append, **how), told


def test_the_place_may_be_relative_or_absolute_and_keeps_its_query(registry: Registry) -> None:
    for location in (registry.location, f"http://{registry.address}/elsewhere/uploads/2", "uploads/3?state=a%2Fb"):
        registry.location = location
        registry.blobs.clear()
        with uploads(registry) as (one, told):
            assert one.blob(blob())
        assert registry.blobs == {str(DIGEST): DATA}
        assert sum(told) == len(DATA)


def test_an_answer_without_a_place_is_refused(registry: Registry) -> None:
    registry.location = ""
    with uploads(registry) as (one, _), pytest.raises(RegistryError, match="no Location"):
        one.blob(blob())


def test_what_is_too_much_for_one_request_goes_in_pieces_and_the_other_way_round(registry: Registry) -> None:
    registry.largest, registry.least_chunk = 0, "0"
    with uploads(registry) as (one, told), pytest.raises(TooLarge, match="raise its limit"):
        one.blob(blob())
    assert sum(told) == 0
    registry.largest, registry.patches = 10**9, False
    with uploads(registry, one_request=10) as (one, told):
        assert one.blob(blob())
    assert registry.blobs == {str(DIGEST): DATA}
    assert sum(told) == len(DATA)
    assert registry.seen[-4:] == ["POST", "PATCH", "POST", "PUT"]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(cuts=[1, 1], chunked=True)
@given(cuts=st.lists(st.integers(0, len(DATA) - 1), max_size=2), chunked=st.booleans())
def test_a_connection_that_is_cut_anywhere_twice_does_no_harm(
    registry: Registry, cuts: list[int], chunked: bool
) -> None:
    registry.blobs.clear()
    registry.cut_after, registry.upload = list(cuts), b""
    with uploads(registry, one_request=1 if chunked else None) as (one, told):
        assert one.blob(blob())
    assert registry.blobs == {str(DIGEST): DATA}
    assert sum(told) == len(DATA)


def test_a_connection_that_is_cut_each_time_is_given_up(registry: Registry) -> None:
    registry.cut_after = [0] * 50
    with uploads(registry) as (one, told), pytest.raises(OciError) as caught:
        one.blob(blob())
    assert caught.value.transient
    assert sum(told) == 0
    assert len(registry.cut_after) > 30


def test_a_registry_that_stores_something_else_is_not_believed(registry: Registry) -> None:
    registry.told = str(Digest.of(b"else"))
    with uploads(registry) as (one, _):
        with pytest.raises(DigestMismatch, match="not what was pushed"):
            one.blob(blob())
        with pytest.raises(DigestMismatch, match="not what was pushed"):
            one.manifest(b"{}", "application/json", Digest.of(b"{}"), "1")


def test_each_refusal_says_what_it_is(registry: Registry) -> None:
    for status, kind, words in (
        (403, Unauthorized, "pushing to .* is not allowed"),
        (404, RegistryError, "takes no blob"),
        (405, RegistryError, "may be written"),
        (500, RegistryError, "HTTP 500"),
    ):
        registry.status = status
        with uploads(registry) as (one, _), pytest.raises(kind, match=words):
            one.blob(blob())


def test_bytes_that_end_early_are_not_sent_as_if_they_were_whole(registry: Registry) -> None:
    short = Blob(DIGEST, len(DATA), lambda at: iter([DATA[at:100]] if at < 100 else []))
    with uploads(registry) as (one, _), pytest.raises(OciError, match="became shorter"):
        one.blob(short)
    assert registry.blobs == {}


def test_a_registry_without_a_list_of_referrers_gets_one(registry: Registry) -> None:
    subject = Digest.of(b"image")
    document = {"subject": {"digest": str(subject)}, "artifactType": "a/b", "annotations": {"k": "v"}}
    with uploads(registry) as (one, _):
        for number in (1, 2, 1):
            data = json.dumps({**document, "n": number}).encode()
            one.manifest(data, "application/vnd.oci.image.manifest.v1+json", Digest.of(data), None)
    listed = json.loads(registry.manifests[f"sha256-{subject.hex}"])["manifests"]
    assert [(entry["artifactType"], entry["annotations"]) for entry in listed] == [("a/b", {"k": "v"})] * 2


def test_a_registry_that_says_it_has_another_size_is_not_believed(registry: Registry) -> None:
    registry.blobs[str(DIGEST)] = b"short"
    with uploads(registry) as (one, _), pytest.raises(RegistryError, match="5 bytes, not"):
        one.blob(blob())
