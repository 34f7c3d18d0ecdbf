"""The command line's client against a real API, and against none."""

import subprocess
import sys
from pathlib import Path

import anyio.to_thread
import pytest

from proplet.agent.client import ApiError, Client, NodeUnreachableError, Target, WatchEvent
from proplet.agent.wire import LogLines
from proplet.manager.api import ApiSettings
from proplet.manager.model import Key, Kind
from proplet.manager.store_memory import MemoryStore
from tests.api.fakes import TOKEN, FakeControl, Node, open_node
from tests.api.test_api_manifests import manifest

pytestmark = pytest.mark.anyio


def walk_through(client: Client) -> list[str]:
    """Use everything; return the types of events seen on the way."""
    assert client.node()["version"] == "1.2.3"
    assert [item["action"] for item in client.apply(manifest("a"), dry_run=True)] == ["created"]
    assert [item["action"] for item in client.apply(manifest("a"))] == ["created"]
    listing = client.list("tasks")
    assert [item["metadata"]["name"] for item in listing["items"]] == ["a"]
    assert client.list("tasks", namespace="other")["items"] == []
    assert client.get("tasks", "a")["spec"]["name"] == "main"
    assert client.start("a")["status"]["phase"] == "running"
    assert client.stop("a")["status"]["phase"] == "interrupted"
    assert client.logs("a") == []
    assert client.delete("tasks", "a")["metadata"]["name"] == "a"
    events: list[WatchEvent] = []
    watch = client.watch("tasks", since=listing["version"], name="a")
    for event in watch:
        events.append(event)
        if event.type == "DELETED":
            break
    watch.close()
    return [event.type for event in events]


@pytest.mark.parametrize("kind", ["unix", "bearer", "prefix", "userinfo", "environment"])
async def test_a_client_does_everything_over(node: Node, kind: str) -> None:
    url = f"http://127.0.0.1:{node.port}"
    client = {
        "unix": lambda: Client.connect(f"unix:{node.socket}"),
        "bearer": lambda: Client.connect(url, token=TOKEN),
        "prefix": lambda: Client.connect(f"{url}/t/{TOKEN}"),
        "userinfo": lambda: Client.connect(f"http://x:{TOKEN}@127.0.0.1:{node.port}"),
        "environment": lambda: Client.connect(url, environ={"PROPLET_TOKEN": TOKEN}),
    }[kind]()
    assert TOKEN not in str(client.target)
    assert TOKEN not in repr(client.target) or kind == "prefix"
    types = await anyio.to_thread.run_sync(walk_through, client)
    assert types[0] == "MODIFIED"
    assert types[-1] == "DELETED"


async def test_a_refusal_says_why(node: Node) -> None:
    client = Client.connect(str(node.socket))
    with pytest.raises(ApiError) as missing:
        await anyio.to_thread.run_sync(client.get, "tasks", "nobody")
    assert (missing.value.status, missing.value.reason) == (404, "not_found")
    with pytest.raises(ApiError, match="apiVersion") as wrong:
        await anyio.to_thread.run_sync(client.apply, "kind: Task")
    assert wrong.value.status == 400
    with pytest.raises(ApiError) as stranger:
        await anyio.to_thread.run_sync(Client.connect(f"http://127.0.0.1:{node.port}").node)
    assert stranger.value.status == 401


async def test_logs_come_with_their_stream(node: Node) -> None:
    client = Client.connect(str(node.socket))
    await anyio.to_thread.run_sync(client.apply, manifest("a"))
    uid = (await node.store.get(Kind.TASK, Key("a"))).meta.uid
    node.control.logs[uid] = [LogLines("pi-1", uid, 1, "stderr", ("oops",))]
    lines = await anyio.to_thread.run_sync(client.logs, "a")
    assert [(item["stream"], item["lines"]) for item in lines] == [("stderr", ["oops"])]


