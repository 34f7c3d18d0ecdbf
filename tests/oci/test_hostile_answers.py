"""What a hostile registry, token service or image cannot do: take secrets along, crash, or keep a processor busy."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from proplet.manager.mirror_shelf import Shelf
from proplet.oci.addresses import is_forbidden
from proplet.oci.digest import Digest
from proplet.oci.errors import RegistryError
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor
from proplet.oci.reference import Reference
from proplet.oci.registry import RegistryClient
from proplet.oci.settings import RegistrySettings

SECRET = "refresh-secret"
_Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def server(answer: Callable[[str], _Answer]) -> Iterator[tuple[str, list[bytes]]]:
    """A web server on a free port: its ``host:port``, and the bodies it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            status, headers, body = answer(self.path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name is of http.server

        def log_message(self, *_args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{running.server_address[1]}", bodies
        finally:
            running.shutdown()
            thread.join()


def pull(registry: str, config: Path | None = None) -> None:
    settings = RegistrySettings(docker_config=config, use_docker_config=config is not None, max_attempts=1)
    with RegistryClient(Reference.parse(f"{registry}/a/b:v1"), settings) as client:
        client.manifest()


def challenge(realm: str) -> _Answer:
    return 401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}, b""


@pytest.mark.parametrize("status", [307, 308])
def test_an_identity_token_does_not_follow_a_redirect_to_another_host(status: int, tmp_path: Path) -> None:
    with server(lambda _path: (200, {}, b'{"token": "t"}')) as (thief, stolen):
        port = thief.partition(":")[2]
        elsewhere = {"Location": f"http://localhost:{port}/"}
        with (
            server(lambda _path: (status, elsewhere, b"")) as (tokens, sent),
            server(lambda _path: challenge(f"http://{tokens}/token")) as (registry, _),
        ):
            config = tmp_path / "config.json"
            config.write_text(json.dumps({"auths": {registry: {"identitytoken": SECRET}}}), encoding="ascii")
            with pytest.raises(RegistryError, match="not followed"):
                pull(registry, config)
        assert SECRET.encode() in sent[0]
        assert stolen == []


def test_a_token_that_is_nested_without_end_is_no_token() -> None:
    with (
        server(lambda _path: (200, {}, b"[" * 500_000)) as (tokens, _),
        server(lambda _path: challenge(f"http://{tokens}/token")) as (registry, _),
        pytest.raises(RegistryError, match="answers no token"),
    ):
        pull(registry)


def test_a_challenge_that_would_be_searched_for_minutes_is_refused() -> None:
    with (
        server(lambda _path: (401, {"WWW-Authenticate": "Bearer " + "a" * 60_000}, b"")) as (registry, _),
        pytest.raises(RegistryError, match="60007 characters"),
    ):
        pull(registry)


def test_googles_metadata_service_over_ipv6_is_forbidden() -> None:
    assert is_forbidden("fd20:ce::254")
    assert not is_forbidden("fd20:ce::253")


def test_indexes_that_list_each_other_a_thousand_times_are_walked_once(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path)

    def put(document: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(document).encode()
        layout.add_blob(data, Digest.of(data))
        return {"mediaType": document["mediaType"], "digest": str(Digest.of(data)), "size": len(data)}

    part = {"mediaType": "application/wasm", "digest": str(Digest.of(b"")), "size": 0}
    top = put({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": part, "layers": [part]})
    found = {top["digest"]}
    for _ in range(4):  # one after the other: a thousand to the power of four walks
        top = put({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [top] * 1000})
        found.add(top["digest"])
    layout.set_reference("registry.test/x:v1", Descriptor(OCI_INDEX, Digest.parse(top["digest"]), top["size"]))
    repository = Shelf(layout).repositories()["registry.test/x"]
    assert {str(digest) for digest in repository.manifests} == found
    assert Digest.of(b"") in repository.blobs
