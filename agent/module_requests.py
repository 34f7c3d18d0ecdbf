"""Images asked for over MQTT, where a device reaches a broker and no registry.

Place in the flow: `module_storing` awaits `fetch`; the node's link hands over what arrives (`take`). Two ways to ask:

* On this device's own topics, of managers that announce it: pieces are asked for a few at a time, the next ones when
  those are here, so that no broker has to queue a whole module for a slow device and what got lost is asked for again.
* On the topics that all share, as the reference does: one question, and the module's bytes from whatever proxy answers.

Bounded: so many sets of pieces at once, each on disk and within the limit of a module. What nobody asked for costs a
look at its name.
"""

import json
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import anyio
from anyio import to_thread

from proplet.agent import codec, wire
from proplet.agent.module_parts import ConflictError, Parts, PartsError
from proplet.agent.mqtt_model import Connected, Delivery, LinkEvent, MessageTooLargeError, NotConnectedError
from proplet.agent.ports import ModuleError, Stage, StorageError
from proplet.agent.topics import Route, Topics
from proplet.agent.wire import PullPolicy, Reason

log = logging.getLogger(__name__)

WINDOW: Final = 8  # pieces that are asked for at once
SETS: Final = 2  # images that are received at once
_MIB: Final = 1024 * 1024
_BESIDE_BYTES: Final = 16 * _MIB  # what manifests and signatures may have beside the module
_QUEUED: Final = 32  # pieces in memory; a broker sends fewer ahead of an acknowledgement, unless they are QoS 0
_QUEUED_BYTES: Final = 32 * _MIB
_ENVELOPE_BYTES: Final = 16 * 1024  # of a packet, for all but the piece
_FRESH_STARTS: Final = 3
_ASK_AGAIN_S: Final = 10.0
_TEXT_MAX: Final = 300


