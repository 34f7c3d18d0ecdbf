"""The one MQTT adapter, for agent and manager: a link to a broker that keeps itself connected.

MQTT 3.1.1 through aiomqtt, with a fresh client per connection, so that nothing of an earlier connection (packet ids,
half-sent messages) leaks into the next; `mqtt_connection` is the only module that knows the library.

Deliveries are acknowledged by the receiver, when what they say is durable. QoS 2 is never asked for nor sent: with
manual acknowledgement a crash after PUBREC loses the message, while QoS 1 delivers it again. A wish for 2 becomes 1.
"""

import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from proplet.agent.mqtt_model import (
    Address,
    AddressError,
    Connected,
    Delivery,
    Disconnected,
    LinkEvent,
    MessageTooLargeError,
    MqttSettings,
    NotConnectedError,
    Receipt,
    Will,
    parse_address,
)

if TYPE_CHECKING:
    from proplet.agent.mqtt_connection import Connection

__all__ = [
    "Address",
    "AddressError",
    "Connected",
    "Delivery",
    "Disconnected",
    "Link",
    "LinkEvent",
    "MessageTooLargeError",
    "MqttSettings",
    "NotConnectedError",
    "Receipt",
    "Will",
    "open_link",
    "parse_address",
]

log = logging.getLogger(__name__)

LASTED_S = 10.0
"""A connection that held this long resets the backoff."""


class Link:
    """A broker as its user sees it: publishing, and acknowledging what was delivered."""

    def __init__(self, settings: MqttSettings) -> None:
        self._settings = settings
        self._slots = anyio.Semaphore(settings.max_inflight, fast_acquire=True)  # the acknowledgement is the wait
        self._connection: Connection | None = None
        self._wanted: dict[str, bool] = {}  # topics that are listened to now and then; True: now

    @property
    def connected(self) -> bool:
        """Whether messages can be published now."""
        return self._connection is not None

    async def publish(self, topic: str, payload: bytes, qos: int) -> None:
        """Return when the broker has acknowledged (QoS 1) or the message is written (QoS 0).

        Any number may wait; `max_inflight` of them are under way. Cancelling leaves it open whether it was sent.

        Raises:
            NotConnectedError: no connection, or it was lost before the acknowledgement.
            MessageTooLargeError: it exceeds `max_packet_bytes`.
        """
        size = len(payload) + len(topic.encode()) + 4
        if size > self._settings.max_packet_bytes:
            limit = self._settings.max_packet_bytes
            raise MessageTooLargeError(f"a message of {size} bytes for {topic} exceeds the limit of {limit} bytes")
        if self._connection is None:
            raise NotConnectedError("not connected to the broker")
        async with self._slots:
            connection = self._connection  # it may have ended while we waited
            if connection is None:
                raise NotConnectedError("the connection to the broker was lost")
            await connection.publish(topic, payload, min(qos, 1))

    def listen(self, topic: str, *, wanted: bool) -> None:
        """Subscribe to a topic for a while, and end that; QoS 1, kept over every connection.

        Nobody is told if the broker refuses it. Until the link has ended it, a topic may be delivered from a session
        that an earlier process has left behind: say early what is not wanted.
        """
        self._wanted[topic] = wanted
        if self._connection is not None:
            self._follow(self._connection, topic)

    def _follow(self, connection: "Connection", topic: str) -> None:
        if self._wanted[topic]:
            connection.listen(topic)
        else:
            connection.leave(topic)

    def connected_by(self, connection: "Connection") -> None:
        """Take a connection into use; for `open_link`."""
        self._connection = connection
        for topic in self._wanted:
            self._follow(connection, topic)

    def acknowledge(self, delivery: Delivery) -> None:
        """Tell the broker that `delivery` is safe here. The broker hears of deliveries in order of arrival.

        An acknowledgement waits inside for those of earlier deliveries. One of an earlier connection is discarded:
        the broker delivers that message again.
        """
        connection = self._connection
        if connection is not None and delivery.receipt.connection == connection.number:
            connection.acknowledge(delivery.receipt.packet_id)


@asynccontextmanager
async def open_link(
    settings: MqttSettings,
    subscriptions: Sequence[tuple[str, int]],
    will: Will | None,
    on_event: Callable[[LinkEvent], None],
) -> AsyncIterator[Link]:
    """Open a link to a broker and keep it connected until left; says goodbye then, so that no will is published.

    Yields at once, connected or not. Reconnects with exponential backoff and full jitter, subscribes on every connect,
    and says `Connected` only when the broker has granted every subscription; deliveries follow it. `on_event` is
    called from the event loop, in order, and must not block; an exception of it ends the link.

    A delivery above `max_packet_bytes` is not kept in memory: it is acknowledged, dropped and logged, because the
    broker would otherwise send it again for ever.
    """
    link = Link(settings)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_keep_connected, link, settings, subscriptions, will, on_event)
        try:
            yield link
        except Exception as error:  # noqa: BLE001 - raised below: it is the user's, and no group of ours
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _keep_connected(
    link: Link,
    settings: MqttSettings,
    subscriptions: Sequence[tuple[str, int]],
    will: Will | None,
    on_event: Callable[[LinkEvent], None],
) -> None:
    # Imported only now: 60 ms and 5 MB that a command without a broker does not need.
    from proplet.agent.mqtt_connection import Connection
    from proplet.agent.mqtt_dial import ConnectError

    number = failures = 0
    told: str | None = None
    while True:
        number += 1
        connection = Connection(settings, number, will, on_event)
        connected_at = math.inf
        try:
            session_present = await connection.open(subscriptions)
            connected_at, told = anyio.current_time(), None
            link.connected_by(connection)
            log.info("connected to %s", settings.address)
            on_event(Connected(session_present))
            connection.release()
            reason = await connection.ended()
        except ConnectError as error:
            reason = str(error)
        finally:
            link._connection = None  # noqa: SLF001 - the two are one unit; the link's user sees neither
            with anyio.CancelScope(shield=True):
                await connection.close()
        if anyio.current_time() - connected_at >= LASTED_S:
            failures = 0
        if reason != told:
            told = reason
            log.warning("%s: %s", settings.address, reason)
            on_event(Disconnected(reason))
        delay = random.uniform(0, min(settings.backoff_max_s, 2.0**failures))  # noqa: S311 - spreads reconnects
        failures = min(failures + 1, 16)
        await anyio.sleep(delay)
