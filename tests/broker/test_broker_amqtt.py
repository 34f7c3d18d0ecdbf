"""The embedded engine, where its insides matter: what it frees, what it bounds, what it refuses."""

import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from proplet.agent.topics import Route, Topics
from proplet.manager.broker import BrokerError, BrokerSettings, TlsFiles, open_broker, rules_of
from proplet.manager.broker_amqtt import HardenedBroker
from proplet.manager.broker_router import Router
from proplet.manager.broker_session import Bounds, Message, Session
from tests.broker.raw_client import RawClient, connect_packet, packet
from tests.support.mosquitto import CHANNEL, DOMAIN, IDENTITIES, MANAGER, PROPLET

pytestmark = pytest.mark.anyio

START = Topics(DOMAIN, CHANNEL).build(Route.START)
KIB = 1024


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[HardenedBroker]:
    settings = BrokerSettings(
        tmp_path,
        DOMAIN,
        CHANNEL,
        port=0,
        max_connections=20,
        max_queued_bytes=200 * KIB,
        connect_timeout_s=0.2,
    )
    broker = HardenedBroker(settings, IDENTITIES)
    await broker.start()
    yield broker
    await broker.shutdown()


async def test_rejected_connects_leave_nothing_behind(embedded: HardenedBroker) -> None:
    """[B8]."""
    for number in range(100):
        client = await RawClient.dial(embedded.bound_port)
        client.send(connect_packet(f"stranger-{number}", f"stranger-{number}", "guess", clean=False))
        await client.ended()
        client.cut()
    manager = await RawClient.connect(embedded.bound_port, "manager", MANAGER.password)
    await manager.received()
    assert len(embedded.open) == 1
    assert embedded.router.sessions == {"manager"}
    manager.cut()


@pytest.mark.parametrize("first", [b"", b"\x10", connect_packet("a", "a", "b")[:-1]])
async def test_a_connection_that_does_not_introduce_itself_is_ended(embedded: HardenedBroker, first: bytes) -> None:
    """[B10]."""
    client = await RawClient.dial(embedded.bound_port)
    client.send(first)
    await client.ended()
    client.cut()


async def test_a_stranger_cannot_make_it_read_much(embedded: HardenedBroker) -> None:
    client = await RawClient.dial(embedded.bound_port)
    client.send(b"\x10\xff\xff\xff\x7f")
    with anyio.fail_after(0.15):  # before the timeout for introductions
        await client.ended()
    client.cut()


async def test_connections_beyond_the_limit_are_ended_at_once(embedded: HardenedBroker) -> None:
    embedded.connect_timeout_s = 10
    silent = [await RawClient.dial(embedded.bound_port) for _ in range(20)]
    late = await RawClient.dial(embedded.bound_port)
    await late.ended()
    for client in (*silent, late):
        client.cut()


async def test_a_slow_consumer_holds_no_more_than_its_bound_and_nothing_once_it_left(embedded: HardenedBroker) -> None:
    """[B18]."""
    slow = await RawClient.connect(embedded.bound_port, "proplet-1", PROPLET.password)
    await slow.subscribe(START)
    slow.stop_reading()
    manager = await RawClient.connect(embedded.bound_port, "manager", MANAGER.password)
    for _ in range(200):
        await manager.publish(START, bytes(50 * KIB), 1)
    session, _ = embedded.router.session("proplet-1", clean=False)
    assert 0 < session.held_bytes <= 2 * 200 * KIB
    assert session.dropped > 150
    for _ in range(200):
        await manager.publish(START, bytes(50 * KIB), 0)
    connection = embedded.connections["proplet-1"]
    assert connection.buffered_bytes() <= 600 * KIB
    slow.cut()
    with anyio.fail_after(5):
        while "proplet-1" in embedded.router.sessions:
            await manager.received()
    manager.cut()