class Ear(Protocol):
    """The link to the broker, as it is needed here; see `proplet.agent.mqtt.Link`."""

    @property
    def connected(self) -> bool:
        """Whether there is a broker now."""
        ...

    async def publish(self, topic: str, payload: bytes, qos: int) -> None:
        """Publish."""
        ...

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge."""
        ...

    def listen(self, topic: str, *, wanted: bool) -> None:
        """Begin or end to listen to a topic."""
        ...


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """Bounds, in bytes and seconds. `timeout_s` without a piece, or word of one, means that nobody answers.

    `signatures`: this device has a policy about them.
    """

    directory: Path
    timeout_s: float = 60.0
    max_module_bytes: int = 100 * _MIB
    max_packet_bytes: int = 10 * _MIB
    signatures: bool = False


@dataclass(slots=True)
class Received:
    """All pieces of what was asked for. `image` says what they are; None: they are the module itself."""

    parts: Parts
    image: wire.ModuleImage | None = None


@dataclass(slots=True)
class _Ask:
    """One question that is open, and what has come for it and was not looked at yet."""

    name: str
    own: bool
    parts: Parts
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    marks: tuple[bytes, ...] = ()  # ways in which a message of another encoder may spell the name
    queue: deque[Delivery] = field(default_factory=deque)
    queued_bytes: int = 0
    news: anyio.Event = field(default_factory=anyio.Event)
    again: bool = False  # the link is new: what was asked may be lost
    image: wire.ModuleImage | None = None
    content: str = ""
    fresh_starts: int = 0
    wanted: int = 0  # pieces of the last question that are still to come
    note: str = ""


class ModuleRequests:
    """Asks for images; one per node. `open` gives it its link."""

    def __init__(self, settings: RequestSettings, topics: Topics, proplet_id: str) -> None:
        self._settings = settings
        self._topics = topics
        self._proplet_id = proplet_id
        self._asks: list[_Ask] = []
        self._turns = anyio.Semaphore(SETS)
        self._link: Ear | None = None

    def open(self, link: Ear) -> None:
        """Use this link from now on."""
        self._link = link
        self._listen()  # a killed process may have left the subscription behind

    def take(self, event: LinkEvent) -> bool:
        """Take what the link says; return whether it was a piece, and is nobody else's business."""
        if isinstance(event, Connected):
            for ask in self._asks:
                ask.again = True
                ask.news.set()
            return False
        if not isinstance(event, Delivery) or "/registry/server" not in event.topic:
            return False
        parsed = self._topics.parse(event.topic)
        if parsed is None or parsed.route not in (Route.MODULE_CHUNK, Route.OWN_MODULE_CHUNK):
            return False
        own = parsed.route is Route.OWN_MODULE_CHUNK
        for ask in self._asks:
            if ask.own is own and any(mark in event.payload for mark in ask.marks):
                if len(ask.queue) >= _QUEUED or ask.queued_bytes + len(event.payload) > _QUEUED_BYTES:
                    break  # it is asked for again
                ask.queue.append(event)
                ask.queued_bytes += len(event.payload)
                ask.news.set()
                return True
        self._acknowledge(event)
        return True

    @contextmanager
    def _open_ask(self, name: str, *, own: bool) -> Iterator[_Ask]:
        limit = self._settings.max_module_bytes + (_BESIDE_BYTES if own else 0)
        ask = _Ask(name, own, Parts(self._settings.directory, limit))
        ask.marks = (ask.id.encode(),) if own else _spellings(name)
        self._asks.append(ask)
        self._listen()
        try:
            yield ask
        except BaseException:
            ask.parts.close()
            raise
        finally:
            self._asks.remove(ask)
            self._listen()
            for delivery in ask.queue:
                self._acknowledge(delivery)

    async def fetch(
        self,
        name: str,
        digest: str | None,
        policy: PullPolicy,
        *,
        own: bool,
        tell: Callable[[Stage], None],
    ) -> Received:
        """Ask for an image until all of it is here; the caller closes its parts.

        Raises:
            ModuleError: the answer is an error, makes no sense, or there is none for too long.
            StorageError: the disk.
        """
        async with self._turns:
            with self._open_ask(name, own=own) as ask:
                await self._receive(ask, digest, policy, tell)
                return Received(ask.parts, ask.image)

    # --- asking -------------------------------------------------------------------------------------------------------

    async def _receive(self, ask: _Ask, digest: str | None, policy: PullPolicy, tell: Callable[[Stage], None]) -> None:
        heard_at = anyio.current_time()
        asked_at, wait_s = -1e9, min(_ASK_AGAIN_S, self._settings.timeout_s / 3)
        while not ask.parts.complete:
            now = anyio.current_time()
            if now - heard_at >= self._settings.timeout_s:
                raise ModuleError(Reason.MODULE_UNAVAILABLE, self._silence(ask))
            due = now - max(asked_at, heard_at) >= wait_s or asked_at < 0
            if (ask.again or due or (ask.own and ask.wanted <= 0)) and await self._question(ask, digest, policy):
                ask.again, asked_at = False, anyio.current_time()
            ask.news = anyio.Event()
            if not ask.queue and not (ask.again and self._connected):
                with anyio.move_on_after(min(wait_s, self._settings.timeout_s) / 4):
                    await ask.news.wait()
            while ask.queue:
                if await self._next(ask):
                    heard_at = anyio.current_time()
                    done, total = ask.parts.size, _size(ask.image)
                    if done:
                        tell(Stage("fetching", min(done, total) if total else done, total))

    async def _question(self, ask: _Ask, digest: str | None, policy: PullPolicy) -> bool:
        """Ask, for all or for what is missing; return whether there is a broker that has taken it."""
        link = self._link
        if link is None or not link.connected:
            return False
        if ask.own:
            first, count = ask.parts.gap(WINDOW)
            ext = wire.ModuleTerms(
                id=ask.id,
                digest=digest,
                pull_policy=policy,
                encodings=("cbor",),
                chunk_bytes=max(1024, self._settings.max_packet_bytes - _ENVELOPE_BYTES),
                content=ask.content,
                first=first,
                count=count,
                signatures=self._settings.signatures,
            )
            request, topic = wire.ModuleRequest(ask.name, ext), self._topic(ask)
            ask.wanted = count
        else:
            request, topic = wire.ModuleRequest(ask.name), self._topic(ask)
        try:
            with anyio.fail_after(self._settings.timeout_s):
                await link.publish(topic, codec.encode(request), 1)
        except (NotConnectedError, TimeoutError):
            return False
        except MessageTooLargeError as error:
            raise ModuleError(Reason.MODULE_UNAVAILABLE, str(error)) from error
        return True

    async def _next(self, ask: _Ask) -> bool:
        """Take one message from the queue; return whether it gets us on, or says that somebody is at it."""
        delivery = ask.queue.popleft()
        ask.queued_bytes -= len(delivery.payload)
        try:
            chunk = await to_thread.run_sync(codec.decode, Route.MODULE_CHUNK, delivery.payload)
        except codec.WireError as error:
            log.debug("a piece of a module cannot be read: %s", error.detail)
            return False
        finally:
            self._acknowledge(delivery)
        if chunk.app_name != ask.name or (ask.own and (chunk.ext is None or chunk.ext.id != ask.id)):
            return False
        if chunk.error is not None:
            raise ModuleError(Reason.MODULE_UNAVAILABLE, f"{self._who(ask)} answers: {_one_line(chunk.error)}")
        if ask.own and not self._fits(ask, chunk.ext):
            return bool(chunk.ext.note)
        return await self._add(ask, chunk)

    def _fits(self, ask: _Ask, said: wire.ChunkTerms) -> bool:
        """Whether a chunk is of the content that is being received; a new content begins anew."""
        if said.note:
            ask.note = _one_line(said.note)
            return False
        if said.image is not None and said.content != ask.content:
            if ask.content:
                self._begin_anew(ask, "what is sent has changed again and again")
            ask.content, ask.image = said.content, said.image
        return bool(said.content) and said.content == ask.content

    async def _add(self, ask: _Ask, chunk: wire.ModuleChunk) -> bool:
        try:
            new = await to_thread.run_sync(ask.parts.add, chunk.chunk_idx, chunk.total_chunks, chunk.data)
        except ConflictError as error:
            self._begin_anew(ask, str(error))
            return False
        except PartsError as error:
            raise ModuleError(
                Reason.MODULE_UNAVAILABLE, f"what {self._who(ask)} sends cannot be a module: {error}"
            ) from error
        except OSError as error:
            text = f"a module that comes over MQTT cannot be kept in {self._settings.directory}: {error.strerror}"
            raise StorageError(text) from error
        if new:
            ask.wanted -= 1
        return new

    def _begin_anew(self, ask: _Ask, why: str) -> None:
        ask.fresh_starts += 1
        if ask.fresh_starts > _FRESH_STARTS:
            raise ModuleError(Reason.MODULE_UNAVAILABLE, f"{self._who(ask)} contradicts itself: {why}")
        log.info("%s is received anew over MQTT: %s", _one_line(ask.name), why)
        ask.parts.close()
        ask.image, ask.content, ask.again, ask.wanted = None, "", True, 0

    # --- words --------------------------------------------------------------------------------------------------------

    def _topic(self, ask: _Ask) -> str:
        if ask.own:
            return self._topics.build(Route.OWN_MODULE_REQUEST, self._proplet_id)
        return self._topics.build(Route.MODULE_REQUEST)

    def _who(self, ask: _Ask) -> str:
        return "the manager" if ask.own else "the proxy"

    def _silence(self, ask: _Ask) -> str:
        if not self._connected:
            return "the broker is away, so nobody could be asked for it over MQTT"
        seconds = f"{self._settings.timeout_s:g} s"
        if ask.parts.count:
            have = f"{ask.parts.count} of {ask.parts.total} pieces"
            return f"{self._who(ask)} sent {have} over MQTT and then nothing for {seconds}"
        said = f" (last heard: {ask.note})" if ask.note else ""
        remedy = "is its manager running?" if ask.own else "a proxy or a manager must answer there"
        return f"nobody answered on {self._topic(ask)} within {seconds}{said}: {remedy}"

    @property
    def _connected(self) -> bool:
        return self._link is not None and self._link.connected

    def _listen(self) -> None:
        if self._link is not None:
            wanted = any(not ask.own for ask in self._asks)
            self._link.listen(self._topics.build(Route.MODULE_CHUNK), wanted=wanted)

    def _acknowledge(self, delivery: Delivery) -> None:
        if self._link is not None:
            self._link.acknowledge(delivery)


def _size(image: wire.ModuleImage | None) -> int:
    return sum(blob.size for blob in image.blobs) if image else 0


def _spellings(name: str) -> tuple[bytes, ...]:
    """The ways in which JSON encoders write a name: as it is, and with what they escape, in quotes."""
    ascii_only = json.dumps(name)
    html = ascii_only.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")  # Go's
    forms = {ascii_only, json.dumps(name, ensure_ascii=False), html, ascii_only.replace("/", "\\/")}
    return (*(form.encode() for form in forms), name.encode())


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:_TEXT_MAX]
