"""The bus over MQTT: commands to proplets out, what they say in.

Every command goes at QoS 1, to the proplet's own topic if it announced that, in CBOR if it announced that. What comes
in is handed on as `Heard`, to be acknowledged by its receiver once it is durable; messages nobody can read are logged
and acknowledged. The manager subscribes to the topics it reads, never to all: binaries and its own commands stay away.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import anyio

from proplet.agent.codec import Encoding, WireError, decode, encode
from proplet.agent.mqtt import (
    Connected,
    Delivery,
    Disconnected,
    Link,
    LinkEvent,
    MessageTooLargeError,
    MqttSettings,
    NotConnectedError,
    open_link,
)
from proplet.agent.topics import OWN, InvalidTopicError, Route, Topics
from proplet.agent.wire import Announcement, Hello, Invoke, Start, Stop
from proplet.manager.command import ANNOUNCEMENT
from proplet.manager.ports import BusError

log = logging.getLogger(__name__)

QOS: Final = 1
READ: Final = (
    Route.CREATE,
    Route.ALIVE,
    Route.METRICS,
    Route.TASK_METRICS,
    Route.RESULTS,
    Route.INVOKE_RESULTS,
    Route.INVENTORY,
    Route.LOGS,
    Route.PROGRESS,
    Route.ROUND_START,
)
#: Heard only where images are handed out.
REQUESTS: Final = (Route.MODULE_REQUEST, Route.OWN_MODULE_REQUEST)
MODULES: Final = "modules"  # what a manager announces that hands out images on proplets' own topics
_REQUEST_MAX: Final = 64 * 1024


class TooLargeError(BusError):
    """The message is larger than the broker takes; sending it again does not help."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A message from a proplet. Call `done` once what it says is durable; the broker repeats it otherwise."""

    message: Any
    done: Callable[[], None]
    proplet_id: str | None = None  # whose own topic it came on


@dataclass(frozen=True, slots=True)
class Up:
    """Commands can be sent. `session_present`: the broker kept what was for us."""

    session_present: bool


@dataclass(frozen=True, slots=True)
class Down:
    """Commands cannot be sent now."""

    reason: str


BusEvent = Heard | Up | Down


@dataclass(frozen=True, slots=True)
class BusSettings:
    """Which channel of which broker. `manager_id` is what the hello says.

    There is no last will: the reference's managers put one on the heartbeat topic, where it makes phantom proplets.
    """

    mqtt: MqttSettings
    topics: Topics
    manager_id: str
    reply_s: float = 20.0  # for the broker's acknowledgement of a command
    hands_out: bool = False  # images: requests for them are heard, and proplets are told that they may ask


class MqttBus:
    """The `Bus` port over one link."""

    def __init__(self, link: Link, settings: BusSettings, announcement: Callable[[str], Announcement | None]) -> None:
        self._link = link
        self._settings = settings
        self._announcement = announcement

    async def start(self, proplet_id: str | None, command: Start) -> None:
        """Send a start. Raises BusError; TooLargeError where repeating does not help."""
        await self._command(Route.START, proplet_id, command)

    async def stop(self, proplet_id: str | None, command: Stop) -> None:
        """Send a stop. Raises BusError."""
        await self._command(Route.STOP, proplet_id, command)

    async def invoke(self, proplet_id: str, command: Invoke) -> None:
        """Send an invocation. Raises BusError."""
        await self._command(Route.INVOKE, proplet_id, command)

    async def hello(self) -> None:
        """Ask every proplet for discovery and inventory. Raises BusError."""
        said = ANNOUNCEMENT
        if self._settings.hands_out:
            said = replace(said, topics=(*said.topics, MODULES))
        await self._publish(Route.HELLO, None, encode(Hello(self._settings.manager_id, said)))

    async def piece(self, proplet_id: str | None, message: Any, encoding: Encoding) -> None:
        """Send a piece of an image to one proplet, or on the topic that all share (None). Raises BusError."""
        route = Route.MODULE_CHUNK if proplet_id is None else Route.OWN_MODULE_CHUNK
        await self._publish(route, proplet_id, encode(message, encoding))

    async def _command(self, route: Route, proplet_id: str | None, command: Start | Stop | Invoke) -> None:
        said = self._announcement(proplet_id) if proplet_id is not None else None
        encoding = Encoding.CBOR if said is not None and "cbor" in said.encodings else Encoding.JSON
        own = said is not None and "own" in said.topics
        if self._settings.hands_out and isinstance(command, Start) and command.ext is not None and command.image_url:
            command = replace(command, ext=replace(command.ext, topics=(*command.ext.topics, MODULES)))
        payload = encode(command, encoding)
        await self._publish(OWN[route] if own else route, proplet_id if own else None, payload)

    async def _publish(self, route: Route, proplet_id: str | None, payload: bytes) -> None:
        try:
            topic = self._settings.topics.build(route, proplet_id)
            with anyio.fail_after(self._settings.reply_s):
                await self._link.publish(topic, payload, QOS)
        except MessageTooLargeError as error:
            raise TooLargeError(f"{error}: put the module into a registry and name it by imageUrl") from error
        except NotConnectedError as error:
            raise BusError(str(error)) from error
        except TimeoutError as error:
            raise BusError(f"the broker did not acknowledge within {self._settings.reply_s:g} s") from error
        except InvalidTopicError as error:
            raise BusError(str(error)) from error


@asynccontextmanager
async def open_bus(
    settings: BusSettings,
    announcement: Callable[[str], Announcement | None],
    on_event: Callable[[BusEvent], None],
) -> AsyncIterator[MqttBus]:
    """Open the bus; yields at once, connected or not. `on_event` is called in order and must not block.

    `announcement` says what a proplet understands.
    """
    topics = settings.topics
    link: Link | None = None
    read = (*READ, *REQUESTS) if settings.hands_out else READ

    def on_link(event: LinkEvent) -> None:
        match event:
            case Connected(session_present):
                on_event(Up(session_present))
            case Disconnected(reason):
                on_event(Down(reason))
            case Delivery():
                _receive(event)

    def _receive(delivery: Delivery) -> None:
        def done() -> None:
            if link is not None:
                link.acknowledge(delivery)

        parsed = topics.parse(delivery.topic)
        if parsed is None or parsed.route not in read or delivery.retained:
            done()
            return
        if parsed.route in REQUESTS and len(delivery.payload) > _REQUEST_MAX:
            done()
            return
        try:
            message = decode(parsed.route, delivery.payload)
        except WireError as error:
            log.warning("a message on %s cannot be read and is dropped: %s", delivery.topic, error.detail)
            done()
            return
        on_event(Heard(message, done, parsed.proplet_id))

    subscriptions = [(topics.every(route) if route.is_own else topics.build(route), QOS) for route in read]
    async with open_link(settings.mqtt, subscriptions, None, on_link) as opened:
        link = opened
        yield MqttBus(opened, settings, announcement)
