"""Images in pieces, to proplets: read from the store a piece at a time, each awaited by the broker.

Place in the flow: `module_answers` has decided that somebody gets an image. To a proplet of ours go the pieces it asks
for, of everything it needs to check the image: manifests, signatures, configuration, the layer. On the topic that all
share, and to peers without our extension, goes the module itself, as the reference's proxy sends it.
"""

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from anyio import to_thread

from proplet.agent.codec import Encoding
from proplet.agent.wire import (
    ChunkTerms,
    ModuleBlob,
    ModuleChunk,
    ModuleEntry,
    ModuleImage,
    ModuleRefusal,
    ModuleRequest,
)
from proplet.manager.bus import TooLargeError
from proplet.manager.images import ImageError, Images, StoredImage
from proplet.oci.digest import Digest
from proplet.oci.errors import OciError
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import Descriptor, ImageManifest, parse_manifest
from proplet.oci.settings import MAX_MANIFEST_BYTES

log = logging.getLogger(__name__)

MOST_AT_ONCE: Final = 16  # pieces for one request of a proplet of ours
PASSES: Final = 4  # over the pieces of a module for those who ask while it is sent
REMEMBERED: Final = 64  # contents
SIGNATURES: Final = 16
_LEAST_CHUNK: Final = 1024
_ENVELOPE_BYTES: Final = 8192  # of a packet, for all but the piece


class Pieces(Protocol):
    """Where pieces go; see `proplet.manager.bus.MqttBus`."""

    async def piece(self, proplet_id: str | None, message: Any, encoding: Encoding) -> None:
        """Publish one on a proplet's own topic, or on the shared one (None). Raises BusError."""
        ...


