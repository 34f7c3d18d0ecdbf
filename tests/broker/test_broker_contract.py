"""What every broker engine must keep to; in brackets the bug of stock amqtt 0.12.1 that a test is about."""

import anyio
import pytest

from proplet.agent.topics import Route, Topics
from proplet.manager.broker import BrokerError, Identity, Role
from tests.broker.conftest import BrokerUnderTest
from tests.broker.raw_client import BASE, Will, connect_packet, packet, text
from tests.support.mosquitto import CHANNEL, DOMAIN, IDENTITIES

pytestmark = pytest.mark.anyio

TOPICS = Topics(DOMAIN, CHANNEL)
START = TOPICS.build(Route.START)
OWN_START = TOPICS.build(Route.OWN_START, "proplet-1")
OTHERS_START = TOPICS.build(Route.OWN_START, "proplet-2")
ALIVE = TOPICS.build(Route.ALIVE)
RESULTS = TOPICS.build(Route.RESULTS)
ACCEPTED, NOT_AUTHORISED = 0, 5


# Who may come in


async def test_nobody_is_anonymous(broker: BrokerUnderTest) -> None:
    client = await broker.dial()
    client.send(connect_packet("proplet-1", None, None))
    assert (await client.packet())[2][1] == NOT_AUTHORISED
    await client.ended()


@pytest.mark.parametrize(("username", "password"), [("proplet-1", "wrong"), ("nobody", "wrong"), ("proplet-1", "")])
async def test_a_wrong_password_is_refused(broker: BrokerUnderTest, username: str, password: str) -> None:
    client = await broker.dial()
    client.send(connect_packet(username, username, password))
    assert (await client.packet())[2][1] == NOT_AUTHORISED
    await client.ended()


@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda identity: identity.username)
async def test_every_identity_comes_in_with_its_password(broker: BrokerUnderTest, identity: object) -> None:
    client = await broker.connect(identity.username)  # type: ignore[attr-defined]
    assert client.return_code == ACCEPTED
    assert await client.received() == []


async def test_a_connection_that_starts_with_anything_else_is_ended(broker: BrokerUnderTest) -> None:
    for first in (packet(3, 0, text("x") + b"y"), packet(12, 0, b""), b"GET / HTTP/1.1\r\n\r\n"):
        client = await broker.dial()
        client.send(first)
        await client.ended()


async def test_identities_change_while_it_runs(broker: BrokerUnderTest) -> None:
    staying = await broker.connect("manager")
    leaving = await broker.connect("proplet-2")
    kept = [identity for identity in IDENTITIES if identity.username != "proplet-2"]
    await broker.running.update([*kept, Identity("proplet-3", "new-secret", Role.PROPLET)])
    with anyio.fail_after(10):
        await leaving.ended()
        while (await broker.connect("proplet-3", password="new-secret")).return_code != ACCEPTED:
            pass  # mosquitto reads its files again a moment after it was told to
    assert (await broker.connect("proplet-2")).return_code == NOT_AUTHORISED
    assert await staying.received() == []
    with pytest.raises(BrokerError, match="share a user name: proplet-1"):
        await broker.running.update([*IDENTITIES, IDENTITIES[1]])


# What a rejected CONNECT must not do


async def test_a_rejected_connect_does_not_delete_the_session_it_names(broker: BrokerUnderTest) -> None:
    """[B4]."""
    victim = await broker.connect("proplet-1", clean=False)
    await victim.subscribe(START)
    await victim.goodbye()
    intruder = await broker.connect("proplet-1", password="guessed", clean=True)
    assert intruder.return_code == NOT_AUTHORISED
    manager = await broker.connect("manager")
    await manager.publish(START, b"work")
    victim = await broker.connect("proplet-1", clean=False)
    assert victim.session_present
    assert (await victim.message()).payload == b"work"


async def test_a_rejected_connect_does_not_end_the_connection_it_names(broker: BrokerUnderTest) -> None:
    """[B5]."""
    victim = await broker.connect("proplet-1", clean=False)
    await victim.subscribe(START)
    intruder = await broker.connect("manager", client_id="proplet-1", password="guessed", clean=False)
    assert intruder.return_code == NOT_AUTHORISED
    assert await victim.received() == []


