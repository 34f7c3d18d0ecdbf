"""Images that came over MQTT, put into the store and then taken from there like every other one.

Place in the flow: `fetch` hands over what it would pull. Whether a registry is asked first, or at all, is decided here
(`[modules] over_mqtt`). What comes is written to the store blob by blob, each compared with its digest, under the
image's own name; then a builder takes it from the store with the policy Never, which checks manifests, module and
signatures as for any other image. So nothing that came over MQTT is trusted for where it came from.
"""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from anyio import to_thread

from proplet.agent import wire
from proplet.agent.module_parts import Parts
from proplet.agent.module_requests import ModuleRequests, Received
from proplet.agent.ports import ModuleError, ModuleWanted, Stage, StorageError
from proplet.agent.wire import PullPolicy, Reason
from proplet.oci.addresses import is_loopback
from proplet.oci.digest import Digest
from proplet.oci.errors import ContentFault, InvalidDigest, InvalidReference, OciError
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_MANIFEST, Descriptor, parse_manifest
from proplet.oci.reference import Reference
from proplet.oci.settings import MAX_MANIFEST_BYTES

log = logging.getLogger(__name__)

AUTO, NEVER, ALWAYS = "auto", "never", "always"
#: What an `OciError` is called that says that a registry cannot be reached, not that it says no.
OUT_OF_REACH: Final = frozenset({"registry_unreachable", "timeout"})
MAX_BLOBS: Final = 64
_MAGIC: Final = b"\0asm"
_EMPTY_CONFIG: Final = b"{}"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_WASM: Final = "application/wasm"

Fields = Mapping[str, Any]
Pull = Callable[[Fields], Awaitable[Mapping[str, Any]]]


@dataclass(slots=True)
class _Turn:
    """Those who want one image, one after the other; what the first got is the others', too."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    users: int = 0
    pulled: Mapping[str, Any] | None = None


class ModulesOverMqtt:
    """Decides whom to ask for an image. `mode` is ``auto``, ``never`` or ``always``."""

    def __init__(self, requests: ModuleRequests, mode: str = AUTO) -> None:
        self._requests = requests
        self._mode = mode
        self._turns: dict[tuple[str, str | None], _Turn] = {}

    async def pull(
        self, wanted: ModuleWanted, fields: Fields, pull: Pull, layout: OciLayout, tell: Callable[[Stage], None]
    ) -> Mapping[str, Any]:
        """Return what `pull` returns for the fields, from a registry or over MQTT.

        Raises:
            ModuleError, StorageError: it cannot be had either way.
        """
        if self._mode == NEVER or wanted.pull_policy is PullPolicy.NEVER:
            return await pull(fields)
        order = _Order(wanted, fields, pull, layout, tell)
        if self._mode == ALWAYS:
            return await self._over_mqtt(order)
        try:
            return await pull(fields)
        except ModuleError as error:
            if error.cause not in OUT_OF_REACH or not (wanted.handed_out or _is_elsewhere(wanted.image_url)):
                raise
            log.info("%s: asking over MQTT for it", error)
            try:
                return await self._over_mqtt(order)
            except ModuleError as other:
                raise ModuleError(other.reason, f"{error}; over MQTT: {other}") from other

    async def _over_mqtt(self, order: "_Order") -> Mapping[str, Any]:
        image = _Image.of(order.wanted)
        async with self._turn((order.wanted.image_url, order.wanted.image_digest)) as turn:
            if turn.pulled is None:
                if image.pinned is not None:  # only then the store may say what it is now
                    turn.pulled = await _from_store(image, order)
                turn.pulled = turn.pulled or await self._ask(image, order)
            return turn.pulled

    @asynccontextmanager
    async def _turn(self, key: tuple[str, str | None]) -> AsyncIterator[_Turn]:
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield turn
        finally:
            turn.users -= 1
            if not turn.users:
                self._turns.pop(key, None)

    async def _ask(self, image: "_Image", order: "_Order") -> Mapping[str, Any]:
        wanted, pinned = order.wanted, str(image.pinned) if image.pinned else None
        try:
            received = await self._requests.fetch(
                wanted.image_url, pinned, wanted.pull_policy, own=wanted.handed_out, tell=order.tell
            )
        except ModuleError as error:
            if (held := await _from_store(image, order)) is None:
                raise
            log.warning("%s: %s; what it was last is used", wanted.image_url, error)
            return held
        order.tell(Stage("verifying"))
        try:
            digest = await to_thread.run_sync(store, order.layout, image, received)
        except (ContentFault, InvalidDigest) as error:
            reason = Reason.DIGEST_MISMATCH if error.reason.endswith("mismatch") else Reason.MODULE_UNAVAILABLE
            raise ModuleError(reason, f"what came over MQTT is refused: {error}") from error
        except OciError as error:
            raise StorageError(str(error)) from error
        except OSError as error:
            raise StorageError(f"a module that came over MQTT cannot be stored: {error.strerror}") from error
        finally:
            received.parts.close()
        return await _taken(image, digest, order)


def _is_elsewhere(image_url: str) -> bool:
    """Whether a stranger can mean the same image by this name: a registry on loopback is another one for everybody."""
    try:
        return not is_loopback(Reference.parse(image_url).host)
    except InvalidReference:
        return True


@dataclass(frozen=True, slots=True)
class _Order:
    """What is wanted, and how it is had: see `ModulesOverMqtt.pull`."""

    wanted: ModuleWanted
    fields: Fields
    pull: Pull
    layout: OciLayout
    tell: Callable[[Stage], None]


@dataclass(frozen=True, slots=True)
class _Image:
    """An image by its parts: `store_name` in the store, `prefix` of its signatures' names there, and what pins it."""

    url: str
    store_name: str
    prefix: str
    pinned: Digest | None

    @classmethod
    def of(cls, wanted: ModuleWanted) -> "_Image":
        try:
            pinned = Digest.parse(wanted.image_digest) if wanted.image_digest else None
            if "://" in wanted.image_url and not wanted.image_url.startswith("oci://"):
                plain = wanted.image_url.partition("#")[0]
                return cls(wanted.image_url, plain, plain, pinned)
            reference = Reference.parse(wanted.image_url)
            if pinned is not None:
                reference = reference.with_digest(pinned)
        except (InvalidReference, InvalidDigest) as error:
            raise ModuleError(Reason.MODULE_UNAVAILABLE, str(error)) from error
        tag = f":{reference.tag}" if reference.tag else ""
        return cls(f"{reference.name}{tag}", reference.store_name, reference.name, reference.digest)


