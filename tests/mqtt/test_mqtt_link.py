"""The link to a broker, against a real mosquitto."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import anyio
import anyio.lowlevel
import pytest

from proplet.agent.mqtt import (
    Connected,
    Delivery,
    Disconnected,
    LinkEvent,
    MessageTooLargeError,
    MqttSettings,
    NotConnectedError,
    Will,
    open_link,
)
from proplet.agent.mqtt_connection import paho_of
from proplet.agent.topics import Route, Topics
from tests.mqtt.certificates import make_certificates
from tests.mqtt.link_probe import Probe, linked
from tests.support.mosquitto import CHANNEL, DOMAIN, MosquittoServer, free_port, mosquitto  # noqa: F401

# ruff: noqa: F811, SIM117, PT012 - a fixture is used by naming it; nested contexts tell who outlives whom
pytestmark = [pytest.mark.anyio, pytest.mark.mosquitto]

TOPICS = Topics(DOMAIN, CHANNEL)
START = TOPICS.build(Route.START)
ALIVE = TOPICS.build(Route.ALIVE)
RESULTS = TOPICS.build(Route.RESULTS)


# Acknowledging


async def test_what_was_not_acknowledged_comes_again_marked_as_a_duplicate(mosquitto: MosquittoServer) -> None:
    async with linked(mosquitto.link_settings("manager")) as manager:
        async with linked(mosquitto.link_settings("proplet-1"), [(START, 1)]) as proplet:
            for number in range(3):
                await manager.link.publish(START, str(number).encode(), 1)
            first = await proplet.count(Delivery, 3)
            assert not any(delivery.duplicate for delivery in first)
            proplet.link.acknowledge(first[0])
        async with linked(mosquitto.link_settings("proplet-1"), [(START, 1)]) as proplet:
            again = await proplet.count(Delivery, 2)
            assert proplet.all(Connected) == [Connected(session_present=True)]
            assert [(d.payload, d.duplicate) for d in again] == [(b"1", True), (b"2", True)]


async def test_acknowledgements_reach_the_broker_in_order_of_arrival(mosquitto: MosquittoServer) -> None:
    async with linked(mosquitto.link_settings("manager")) as manager:
        async with linked(mosquitto.link_settings("proplet-1"), [(START, 1)]) as proplet:
            for number in range(3):
                await manager.link.publish(START, str(number).encode(), 1)
            _, second, third = await proplet.count(Delivery, 3)
            for early in (third, second):  # held back for the first
                proplet.link.acknowledge(early)
        async with linked(mosquitto.link_settings("proplet-1"), [(START, 1)]) as proplet:
            again = await proplet.count(Delivery, 3)
            assert [d.payload for d in again] == [b"0", b"1", b"2"]
            for delivery in reversed(again):
                proplet.link.acknowledge(delivery)
        async with linked(mosquitto.link_settings("proplet-1"), [(START, 1)]) as proplet:
            await manager.link.publish(START, b"new", 1)
            assert [d.payload for d in await proplet.count(Delivery, 1)] == [b"new"]


async def test_a_receipt_of_an_earlier_connection_is_discarded(mosquitto: MosquittoServer) -> None:
    """Packet ids are used again: acknowledging by an old one would lose a message."""
    async with (
        linked(mosquitto.link_settings("manager")) as manager,
        linked(mosquitto.link_settings("proplet-1"), [(START, 1)]) as proplet,
    ):
        await manager.link.publish(START, b"old", 1)
        (old,) = await proplet.count(Delivery, 1)
        cut(proplet)
        _, again = await proplet.count(Delivery, 2)
        assert again.receipt.packet_id == old.receipt.packet_id
        proplet.link.acknowledge(old)
        cut(proplet)
        third = (await proplet.count(Delivery, 3))[2]
        assert (third.payload, third.duplicate) == (b"old", True)


async def test_deliveries_follow_connected_even_when_they_waited_at_the_broker(mosquitto: MosquittoServer) -> None:
    async with linked(mosquitto.link_settings("proplet-1"), [(START, 1)]):
        pass
    async with linked(mosquitto.link_settings("manager")) as manager:
        for number in range(5):
            await manager.link.publish(START, str(number).encode(), 1)
    async with linked(mosquitto.link_settings("proplet-1"), [(START, 1)], connected=False) as proplet:
        await proplet.count(Delivery, 5)
        assert isinstance(proplet.events[0], Connected)
        assert [d.payload for d in proplet.all(Delivery)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_message_above_the_limit_is_dropped_and_does_not_come_again(
    mosquitto: MosquittoServer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = mosquitto.link_settings("proplet-1", max_packet_bytes=100_000)
    async with linked(mosquitto.link_settings("manager")) as manager:
        for _ in range(2):
            async with linked(settings, [(START, 1)], acknowledging=True) as proplet:
                await manager.link.publish(START, b"before", 1)
                await manager.link.publish(START, bytes(5_000_000), 1)
                await manager.link.publish(START, bytes(100_001), 0)
                await manager.link.publish(START, b"after", 1)
                await proplet.count(Delivery, 2)
                assert [d.payload for d in proplet.all(Delivery)] == [b"before", b"after"]
                assert proplet.all(Disconnected) == []
    assert "exceeds the limit of 100000 bytes" in caplog.text


# Publishing


async def test_a_thousand_messages_at_once_are_all_acknowledged_and_delivered(
    mosquitto: MosquittoServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(mosquitto.link_settings("manager"), [(RESULTS, 1)], acknowledging=True) as manager:
        async with linked(mosquitto.link_settings("proplet-1")) as proplet:
            async with anyio.create_task_group() as tasks:
                for number in range(1000):
                    tasks.start_soon(proplet.link.publish, RESULTS, str(number).encode(), 1)
            received = await manager.count(Delivery, 1000)
    assert sorted(int(delivery.payload) for delivery in received) == list(range(1000))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_large_messages_pass_whole_in_both_directions(mosquitto: MosquittoServer) -> None:
    payload = os.urandom(5_000_000)
    async with linked(mosquitto.link_settings("manager"), [(RESULTS, 1)], acknowledging=True) as manager:
        async with linked(mosquitto.link_settings("proplet-1")) as proplet, anyio.create_task_group() as tasks:
            for qos in (0, 1, 1):
                tasks.start_soon(proplet.link.publish, RESULTS, payload, qos)
        assert all(delivery.payload == payload for delivery in await manager.count(Delivery, 3))


async def test_a_message_that_is_too_large_is_refused_before_it_is_sent(mosquitto: MosquittoServer) -> None:
    async with linked(mosquitto.link_settings("proplet-1", max_packet_bytes=2000)) as proplet:
        with pytest.raises(MessageTooLargeError, match="2000 bytes"):
            await proplet.link.publish(RESULTS, bytes(2000), 1)
        await proplet.link.publish(RESULTS, bytes(1500), 1)


async def test_publishing_without_a_connection_raises(mosquitto: MosquittoServer) -> None:
    mosquitto.stop()
    async with linked(mosquitto.link_settings("proplet-1"), connected=False) as proplet:
        assert not proplet.link.connected
        with pytest.raises(NotConnectedError):
            await proplet.link.publish(RESULTS, b"x", 1)


async def test_a_connection_lost_before_the_acknowledgement_raises_for_everybody(mosquitto: MosquittoServer) -> None:
    outcomes: list[str] = []

    async def publish(proplet: Probe) -> None:
        try:
            await proplet.link.publish(RESULTS, b"x", 1)
        except NotConnectedError:
            outcomes.append("lost")

    async with linked(mosquitto.link_settings("proplet-1")) as proplet:
        mosquitto.freeze()
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(publish, proplet)
            await anyio.wait_all_tasks_blocked()
            mosquitto.kill()
        assert outcomes == ["lost"] * 100


async def test_a_cancelled_publish_leaves_the_link_usable(mosquitto: MosquittoServer) -> None:
    async with linked(mosquitto.link_settings("proplet-1", max_inflight=2)) as proplet:
        mosquitto.freeze()
        with anyio.move_on_after(0.05):
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(proplet.link.publish, RESULTS, b"x", 1)
        mosquitto.thaw()
        with anyio.fail_after(10):
            for _ in range(10):
                await proplet.link.publish(RESULTS, b"y", 1)


async def test_small_packets_are_sent_at_once(mosquitto: MosquittoServer) -> None:
    """With Nagle's algorithm a QoS 1 message takes 44 ms."""
    async with linked(mosquitto.link_settings("proplet-1")) as proplet:
        assert sock_of(proplet).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


