"""amqtt as the node's broker, hardened: its listener and packet codec; sessions and routing are ours.

Stock amqtt 0.12.1 must not serve anybody (its retained messages, wills and sessions leak past its access rules, a
rejected CONNECT touches the session of whoever it names, and more). This subclass takes over at the first byte of a
connection: nobody reaches a session before the password was checked, the session belongs to the user name, rules are
checked by containment, everything a client can make us keep is bounded. Deliveries are at most QoS 1, which MQTT allows
a server to grant; QoS 2 from clients is spoken.

Only on loopback, only plain TCP: for TLS and WebSockets there is mosquitto.
"""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import anyio
from amqtt import broker as stock
from amqtt.adapters import BufferReader
from amqtt.contexts import ListenerType
from amqtt.errors import BrokerError as AmqttBrokerError
from amqtt.mqtt import connack, packet_class
from amqtt.mqtt.connect import ConnectPacket
from amqtt.mqtt.disconnect import DisconnectPacket
from amqtt.mqtt.packet import CONNECT, MQTTFixedHeader
from amqtt.mqtt.pingreq import PingReqPacket
from amqtt.mqtt.pingresp import PingRespPacket
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.pubcomp import PubcompPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.pubrec import PubrecPacket
from amqtt.mqtt.pubrel import PubrelPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsuback import UnsubackPacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket

from proplet.manager.broker import BrokerError, BrokerSettings, check_names, check_port, is_loopback, url
from proplet.manager.broker_router import Router
from proplet.manager.broker_rules import Identity, Rules, rules_of
from proplet.manager.broker_session import Bounds, Message, Session

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0
_CONNECT_BYTES = 192 * 1024  # two strings and a will of 64 KiB each: all that a stranger can make us read
_HEADER_BYTES = 70 * 1024
_CHUNK_BYTES = 64 * 1024


class _ProtocolError(Exception):
    """The peer does not keep to MQTT 3.1.1, or is not who it says: its connection ends."""


class _Credentials:
    """Passwords as SHA-256, compared in constant time.

    They are 256 random bits, so nothing slower makes guessing harder; and this is a fraction of a millisecond on the
    event loop, where argon2 takes 200 (amqtt's own way).
    """

    def __init__(self, identities: Sequence[Identity]) -> None:
        self._digests = {i.username: hashlib.sha256(i.password.encode()).digest() for i in identities}

    def same(self, other: "_Credentials", username: str) -> bool:
        """Whether a name is known with one and the same password, here and there."""
        here = self._digests.get(username)
        return here is not None and other.holds(username, here)

    def holds(self, username: str, digest: bytes) -> bool:
        """Whether `username` is known with this digest."""
        return self._digests.get(username) == digest

    def fit(self, username: str, password: str) -> bool:
        given = hashlib.sha256(password.encode("utf-8", "surrogatepass")).digest()
        expected = self._digests.get(username)
        return hmac.compare_digest(given, expected or bytes(32)) and expected is not None


