"""What a broker refuses to carry does not stand in the way of what it would."""

from pathlib import Path

import pytest
import wasmtime

from proplet.agent import wire
from proplet.agent.topics import Route, Topics
from tests.node.conftest import agent_config
from tests.support.mosquitto import CHANNEL, DOMAIN, MANAGER, PROPLET, MosquittoServer
from tests.support.node import NodeProcess, open_peer

pytestmark = [pytest.mark.anyio, pytest.mark.mosquitto]

TALKATIVE = bytes(
    wasmtime.wat2wasm(
        """(module
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 4)
          (func (export "_start")
            (memory.fill (i32.const 64) (i32.const 97) (i32.const 200000))
            (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 200000))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))))"""
    )
)


async def test_a_result_that_ends_every_connection_is_sent_without_its_text_in_the_end(tmp_path: Path) -> None:
    server = MosquittoServer(tmp_path / "broker", max_message_bytes=100_000)
    server.start()
    try:
        with NodeProcess(tmp_path / "node", agent_config(server)):
            settings = server.link_settings(MANAGER.username)
            async with open_peer(settings, Topics(DOMAIN, CHANNEL), PROPLET.username) as peer:
                await peer.send(Route.HELLO, wire.Hello("m"))
                await peer.until(lambda: peer.all(Route.INVENTORY), what="the agent")
                await peer.start("large", name="_start", file=TALKATIVE, inputs=())
                result = await peer.result("large", 60)
                assert result.ext is not None
                assert result.ext.reason is wire.Reason.OK
                assert "bytes dropped" in str(result.results)
                await peer.start("small")
                assert (await peer.result("small", 60)).results == "42"
    finally:
        server.kill()
