# ruff: noqa: SLF001 - reaching behind aiomqtt is the purpose of this module, see below
"""One connection to a broker, from dialling to its end: the only module that knows aiomqtt and paho.

aiomqtt drives paho in the event loop. What it does not offer (manual acknowledgement, deliveries without a task each,
websockets and TLS on a socket of ours) goes through the paho client behind it. Both are pinned; `paho_of` says so when
they no longer fit.
"""

import logging
import os
import socket
from asyncio import Future, get_running_loop
from asyncio import wait as wait_futures
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import aiomqtt
import anyio
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt import client as paho_client

from proplet.agent.mqtt_dial import (
    CONNECT_TIMEOUT_S,
    ConnectError,
    dial,
    tls_context,
    tls_handshake,
    tls_socket,
    websocket,
)
from proplet.agent.mqtt_model import (
    Delivery,
    LinkEvent,
    MqttSettings,
    NotConnectedError,
    Receipt,
    Will,
    parse_address,
)

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 2.0
_RECEIVE_BYTES = 64 * 1024
_BUFFER_BYTES = 8 * 1024
_HEAD_BYTES = 2 + 0xFFFF + 2
"""Longest topic and packet id in front of a payload: what is kept of a packet that is too large."""


class Connection:
    """One connection; used once. Failing to open and ending later are both told as one line for the person."""

    def __init__(
        self, settings: MqttSettings, number: int, will: Will | None, on_event: Callable[[LinkEvent], None]
    ) -> None:
        self.number = number
        self._settings = settings
        self._address = parse_address(settings.address)
        self._will = will
        self._on_event = on_event
        self._loop = get_running_loop()
        self._lost: Future[str] = self._loop.create_future()
        self._granted: Future[list[Any]] = self._loop.create_future()
        self._crash: Exception | None = None
        self._sock: socket.socket | None = None
        self._client: Any = None
        self._paho: Any = None
        self._session_present = False
        self._writing = False
        self._early: list[Delivery] | None = []  # what comes before the subscriptions are granted
        self._too_large: set[int] = set()
        self._buffer = memoryview(b"")
        self._published: dict[int, tuple[Future[None], float]] = {}
        self._arrived: dict[int, tuple[int, bool]] = {}  # packet id: its QoS, and whether our user has acknowledged

    async def open(self, subscriptions: Sequence[tuple[str, int]]) -> bool:
        """Dial, introduce ourselves and subscribe; return whether the broker kept our session.

        Raises:
            ConnectError: one of these failed.
        """
        try:
            with anyio.fail_after(CONNECT_TIMEOUT_S):
                sock = self._sock = await dial(self._address)
                if self._address.tls:
                    context = await anyio.to_thread.run_sync(tls_context, self._settings)
                    sock = self._sock = tls_socket(sock, context, self._address)
                    await tls_handshake(self._sock)
            transport = await websocket(sock, self._address) if self._address.websocket else sock
            self._build(transport)
            with anyio.fail_after(CONNECT_TIMEOUT_S):
                await self._introduce()
                await self._subscribe(subscriptions)
        except TimeoutError:
            raise ConnectError(f"no answer within {CONNECT_TIMEOUT_S:.0f} s") from None
        return self._session_present

    def release(self) -> None:
        """Hand on what was delivered before the subscriptions were granted; from now on at once."""
        early, self._early = self._early or [], None
        for delivery in early:
            self._on_event(delivery)

    async def ended(self) -> str:
        """Wait for the end of the connection and return why it ended; raise what `on_event` raised."""
        while not await self._wait_for(self._lost, self._settings.keepalive_s):
            patience = max(60.0, 2.0 * self._settings.keepalive_s)
            since = next((at for _, at in self._published.values()), self._loop.time())
            if self._loop.time() - since > patience:
                self._end(f"the broker has not acknowledged a message for {patience:.0f} s")
        if self._crash is not None:
            raise self._crash
        return self._lost.result()

    async def publish(self, topic: str, payload: bytes, qos: int) -> None:
        """As `Link.publish`; QoS 0 or 1."""
        if self._lost.done():
            raise NotConnectedError(self._lost.result())
        info = self._paho.publish(topic, payload, qos)
        if info.rc != paho_client.MQTT_ERR_SUCCESS:
            raise NotConnectedError(f"the message was not taken: {paho_client.error_string(info.rc)}")
        future: Future[None] = self._loop.create_future()
        self._published[info.mid] = (future, self._loop.time())
        try:
            await future
        finally:
            self._published.pop(info.mid, None)

    def listen(self, topic: str) -> None:
        """Subscribe to one more topic; what is published afterwards over this connection is behind it."""
        if not self._lost.done():
            self._paho.subscribe(topic, 1)

    def leave(self, topic: str) -> None:
        """End such a subscription, also one of an earlier connection."""
        if not self._lost.done():
            self._paho.unsubscribe(topic)

    def acknowledge(self, packet_id: int) -> None:
        """Note it, and acknowledge to the broker whatever is now complete, in order of arrival (MQTT 3.1.1, 4.6)."""
        arrived = self._arrived
        if packet_id not in arrived:
            return
        arrived[packet_id] = (arrived[packet_id][0], True)
        while arrived:
            first, (qos, done) = next(iter(arrived.items()))
            if not done:
                return
            del arrived[first]
            self._paho.ack(first, qos)

    async def close(self) -> None:
        """Say goodbye if there is somebody to hear it, and release everything. Ends within a deadline."""
        if self._paho is not None and not self._lost.done() and self._client._connected.done():
            with suppress(OSError), anyio.move_on_after(CLOSE_TIMEOUT_S):
                await self._say_goodbye()
        self._end("the link was closed")
        if self._paho is not None:
            self._paho._sock_close()
            misc_task = self._client._misc_task
            if misc_task is not None:
                misc_task.cancel()
                await wait_futures([misc_task])
            self._see_failures()
        if self._sock is not None:
            self._sock.close()

    def _see_failures(self) -> None:
        """Asyncio reports a failure nobody has seen; aiomqtt forgets one of a connection that ended as it began."""
        for future in (self._client._connected, self._client._disconnected):
            future.add_done_callback(_seen)

    async def _say_goodbye(self) -> None:
        """Send DISCONNECT and wait until the broker has taken it: closing at once could overtake it by a reset."""
        assert self._sock is not None
        with socket.socket(fileno=os.dup(self._sock.fileno())) as kept:  # paho closes its own after the write
            kept.setblocking(False)
            self._paho.disconnect()
            await wait_futures([self._lost])
            while await self._loop.sock_recv(kept, _RECEIVE_BYTES):
                pass

    def _build(self, transport: Any) -> None:
        settings, will = self._settings, self._will
        self._client = aiomqtt.Client(
            self._address.host,
            self._address.port,
            username=settings.username or None,
            password=settings.password or None,
            identifier=settings.client_id,
            will=aiomqtt.Will(will.topic, will.payload, min(will.qos, 1)) if will else None,
            clean_session=settings.clean_session or not settings.client_id,
            timeout=CONNECT_TIMEOUT_S,
            keepalive=settings.keepalive_s,
            max_inflight_messages=settings.max_inflight,
        )
        self._see_failures()
        paho = self._paho = paho_of(self._client)
        paho.disable_logger()  # what it would say reaches our user as a reason
        paho.manual_ack_set(True)
        paho._create_socket = lambda: transport
        paho._sock_recv = self._receive
        self._paho_receive = type(paho)._sock_recv.__get__(paho)
        paho.loop_read = self._read_all
        self._paho_loop_read = type(paho).loop_read.__get__(paho)
        # aiomqtt would add a writer for a number that may be another's by then: a refused connection is closed at once.
        paho.on_socket_register_write = self._on_first_write
        paho.on_socket_unregister_write = self._on_written
        paho.on_message = self._on_message
        paho.on_publish = self._on_publish
        paho.on_subscribe = self._on_subscribe
        paho.on_unsubscribe = None  # aiomqtt's looks for who asked, and does not know `leave`
        self._first_connect, paho.on_connect = paho.on_connect, self._on_connect
        self._first_disconnect, paho.on_disconnect = paho.on_disconnect, self._on_disconnect

    async def _introduce(self) -> None:
        """Send CONNECT and wait for CONNACK. aiomqtt cannot be cancelled in there, so cancelling cuts the socket."""
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cut_when_cancelled)
            with anyio.CancelScope(shield=True):
                try:
                    await self._client.__aenter__()
                except aiomqtt.MqttError as error:
                    failure = error
            if failure is None and not self._lost.done():
                self._paho.on_socket_register_write = self._on_want_write
            self._greeted = True
            tasks.cancel_scope.cancel()
        if isinstance(failure, MqttConnectError):
            raise ConnectError(_refusal(failure.rc))
        if failure is not None or self._lost.done():
            raise ConnectError("the broker closed the connection without an answer (does the address's scheme fit?)")

    _greeted = False

    async def _cut_when_cancelled(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self._cut_unless_greeted()

    def _cut_unless_greeted(self) -> None:
        if not self._greeted and self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    async def _subscribe(self, subscriptions: Sequence[tuple[str, int]]) -> None:
        if not subscriptions:
            return
        code, _ = self._paho.subscribe([(topic, min(qos, 1)) for topic, qos in subscriptions])
        if code != paho_client.MQTT_ERR_SUCCESS or not await self._wait_for(self._granted, None):
            raise ConnectError("the broker closed the connection when we subscribed")
        codes = self._granted.result()
        refused = [topic for (topic, _), code in zip(subscriptions, codes, strict=False) if code.value >= 0x80]
        if refused:
            raise ConnectError(f"the broker refuses the subscription to {', '.join(refused)} (are we allowed to?)")

    async def _wait_for(self, future: Future[Any], timeout: float | None) -> bool:
        """Wait until `future` is done or the connection has ended; whether `future` is done."""
        disconnected = self._client._disconnected
        waited_for = {future, self._lost, disconnected}
        await wait_futures(waited_for, timeout=timeout, return_when="FIRST_COMPLETED")
        if disconnected.done():
            self._end(str(disconnected.exception() or "the connection was closed"))
        return future.done()

    def _end(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)
        published, self._published = self._published, {}
        for future, _ in published.values():
            if not future.done():
                future.set_exception(NotConnectedError(reason))

    # What paho calls, always in the event loop's thread.

    def _on_connect(self, client: Any, userdata: Any, flags: Any, *rest: Any) -> None:
        self._session_present = bool(flags.session_present)
        self._first_connect(client, userdata, flags, *rest)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, code: Any, *rest: Any) -> None:
        if not self._client._connected.done():  # else aiomqtt would wait for its timeout
            self._client._connected.set_exception(aiomqtt.MqttError("closed"))
        self._first_disconnect(client, userdata, flags, code, *rest)
        silent = str(code) == "Keep alive timeout"
        self._end("the broker has fallen silent (keepalive)" if silent else "the broker closed the connection")

    def _on_subscribe(self, _client: Any, _userdata: Any, _mid: int, codes: list[Any], *_rest: Any) -> None:
        if not self._granted.done():
            self._granted.set_result(codes)

    def _on_publish(self, _client: Any, _userdata: Any, mid: int, *_rest: Any) -> None:
        waiting = self._published.get(mid)
        if waiting is not None and not waiting[0].done():
            waiting[0].set_result(None)

    def _on_message(self, _client: Any, _userdata: Any, message: Any) -> None:
        if message.qos and message.mid not in self._arrived:
            self._arrived[message.mid] = (message.qos, False)
        size, limit = self._paho._in_packet["remaining_length"], self._settings.max_packet_bytes
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return self._drop(message, "whose topic is not UTF-8")
        if size > limit or (message.qos == 2 and message.mid in self._too_large):
            self._too_large.discard(message.mid)
            return self._drop(message, f"on {topic} that exceeds the limit of {limit} bytes")
        receipt = Receipt(self.number, message.mid)
        delivery = Delivery(
            topic, bytes(message.payload), message.qos, bool(message.dup), bool(message.retain), receipt
        )
        if self._early is not None:
            self._early.append(delivery)
            return None
        try:
            self._on_event(delivery)
        except Exception as error:  # noqa: BLE001 - raised again by `ended`, out of paho's reach
            self._crash = error
            self._end("the receiver failed")
        return None

    def _drop(self, message: Any, which: str) -> None:
        log.error("dropped a message %s", which)
        if message.qos:
            self.acknowledge(message.mid)

    def _receive(self, size: int) -> bytes:
        """Read for paho, which asks byte by byte; of a packet above the limit keep only its head and last piece."""
        packet = self._paho._in_packet
        if packet["have_remaining"] and packet["remaining_length"] > self._settings.max_packet_bytes:
            body = packet["packet"]
            if len(body) > _HEAD_BYTES:
                if packet["command"] & 0x06 == 0x04:  # QoS 2 is handed on later, at its PUBREL
                    at = 2 + int.from_bytes(body[:2])
                    self._too_large.add(int.from_bytes(body[at : at + 2]))
                del body[_HEAD_BYTES:]
        if size >= _BUFFER_BYTES and not self._buffer:
            piece: bytes = self._paho_receive(min(size, _RECEIVE_BYTES))
            return piece
        if not self._buffer:
            self._buffer = memoryview(self._paho_receive(_BUFFER_BYTES))
        data, self._buffer = bytes(self._buffer[:size]), self._buffer[size:]
        return data

    def _read_all(self) -> int:
        """Handle whatever has been read: the socket does not become readable for what is in our buffer."""
        code: int = self._paho_loop_read()
        while self._buffer and self._paho._sock is not None:
            code = self._paho_loop_read()
        return code

    def _on_first_write(self, *_paho: Any) -> None:
        self._loop.call_soon_threadsafe(self._flush)  # CONNECT is written in a thread

    def _on_want_write(self, *_paho: Any) -> None:
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._paho._sock is None:
            return
        try:
            self._paho.loop_write()
        except Exception as error:  # noqa: BLE001 - whatever paho stumbles over, the connection is done for
            self._end(f"writing failed: {error}")
            self._cut_unless_greeted()
            return
        if self._paho.want_write() and not self._writing and self._paho._sock is not None:
            self._writing = True
            self._loop.add_writer(self._paho._sock.fileno(), self._flush)

    def _on_written(self, _client: Any, _userdata: Any, sock: Any) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(sock.fileno())