async def test_what_follows_a_rejected_connect_is_never_published(broker: BrokerUnderTest) -> None:
    """[B6]."""
    manager = await broker.connect("manager")
    await manager.subscribe(f"{BASE}/#")
    proplet = await broker.connect("proplet-1", clean=False)
    intruder = await broker.dial()
    intruder.send(connect_packet("proplet-1", "manager", "guessed", clean=False))
    for number in range(50):
        intruder.write_publish(START, b"forged", 1, packet_id=number + 1)
        proplet.write_publish(START, b"forbidden", 1, packet_id=number + 1)
    await intruder.ended()
    await proplet.received()
    assert await manager.received() == []


async def test_a_session_belongs_to_its_user_whatever_client_id_another_claims(broker: BrokerUnderTest) -> None:
    """[B7]."""
    manager = await broker.connect("manager", clean=False)
    await manager.subscribe(RESULTS)
    await manager.goodbye()
    other = await broker.connect("proplet-2")
    await other.publish(RESULTS, b"secret")
    thief = await broker.connect("proplet-1", client_id="manager", clean=False)
    assert not thief.session_present
    assert await thief.received() == []
    manager = await broker.connect("manager", clean=False)
    assert (await manager.message()).payload == b"secret"


# Who may say and hear what


async def test_a_proplet_reports_as_itself_and_hears_its_commands(broker: BrokerUnderTest) -> None:
    manager = await broker.connect("manager")
    await manager.subscribe(f"{BASE}/#")
    await manager.subscribe("fl/rounds/+/updates/+")
    proplet = await broker.connect("proplet-1")
    for wanted in (START, OWN_START, TOPICS.build(Route.MODULE_CHUNK), TOPICS.build(Route.HELLO)):
        assert await proplet.subscribe(wanted) == 1
    await proplet.publish(ALIVE, b"a")
    await proplet.publish(TOPICS.build(Route.MODULE_REQUEST), b"b")
    await proplet.publish("fl/rounds/7/updates/proplet-1", b"c")
    assert [m.payload for m in await manager.received()] == [b"a", b"b", b"c"]
    await manager.publish(OWN_START, b"mine")
    assert [m.payload for m in await proplet.received()] == [b"mine"]


@pytest.mark.parametrize(
    "topic", [START, OWN_START, OTHERS_START, "fl/rounds/7/updates/proplet-2", "elsewhere", f"{BASE}/control/proplet/x"]
)
async def test_a_proplet_cannot_publish_what_is_not_its_own(broker: BrokerUnderTest, topic: str) -> None:
    manager = await broker.connect("manager")
    for wanted in (f"{BASE}/#", "fl/rounds/#"):
        await manager.subscribe(wanted)
    proplet = await broker.connect("proplet-1")
    await proplet.publish(topic, b"forbidden")
    assert await manager.received() == []


@pytest.mark.parametrize(
    "wanted",
    [
        "#",
        "+/+/+/+/control/manager/start/+",
        f"{BASE}/#",
        f"{BASE}/control/manager/#",
        f"{BASE}/control/manager/start/#",
        f"{BASE}/control/manager/start/+",
        OTHERS_START,
        RESULTS,
        f"$share/g/{BASE}/control/manager/start/proplet-2",
    ],
)
async def test_a_filter_wider_than_the_rules_brings_nothing_of_others(broker: BrokerUnderTest, wanted: str) -> None:
    """[B2]."""
    manager = await broker.connect("manager")
    await manager.publish(OTHERS_START, b"retained", retain=True)
    proplet = await broker.connect("proplet-1")
    code = await proplet.subscribe(wanted)
    assert code == 0x80 or broker.engine == "mosquitto"  # which grants, and checks each delivery
    await manager.publish(OTHERS_START, b"for another")
    await manager.publish(RESULTS, b"of another")
    assert await proplet.received() == []


async def test_an_observer_hears_everything_and_says_nothing(broker: BrokerUnderTest) -> None:
    observer = await broker.connect("observer")
    await observer.subscribe(f"{BASE}/#")
    proplet = await broker.connect("proplet-1")
    await proplet.publish(RESULTS, b"seen")
    await observer.publish(START, b"forbidden")
    assert [m.payload for m in await observer.received()] == [b"seen"]


async def test_a_will_on_a_forbidden_topic_is_never_published(broker: BrokerUnderTest) -> None:
    """[B3]."""
    manager = await broker.connect("manager")
    await manager.subscribe(f"{BASE}/#")
    client = await broker.connect("proplet-1", will=Will(START))
    assert client.return_code == NOT_AUTHORISED or broker.engine == "mosquitto"  # which checks when it would publish
    client.cut()
    await broker.connect("proplet-1")  # by now the broker knows that the first is gone
    assert await manager.received() == []