async def _taken(image: _Image, digest: Digest, order: _Order) -> Mapping[str, Any]:
    """Take an image from the store, checked like every other one."""
    named = {**order.fields, "image": image.url, "digest": str(digest), "policy": PullPolicy.NEVER.value}
    pulled = dict(await order.pull(named))
    if image.pinned is not None:  # of a module that is pinned by its own digest the manifest is ours
        pulled["image_digest"] = str(image.pinned)
    return pulled


async def _from_store(image: _Image, order: _Order) -> Mapping[str, Any] | None:
    """What the name meant last, if all of that is in the store and whole; a pinned one means the same for ever."""

    def look() -> Digest | None:
        known = order.layout.resolve(image.store_name)
        return known.digest if known is not None else None

    try:
        digest = await to_thread.run_sync(look)
        return await _taken(image, digest, order) if digest is not None else None
    except OciError:
        return None
    except ModuleError as error:
        if error.reason is Reason.UNTRUSTED:
            raise
        return None


def store(layout: OciLayout, image: _Image, received: Received) -> Digest:
    """Write what was received, and name it; return the digest of its manifest. Touches the disk.

    Raises:
        ContentFault: it is not what it should be.
        StoreFault, OSError: the disk.
    """
    if received.image is None:
        return _store_module(layout, image, received.parts)
    return _store_image(layout, image, received.image, received.parts)


def _store_image(layout: OciLayout, image: _Image, said: wire.ModuleImage, parts: Parts) -> Digest:
    top = Digest.parse(said.digest)
    if image.pinned is not None and top != image.pinned:
        raise DigestsDiffer(f"{top} came, and the image is pinned as {image.pinned}")
    if not 0 < len(said.blobs) <= MAX_BLOBS or sum(blob.size for blob in said.blobs) != parts.size:
        raise NoImage(f"{len(said.blobs)} blobs were announced and {parts.size} bytes came: they do not fit")
    stored = set()
    rest = _Reader(parts.read())
    for blob in said.blobs:
        digest = Digest.parse(blob.digest)
        layout.add_blob(rest.take(blob.size), digest, blob.size)
        stored.add(digest)
    if top not in stored:
        raise NoImage("the manifest that the image's name means did not come with it")
    raw = layout.read(top, MAX_MANIFEST_BYTES)
    for entry in said.entries[:MAX_BLOBS]:
        digest = Digest.parse(entry.digest)
        rest_of_name = entry.name.removeprefix(image.prefix)
        signs = rest_of_name.startswith("@") or (rest_of_name.startswith(":sha") and rest_of_name.endswith(".sig"))
        if digest in stored and rest_of_name != entry.name and signs and entry.name != image.store_name:
            annotations = dict(entry.annotations)
            layout.set_reference(entry.name, Descriptor(entry.media_type, digest, entry.size, annotations))
    layout.set_reference(image.store_name, Descriptor(parse_manifest(raw).media_type, top, len(raw)))
    return top


def _store_module(layout: OciLayout, image: _Image, parts: Parts) -> Digest:
    """Only the module came: its manifest is made here, the same for the same module."""
    module = layout.add_blob(parts.read(), None, None)
    with layout.open(module) as file:
        head = file.read(len(_MAGIC))
    if head != _MAGIC:
        layout.remove_blob(module)
        raise NoImage("it is no WebAssembly module (proxies of the reference send the largest layer, whatever it is)")
    if image.pinned is not None and module != image.pinned:
        raise DigestsDiffer(
            f"the image is pinned as {image.pinned} and the module that came is {module}; where that pins a manifest, "
            "it can only come from a registry or a manager that sends manifests: this proxy sends none"
        )
    config = layout.add_blob(_EMPTY_CONFIG)
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": _EMPTY_TYPE, "digest": str(config), "size": len(_EMPTY_CONFIG)},
        "layers": [{"mediaType": _WASM, "digest": str(module), "size": parts.size}],
    }
    raw = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    digest = layout.add_blob(raw)
    layout.set_reference(image.store_name, Descriptor(OCI_MANIFEST, digest, len(raw)))
    return digest


class NoImage(ContentFault):
    """What came over MQTT is no image."""

    reason = "invalid_manifest"


class DigestsDiffer(ContentFault):
    """What came over MQTT is another image than the pinned one."""

    reason = "digest_mismatch"


class _Reader:
    """A stream of chunks, cut anew."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def take(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes, or what is left."""
        while size:
            data = self._left or next(self._chunks, b"")
            if not data:
                return
            piece, self._left = data[:size], data[size:]
            size -= len(piece)
            yield piece
