"""Requests that a component makes: with the permission for all hosts, and not without it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from wasmtime import wat2wasm

from proplet.agent.wire import Permissions, Reason

pytestmark = pytest.mark.anyio

REQUESTER = "component_requester"


class Hello(BaseHTTPRequestHandler):
    """Says hello and counts to whom."""

    asked = 0

    def do_GET(self) -> None:
        """Answer."""
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    Hello.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Hello) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


async def test_a_request_is_made_with_the_permission(node: Any, server: str) -> None:
    outcome = await node.run(REQUESTER, "_start", server, permissions=Permissions(http=("*",)))
    assert (outcome.reason, outcome.results, Hello.asked) == (Reason.OK, "200\nhello", 1)


async def test_no_request_is_made_without_it_nor_with_one_for_some_hosts(node: Any, server: str) -> None:
    assert (await node.run(REQUESTER, "_start", server, permissions=Permissions(http=("*",)))).results == "200\nhello"
    for hosts in ((), (server,), ("127.0.0.1",)):
        outcome = await node.run(REQUESTER, "_start", server, permissions=Permissions(http=hosts))
        assert outcome.reason is Reason.PERMISSION_DENIED
        assert 'permissions: {http: ["*"]}' in outcome.error
    assert Hello.asked == 1


async def test_what_serves_http_is_known_before_it_is_run(node: Any) -> None:
    # The interface is empty here: nothing asks what is in it.
    handler = wat2wasm('(component (instance $h) (export "wasi:http/incoming-handler@0.2.3" (instance $h)))')
    artefact = await node.artefact(bytes(handler))
    assert (artefact.serves_http, artefact.waits) == (True, False)
    assert (await node.artefact(REQUESTER)).serves_http is False
    assert (await node.artefact(REQUESTER)).waits is True