def paho_of(client: aiomqtt.Client) -> Any:
    """The paho client behind aiomqtt's.

    Raises:
        RuntimeError: it is not as we know it.
    """
    paho = getattr(client, "_client", None)
    needed = ("ack", "manual_ack_set", "loop_read", "_create_socket", "_sock_recv", "_sock_close", "_sock")
    missing = [name for name in needed if not hasattr(paho, name)]
    missing += [name for name in ("_connected", "_disconnected", "_misc_task") if not hasattr(client, name)]
    if missing:
        raise RuntimeError(
            f"aiomqtt and paho-mqtt have changed ({', '.join(missing)} missing), so deliveries cannot be acknowledged "
            "by hand: install exactly aiomqtt 2.5.1 and paho-mqtt 2.2.0"
        )
    return paho


def _refusal(code: Any) -> str:
    """Why CONNACK refuses (MQTT 3.1.1, table 3.1, as paho translates it to reason codes)."""
    known = {
        132: "the broker does not speak MQTT 3.1.1",
        133: "the broker refuses the client id",
        134: "the broker refuses the credentials: wrong user name or password",
        135: "the broker refuses the credentials: not authorised",
        136: "the broker is unavailable",
    }
    return known.get(getattr(code, "value", code), f"the broker refuses the connection: {code}")


def _seen(future: Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