# Connecting, again and again


async def test_a_killed_broker_that_comes_back_is_found_and_subscribed_to_again(mosquitto: MosquittoServer) -> None:
    async with (
        linked(mosquitto.link_settings("manager")) as manager,
        linked(mosquitto.link_settings("proplet-1"), [(START, 1)], acknowledging=True) as proplet,
    ):
        mosquitto.kill()
        await proplet.count(Disconnected, 1)
        mosquitto.forget()
        mosquitto.start()
        assert (await proplet.count(Connected, 2))[1] == Connected(session_present=False)
        await manager.count(Connected, 2)
        await manager.link.publish(START, b"work", 1)
        assert [d.payload for d in await proplet.count(Delivery, 1)] == [b"work"]


async def test_a_link_opens_without_a_broker_and_connects_when_there_is_one(mosquitto: MosquittoServer) -> None:
    mosquitto.stop()
    async with linked(mosquitto.link_settings("proplet-1"), connected=False) as proplet:
        (down,) = await proplet.count(Disconnected, 1)
        assert "cannot be reached: Connection refused" in down.reason
        mosquitto.start()
        await proplet.count(Connected, 1)
        assert proplet.all(Disconnected) == [down]  # told once, not at each attempt


async def test_a_broker_that_falls_silent_is_noticed_by_keepalive(mosquitto: MosquittoServer) -> None:
    async with linked(mosquitto.link_settings("proplet-1", keepalive_s=1)) as proplet:
        mosquitto.freeze()
        (down,) = await proplet.count(Disconnected, 1)
        assert "silent" in down.reason
        mosquitto.thaw()
        await proplet.count(Connected, 2)


