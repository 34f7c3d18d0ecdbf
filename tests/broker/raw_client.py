"""An MQTT 3.1.1 client made of bytes: it can do what no well-behaved library does."""

import asyncio
from dataclasses import dataclass
from typing import Self

from tests.support.mosquitto import DOMAIN

BASE = f"m/{DOMAIN}/c/c"


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2) + data


def packet(kind: int, flags: int, body: bytes) -> bytes:
    length, left = b"", len(body)
    while True:
        left, digit = divmod(left, 128) if left >= 128 else (0, left)
        length += bytes([digit | (0x80 if left else 0)])
        if not left:
            return bytes([kind << 4 | flags]) + length + body


@dataclass(frozen=True)
class Will:
    topic: str
    payload: bytes = b"gone"
    qos: int = 1
    retain: bool = False


def connect_packet(
    client_id: str,
    username: str | None,
    password: str | None,
    *,
    clean: bool = True,
    keepalive: int = 60,
    will: Will | None = None,
) -> bytes:
    flags = 0x02 * clean + 0x80 * (username is not None) + 0x40 * (password is not None)
    body = text(client_id)
    if will is not None:
        flags |= 0x04 | will.qos << 3 | 0x20 * will.retain
        body += text(will.topic) + text(will.payload)
    body += b"".join(text(part) for part in (username, password) if part is not None)
    return packet(1, 0, text("MQTT") + bytes([4, flags]) + keepalive.to_bytes(2) + body)


@dataclass(frozen=True)
class Got:
    """A PUBLISH as it came over the wire."""

    topic: str
    payload: bytes
    qos: int
    dup: bool
    retain: bool
    packet_id: int | None


class RawClient:
    """A connection. Every wait has a deadline; nothing is acknowledged unless asked."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._next_id = 0
        self._early: list[tuple[int, int, bytes]] = []
        self.return_code = -1
        self.session_present = False

    @classmethod
    async def dial(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    @classmethod
    async def connect(cls, port: int, client_id: str, password: str | None, **options: object) -> Self:
        """Connect; `username` is the client id unless given. A refusal is in `return_code`."""
        client = await cls.dial(port)
        username = options.pop("username", client_id)
        client.send(connect_packet(client_id, username, password, **options))  # type: ignore[arg-type]
        kind, _, body = await client.packet()
        assert kind == 2
        client.session_present, client.return_code = bool(body[0]), body[1]
        return client

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def packet(self) -> tuple[int, int, bytes]:
        """The next packet: kind, flags, body. Raises EOFError at the end of the connection."""
        try:
            async with asyncio.timeout(10):
                first = (await self._reader.readexactly(1))[0]
                length = shift = 0
                while True:
                    byte = (await self._reader.readexactly(1))[0]
                    length |= (byte & 0x7F) << shift
                    shift += 7
                    if byte < 0x80:
                        return first >> 4, first & 15, await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EOFError from None

    async def _until(self, kind: int) -> bytes:
        while True:
            found = await self.packet()
            if found[0] == kind:
                return found[2]
            self._early.append(found)

    def new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    async def subscribe(self, wanted: str, qos: int = 1) -> int:
        self.send(packet(8, 2, self.new_id().to_bytes(2) + text(wanted) + bytes([qos])))
        return (await self._until(9))[2]

    async def unsubscribe(self, wanted: str) -> None:
        self.send(packet(10, 2, self.new_id().to_bytes(2) + text(wanted)))
        await self._until(11)

    async def publish(self, topic: str, payload: bytes = b"", qos: int = 1, *, retain: bool = False) -> None:
        packet_id = self.new_id()
        self.write_publish(topic, payload, qos, retain=retain, packet_id=packet_id)
        if qos == 1:
            assert int.from_bytes((await self._until(4))[:2]) == packet_id
        elif qos == 2:
            assert int.from_bytes((await self._until(5))[:2]) == packet_id
            self.send(packet(6, 2, packet_id.to_bytes(2)))
            await self._until(7)

    def write_publish(
        self, topic: str, payload: bytes, qos: int, *, retain: bool = False, packet_id: int = 1, dup: bool = False
    ) -> None:
        ident = packet_id.to_bytes(2) if qos else b""
        self.send(packet(3, dup << 3 | qos << 1 | retain, text(topic) + ident + payload))

    async def received(self) -> list[Got]:
        """All messages so far: a ping is answered after them."""
        self.send(packet(12, 0, b""))
        await self._until(13)
        early, self._early = self._early, []
        return [parse_publish(flags, body) for kind, flags, body in early if kind == 3]

    async def message(self) -> Got:
        """The next message."""
        for at, (kind, flags, body) in enumerate(self._early):
            if kind == 3:
                del self._early[at]
                return parse_publish(flags, body)
        body = b""
        while True:
            kind, flags, body = await self.packet()
            if kind == 3:
                return parse_publish(flags, body)
            self._early.append((kind, flags, body))

    def acknowledge(self, message: Got) -> None:
        assert message.packet_id is not None
        self.send(packet(4, 0, message.packet_id.to_bytes(2)))

    async def ended(self) -> None:
        """Wait until the broker closes the connection."""
        try:
            while True:
                await self.packet()
        except EOFError:
            return

    async def goodbye(self) -> None:
        self.send(packet(14, 0, b""))
        await self.ended()
        self.cut()

    def stop_reading(self) -> None:
        """Take nothing more from the network, as a consumer that hangs."""
        transport = self._writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()

    def cut(self) -> None:
        """Vanish, as a device that loses power behind a router that tells."""
        self._writer.transport.abort()


def parse_publish(flags: int, body: bytes) -> Got:
    size = int.from_bytes(body[:2])
    topic, rest, qos = body[2 : 2 + size].decode(), body[2 + size :], flags >> 1 & 3
    packet_id = int.from_bytes(rest[:2]) if qos else None
    return Got(topic, rest[2:] if qos else rest, qos, bool(flags & 8), bool(flags & 1), packet_id)