async def test_retained_messages_reach_only_who_subscribes_to_them(broker: BrokerUnderTest) -> None:
    """[B1]."""
    manager = await broker.connect("manager")
    await manager.subscribe(f"{BASE}/#")
    await manager.publish(START, b"for all", retain=True)
    await manager.publish(OTHERS_START, b"private", retain=True)
    proplet = await broker.connect("proplet-1")
    assert await proplet.received() == []
    await proplet.subscribe(START)
    (message,) = await proplet.received()
    assert (message.payload, message.retain) == (b"for all", True)


async def test_an_empty_retained_message_clears_the_topic(broker: BrokerUnderTest) -> None:
    manager = await broker.connect("manager")
    await manager.publish(START, b"old", retain=True)
    await manager.publish(START, b"", retain=True)
    await manager.subscribe(START)
    assert await manager.received() == []


# Connections that end, change hands, or fall silent


async def test_a_will_is_published_when_the_connection_breaks(broker: BrokerUnderTest) -> None:
    manager = await broker.connect("manager")
    await manager.subscribe(ALIVE)
    proplet = await broker.connect("proplet-1", will=Will(ALIVE, b"offline"))
    proplet.cut()
    message = await manager.message()
    assert (message.payload, message.qos, message.retain) == (b"offline", 1, False)


async def test_a_goodbye_keeps_the_will(broker: BrokerUnderTest) -> None:
    manager = await broker.connect("manager")
    await manager.subscribe(ALIVE)
    proplet = await broker.connect("proplet-1", will=Will(ALIVE, b"offline"))
    await proplet.goodbye()
    assert await manager.received() == []


async def test_a_silent_client_is_ended_and_its_will_published(broker: BrokerUnderTest) -> None:
    """[B11]."""
    manager = await broker.connect("manager")
    await manager.subscribe(ALIVE)
    proplet = await broker.connect("proplet-1", keepalive=1, will=Will(ALIVE, b"offline"))
    assert (await manager.message()).payload == b"offline"
    await proplet.ended()


@pytest.mark.parametrize("clean", [True, False])
async def test_a_second_connection_replaces_the_first(broker: BrokerUnderTest, clean: bool) -> None:
    """[B12]."""
    old = await broker.connect("proplet-1", clean=clean)
    await old.subscribe(START)
    new = await broker.connect("proplet-1", clean=clean)
    await old.ended()
    assert new.session_present is not clean
    await new.subscribe(START)
    manager = await broker.connect("manager")
    await manager.publish(START, b"work")
    assert (await new.message()).payload == b"work"


async def test_the_will_of_a_resumed_session_is_the_newest_one(broker: BrokerUnderTest) -> None:
    """[B15]."""
    manager = await broker.connect("manager")
    await manager.subscribe(ALIVE)
    first = await broker.connect("proplet-1", clean=False, will=Will(ALIVE, b"first", retain=False))
    await first.goodbye()
    second = await broker.connect("proplet-1", clean=False, will=Will(ALIVE, b"second", retain=True))
    second.cut()
    assert (await manager.message()).payload == b"second"
    observer = await broker.connect("observer")
    await observer.subscribe(ALIVE)
    (message,) = await observer.received()
    assert (message.payload, message.retain) == (b"second", True)


# Deliveries


async def test_what_was_not_acknowledged_is_delivered_again_as_a_duplicate(broker: BrokerUnderTest) -> None:
    """[B13]."""
    proplet = await broker.connect("proplet-1", clean=False)
    await proplet.subscribe(START)
    manager = await broker.connect("manager")
    for number in range(3):
        await manager.publish(START, str(number).encode())
    first = [await proplet.message() for _ in range(3)]
    assert [m.dup for m in first] == [False] * 3
    proplet.acknowledge(first[0])
    await proplet.received()
    proplet.cut()
    proplet = await broker.connect("proplet-1", clean=False)
    again = [await proplet.message() for _ in range(2)]
    assert [(m.payload, m.dup) for m in again] == [(b"1", True), (b"2", True)]
    assert [m.packet_id for m in again] == [m.packet_id for m in first[1:]]


async def test_what_came_while_a_client_was_away_is_not_marked_retained(broker: BrokerUnderTest) -> None:
    """[B14], [B20]."""
    proplet = await broker.connect("proplet-1", clean=False)
    await proplet.subscribe(START)
    await proplet.goodbye()
    manager = await broker.connect("manager")
    await manager.publish(START, b"\x00\xffwork")
    proplet = await broker.connect("proplet-1", clean=False)
    assert proplet.session_present
    message = await proplet.message()
    assert (message.payload, message.qos, message.dup, message.retain) == (b"\x00\xffwork", 1, False, False)