class Connection:
    """One client's connection, from its first byte to its last; an `Outlet` of its session."""

    def __init__(self, broker: "HardenedBroker", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._broker = broker
        self._reader = reader
        self._writer = writer
        self._session: Session | None = None
        self._clean = True
        self._will: Message | None = None
        self._keepalive_s = 0.0
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.task = asyncio.current_task()

    async def serve(self) -> None:
        """Speak with the client until the connection ends, for whatever reason."""
        try:
            await self._greet()
            while await self._handle(await self._read(self._broker.max_packet_bytes)):
                pass
        except (_ProtocolError, TimeoutError) as error:
            log.debug("connection of %s ended: %s", self._session.name if self._session else "a stranger", error)
        except (OSError, asyncio.IncompleteReadError):
            pass  # it hung up
        finally:
            self.end()

    def end(self, *, publish_will: bool = True) -> None:
        """Cut the connection; its will is published unless it said goodbye. A second time does nothing."""
        self._writer.transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        session, self._session = self._session, None
        if session is None:
            return
        session.detach()
        self._broker.connections.pop(session.name, None)
        will, self._will = self._will, None
        if will is not None and publish_will:
            self._broker.router.publish(session, will)
        if self._clean:
            self._broker.router.forget(session.name)

    def write(self, message: Message, packet_id: int | None, *, duplicate: bool) -> None:
        """As `Outlet.write`."""
        self._send(
            PublishPacket.build(message.topic, message.payload, packet_id, duplicate, message.qos, message.retained)
        )

    def buffered_bytes(self) -> int:
        """As `Outlet.buffered_bytes`."""
        return self._writer.transport.get_write_buffer_size()

    async def _greet(self) -> None:
        async with asyncio.timeout(self._broker.connect_timeout_s):
            packet = await self._read(_CONNECT_BYTES, first=True)
        if not isinstance(packet, ConnectPacket) or packet.proto_name != "MQTT" or packet.reserved_flag:
            raise _ProtocolError("the first packet is no CONNECT of MQTT 3.1.1")
        if packet.proto_level != 4:
            self._refuse(connack.UNACCEPTABLE_PROTOCOL_VERSION, f"protocol level {packet.proto_level}")
        username = (packet.username if packet.username_flag else None) or ""
        password = (packet.password if packet.password_flag else None) or ""
        if not self._broker.credentials.fit(username, password):
            self._refuse(connack.NOT_AUTHORIZED, f"user {username!r} is unknown or has another password")
        will = _will_of(packet)
        if will is not None and not self._broker.rules[username].may_publish(will.topic):
            self._refuse(connack.NOT_AUTHORIZED, f"{username} may not leave a will on {will.topic!r}")
        # Only now, known to be who it says: whatever was connected under this name makes room.
        previous = self._broker.connections.get(username)
        if previous is not None:
            previous.end()
        self._clean, self._will = bool(packet.clean_session_flag), will
        session, present = self._broker.router.session(username, clean=self._clean)
        self._session = session
        self._broker.connections[username] = self
        self._send(connack.ConnackPacket.build(int(present), connack.CONNECTION_ACCEPTED))
        self._watch(packet.keep_alive)
        session.attach(self)

    def _refuse(self, code: int, why: str) -> None:
        self._send(connack.ConnackPacket.build(0, code))
        self._writer.close()  # flushes; `end` then finds nothing to cut
        raise _ProtocolError(why)

    def _watch(self, keepalive_s: int) -> None:
        """End the connection when nothing was heard for one and a half keep-alives (MQTT 3.1.1, 3.1.2.10)."""
        if keepalive_s:
            self._keepalive_s = 1.5 * keepalive_s
            self._heard = asyncio.get_running_loop().time()
            self._look()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._heard + self._keepalive_s:
            self.end()
        else:
            self._timer = loop.call_at(self._heard + self._keepalive_s, self._look)

    async def _read(self, limit: int, *, first: bool = False) -> Any:
        """One packet. Its bytes are taken whole, and only up to `limit`, before amqtt's decoder sees them."""
        kind = (await self._reader.readexactly(1))[0]
        if first and kind >> 4 != CONNECT:
            raise _ProtocolError("the first packet is no CONNECT")
        length = shift = 0
        while True:
            byte = (await self._reader.readexactly(1))[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
            if shift > 21:
                raise _ProtocolError("a packet's length has more than four bytes")
        if length > limit:
            raise _ProtocolError(f"a packet of {length} bytes exceeds the limit of {limit}")
        body = bytearray()
        while len(body) < length:
            body += await self._reader.readexactly(min(_CHUNK_BYTES, length - len(body)))
            self._heard = asyncio.get_running_loop().time()
        self._heard = asyncio.get_running_loop().time()
        header = MQTTFixedHeader(kind >> 4, kind & 0x0F, length)
        try:
            return await packet_class(header).from_stream(BufferReader(bytes(body)), fixed_header=header)
        except Exception as error:  # noqa: BLE001 - amqtt's decoder raises many things; all mean the same
            raise _ProtocolError(f"malformed packet: {error}") from None

    async def _handle(self, packet: Any) -> bool:
        """Answer one packet; whether the connection goes on."""
        session = self._session
        if session is None:
            return False  # taken over
        if isinstance(packet, PublishPacket):
            self._on_publish(session, packet)
        elif isinstance(packet, PubackPacket):
            session.acknowledged(packet.packet_id)
        elif isinstance(packet, PubrelPacket):
            session.received_ids.discard(packet.packet_id)
            self._send(PubcompPacket.build(packet.packet_id))
        elif isinstance(packet, SubscribePacket):
            self._on_subscribe(session, packet.variable_header.packet_id, packet.payload.topics)  # type: ignore[union-attr]
        elif isinstance(packet, UnsubscribePacket):
            for name in packet.payload.topics:  # type: ignore[union-attr]
                self._broker.router.unsubscribe(session, name)
            self._send(UnsubackPacket.build(packet.variable_header.packet_id))  # type: ignore[union-attr]
        elif isinstance(packet, PingReqPacket):
            self._send(PingRespPacket.build())
        elif isinstance(packet, DisconnectPacket):
            self._will = None
            return False
        else:
            raise _ProtocolError(f"a {type(packet).__name__} is not for a broker")
        if self.buffered_bytes() > self._broker.max_buffered_bytes:
            # It asks and does not listen: the answers must not pile up. Its own queue is bounded elsewhere.
            await self._writer.drain()
        return True

    def _on_subscribe(self, session: Session, packet_id: int, wanted: list[tuple[str, int]]) -> None:
        if not wanted or any(qos > 2 for _, qos in wanted):
            raise _ProtocolError("a SUBSCRIBE without topics or with an unknown QoS")
        router = self._broker.router
        codes = [router.subscribe(session, name, qos) for name, qos in wanted]
        self._send(SubackPacket.build(packet_id, codes))
        for (name, _), code in zip(wanted, codes, strict=True):
            if code <= 1:
                router.send_retained(session, name)

    def _on_publish(self, session: Session, packet: PublishPacket) -> None:
        topic, qos, packet_id = packet.topic_name, packet.qos or 0, packet.packet_id or 0
        if not topic or "\0" in topic or qos not in (0, 1, 2) or (qos and not packet_id):
            raise _ProtocolError("a PUBLISH without a topic, or with an impossible QoS or packet id")
        fresh = qos < 2 or packet_id not in session.received_ids
        if fresh:
            if qos == 2:
                session.received_ids.add(packet_id)
            self._broker.router.publish(session, Message(topic, packet.data or b"", qos, bool(packet.retain_flag)))
        if qos == 1:
            self._send(PubackPacket.build(packet_id))
        elif qos == 2:
            self._send(PubrecPacket.build(packet_id))

    def _send(self, packet: Any) -> None:
        if not self._writer.is_closing():
            self._writer.write(packet.to_bytes())


def _will_of(packet: ConnectPacket) -> Message | None:
    if not packet.will_flag:
        return None
    topic = packet.will_topic
    if not topic or any(c in topic for c in "+#\0") or packet.will_qos > 2:
        raise _ProtocolError("a will without a usable topic or QoS")
    return Message(topic, bytes(packet.will_message or b""), packet.will_qos, bool(packet.will_retain_flag))


class HardenedBroker(stock.Broker):
    """amqtt's broker, with everything after `accept` replaced."""

    def __init__(self, settings: BrokerSettings, identities: Sequence[Identity]) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        super().__init__({"listeners": {"default": {"type": "tcp", "bind": f"{host}:{settings.port}"}}, "plugins": {}})
        self._settings = settings
        self.credentials = _Credentials(())
        self.rules: dict[str, Rules] = {}
        bounds = Bounds(settings.max_queued_bytes, settings.max_queued_messages, settings.max_inflight)
        self.router = Router((), bounds)
        self.connections: dict[str, Connection] = {}
        self.admit(identities)
        self.open: set[Connection] = set()
        self.connect_timeout_s = settings.connect_timeout_s
        self.max_packet_bytes = settings.max_message_bytes + _HEADER_BYTES
        self.max_buffered_bytes = 2 * settings.max_queued_bytes + self.max_packet_bytes

    def admit(self, identities: Sequence[Identity]) -> None:
        """Replace who may connect, and cut whoever no longer may, or has a new password."""
        settings, before = self._settings, self.credentials
        self.credentials = _Credentials(identities)
        self.rules = {i.username: rules_of(i, settings.domain, settings.channel) for i in identities}
        for name, connection in list(self.connections.items()):
            if not self.credentials.same(before, name):
                connection.end()
        self.router.know([(i, self.rules[i.username]) for i in identities])

    async def _create_server_instance(
        self,
        listener_name: str,
        listener_type: ListenerType,
        address: str | None,
        port: int,
        ssl_context: Any,
    ) -> asyncio.Server:
        del listener_name, listener_type, address, ssl_context
        return await asyncio.start_server(self._accept, self._settings.host, port, reuse_address=True)

    async def _session_monitor(self) -> None:
        """Stock amqtt looks for its own sessions once a second; it has none."""

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self.open) >= self._settings.max_connections:
            writer.transport.abort()
            return
        connection = Connection(self, reader, writer)
        self.open.add(connection)
        try:
            await connection.serve()
        finally:
            self.open.discard(connection)
            with suppress(OSError):
                await writer.wait_closed()

    async def shutdown(self) -> None:
        """Stop listening and end every connection; no wills, for nobody is left to hear them."""
        for server in self._servers.values():
            server.instance.close()
        tasks = [connection.task for connection in self.open if connection.task is not None]
        for connection in list(self.open):
            connection.end(publish_will=False)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)
            for task in late:
                task.cancel()
        await super().shutdown()

    @property
    def bound_port(self) -> int:
        """The port it listens on."""
        sockets: Any = self._servers["default"].instance.sockets
        return int(sockets[0].getsockname()[1])


