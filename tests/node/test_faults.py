"""Full and read-only disks, messages too large, registries that misbehave: said clearly, nothing lost."""

import contextlib
import shutil
import socket
from pathlib import Path

import pytest

from proplet.agent import wire
from proplet.agent.topics import Route, Topics
from tests.node.conftest import agent_config
from tests.support.daemon import ProcessEndedError
from tests.support.disks import mounted
from tests.support.mosquitto import CHANNEL, DOMAIN, MANAGER, PROPLET, MosquittoServer
from tests.support.node import ADDITION, NodeProcess, Peer, open_peer
from tests.support.registry import running_registry

pytestmark = [pytest.mark.anyio, pytest.mark.mosquitto]


async def test_a_module_from_a_registry_is_pulled_run_and_named_by_its_digest(
    agent: NodeProcess, peer: Peer, tmp_path: Path
) -> None:
    with running_registry(tmp_path / "registry") as registry:
        registry.push("wasm/addition", "1", ADDITION)
        await peer.start("t1", image_url=f"{registry.address}/wasm/addition:1")
        result = await peer.result("t1")
    assert (result.results, result.error) == ("42", None)
    assert result.ext is not None
    assert (result.ext.image_digest or "").startswith("sha256:")
    assert result.ext.usage is not None
    assert result.ext.usage.wall_seconds["fetch"] > 0
    # The registry is away; the same tag still runs, from what is kept.
    await peer.start("t2", image_url=f"{registry.address}/wasm/addition:1")
    assert (await peer.result("t2")).results == "42"


async def test_a_module_that_does_not_match_its_digest_is_not_run(
    agent: NodeProcess, peer: Peer, tmp_path: Path
) -> None:
    with running_registry(tmp_path / "registry") as registry:
        registry.push("wasm/addition", "1", ADDITION)
        rotten = [f for f in registry.storage.rglob("data") if f.read_bytes() == ADDITION]
        for file in rotten:
            file.write_bytes(ADDITION[:-3] + b"\x6b" + ADDITION[-2:])
        await peer.start("t1", image_url=f"{registry.address}/wasm/addition:1")
        result = await peer.result("t1", 60)
    assert rotten
    assert result.ext is not None
    assert result.ext.reason is wire.Reason.DIGEST_MISMATCH, result.error
    assert "sha256:" in (result.error or "")


async def test_a_pinned_image_that_the_registry_does_not_have_is_not_replaced_by_its_tag(
    agent: NodeProcess, peer: Peer, tmp_path: Path
) -> None:
    with running_registry(tmp_path / "registry") as registry:
        registry.push("wasm/addition", "1", ADDITION)
        pinned = wire.StartTerms(attempt=1, image_digest="sha256:" + "0" * 64)
        await peer.start("t1", image_url=f"{registry.address}/wasm/addition:1", ext=pinned)
        result = await peer.result("t1")
    assert result.ext is not None
    assert result.ext.reason is wire.Reason.MODULE_UNAVAILABLE
    assert "sha256:" + "0" * 64 in (result.error or "")


async def test_an_unknown_repository_is_told_from_an_unknown_registry(
    agent: NodeProcess, peer: Peer, tmp_path: Path
) -> None:
    with running_registry(tmp_path / "registry") as registry:
        await peer.start("t1", image_url=f"{registry.address}/no/such:1")
        unknown = await peer.result("t1")
    await peer.start("t2", image_url=f"{registry.address}/no/such:1")
    away = await peer.result("t2", 60)
    assert unknown.error != away.error
    assert "no/such" in (unknown.error or "")


async def test_a_message_of_20_mb_is_refused_loudly_and_hurts_nobody(tmp_path: Path) -> None:
    server = MosquittoServer(tmp_path / "broker", max_message_bytes=64 * 1024 * 1024)
    server.start()
    try:
        topics = Topics(DOMAIN, CHANNEL)
        generous = server.link_settings(MANAGER.username, max_packet_bytes=64 * 1024 * 1024)
        with NodeProcess(tmp_path / "node", agent_config(server)) as node:
            async with open_peer(generous, topics, PROPLET.username) as peer:
                await peer.send(Route.HELLO, wire.Hello("m"))
                await peer.until(lambda: peer.all(Route.INVENTORY))
                await peer.start("huge", file=b"\0asm" + bytes(20 * 1024 * 1024))
                await peer.start("good")
                assert (await peer.result("good")).results == "42"
            assert "exceeds the limit of 10485760 bytes" in node.log
            assert "Traceback" not in node.log
    finally:
        server.kill()
        shutil.rmtree(tmp_path / "broker", ignore_errors=True)


async def test_a_full_disk_holds_work_up_says_so_and_loses_nothing(
    tmp_path: Path,
    mosquitto: MosquittoServer,
) -> None:
    with mounted(tmp_path / "disk", "size=3m") as disk:
        config = agent_config(mosquitto).replace('state_dir = "state"', f'state_dir = "{disk}/state"')
        with NodeProcess(tmp_path / "node", config) as node:
            settings = mosquitto.link_settings(MANAGER.username)
            async with open_peer(settings, Topics(DOMAIN, CHANNEL), PROPLET.username) as peer:
                await peer.send(Route.HELLO, wire.Hello("m"))
                await peer.until(lambda: peer.all(Route.INVENTORY))
                await peer.start("before")
                await peer.result("before")
                filler = disk / "filler"
                with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
                for n in range(40):
                    await peer.start(f"t{n}", env={"PADDING": "x" * 20_000})
                await peer.until(lambda: "is full" in node.log, what="the log to say so")
                filler.unlink()
                for n in range(40):
                    assert (await peer.result(f"t{n}", 60)).results == "42"
            node.stop()
            assert "the storage works again" in node.log


async def test_a_read_only_state_directory_is_named(tmp_path: Path, mosquitto: MosquittoServer) -> None:
    with mounted(tmp_path / "disk", "ro,size=1m") as disk:
        config = agent_config(mosquitto).replace('state_dir = "state"', f'state_dir = "{disk}/state"')
        node = NodeProcess(tmp_path / "node", config)
        with pytest.raises(ProcessEndedError) as caught:
            node.start()
        assert caught.value.code == 69
        assert f"{disk}/state" in caught.value.log
        assert "Read-only file system" in caught.value.log
        assert "Traceback" not in caught.value.log


async def test_an_api_port_that_is_taken_is_named_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = (
            '[node]\nid = "n"\nstate_dir = "state"\ncache_dir = "cache"\nruntime_dir = "run"\n'
            "[mqtt]\n[broker]\nport = 0\n"
            f'[manager.api]\nhost = "127.0.0.1"\nport = {port}\ntoken = "0123456789abcdef0123"\n'
        )
        node = NodeProcess(tmp_path / "node", config)
        with pytest.raises(ProcessEndedError) as caught:
            node.start()
    assert caught.value.code == 69
    assert str(port) in caught.value.log
    assert "Traceback" not in caught.value.log
