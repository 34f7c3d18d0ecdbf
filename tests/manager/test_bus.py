"""Commands on the right topic in the right encoding, and what comes in."""

from dataclasses import dataclass, field

import anyio
import pytest

from proplet.agent.codec import Encoding, decode, encode
from proplet.agent.mqtt import Connected, LinkEvent, MessageTooLargeError, NotConnectedError, open_link
from proplet.agent.topics import Route, Topics
from proplet.agent.wire import Alive, Announcement, Hello, Invoke, Result, Start, Stop
from proplet.manager.bus import BusEvent, BusSettings, Heard, MqttBus, TooLargeError, Up, open_bus
from proplet.manager.ports import BusError
from tests.manager.fakes import OURS, eventually
from tests.support.mosquitto import MosquittoServer, mosquitto  # noqa: F401

pytestmark = pytest.mark.anyio

TOPICS = Topics("d", "c")
PEERS = {"ours": OURS, "old": Announcement(v=0), "half": Announcement(1, topics=("own",))}


@dataclass
class ALink:
    """Takes what is published, or does not."""

    error: Exception | None = None
    sent: list[tuple[str, bytes, int]] = field(default_factory=list)
    stuck: bool = False

    async def publish(self, topic: str, payload: bytes, qos: int) -> None:
        if self.stuck:
            await anyio.sleep_forever()
        if self.error is not None:
            raise self.error
        self.sent.append((topic, payload, qos))


def bus_on(link: ALink, settings: BusSettings | None = None) -> MqttBus:
    given = settings or BusSettings(None, TOPICS, "manager")  # type: ignore[arg-type]
    return MqttBus(link, given, PEERS.get)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("proplet_id", "topic", "encoding"),
    [
        ("ours", "m/d/c/c/control/manager/start/ours", Encoding.CBOR),
        ("half", "m/d/c/c/control/manager/start/half", Encoding.JSON),
        ("old", "m/d/c/c/control/manager/start", Encoding.JSON),
        ("nobody", "m/d/c/c/control/manager/start", Encoding.JSON),
        (None, "m/d/c/c/control/manager/start", Encoding.JSON),
    ],
)
async def test_a_start_goes_where_its_proplet_listens_in_what_it_reads(
    proplet_id: str | None, topic: str, encoding: Encoding
) -> None:
    link, start = ALink(), Start("t", "add", file=b"\0asm", proplet_id=proplet_id)
    await bus_on(link).start(proplet_id, start)
    assert link.sent == [(topic, encode(start, encoding), 1)]
    assert decode(Route.START, link.sent[0][1]) == start


async def test_stops_invocations_and_hellos_have_their_topics() -> None:
    link = ALink()
    bus = bus_on(link)
    await bus.stop("ours", Stop("t"))
    await bus.stop("old", Stop("t"))
    await bus.invoke("ours", Invoke("t"))
    await bus.hello()
    assert [topic.removeprefix("m/d/c/c/control/manager/") for topic, _, _ in link.sent] == [
        "stop/ours",
        "stop",
        "invoke/ours",
        "hello",
    ]
    hello = decode(Route.HELLO, link.sent[-1][1])
    assert isinstance(hello, Hello)
    assert hello.manager_id == "manager"


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (NotConnectedError("away"), BusError, "away"),
        (MessageTooLargeError("20 MB"), TooLargeError, "name it by imageUrl"),
    ],
)
async def test_what_the_broker_does_not_take_is_an_error_of_the_bus(
    error: Exception, kind: type[BusError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        await bus_on(ALink(error)).start("old", Start("t", "add"))


async def test_a_broker_that_never_answers_is_an_error_after_a_while() -> None:
    settings = BusSettings(None, TOPICS, "manager", reply_s=0.01)  # type: ignore[arg-type]
    with pytest.raises(BusError, match="did not acknowledge"):
        await bus_on(ALink(stuck=True), settings).hello()


@pytest.mark.mosquitto
async def test_what_cannot_be_read_is_dropped_and_what_can_be_is_heard(mosquitto: MosquittoServer) -> None:  # noqa: F811
    heard: list[BusEvent] = []
    connected = anyio.Event()

    def on_link(event: LinkEvent) -> None:
        if isinstance(event, Connected):
            connected.set()

    settings = BusSettings(mosquitto.link_settings("manager"), TOPICS, "manager")
    async with (
        open_bus(settings, PEERS.get, heard.append),
        open_link(mosquitto.link_settings("proplet-1"), (), None, on_link) as link,
    ):
        await eventually(lambda: heard == [Up(session_present=False)])
        await connected.wait()
        results = TOPICS.build(Route.RESULTS)
        for rubbish in (b"", b"\xff\xfe", b"[]", b"{}", b'{"task_id": 7}', b"{" * 5000, b"\xa1"):
            await link.publish(results, rubbish, 1)
        await link.publish(results, encode(Result("t", "proplet-1", "42")), 1)
        await link.publish(TOPICS.build(Route.ALIVE), encode(Alive("proplet-1")), 0)
        await eventually(lambda: len(heard) == 3)
        messages = [event.message for event in heard if isinstance(event, Heard)]
        assert sorted(type(m).__name__ for m in messages) == ["Alive", "Result"]
        for event in heard:
            if isinstance(event, Heard):
                event.done()


@pytest.mark.mosquitto
async def test_what_was_not_acknowledged_comes_again_after_a_restart(mosquitto: MosquittoServer) -> None:  # noqa: F811
    settings = BusSettings(mosquitto.link_settings("manager"), TOPICS, "manager")
    connected = anyio.Event()

    def on_link(event: LinkEvent) -> None:
        if isinstance(event, Connected):
            connected.set()

    async with open_link(mosquitto.link_settings("proplet-1"), (), None, on_link) as link:
        for acknowledge in (False, True, None):
            heard: list[BusEvent] = []
            async with open_bus(settings, PEERS.get, heard.append):
                await eventually(lambda heard=heard: len(heard) >= 1)
                await connected.wait()
                if acknowledge is False:
                    await link.publish(TOPICS.build(Route.RESULTS), encode(Result("t", "proplet-1", "42")), 1)
                if acknowledge is None:
                    await link.publish(TOPICS.build(Route.ALIVE), encode(Alive("proplet-1")), 1)
                await eventually(lambda heard=heard: len(heard) >= 2)
                said = [event for event in heard if isinstance(event, Heard)]
                assert isinstance(said[0].message, Alive if acknowledge is None else Result)
                if acknowledge:
                    said[0].done()
                    await anyio.sleep(0.1)  # the acknowledgement is on its way; there is no answer to it
