"""What the store holds: its images with all that belongs to them, and the blobs that no name leads to.

Reading only, and without trust: what is damaged is said, not raised. Place in the flow: `collecting` removes by it,
``proplet image ls`` shows it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from proplet.oci.digest import Digest
from proplet.oci.errors import InvalidDigest, InvalidManifest, NotInStore, OciError, StoreDamaged
from proplet.oci.files import mapped
from proplet.oci.layout import REF_NAME, OciLayout
from proplet.oci.manifest import Descriptor, ImageIndex, ImageManifest, parse_manifest, select_layer, select_platform
from proplet.oci.settings import MAX_MANIFEST_BYTES
from proplet.oci.unpack import noted

#: Says of an entry of the index what it signs, or refers to.
SUBJECT: Final = "io.proplet.subject"
#: Tags that say it: cosign's, and the fallback of the referrers API (distribution specification 1.1).
_SUBJECT_TAG: Final = re.compile(r":(sha256|sha512)-([0-9a-f]+)(\.[a-z]+)?")
_MAX_DEPTH: Final = 3


@dataclass(frozen=True, slots=True)
class BlobFile:
    """A blob's file: bytes, and when it was last written or noted to be used (seconds of the epoch)."""

    size: int
    last_used: float


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob that no name leads to; `members` are itself and, if it is a manifest, all it leads to."""

    digest: Digest
    size: int
    last_used: float
    members: frozenset[Digest]

    @property
    def names(self) -> tuple[str, ...]:
        """None; images have some."""
        return ()

    @property
    def own(self) -> frozenset[Digest]:
        """Itself alone: what it leads to is looked at by itself."""
        return frozenset({self.digest})


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What one or more names of the index lead to.

    `members`: the digests of all that belongs to it, here or not; `size`: bytes of those that are here. `module`: the
    blob that would be run. `signs`: the digest of the image that this is a signature of, or refers to. `damage`: what
    is wrong with it, for people; empty if nothing is.
    """

    names: tuple[str, ...]
    digest: Digest
    media_type: str
    members: frozenset[Digest]
    own: frozenset[Digest]
    size: int
    last_used: float
    module: Digest | None = None
    signs: Digest | None = None
    damage: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """All that a store holds. `signatures` and others that refer to an image are images, too, with `signs`."""

    images: tuple[StoredImage, ...]
    loose: tuple[Blob, ...]
    blobs: Mapping[Digest, BlobFile]

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(blob.size for blob in self.blobs.values())

    @property
    def items(self) -> tuple[StoredImage | Blob, ...]:
        """All that can be removed by itself."""
        return (*self.images, *self.loose)

    def signatures_of(self, image: StoredImage) -> tuple[StoredImage, ...]:
        """What signs an image, or a manifest of it, or refers to it otherwise."""
        return tuple(other for other in self.images if other.signs in image.members and other.digest != image.digest)


def survey(layout: OciLayout, entries: Sequence[Mapping[str, Any]] | None = None) -> Survey:
    """Look at everything: `entries` of the index, if they were read already, its manifests and its files.

    Raises:
        StoreDamaged: the index cannot be understood.
        StoreFailed: the disk.
    """
    blobs = _files(layout)
    walk = _Walk(layout, blobs)
    images: dict[Digest, StoredImage] = {}
    for entry in layout.entries() if entries is None else entries:
        try:
            digest = Digest.parse(str(entry.get("digest")))
        except InvalidDigest:
            continue  # not ours, and nothing can be said of it
        annotations = entry.get("annotations")
        annotations = annotations if isinstance(annotations, dict) else {}
        name = str(annotations.get(REF_NAME) or "")
        known = images.get(digest) or walk.image(digest, str(entry.get("mediaType") or ""))
        names = tuple(sorted({*known.names, name})) if name else known.names
        images[digest] = replace(known, names=names, signs=known.signs or _subject(name, annotations.get(SUBJECT)))
    reached = {digest for image in images.values() for digest in image.members}
    loose = tuple(
        Blob(digest, file.size, file.last_used, walk.members(digest))
        for digest, file in blobs.items()
        if digest not in reached
    )
    return Survey(tuple(images.values()), loose, blobs)


def size_of(layout: OciLayout) -> int:
    """Bytes of all blobs, without looking at what they are.

    Raises:
        StoreFailed: the disk.
    """
    return sum(file.size for file in _files(layout).values())


def checked(layout: OciLayout, images: Iterable[StoredImage]) -> tuple[StoredImage, ...]:
    """The images, after every byte of them was read: `damage` then says what has rotted, too."""
    seen: dict[Digest, str] = {}

    def fault(digest: Digest) -> str:
        if digest not in seen:
            seen[digest] = ""
            try:
                layout.verify(digest)
            except NotInStore:
                pass  # what must be there was missed already
            except OciError:
                seen[digest] = f"the blob {digest.short} has changed"
        return seen[digest]

    return tuple(
        image if image.damage else replace(image, damage=next(filter(None, map(fault, sorted(image.members))), ""))
        for image in images
    )


