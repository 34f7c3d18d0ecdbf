"""Latent tasks on a node: deployed once, invoked many times; one process, a real broker, a real worker."""

import pytest
import wasmtime

from proplet.agent import wire
from proplet.agent.topics import Route
from tests.support.mosquitto import PROPLET
from tests.support.node import NodeProcess, Peer

pytestmark = [pytest.mark.anyio, pytest.mark.mosquitto]

LOOP = bytes(wasmtime.wat2wasm('(module (func (export "main") (loop br 0)))'))
TERMS = wire.StartTerms(attempt=1, topics=("progress",))


def _held(peer: Peer, task_id: str) -> str | None:
    """The state of a task in the last inventory."""
    inventories = peer.all(Route.INVENTORY)
    return next((item.state for item in inventories[-1].tasks if item.id == task_id), None) if inventories else None


async def deploy(peer: Peer, task_id: str = "f", **more: object) -> None:
    await peer.start(task_id, latent=True, ext=TERMS, **more)
    await peer.until(lambda: [p for p in peer.all(Route.PROGRESS, task_id) if p.stage == "deployed"])


async def invoke(peer: Peer, task_id: str = "f", call: str = "i1", **more: object) -> wire.InvokeResult:
    await peer.send(Route.INVOKE, wire.Invoke(task_id, call, proplet_id=PROPLET.username, **more))  # type: ignore[arg-type]
    return await answer(peer, call)


async def answer(peer: Peer, call: str) -> wire.InvokeResult:
    found = await peer.until(lambda: [r for r in peer.all(Route.INVOKE_RESULTS) if r.invocation_id == call])
    return found[0]  # type: ignore[no-any-return]


async def test_a_latent_task_rests_deployed_and_answers_every_invocation(agent: NodeProcess, peer: Peer) -> None:
    await deploy(peer)
    first = await invoke(peer)
    assert (first.results, first.error, first.task_id, first.proplet_id) == ("42", None, "f", "proplet-1")
    assert first.ext is not None
    assert (first.ext.attempt, first.ext.reason) == (1, wire.Reason.OK)
    assert first.ext.usage is not None
    assert first.ext.usage.wall_seconds.keys() == {"run", "total"}
    second = await invoke(peer, call="i2", inputs=("1", "2"))
    assert second.results == "3", "an invocation's inputs replace the start's"
    third = await invoke(peer, call="i3")
    assert third.results == "42", "and only for that invocation"
    await peer.send(Route.HELLO, wire.Hello("m"))
    await peer.until(lambda: _held(peer, "f") == "deployed")
    assert not peer.all(Route.RESULTS, "f"), "it has not ended"
