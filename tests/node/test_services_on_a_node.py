"""Services on a node: both kinds of peers learn where they serve, and they come back when they or the node die."""

import base64
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from http.client import HTTPConnection
from pathlib import Path

import anyio
import pytest

from proplet.agent import wire
from proplet.agent.topics import Route, Topics
from tests.node.conftest import agent_config
from tests.node.test_invocations import Hub, client, hub  # noqa: F401
from tests.support.modules import module
from tests.support.mosquitto import CHANNEL, DOMAIN, MANAGER, PROPLET, MosquittoServer
from tests.support.node import NodeProcess, Peer, open_peer
from tests.support.ports import free_ports

pytestmark = [pytest.mark.mosquitto]

SERVICE = module("component_http")
TERMS = wire.StartTerms(attempt=1, topics=("progress", "logs"), restart_policy=wire.RestartPolicy.ALWAYS)


@pytest.fixture
def port() -> int:
    return free_ports(4)[0]


@pytest.fixture
def node(tmp_path: Path, mosquitto: MosquittoServer, port: int) -> AsyncIterator[NodeProcess]:
    config = f"{agent_config(mosquitto)}[runtime.http]\nfirst_port = {port}\n"
    with NodeProcess(tmp_path / "node", config) as node:
        yield node


@pytest.fixture
async def manager(mosquitto: MosquittoServer, node: NodeProcess) -> AsyncIterator[Peer]:
    async with open_peer(mosquitto.link_settings(MANAGER.username), Topics(DOMAIN, CHANNEL), PROPLET.username) as peer:
        await peer.send(Route.HELLO, wire.Hello("m"))
        await peer.until(lambda: peer.all(Route.INVENTORY), what="the agent")
        yield peer


def programs(node: NodeProcess) -> list[int]:
    """The process ids of the wasmtime programs that a node runs."""
    children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    return [int(child) for child in children if b"\0serve\0" in Path(f"/proc/{child}/cmdline").read_bytes()]


def commands(node: NodeProcess) -> list[str]:
    children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    return [Path(f"/proc/{child}/cmdline").read_text() for child in children]


async def ask(port: int, path: str = "/") -> str:
    def get() -> str:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    return await anyio.to_thread.run_sync(get)


def stages(peer: Peer, stage: str) -> list[wire.Progress]:
    return [progress for progress in peer.all(Route.PROGRESS, "web") if progress.stage == stage]


async def until(met: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not met():  # noqa: ASYNC110
            await anyio.sleep(0.02)


@pytest.mark.anyio
async def test_a_peer_of_the_reference_gets_the_port_at_once_and_the_service_goes_on(
    manager: Peer, node: NodeProcess, port: int
) -> None:
    await manager.start("web", name="_start", file=SERVICE, inputs=(), ext=None, env={"NAME": "web"})
    result = await manager.result("web", 60)
    assert (result.results, result.error) == (f"started at port {port}", None)
    assert await ask(port) == "hello\n"
    assert await ask(port, "/env/NAME") == "web"
    assert await ask(port, "/env/PROPLET_ID") == PROPLET.username
    await manager.send(Route.STOP, wire.Stop("web"))
    await manager.until(lambda: len(manager.all(Route.RESULTS, "web")) > 1)
    assert manager.all(Route.RESULTS, "web")[1].error == "Task web was stopped before completion"
    assert programs(node) == []


@pytest.mark.anyio
async def test_a_peer_of_ours_follows_a_service_through_its_deaths(manager: Peer, node: NodeProcess, port: int) -> None:
    await manager.start("web", name="_start", file=SERVICE, inputs=(), ext=TERMS)
    await manager.until(lambda: stages(manager, "serving"), 60)
    assert stages(manager, "serving")[0].message == f"started at port {port}"
    await ask(port, "/say/something")
    await manager.until(lambda: any("said something" in "".join(m.lines) for m in manager.all(Route.LOGS, "web")))
    (program,) = programs(node)
    os.kill(program, signal.SIGKILL)
    await manager.until(lambda: stages(manager, "waiting"))
    assert "was killed by SIGKILL" in stages(manager, "waiting")[0].message
    await manager.until(lambda: len(stages(manager, "serving")) > 1)
    assert await ask(port) == "hello\n"
    assert not manager.all(Route.RESULTS)


@pytest.mark.anyio
async def test_a_service_is_there_again_after_its_node_was_killed(manager: Peer, node: NodeProcess, port: int) -> None:
    await manager.start("web", name="_start", file=SERVICE, inputs=(), ext=wire.StartTerms(1, topics=("progress",)))
    await manager.until(lambda: stages(manager, "serving"), 60)
    (program,) = programs(node)
    node.kill()
    await until(lambda: not Path(f"/proc/{program}").exists())
    node.start()
    await manager.until(lambda: len(stages(manager, "serving")) > 1)
    assert await ask(port) == "hello\n"
    await manager.send(Route.HELLO, wire.Hello("m"))
    await manager.until(lambda: [i.state for i in manager.all(Route.INVENTORY)[-1].tasks] == ["serving"])
    (item,) = manager.all(Route.INVENTORY)[-1].tasks
    assert item.message == f"started at port {port}"


@pytest.mark.anyio
async def test_with_the_references_host_runtime_every_task_runs_in_the_program(
    tmp_path: Path, mosquitto: MosquittoServer
) -> None:
    environ = {"PROPLET_EXTERNAL_WASM_RUNTIME": "wasmtime"}
    with NodeProcess(tmp_path / "node", agent_config(mosquitto), environ) as node:
        topics = Topics(DOMAIN, CHANNEL)
        async with open_peer(mosquitto.link_settings(MANAGER.username), topics, PROPLET.username) as peer:
            await peer.send(Route.HELLO, wire.Hello("m"))
            await peer.until(lambda: peer.all(Route.INVENTORY), what="the agent")
            assert peer.all(Route.CREATE)[-1].metadata.wasm_runtime == "wasmtime"
            await peer.start("t", ext=None)
            assert (await peer.result("t")).results == "42\n"
            await peer.start("flags", ext=None, cli_args=("--invoke", "main", "-W", "simd=y"))
            assert (await peer.result("flags")).results == "42\n"
            await peer.start("dir", ext=None, cli_args=("--dir=/",))
            assert "was not granted this directory" in (await peer.result("dir")).error
            assert not any("proplet.agent.worker" in child for child in commands(node))


def test_a_person_sees_where_a_task_serves(hub: Hub) -> None:  # noqa: F811
    (port,) = free_ports(1)
    spec = {"name": "_start", "file": base64.b64encode(SERVICE).decode(), "cliArgs": [f"--port={port}"]}
    kind = {"apiVersion": "propeller.propeller.abstractmachines.fr/v1", "kind": "Task", "metadata": {"name": "web"}}
    hub.done("apply", "-f", "-", stdin=json.dumps({**kind, "spec": spec}).encode())
    assert hub.run("wait", "--for", "running", "web").code == 0
    with contextlib.closing(client(hub).watch("tasks", name="web")) as events:
        assert any((e.object or {}).get("status", {}).get("message") == f"started at port {port}" for e in events)
    status = hub.get("task", "web")["status"]
    assert (status["phase"], status["message"]) == ("running", f"started at port {port}")
    hub.done("stop", "web")
    assert hub.run("wait", "--for", "finished", "web").code == 0