async def test_random_bytes_end_their_connection_and_nothing_else(embedded: HardenedBroker) -> None:
    rng = random.Random(20)
    manager = await RawClient.connect(embedded.bound_port, "manager", MANAGER.password)
    await manager.subscribe(f"m/{DOMAIN}/c/{CHANNEL}/#")
    for number in range(300):
        client = await RawClient.dial(embedded.bound_port)
        if number % 2:
            client.send(connect_packet("proplet-1", "proplet-1", PROPLET.password))
        kind = rng.randrange(256) if number % 3 else rng.choice([0x32, 0x34, 0x40, 0x62, 0x82, 0xA2])
        client.send(packet(kind >> 4, kind & 15, rng.randbytes(rng.randrange(60))) + b"\xff" * 6)
        await client.ended()
        client.cut()
    assert await manager.received() == []
    with anyio.fail_after(5):
        while len(embedded.open) > 1:
            await manager.received()
    manager.cut()


def test_queues_are_bounded_by_messages_and_by_bytes_and_keep_the_oldest() -> None:
    session = Session(PROPLET, rules_of(PROPLET, DOMAIN, CHANNEL), Bounds(10_000, 5, 2))
    for number in range(9):
        session.offer(Message(START, str(number).encode(), 1))
    assert session.dropped == 4
    outlet = _Outlet()
    session.attach(outlet)
    assert outlet.written == [(b"0", 1, False), (b"1", 2, False)]
    session.acknowledged(1)
    session.acknowledged(77)
    assert outlet.written[2:] == [(b"2", 3, False)]
    session.detach()
    session.attach(again := _Outlet())
    assert again.written == [(b"1", 2, True), (b"2", 3, True)]


def test_a_message_larger_than_the_queue_is_still_delivered_alone() -> None:
    session = Session(PROPLET, rules_of(PROPLET, DOMAIN, CHANNEL), Bounds(1000, 5, 5))
    session.attach(outlet := _Outlet())
    for _ in range(3):
        session.offer(Message(START, bytes(5000), 1))
    assert [packet_id for _, packet_id, _ in outlet.written] == [1]
    session.acknowledged(1)
    assert [packet_id for _, packet_id, _ in outlet.written] == [1, 2]


def test_packet_ids_wrap_and_skip_those_in_use() -> None:
    session = Session(PROPLET, rules_of(PROPLET, DOMAIN, CHANNEL), Bounds(10**9, 10, 2))
    session.attach(outlet := _Outlet())
    session.offer(Message(START, b"stays", 1))
    for number in range(70_000):
        session.offer(Message(START, b"", 1))
        session.acknowledged(outlet.written[-1][1])  # type: ignore[arg-type]
        assert number < 0xFFFE or outlet.written[-1][1] != 1
    assert outlet.written[-1][1] is not None


def test_retained_messages_are_bounded() -> None:
    rules = {i.username: rules_of(i, DOMAIN, CHANNEL) for i in IDENTITIES}
    router = Router([(i, rules[i.username]) for i in IDENTITIES], Bounds(10_000, 3, 20))
    manager, _ = router.session("manager", clean=True)
    manager.attach(outlet := _Outlet())
    for number in range(10):
        router.publish(manager, Message(f"{START}/{number}", b"x", 1, retained=True))
    router.subscribe(manager, f"{START}/#", 1)
    router.send_retained(manager, f"{START}/#")
    assert len(outlet.written) == 3


class _Outlet:
    def __init__(self) -> None:
        self.written: list[tuple[bytes, int | None, bool]] = []

    def write(self, message: Message, packet_id: int | None, *, duplicate: bool) -> None:
        self.written.append((message.payload, packet_id, duplicate))

    def buffered_bytes(self) -> int:
        return 0


async def test_it_refuses_to_listen_beyond_this_machine(tmp_path: Path) -> None:
    tls = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")
    settings = BrokerSettings(tmp_path, DOMAIN, CHANNEL, engine="amqtt", host="0.0.0.0", port=0, tls=tls)
    with pytest.raises(BrokerError, match="install mosquitto"):
        async with open_broker(settings, IDENTITIES):
            pass


def test_plain_text_beyond_loopback_is_refused_for_every_engine(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="certificate"):
        BrokerSettings(tmp_path, DOMAIN, CHANNEL, host="0.0.0.0")


async def test_two_identities_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="share a user name"):
        async with open_broker(BrokerSettings(tmp_path, DOMAIN, CHANNEL, port=0), [MANAGER, MANAGER]):
            pass


def test_amqtt_is_not_imported_for_mosquitto() -> None:
    code = "import sys, proplet.manager.broker, proplet.manager.broker_mosquitto; print('amqtt' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