async def test_a_clean_session_forgets(broker: BrokerUnderTest) -> None:
    proplet = await broker.connect("proplet-1", clean=False)
    await proplet.subscribe(START)
    await proplet.goodbye()
    proplet = await broker.connect("proplet-1", clean=True)
    assert not proplet.session_present
    manager = await broker.connect("manager")
    await manager.publish(START, b"work")
    assert await proplet.received() == []


@pytest.mark.parametrize(("published", "subscribed", "delivered"), [(0, 1, 0), (1, 0, 0), (1, 1, 1), (2, 1, 1)])
async def test_a_message_is_delivered_at_the_lower_quality(
    broker: BrokerUnderTest, published: int, subscribed: int, delivered: int
) -> None:
    manager = await broker.connect("manager")
    await manager.subscribe(RESULTS, subscribed)
    await manager.publish(RESULTS, b"x", published)
    assert (await manager.message()).qos == delivered


async def test_subscribing_again_changes_the_quality(broker: BrokerUnderTest) -> None:
    """[B16]."""
    manager = await broker.connect("manager")
    assert await manager.subscribe(RESULTS, 0) == 0
    assert await manager.subscribe(RESULTS, 1) == 1
    await manager.publish(RESULTS, b"x")
    assert (await manager.message()).qos == 1


async def test_overlapping_filters_deliver_once(broker: BrokerUnderTest) -> None:
    manager = await broker.connect("manager")
    for wanted in (RESULTS, f"{BASE}/#", f"{BASE}/control/+/results"):
        await manager.subscribe(wanted)
    await manager.publish(RESULTS, b"x")
    assert [m.payload for m in await manager.received()] == [b"x"]


async def test_an_exactly_once_message_sent_again_is_delivered_once(broker: BrokerUnderTest) -> None:
    manager = await broker.connect("manager")
    await manager.subscribe(RESULTS)
    proplet = await broker.connect("proplet-1", clean=False)
    proplet.write_publish(RESULTS, b"x", 2, packet_id=9)
    proplet.write_publish(RESULTS, b"x", 2, packet_id=9, dup=True)
    proplet.send(packet(6, 2, (9).to_bytes(2)))
    await proplet.received()
    assert [m.payload for m in await manager.received()] == [b"x"]


async def test_no_message_is_lost_while_others_subscribe_and_leave(broker: BrokerUnderTest) -> None:
    """[B17]."""
    manager = await broker.connect("manager")
    await manager.subscribe(f"{BASE}/#", 0)
    proplet = await broker.connect("proplet-1")
    other = await broker.connect("proplet-2")
    for number in range(300):
        proplet.write_publish(RESULTS, str(number).encode(), 0)
        if number % 3 == 0:
            await other.subscribe(START)
            await other.unsubscribe(START)
    await proplet.received()
    assert [int(m.payload) for m in await manager.received()] == list(range(300))


async def test_a_message_of_the_permitted_size_passes_whole(broker: BrokerUnderTest) -> None:
    manager = await broker.connect("manager")
    await manager.subscribe(RESULTS)
    payload = bytes(range(256)) * (4 * 1024 * 10)
    proplet = await broker.connect("proplet-1")
    await proplet.publish(RESULTS, payload)
    assert (await manager.message()).payload == payload


async def test_a_message_that_is_too_large_ends_its_connection_and_no_other(broker: BrokerUnderTest) -> None:
    manager = await broker.connect("manager")
    await manager.subscribe(RESULTS)
    proplet = await broker.connect("proplet-1")
    proplet.send(bytes([3 << 4 | 2]) + b"\xff\xff\xff\x7f" + text(RESULTS) + b"\0\1" + bytes(100))  # says 256 MiB
    await proplet.ended()
    assert await manager.received() == []


@pytest.mark.parametrize(
    "malformed",
    [
        packet(3, 6, text(RESULTS) + b"\0\1x"),
        packet(3, 2, text("a/#") + b"\0\1x"),
        packet(3, 0, b"\xff\xff"),
        packet(8, 2, b"\0\1"),
        packet(0, 0, b""),
        packet(15, 0, b""),
        b"\x30\xff\xff\xff\xff\xff",
    ],
)
async def test_a_malformed_packet_ends_its_connection_and_no_other(broker: BrokerUnderTest, malformed: bytes) -> None:
    manager = await broker.connect("manager")
    proplet = await broker.connect("proplet-1")
    proplet.send(malformed)
    await proplet.ended()
    assert await manager.received() == []
