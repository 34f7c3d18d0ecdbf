"""What the embedded broker remembers of one client: its subscriptions, and what it has not yet acknowledged.

No I/O and no library: the connection is an `Outlet`. Memory is bounded by bytes and by messages, whether the client is
slow, silent or away; beyond the bounds the newest message is dropped, as mosquitto does.
"""

import logging
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from proplet.manager.broker_rules import Identity, Rules

log = logging.getLogger(__name__)

MESSAGE_OVERHEAD_BYTES = 256
"""What a queued message costs beside its payload; many empty messages are not free."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message to be delivered; its payload is shared by all who receive it."""

    topic: str
    payload: bytes
    qos: int
    retained: bool = False

    @property
    def cost(self) -> int:
        """Its share of a bound, in bytes."""
        return len(self.payload) + len(self.topic) + MESSAGE_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class Bounds:
    """Per client: how much may wait, and how many QoS 1 messages may be unacknowledged."""

    queued_bytes: int
    queued_messages: int
    inflight: int
    subscriptions: int = 256


class Outlet(Protocol):
    """A live connection, as a session sees it."""

    def write(self, message: Message, packet_id: int | None, *, duplicate: bool) -> None:
        """Put a PUBLISH into the send buffer; never blocks."""
        ...

    def buffered_bytes(self) -> int:
        """How much the peer has not taken yet."""
        ...


class Session:
    """The state of one client between and during its connections. `name` is user name and client id."""

    def __init__(self, identity: Identity, rules: Rules, bounds: Bounds) -> None:
        self.name = identity.username
        self.rules = rules
        self.subscriptions: dict[str, int] = {}
        self.received_ids: set[int] = set()  # QoS 2, between PUBREC and PUBREL
        self.dropped = 0
        self._bounds = bounds
        self._outlet: Outlet | None = None
        self._queue: deque[Message] = deque()
        self._queued_bytes = 0
        self._inflight: dict[int, Message] = {}
        self._inflight_bytes = 0
        self._last_id = 0

    @property
    def held_bytes(self) -> int:
        """What waits or is unacknowledged."""
        return self._queued_bytes + self._inflight_bytes

    def attach(self, outlet: Outlet) -> None:
        """A connection is there: send again, marked as duplicates, what was unacknowledged; then what waited."""
        self._outlet = outlet
        for packet_id, message in self._inflight.items():
            outlet.write(message, packet_id, duplicate=True)
        self._pump()

    def detach(self) -> None:
        """The connection is gone; messages wait."""
        self._outlet = None

    def offer(self, message: Message) -> None:
        """Deliver `message` now or later, or drop it where a bound says so. QoS 0 never waits for a connection."""
        if message.qos == 0:
            if self._outlet is not None:
                if self._outlet.buffered_bytes() + message.cost > self._bounds.queued_bytes:
                    self._drop()
                else:
                    self._outlet.write(message, None, duplicate=False)
            return
        if len(self._queue) >= self._bounds.queued_messages or (
            self._queue and self._queued_bytes + message.cost > self._bounds.queued_bytes
        ):
            self._drop()
            return
        self._queue.append(message)
        self._queued_bytes += message.cost
        self._pump()

    def acknowledged(self, packet_id: int) -> None:
        """The client has it; unknown ids are ignored."""
        message = self._inflight.pop(packet_id, None)
        if message is not None:
            self._inflight_bytes -= message.cost
            self._pump()

    def _pump(self) -> None:
        while self._outlet is not None and self._queue and len(self._inflight) < self._bounds.inflight:
            message = self._queue[0]
            if self._inflight and self._inflight_bytes + message.cost > self._bounds.queued_bytes:
                return
            self._queue.popleft()
            self._queued_bytes -= message.cost
            packet_id = self._next_id()
            self._inflight[packet_id] = message
            self._inflight_bytes += message.cost
            self._outlet.write(message, packet_id, duplicate=False)

    def _next_id(self) -> int:
        while True:
            self._last_id = self._last_id % 0xFFFF + 1
            if self._last_id not in self._inflight:
                return self._last_id

    def _drop(self) -> None:
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # 1, 2, 4, 8 ...: a line, not a flood
            log.warning("%s is too slow or away: %d messages dropped", self.name, self.dropped)