@dataclass(frozen=True, slots=True)
class Content:
    """What is sent of an image: files one after the other, cut into pieces of `chunk_bytes`."""

    id: str
    image: ModuleImage
    files: tuple[tuple[Path, int], ...]
    chunk_bytes: int

    @property
    def total(self) -> int:
        """How many pieces there are."""
        return -(-sum(size for _, size in self.files) // self.chunk_bytes)

    def read(self, index: int) -> bytes:
        """Return one piece. Raises OSError, also where a file has become shorter."""
        skip, want, found = index * self.chunk_bytes, self.chunk_bytes, bytearray()
        for path, size in self.files:
            if skip >= size:
                skip -= size
                continue
            with path.open("rb") as file:
                file.seek(skip)
                part = min(size - skip, want - len(found))
                data = file.read(part)
            if len(data) != part:
                raise OSError(5, f"{path} has changed")
            found += data
            skip = 0
            if len(found) == want:
                break
        return bytes(found)


class ModuleSending:
    """Sends pieces; what an image consists of is remembered for its next requests."""

    def __init__(self, images: Images, bus: Pieces, *, chunk_bytes: int, max_packet_bytes: int) -> None:
        self._images = images
        self._bus = bus
        self._chunk_bytes = min(chunk_bytes, max_packet_bytes - _ENVELOPE_BYTES)
        self._json_bytes = min(chunk_bytes, (max_packet_bytes - _ENVELOPE_BYTES) * 3 // 4)
        self._known: OrderedDict[tuple[str, str], Content] = OrderedDict()

    def known(self, request: ModuleRequest) -> Content | None:
        """Return the content that a request goes on with, if it is of that image and still known."""
        if request.ext is None or not request.ext.content:
            return None
        return self._known.get((request.app_name, request.ext.content))

    async def refuse(self, proplet_id: str | None, request: ModuleRequest, why: str) -> None:
        """Say that there will be nothing. Raises BusError."""
        await self._bus.piece(proplet_id, ModuleRefusal(request.app_name, why, _terms(request)), _encoding(request))

    async def note(self, proplet_id: str | None, request: ModuleRequest, note: str) -> None:
        """Say to a proplet of ours that it has to wait. Raises BusError."""
        terms = _terms(request)
        if proplet_id is not None and terms is not None:
            message = ModuleChunk(request.app_name, ext=ChunkTerms(id=terms.id, note=note))
            await self._bus.piece(proplet_id, message, _encoding(request))

    async def window(self, proplet_id: str, request: ModuleRequest, content: Content) -> None:
        """Send the pieces that a proplet of ours asks for. Raises BusError."""
        ext = request.ext
        assert ext is not None
        going_on = ext.content == content.id
        first = ext.first if going_on else 0
        for index in range(first, min(content.total, first + max(1, min(ext.count, MOST_AT_ONCE)))):
            try:
                data = await to_thread.run_sync(content.read, index)
            except OSError as error:
                self._known.pop((request.app_name, content.id), None)
                log.warning("an image cannot be sent on: %s", error)
                await self.refuse(proplet_id, request, "the image was removed from the manager's store: ask again")
                return
            terms = ChunkTerms(ext.id, content.id, None if going_on or index > first else content.image)
            message = ModuleChunk(request.app_name, index, content.total, data, ext=terms)
            try:
                await self._bus.piece(proplet_id, message, _encoding(request))
            except TooLargeError as error:
                await self.refuse(proplet_id, request, str(error))
                return

    async def everything(
        self, proplet_id: str | None, name: str, image: StoredImage, asked_again: Callable[[], bool]
    ) -> None:
        """Send a module as the reference does; those who ask meanwhile get what they have missed. Raises BusError."""
        plain = Content("", ModuleImage(image.digest), ((image.module_path, image.size),), self._json_bytes)
        end = plain.total
        for _ in range(PASSES):
            missed = 0
            for index in range(end):
                try:
                    data = await to_thread.run_sync(plain.read, index)
                except OSError as error:
                    text = f"the manager cannot read the module: {error.strerror}"
                    await self._bus.piece(proplet_id, ModuleRefusal(name, text), Encoding.JSON)
                    return
                await self._bus.piece(proplet_id, ModuleChunk(name, index, plain.total, data), Encoding.JSON)
                if asked_again():
                    missed = index + 1
            if not missed:
                return
            end = missed

    async def content(self, request: ModuleRequest, image: StoredImage) -> Content:
        """Return what is to be sent of an image to a proplet of ours. Raises ImageError: the store has lost it."""
        ext = request.ext
        most = ext.chunk_bytes if ext is not None and ext.chunk_bytes > 0 else self._json_bytes
        size = self._json_bytes if _encoding(request) is Encoding.JSON else self._chunk_bytes
        try:
            content = await to_thread.run_sync(self._compose, image, max(_LEAST_CHUNK, min(size, most)))
        except (OciError, OSError) as error:
            raise ImageError("store_failed", f"the manager's store does not have it any more: {error}") from error
        key = (request.app_name, content.id)
        self._known[key] = content
        self._known.move_to_end(key)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return content

    def _compose(self, image: StoredImage, chunk_bytes: int) -> Content:
        blobs = dict[str, int]()
        layout = self._layout(image)
        entries: list[ModuleEntry] = []
        for digest in image.manifests:
            blobs[digest] = len(layout.read(Digest.parse(digest), MAX_MANIFEST_BYTES))
        for entry in _signatures(layout, image):
            entries.append(entry)
            blobs[entry.digest] = entry.size
            signature = parse_manifest(layout.read(Digest.parse(entry.digest), MAX_MANIFEST_BYTES))
            if isinstance(signature, ImageManifest):
                blobs.update(_there(layout, (signature.config, *signature.layers), MAX_MANIFEST_BYTES))
        manifest = parse_manifest(layout.read(Digest.parse(image.manifests[-1]), MAX_MANIFEST_BYTES))
        if isinstance(manifest, ImageManifest):
            blobs.update(_there(layout, (manifest.config,), MAX_MANIFEST_BYTES))
            module = [layer for layer in manifest.layers if str(layer.digest) == image.module_digest]
            blobs.update(_there(layout, module or manifest.layers, None))
        listed = tuple(ModuleBlob(digest, size) for digest, size in blobs.items())
        said = json.dumps([image.digest, chunk_bytes, list(blobs.items())]).encode()
        files = tuple((layout.path(Digest.parse(digest)), size) for digest, size in blobs.items())
        return Content(
            hashlib.sha256(said).hexdigest()[:32], ModuleImage(image.digest, listed, tuple(entries)), files, chunk_bytes
        )

    def _layout(self, image: StoredImage) -> OciLayout:
        path = self._images.blob(image.digest)
        if path is None:
            raise FileNotFoundError(2, f"no blob {image.digest}")
        return OciLayout(path.parents[2])  # root/blobs/algorithm/hex


def _signatures(layout: OciLayout, image: StoredImage) -> Iterator[ModuleEntry]:
    """The names in the store that sign the image, or refer to it."""
    from proplet.oci.signatures import found_for

    references, told = layout.references(), 0
    for digest in image.manifests:
        for name in found_for(layout, Digest.parse(digest)):
            known = references.get(name)
            if known is not None and told < SIGNATURES and layout.has(known.digest):
                told += 1
                annotations = {key: value for key, value in known.annotations.items() if value != name}
                yield ModuleEntry(name, str(known.digest), known.size, known.media_type, annotations)


def _there(layout: OciLayout, wanted: "tuple[Descriptor, ...] | list[Descriptor]", limit: int | None) -> dict[str, int]:
    """Those blobs that are in the store, and their sizes; small ones only, where there is a limit."""
    return {
        str(one.digest): one.size for one in wanted if (limit is None or one.size <= limit) and layout.has(one.digest)
    }


def _terms(request: ModuleRequest) -> ChunkTerms | None:
    return ChunkTerms(id=request.ext.id[:64]) if request.ext is not None else None


def _encoding(request: ModuleRequest) -> Encoding:
    return Encoding.CBOR if request.ext is not None and "cbor" in request.ext.encodings else Encoding.JSON
