"""What tasks cost, measured on a real node: every number is the task's own."""

import pytest
import wasmtime

from proplet.agent import wire
from proplet.agent.topics import Route
from tests.node.test_latent_tasks import deploy, invoke
from tests.support.node import NodeProcess, Peer

pytestmark = [pytest.mark.anyio, pytest.mark.mosquitto]

COUNTS = bytes(
    wasmtime.wat2wasm("""(module (memory (export "memory") 1) (func (export "main") (param $n i32) (result i32)
      (drop (memory.grow (i32.const 2)))
      (loop $again (local.set $n (i32.sub (local.get $n) (i32.const 1))) (br_if $again (local.get $n)))
      (local.get $n)))""")
)


async def usage(peer: Peer, task_id: str) -> wire.Usage:
    result = await peer.result(task_id)
    assert result.ext is not None
    assert result.ext.usage is not None
    return result.ext.usage


async def test_fuel_is_told_of_a_task_whose_fuel_is_limited_and_only_of_it(agent: NodeProcess, peer: Peer) -> None:
    limited = wire.StartTerms(attempt=1, limits=wire.Limits(fuel=1_000_000))
    await peer.start("limited", file=COUNTS, inputs=("1000",), ext=limited)
    await peer.start("free", file=COUNTS, inputs=("1000",))
    await peer.start("empty", file=COUNTS, inputs=("0",), ext=limited)
    used = await usage(peer, "limited")
    assert used.fuel_used is not None
    assert 1000 < used.fuel_used < 100_000
    assert (await usage(peer, "free")).fuel_used is None
    assert (await usage(peer, "empty")).fuel_used == 1_000_000, "it has counted down from 2^32 and ran out"
    assert used.peak_memory_bytes == 3 * 65536
    assert used.memory_note is None


async def test_a_latent_task_ends_with_how_often_it_was_invoked_and_what_that_cost(
    agent: NodeProcess, peer: Peer
) -> None:
    await deploy(peer, file=COUNTS, inputs=("5000000",))
    answers = [await invoke(peer, call=f"i{n}") for n in range(3)]
    await peer.send(Route.STOP, wire.Stop("f"))
    all_of_them = await usage(peer, "f")
    assert all_of_them.invocations == 3
    each = [answer.ext.usage.cpu_seconds or 0 for answer in answers if answer.ext and answer.ext.usage]
    assert all_of_them.cpu_seconds == pytest.approx(sum(each))
    assert all_of_them.peak_memory_bytes == 3 * 65536