async def test_an_idle_connection_stays(mosquitto: MosquittoServer) -> None:
    async with linked(mosquitto.link_settings("proplet-1", keepalive_s=1)) as proplet:
        with anyio.move_on_after(4):
            await proplet.count(Disconnected, 1)
        assert proplet.link.connected
        assert len(proplet.events) == 1


async def test_a_wrong_password_is_named_and_tried_again(mosquitto: MosquittoServer) -> None:
    async with linked(mosquitto.link_settings("proplet-1", password="wrong"), connected=False) as proplet:
        (down,) = await proplet.count(Disconnected, 1)
        assert "refuses the credentials" in down.reason
        mosquitto.stop()
        assert "refused" in (await proplet.count(Disconnected, 2))[1].reason  # so it did try again


async def test_an_unknown_host_is_named() -> None:
    settings = settings_for("tcp://no-such-host.invalid:1883")
    async with linked(settings, connected=False) as proplet:
        (down,) = await proplet.count(Disconnected, 1)
        assert "no-such-host.invalid" in down.reason
        assert "unknown" in down.reason


async def test_a_server_that_is_no_broker_is_told_apart() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        settings = settings_for(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        async with linked(settings, connected=False) as proplet:
            peer, _ = await anyio.to_thread.run_sync(server.accept)
            peer.close()
            (down,) = await proplet.count(Disconnected, 1)
            assert "without an answer" in down.reason


async def test_leaving_while_a_server_does_not_answer_is_quick() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        settings = settings_for(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        with anyio.fail_after(3):
            async with linked(settings, connected=False):
                peer, _ = await anyio.to_thread.run_sync(server.accept)
        peer.close()


async def test_an_exception_of_the_receiver_ends_the_link(mosquitto: MosquittoServer) -> None:
    def broken(event: LinkEvent) -> None:
        if isinstance(event, Delivery):
            raise LookupError("a bug")

    with anyio.fail_after(10), pytest.raises(ExceptionGroup) as caught:
        async with (
            linked(mosquitto.link_settings("manager")) as manager,
            open_link(mosquitto.link_settings("proplet-1"), [(START, 1)], None, broken),
        ):
            while True:
                await manager.link.publish(START, b"x", 1)
    assert caught.value.subgroup(LookupError) is not None


# Wills


CLIENT = """
import sys, anyio
from proplet.agent.mqtt import *
async def main():
    up = anyio.Event()
    settings = MqttSettings(sys.argv[1], client_id="proplet-1", username="proplet-1", password="proplet-1-secret")
    def on_event(event):
        if isinstance(event, Connected): up.set()
    async with open_link(settings, [], Will(sys.argv[2], b"offline"), on_event):
        await up.wait()
        print("up", flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


async def test_the_will_is_published_when_the_process_is_killed(mosquitto: MosquittoServer) -> None:
    async with linked(mosquitto.link_settings("manager"), [(ALIVE, 1)], acknowledging=True) as manager:
        async with await anyio.open_process([sys.executable, "-c", CLIENT, mosquitto.address, ALIVE]) as client:
            assert client.stdout is not None
            assert (await client.stdout.receive()).startswith(b"up")
            client.send_signal(signal.SIGKILL)
            (delivery,) = await manager.count(Delivery, 1)
    assert delivery.payload == b"offline"


async def test_the_will_is_not_published_after_a_goodbye(mosquitto: MosquittoServer) -> None:
    async with linked(mosquitto.link_settings("manager"), [(ALIVE, 1)], acknowledging=True) as manager:
        for number in range(10):
            will = Will(ALIVE, b"offline")
            async with linked(mosquitto.link_settings("proplet-1"), [(START, 1)], will) as proplet:
                await manager.link.publish(START, b"unread", 0)
                await proplet.link.publish(ALIVE, str(number).encode(), 1)
        received = await manager.count(Delivery, 10)
    assert [delivery.payload for delivery in received] == [str(number).encode() for number in range(10)]


async def test_a_goodbye_to_a_broker_that_hangs_has_a_deadline(mosquitto: MosquittoServer) -> None:
    with anyio.fail_after(8):
        async with linked(mosquitto.link_settings("proplet-1")):
            mosquitto.freeze()
    mosquitto.thaw()


# TLS and WebSockets


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[MosquittoServer]:
    """mosquitto with three listeners: plain, TLS that wants a client certificate, and WebSockets with and without."""
    made = make_certificates(tmp_path / "tls")
    server_files = [f"certfile {made}/server.pem", f"keyfile {made}/server.key"]
    ports = [free_port() for _ in range(4)]
    extra = [f"listener {ports[0]} 127.0.0.1", *server_files]
    extra += [f"listener {ports[1]} 127.0.0.1", *server_files, f"cafile {made}/ca.pem", "require_certificate true"]
    extra += [f"listener {ports[2]} 127.0.0.1", "protocol websockets"]
    extra += [f"listener {ports[3]} 127.0.0.1", "protocol websockets", *server_files]
    server = MosquittoServer(tmp_path / "broker", extra=extra, more_ports=ports)
    server.tls_port, server.mutual_port, server.ws_port, server.wss_port = ports  # type: ignore[attr-defined]
    server.certificates = made  # type: ignore[attr-defined]
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("kind", ["tls", "mutual", "ws", "wss"])
async def test_tls_and_websockets_carry_messages_both_ways(secure: MosquittoServer, kind: str) -> None:
    port = getattr(secure, f"{kind}_port")
    files = Path(secure.certificates)  # type: ignore[attr-defined]
    scheme = "mqtts" if kind == "mutual" else kind
    changes: dict[str, object] = {"address": f"{scheme}://localhost:{port}"}
    if kind != "ws":
        changes["ca_file"] = str(files / "ca.pem")
    if kind == "mutual":
        changes |= {"cert_file": str(files / "client.pem"), "key_file": str(files / "client.key")}
    # mosquitto 2.0.11 moves 4 KB of a WebSocket message every 100 ms; the adapter itself has no such limit.
    payload = os.urandom(10_000 if kind.startswith("ws") else 1_000_000)
    settings = secure.link_settings("manager", **changes)
    async with linked(settings, [(RESULTS, 1)], acknowledging=True) as manager:
        assert sock_of(manager).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(manager.link.publish, RESULTS, bytes([number]), 1)
            tasks.start_soon(manager.link.publish, RESULTS, payload, 1)
        received = await manager.count(Delivery, 51)
        assert payload in [delivery.payload for delivery in received]
        assert manager.all(Disconnected) == []


async def test_a_certificate_of_an_unknown_authority_is_named(secure: MosquittoServer) -> None:
    address = f"tls://127.0.0.1:{secure.tls_port}"  # type: ignore[attr-defined]
    async with linked(secure.link_settings("manager", address=address), connected=False) as manager:
        (down,) = await manager.count(Disconnected, 1)
        assert "certificate is not trusted" in down.reason
    lenient = secure.link_settings("manager", address=address, insecure_skip_verify=True)
    async with linked(lenient):
        pass


async def test_a_missing_certificate_file_is_named(secure: MosquittoServer) -> None:
    address = f"tls://127.0.0.1:{secure.tls_port}"  # type: ignore[attr-defined]
    settings = secure.link_settings("manager", address=address, ca_file="/nowhere/ca.pem")
    async with linked(settings, connected=False) as manager:
        (down,) = await manager.count(Disconnected, 1)
        assert "/nowhere/ca.pem" in down.reason


@pytest.mark.parametrize(("scheme", "said"), [("tls", "TLS handshake"), ("ws", "WebSocket handshake")])
async def test_the_wrong_scheme_for_a_port_is_named(mosquitto: MosquittoServer, scheme: str, said: str) -> None:
    settings = mosquitto.link_settings("manager", address=f"{scheme}://127.0.0.1:{mosquitto.port}")
    async with linked(settings, connected=False) as manager:
        (down,) = await manager.count(Disconnected, 1)
        assert said in down.reason


# The libraries behind it


async def test_paho_behind_aiomqtt_is_as_the_adapter_knows_it() -> None:
    assert paho_of(aiomqtt.Client("localhost", identifier="x")) is not None


async def test_a_changed_library_is_reported_clearly() -> None:
    client = aiomqtt.Client("localhost", identifier="x")
    del client._client
    with pytest.raises(RuntimeError, match=r"install exactly aiomqtt 2\.5\.1 and paho-mqtt 2\.2\.0"):
        paho_of(client)


def settings_for(address: str) -> MqttSettings:
    return MqttSettings(address, client_id="x", backoff_max_s=0.2)


def sock_of(probe: Probe) -> socket.socket:
    connection = probe.link._connection
    assert connection is not None
    assert connection._sock is not None
    return connection._sock


def cut(probe: Probe) -> None:
    """Break the connection as a network does."""
    sock_of(probe).shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("answer", [b"", b"\x20\x02\x00\x04", b"\x20\x02\x00\x00"], ids=["none", "refused", "accepted"])
@pytest.mark.parametrize("reads", [False, True], ids=["at once", "after it has listened"])
async def test_a_server_that_hangs_up_leaves_no_exception_that_nobody_has_seen(answer: bytes, reads: bool) -> None:
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unseen.append(context))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        settings = settings_for(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        async with linked(settings, connected=False) as proplet:
            peer, _ = await anyio.to_thread.run_sync(server.accept)
            if reads:
                await anyio.to_thread.run_sync(peer.recv, 1024)
            peer.sendall(answer)
            peer.close()
            await proplet.count(Disconnected, 1)
    gc.collect()
    await anyio.lowlevel.checkpoint()
    assert unseen == []


# Listening for a while


async def test_a_topic_is_listened_to_for_a_while_and_over_a_restart_of_the_broker(mosquitto: MosquittoServer) -> None:
    chunks = TOPICS.build(Route.MODULE_CHUNK)
    async with linked(mosquitto.link_settings("manager"), acknowledging=True) as manager:
        async with linked(mosquitto.link_settings("proplet-1"), [(START, 1)], acknowledging=True) as proplet:

            async def heard(text: bytes) -> list[bytes]:
                """What has arrived up to a start that is sent behind a chunk."""
                await manager.link.publish(chunks, text, 1)
                await manager.link.publish(START, b"mark" + text, 1)
                await proplet.until(lambda: b"mark" + text in [one.payload for one in proplet.all(Delivery)])
                return [one.payload for one in proplet.all(Delivery) if one.topic == chunks]

            assert await heard(b"0") == []
            proplet.link.listen(chunks, wanted=True)
            await proplet.link.publish(ALIVE, b"{}", 1)  # behind the subscription
            assert await heard(b"1") == [b"1"]
            mosquitto.stop()
            mosquitto.start()
            await proplet.count(Connected, 2)
            await manager.count(Connected, 2)
            await proplet.link.publish(ALIVE, b"{}", 1)
            assert await heard(b"2") == [b"1", b"2"]
            proplet.link.listen(chunks, wanted=False)
            await proplet.link.publish(ALIVE, b"{}", 1)
            assert await heard(b"3") == [b"1", b"2"]