class Amqtt:
    """A running embedded broker; a `Broker`. It lives and dies with this process."""

    engine: Literal["amqtt"] = "amqtt"
    pid: int | None = None

    def __init__(self, broker: HardenedBroker, address: str) -> None:
        self._broker = broker
        self.address = address

    async def update(self, identities: Sequence[Identity]) -> None:
        """As `Broker.update`."""
        check_names(identities)
        self._broker.admit(identities)

    async def failed(self) -> None:
        """As `Broker.failed`: never by itself."""
        await anyio.sleep_forever()


@asynccontextmanager
async def run_amqtt(settings: BrokerSettings, identities: Sequence[Identity]) -> AsyncIterator[Amqtt]:
    """Run amqtt in this process; it accepts connections when this yields.

    Raises:
        BrokerError: it is asked for what only mosquitto does, or its port is occupied.
    """
    if settings.tls is not None or not is_loopback(settings.host):
        raise BrokerError(
            f"the embedded broker (amqtt) serves only this machine, not {settings.host} with TLS: install mosquitto "
            "(apt-get install mosquitto), or point [mqtt] address at a broker of yours"
        )
    check_port(settings.host, settings.port)
    for chatty in ("amqtt", "transitions"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    broker = HardenedBroker(settings, identities)
    try:
        await broker.start()
    except (OSError, AmqttBrokerError) as error:
        raise BrokerError(f"the embedded broker does not start on {settings.host}:{settings.port}: {error}") from error
    try:
        yield Amqtt(broker, url(settings.host, broker.bound_port))
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(2 * STOP_TIMEOUT_S):
            await broker.shutdown()