async def test_a_watch_begins_with_all_there_is(node: Node) -> None:
    client = Client.connect(str(node.socket))
    await anyio.to_thread.run_sync(client.apply, manifest("a"))
    watch = client.watch("tasks")
    events = [await anyio.to_thread.run_sync(next, watch) for _ in range(2)]
    assert [event.type for event in events] == ["ADDED", "SYNCED"]
    assert events[0].object is not None
    assert events[0].object["metadata"]["name"] == "a"
    assert events[1].version > 0
    watch.close()


async def test_a_watch_survives_a_restart_of_the_node(settings: ApiSettings) -> None:
    store = MemoryStore()
    async with open_node(settings, store) as node:
        watch = Client.connect(str(node.socket)).watch("tasks")
        assert (await anyio.to_thread.run_sync(next, watch)).type == "SYNCED"
    async with open_node(settings, store) as node:
        await anyio.to_thread.run_sync(Client.connect(str(node.socket)).apply, manifest("later"))
        event = await anyio.to_thread.run_sync(next, watch)
        assert event.object is not None
        assert (event.type, event.object["metadata"]["name"]) == ("ADDED", "later")
    watch.close()


async def test_a_watch_of_forgotten_changes_is_an_error_with_status_410(settings: ApiSettings) -> None:
    async with open_node(settings, MemoryStore(history=1)) as node:
        client = Client.connect(str(node.socket))
        for name in "abc":
            await anyio.to_thread.run_sync(client.apply, manifest(name))
        with pytest.raises(ApiError) as gone:
            await anyio.to_thread.run_sync(next, client.watch("tasks", since=1))
        assert gone.value.status == 410


def test_without_a_node_it_is_said_how_to_start_one(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    with pytest.raises(NodeUnreachableError, match=r"no node runs here \(looked for .*start one with `proplet up`"):
        Client.connect(environ=environ)
    with pytest.raises(NodeUnreachableError, match="no node runs here"):
        Client.connect(str(tmp_path / "none.sock")).node()
    with pytest.raises(NodeUnreachableError, match="does not answer"):
        Client.connect("http://127.0.0.1:1").node()


async def test_a_socket_of_somebody_else_is_told_from_none(node: Node) -> None:
    # The child becomes nobody, if it is root: root may use every socket.
    code = """if True:
        import http.client, os, sys
        import proplet.agent.systemd  # now: afterwards this checkout may be out of reach
        from proplet.agent.client import Client, NodeUnreachableError
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            print(Client.connect(sys.argv[1]).node())
        except NodeUnreachableError as error:
            print(error)
    """
    node.socket.chmod(0)
    answer = await anyio.run_process([sys.executable, "-c", code, str(node.socket)])
    assert b"is not yours to use: join its group" in answer.stdout


async def test_the_node_of_this_person_is_found_without_being_named(socket_path: Path) -> None:
    path = socket_path.parent / "proplet" / "proplet.sock"
    environ = {"XDG_RUNTIME_DIR": str(socket_path.parent), "HOME": "/nonexistent"}
    async with open_node(ApiSettings(socket=path)):
        found = await anyio.to_thread.run_sync(lambda: Client.connect(environ=environ).node())
        assert found["version"] == "1.2.3"
        named = await anyio.to_thread.run_sync(lambda: Client.connect(environ={"PROPLET_SOCKET": str(path)}).node())
        assert named == found


@pytest.mark.parametrize("address", ["", "pi.local", "ftp://pi.local", "unix:relative", "http://", "http://x:99999"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError):
        Target.parse(address)


def test_importing_the_client_imports_no_http() -> None:
    code = "import sys, proplet.agent.client; print('http.client' in sys.modules, 'ssl' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.split() == ["False", "False"]


def test_the_fake_control_is_a_control() -> None:
    from proplet.manager.ports import Control

    control: Control = FakeControl(MemoryStore())
    assert not control.liveness("nobody").alive
