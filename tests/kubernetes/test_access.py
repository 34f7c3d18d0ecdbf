"""How a cluster is found, and what is said when it is not, or when it refuses."""

import json
import socket
import threading
from pathlib import Path

import anyio
import pytest

from proplet.manager.kubernetes_access import Access, AccessError, Sockets
from proplet.manager.kubernetes_api import Collection, open_api
from proplet.manager.kubernetes_errors import NotServedError, refusal
from proplet.manager.ports import (
    AlreadyExistsError,
    ConflictError,
    GoneError,
    NotFoundError,
    RefusedError,
    ResourceTooLargeError,
    StoreError,
    StoreUnavailableError,
)
from tests.kubernetes.relay import open_relay
from tests.support.kubernetes import ApiServer

pytestmark = pytest.mark.anyio

MAPS = Collection("", "v1", "configmaps", "ConfigMap")


async def test_inside_a_pod_the_service_account_is_used(
    api_server: ApiServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(api_server.service_account_token(namespace, "manager"))
    (tmp_path / "ca.crt").write_bytes(api_server.ca_file.read_bytes())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api_server.port))
    async with open_api(Access(service_account=tmp_path)) as api:
        with pytest.raises(RefusedError, match=f"system:serviceaccount:{namespace}:manager"):
            await api.run(api.get, MAPS, namespace, "none")


async def test_credentials_that_are_refused_are_read_again(
    api_server: ApiServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("of yesterday")
    (tmp_path / "ca.crt").write_bytes(api_server.ca_file.read_bytes())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api_server.port))
    async with open_api(Access(service_account=tmp_path)) as api:
        with pytest.raises(RefusedError, match="credentials"):
            await api.run(api.get, MAPS, namespace, "none")
        (tmp_path / "token").write_text(api_server.admin_token)
        with pytest.raises(NotFoundError):
            await api.run(api.get, MAPS, namespace, "none")


async def test_a_context_of_the_kubeconfig_can_be_chosen(api_server: ApiServer, namespace: str, tmp_path: Path) -> None:
    content = json.loads(api_server.kubeconfig.read_text())
    content["contexts"].append({"name": "other", "context": {"cluster": "test", "user": "nobody"}})
    content["users"].append({"name": "nobody", "user": {"token": "not-known"}})
    config = tmp_path / "config"
    config.write_text(json.dumps(content))
    async with open_api(Access(config)) as api:
        with pytest.raises(NotFoundError):
            await api.run(api.get, MAPS, namespace, "none")
    async with open_api(Access(config, "other")) as api:
        with pytest.raises(RefusedError, match="credentials"):
            await api.run(api.get, MAPS, namespace, "none")


@pytest.mark.parametrize("content", [None, "", "[]", "{", "a: [", json.dumps({"current-context": "x"})])
async def test_a_kubeconfig_that_is_none_is_named(tmp_path: Path, content: str | None) -> None:
    config = tmp_path / "config"
    if content is not None:
        config.write_text(content)
    with pytest.raises(AccessError, match=str(config)):
        async with open_api(Access(config)):
            pass


async def test_after_closing_nothing_is_sent(api_server: ApiServer, namespace: str) -> None:
    async with open_api(Access(api_server.kubeconfig)) as api:
        pass
    with pytest.raises(StoreUnavailableError, match="stopping"):
        await api.run(api.get, MAPS, namespace, "none")


async def test_a_call_that_is_cancelled_is_not_waited_for(private_api_server: ApiServer) -> None:
    server = private_api_server
    async with open_api(Access(server.kubeconfig)) as api:
        server.pause()
        try:
            with anyio.fail_after(10), anyio.move_on_after(0.1) as scope:
                await api.run(api.get, MAPS, "default", "none")
            assert scope.cancelled_caught
            api.close()
        finally:
            server.resume()


class Connection:
    """A connection whose socket is one end of a pair."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self.sock = sock


def test_a_thread_that_is_cut_before_it_connects_does_not_connect() -> None:
    sockets = Sockets()
    sockets.enter(Connection())
    sockets.cut(threading.get_ident())  # there is no socket yet
    with pytest.raises(StoreUnavailableError):
        sockets.enter(Connection())
    sockets.leave()
    sockets.enter(Connection())  # it has other work now


def test_closing_ends_what_every_thread_reads() -> None:
    near, far = socket.socketpair()
    with near, far:
        sockets = Sockets()
        sockets.enter(Connection(near))
        sockets.close()
        assert near.recv(1) == b""
        with pytest.raises(StoreUnavailableError):
            sockets.enter(Connection())


def status(code: int, reason: str = "", name: str = "x") -> bytes:
    return json.dumps(
        {"kind": "Status", "code": code, "reason": reason, "message": "why", "details": {"name": name}}
    ).encode()


@pytest.mark.parametrize(
    ("code", "body", "error"),
    [
        (404, status(404, "NotFound"), NotFoundError),
        (404, b"404 page not found\n", NotServedError),
        (409, status(409, "AlreadyExists"), AlreadyExistsError),
        (409, status(409, "Conflict"), ConflictError),
        (410, status(410, "Expired"), GoneError),
        (400, status(400), RefusedError),
        (401, status(401), RefusedError),
        (403, status(403), RefusedError),
        (413, b"<html>too large</html>", ResourceTooLargeError),
        (422, status(422, "Invalid"), RefusedError),
        (429, status(429), StoreUnavailableError),
        (500, b"", StoreUnavailableError),
        (503, b"\xff\xfe", StoreUnavailableError),
        (504, b"[1]", StoreUnavailableError),
    ],
)
def test_every_refusal_has_its_error(code: int, body: bytes, error: type[StoreError]) -> None:
    refused = refusal(code, body, "get Task a/b")
    assert type(refused) is error
    assert str(refused).startswith("get Task a/b: ")


async def test_what_waits_on_a_dead_connection_ends_when_all_are_cut_and_the_next_takes_a_new_one(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    config = tmp_path / "kubeconfig"
    async with open_relay(api_server.port) as relay:
        config.write_text(api_server.kubeconfig.read_text().replace(f":{api_server.port}", f":{relay.port}"))
        async with open_api(Access(config)) as api:
            before = api.heard_at
            with pytest.raises(NotFoundError):
                await api.run(api.get, MAPS, namespace, "none")
            assert api.heard_at > before
            assert relay.connections == 1
            await relay.hold()

            async def wait_in_vain() -> None:
                with pytest.raises(StoreUnavailableError):
                    await api.run(api.get, MAPS, namespace, "none")

            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wait_in_vain)
                    await relay.held()
                    api.cut()
            await relay.release()
            with pytest.raises(NotFoundError):
                await api.run(api.get, MAPS, namespace, "none")
            assert relay.connections == 2
