"""An MQTT 3.1.1 client for load generators: it costs less than what it measures, and does no more than they need."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tests.broker.raw_client import connect_packet, packet, text

PUBLISH, PUBACK = 3, 4
_ANSWER_S = 20.0


@dataclass(frozen=True)
class Access:
    """Where the broker is and who is asking; as `vars` of a load generator's parameters."""

    port: int
    username: str
    password: str
    base: str  # of the channel's topics, as m/DOMAIN/c/CHANNEL


class WireClient(asyncio.Protocol):
    """A connection at QoS 1. Messages go to `on_message(topic, payload)` and are acknowledged at once."""

    def __init__(self, on_message: Callable[[str, bytes], None]) -> None:
        self._on_message = on_message
        self._transport: asyncio.Transport
        self._buffer = b""
        self._next_id = 0
        self._answers: deque[asyncio.Future[bytes]] = deque()
        self.unacknowledged = 0
        self.lost: str | None = None

    @classmethod
    async def connect(cls, access: Access, on_message: Callable[[str, bytes], None]) -> "WireClient":
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: cls(on_message), "127.0.0.1", access.port)
        hello = connect_packet(access.username, access.username, access.password, keepalive=0)
        answer = await client._ask(hello)
        if answer[1] != 0:
            raise ConnectionError(f"the broker refused {access.username}: {answer[1]}")
        return client

    async def subscribe(self, *wanted: str) -> None:
        body = self._packet_id() + b"".join(text(each) + b"\1" for each in wanted)
        answer = await self._ask(packet(8, 2, body))
        if any(code != 1 for code in answer[2:]):
            raise ConnectionError(f"the broker refused a subscription: {wanted}, {answer[2:]!r}")

    def publish(self, topic: str, payload: bytes) -> None:
        """Send at QoS 1; `unacknowledged` counts until the broker has it."""
        self.unacknowledged += 1
        self._transport.write(packet(PUBLISH, 2, text(topic) + self._packet_id() + payload))

    def close(self) -> None:
        self.lost = "closed"
        self._transport.write(packet(14, 0, b""))
        self._transport.close()

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self.lost or repr(exc)
        while self._answers:
            self._answers.popleft().set_exception(ConnectionError(self.lost))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        at, size = 0, len(buffer)
        while True:
            start, length, shift = at + 1, 0, 0
            while start < size:
                byte = buffer[start]
                start += 1
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            else:
                break
            if start + length > size:
                break
            self._packet(buffer[at], buffer[start : start + length])
            at = start + length
        self._buffer = buffer[at:]

    def _packet(self, first: int, body: bytes) -> None:
        kind = first >> 4
        if kind == PUBLISH:
            end = 2 + int.from_bytes(body[:2])
            topic, payload = body[2:end].decode(), body[end:]
            if first & 6:
                self._transport.write(b"\x40\x02" + payload[:2])
                payload = payload[2:]
            self._on_message(topic, payload)
        elif kind == PUBACK:
            self.unacknowledged -= 1
        elif self._answers:
            self._answers.popleft().set_result(body)

    async def _ask(self, data: bytes) -> bytes:
        answer = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self._transport.write(data)
        return await asyncio.wait_for(answer, _ANSWER_S)

    def _packet_id(self) -> bytes:
        self._next_id = self._next_id % 65535 + 1
        return self._next_id.to_bytes(2)
