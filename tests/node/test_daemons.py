"""Daemons on a node: what a person is told of one that crashes again and again, and what a reboot leaves of one."""

import base64
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
import wasmtime

from proplet.agent import wire
from proplet.agent.topics import Route, Topics
from tests.node.conftest import agent_config
from tests.node.test_invocations import Hub, client, hub  # noqa: F401
from tests.support.mosquitto import CHANNEL, DOMAIN, MANAGER, PROPLET, MosquittoServer
from tests.support.node import NodeProcess, Peer, open_peer

pytestmark = [pytest.mark.mosquitto]

LOOP = bytes(wasmtime.wat2wasm('(module (func (export "main") (loop br 0)))'))
TRAP = bytes(wasmtime.wat2wasm('(module (func (export "main") unreachable))'))
TERMS = wire.StartTerms(attempt=1, topics=("progress",), restart_policy=wire.RestartPolicy.ALWAYS)


def stages(peer: Peer, task_id: str) -> list[str]:
    return [progress.stage for progress in peer.all(Route.PROGRESS, task_id)]


def computing(pid: int) -> float:
    """Return the CPU seconds that a node's workers have used."""
    used = 0
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has just ended
            if b"proplet.agent.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                used += sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return used / os.sysconf("SC_CLK_TCK")


async def until(met: Callable[[], bool], what: str) -> None:
    with anyio.move_on_after(30):
        while not met():  # noqa: ASYNC110 - what is waited for is in other processes
            await anyio.sleep(0.05)
    assert met(), what


@pytest.mark.anyio
async def test_daemons_and_latent_tasks_are_there_again_after_a_reboot_without_a_broker(
    tmp_path: Path, mosquitto: MosquittoServer
) -> None:
    with NodeProcess(tmp_path / "node", agent_config(mosquitto)) as node:
        topics = Topics(DOMAIN, CHANNEL)
        async with open_peer(mosquitto.link_settings(MANAGER.username), topics, PROPLET.username) as peer:
            await peer.send(Route.HELLO, wire.Hello("m"))
            await peer.until(lambda: peer.all(Route.INVENTORY), what="the agent")
            await peer.start("d", file=LOOP, inputs=(), daemon=True, ext=TERMS)
            await peer.start("plain", file=LOOP, inputs=(), daemon=True, ext=wire.StartTerms(1, topics=("progress",)))
            await peer.start("f", latent=True, ext=TERMS)
            await peer.until(lambda: {"running"} <= set(stages(peer, "d")) & set(stages(peer, "plain")))
            await peer.until(lambda: "deployed" in stages(peer, "f"))
        mosquitto.stop()
        node.kill()
        node.start()
        await until(lambda: computing(node.pid) > 0.3, "the daemons run, with nobody to tell")
        mosquitto.start()
        async with open_peer(mosquitto.link_settings(MANAGER.username), topics, PROPLET.username) as peer:
            await peer.send(Route.HELLO, wire.Hello("m"))
            held = (await peer.until(lambda: peer.all(Route.INVENTORY)))[-1]
            assert {item.id: item.state for item in held.tasks} == {"d": "running", "plain": "running", "f": "deployed"}
            await peer.send(Route.INVOKE, wire.Invoke("f", "i1"))
            assert (await peer.until(lambda: peer.all(Route.INVOKE_RESULTS)))[0].results == "42"
            assert not peer.all(Route.RESULTS)


def test_a_person_sees_that_a_daemon_crashes_again_and_again_and_why(hub: Hub) -> None:  # noqa: F811
    spec = {"name": "main", "file": base64.b64encode(TRAP).decode(), "daemon": True, "restartPolicy": "Always"}
    kind = {"apiVersion": "propeller.propeller.abstractmachines.fr/v1", "kind": "Task", "metadata": {"name": "d"}}
    hub.done("apply", "-f", "-", stdin=json.dumps({**kind, "spec": spec}).encode())
    told = set()
    with contextlib.closing(client(hub).watch("tasks", name="d")) as events:
        for event in events:
            status = (event.object or {}).get("status", {})
            told.add(status.get("message", ""))
            assert status.get("phase") in {None, "pending", "scheduled", "running"}
            if "restarted 4 times, next in 8 s: " in status.get("message", ""):
                break
    assert any("restarted 3 times, next in 4 s: " in message and "unreachable" in message for message in told)
    described = hub.done("describe", "task", "d")
    assert "restarted 4 times, next in 8 s: " in described
    hub.done("stop", "d")
    assert hub.run("wait", "--for", "finished", "d").code == 0