class _Walk:
    """From a digest to all that belongs to it."""

    def __init__(self, layout: OciLayout, blobs: Mapping[Digest, BlobFile]) -> None:
        self._layout = layout
        self._blobs = blobs
        self._configurations: set[Digest] = set()
        self._read: dict[Digest, ImageManifest | ImageIndex | str] = {}

    def image(self, digest: Digest, media_type: str) -> StoredImage:
        """An image without its names."""
        members = self.members(digest)
        here = [self._blobs[member] for member in members if member in self._blobs]
        top = self._blobs.get(digest)
        module, damage = self._module(digest)
        size = sum(blob.size for blob in here)
        own, used = members - self._configurations, top.last_used if top else 0.0
        return StoredImage((), digest, media_type, members, own, size, used, module, damage=damage)

    def members(self, digest: Digest) -> frozenset[Digest]:
        """Itself, and what it leads to."""
        found: set[Digest] = set()
        self._collect(digest, found, _MAX_DEPTH)
        return frozenset(found)

    def _collect(self, digest: Digest, found: set[Digest], depth: int) -> None:
        if digest in found or not depth:
            return
        found.add(digest)
        manifest = self._manifest(digest)
        if isinstance(manifest, ImageIndex):
            for entry in manifest.entries:
                self._collect(entry.descriptor.digest, found, depth - 1)
        elif isinstance(manifest, ImageManifest):
            self._configurations.add(manifest.config.digest)
            for part in (manifest.config, *manifest.layers):
                found.add(part.digest)
                if (module := noted(self._layout, part.digest)) is not None:
                    found.add(module)

    def _manifest(self, digest: Digest) -> ImageManifest | ImageIndex | str:
        """What a blob says as a manifest, or why it says nothing."""
        if digest not in self._read:
            self._read[digest] = self._parsed(digest)
        return self._read[digest]

    def _parsed(self, digest: Digest) -> ImageManifest | ImageIndex | str:
        file = self._blobs.get(digest)
        if file is None:
            return f"the manifest {digest.short} is missing"
        try:
            if file.size > MAX_MANIFEST_BYTES or not self._begins_as_json(digest):
                return f"{digest.short} is no manifest"
            return parse_manifest(self._layout.read(digest, MAX_MANIFEST_BYTES))
        except InvalidManifest as error:
            return str(error)
        except StoreDamaged:
            return f"the manifest {digest.short} has changed"
        except OciError as error:
            return str(error)

    def _begins_as_json(self, digest: Digest) -> bool:
        with self._layout.open(digest) as file:
            return file.read(16).lstrip()[:1] == b"{"

    def _module(self, digest: Digest) -> tuple[Digest | None, str]:
        """The blob that would be run, if the image is one of a module, and what is wrong with the image.

        Of an index only the entry for WebAssembly need be here, of an image its configuration and the module's layer.
        """
        manifest = self._manifest(digest)
        for _ in range(_MAX_DEPTH):
            if not isinstance(manifest, ImageIndex):
                break
            try:
                manifest = self._manifest(select_platform(manifest).descriptor.digest)
            except OciError as error:
                return None, str(error)
        if not isinstance(manifest, ImageManifest):
            return None, manifest if isinstance(manifest, str) else "it is an index of indexes of indexes"
        try:
            layer = select_layer(manifest)
        except OciError:  # an artifact of another kind: all of it counts
            return None, self._missing((manifest.config, *manifest.layers))
        return noted(self._layout, layer.digest) or layer.digest, self._missing((manifest.config, layer))

    def _missing(self, parts: Iterable[Descriptor]) -> str:
        for part in parts:
            file = self._blobs.get(part.digest)
            if file is None:
                return f"the blob {part.digest.short} is missing"
            if file.size != part.size:
                return f"the blob {part.digest.short} has {file.size} of {part.size} bytes"
        return ""


def _files(layout: OciLayout) -> dict[Digest, BlobFile]:
    found = {}
    with mapped(layout.root):
        for directory in sorted((layout.root / "blobs").iterdir()):
            for path in directory.iterdir():
                with suppress(InvalidDigest, FileNotFoundError):
                    digest = Digest(directory.name, path.name)
                    status = path.stat()
                    found[digest] = BlobFile(status.st_size, status.st_mtime)
    return found


def _subject(name: str, said: object) -> Digest | None:
    with suppress(InvalidDigest):
        if isinstance(said, str):
            return Digest.parse(said)
        if (tag := _SUBJECT_TAG.search(name)) is not None and tag.end() == len(name):
            return Digest(tag[1], tag[2])
    return None
