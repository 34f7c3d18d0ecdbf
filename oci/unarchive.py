"""Images out of a file: what an OCI image layout, in a tar archive or a directory, brings into the store.

Everything is compared with its digest and size before it is published, and only what an image needs to run is taken,
as in a pull. Signatures come along unjudged: the policy looks at them when an image is used.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from proplet.oci import archive_names
from proplet.oci.archive_source import Source
from proplet.oci.digest import Digest
from proplet.oci.errors import (
    ContentFault,
    InvalidArchive,
    InvalidDigest,
    InvalidManifest,
    NotInStore,
    StoreDamaged,
    TooLarge,
)
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import (
    OCI_INDEX,
    Descriptor,
    ImageIndex,
    ImageManifest,
    parse_manifest,
    select_layer,
    select_platform,
)
from proplet.oci.settings import DEFAULT_MAX_MODULE_BYTES, MAX_MANIFEST_BYTES

_MAX_DEPTH = 2  # of indexes above an image, as in a pull
_MAX_INDEX_BYTES = 4 * MAX_MANIFEST_BYTES
_MAX_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """An image or a signature that is in the store now. ``replaced``: what the name stood for before, if another."""

    name: str
    digest: Digest
    size: int
    replaced: Digest | None = None


@dataclass(slots=True)
class Imported:
    """What came out of an archive. ``refused``: names, or digests, of what did not, each with the reason."""

    images: list[Entry] = field(default_factory=list)
    signatures: list[Entry] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    copied_bytes: int = 0


@dataclass(slots=True)
class _Reading:
    """One entry of the archive's index, read down to its layers. ``size`` is that of the module."""

    entry: Descriptor
    manifests: dict[Digest, bytes] = field(default_factory=dict)
    parts: dict[Digest, int] = field(default_factory=dict)
    size: int = 0
    subject: Digest | None = None
    signs: bool = False


def bring(
    source: Source,
    layout: OciLayout,
    *,
    repository: str,
    max_module_bytes: int = DEFAULT_MAX_MODULE_BYTES,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Imported:
    """Take what an archive holds into the store.

    ``repository`` is that of images which have only a tag in the archive. ``progress`` is told bytes of blobs so far
    and in all. An image that cannot be taken is refused, the others come.

    Raises:
        InvalidArchive: it is no image layout, or damaged.
        StoreFault: the disk.
    """
    return _Import(source, layout, max_module_bytes, progress).run(repository)


class _Import:
    def __init__(
        self, source: Source, layout: OciLayout, max_module_bytes: int, progress: Callable[[int, int], None]
    ) -> None:
        self._source = source
        self._layout = layout
        self._max_module_bytes = max_module_bytes
        self._progress = progress
        self._done = self._total = 0
        self._whole: set[Digest] = set()
        self._result = Imported()

    def run(self, repository: str) -> Imported:
        readings = list(self._readings())
        found = [archive_names.Found(one.entry, tuple(one.manifests), one.subject) for one in readings]
        names = archive_names.names_of(found, repository)
        self._total = sum({digest: size for one in readings for digest, size in one.parts.items()}.values())
        before = self._layout.references()
        # Signatures last: what they are of is there when they are.
        for one, name in sorted(zip(readings, names, strict=True), key=lambda pair: pair[0].signs):
            try:
                for digest, size in one.parts.items():
                    self._take(digest, size)
            except ContentFault as error:
                self._result.refused.append((name, str(error)))
                continue
            self._publish(one, name, before.get(name))
        return self._result

    def _publish(self, one: _Reading, name: str, before: Descriptor | None) -> None:
        for digest, data in reversed(one.manifests.items()):
            self._layout.add_blob(data, digest)
        annotations = archive_names.kept_annotations(one.entry, one.subject)
        self._layout.set_reference(name, replace(one.entry, annotations=annotations))
        replaced = before.digest if before is not None and before.digest != one.entry.digest else None
        entry = Entry(name, one.entry.digest, one.size, replaced)
        (self._result.signatures if one.signs else self._result.images).append(entry)

    def _readings(self) -> Iterator[_Reading]:
        for entry in self._entries():
            try:
                yield self._read(entry)
            except ContentFault as error:
                self._result.refused.append((archive_names.shown(entry), str(error)))

    def _entries(self) -> list[Descriptor]:
        """The entries of the archive's index, and of its lists of referrers; each once."""
        source = self._source
        if source.size("oci-layout") is None or source.size("index.json") is None:
            if source.size("manifest.json") is not None:
                raise InvalidArchive(
                    f"{source.name} is in Docker's own form: make it with docker 25 or newer, or with "
                    "`skopeo copy docker-archive:OLD oci-archive:NEW`"
                )
            raise InvalidArchive(
                f"{source.name} is no OCI image layout: it has no oci-layout and index.json at its top"
            )
        marker = _json(source.read("oci-layout", 4096), "oci-layout")
        if not str(marker.get("imageLayoutVersion", "")).startswith("1."):
            raise InvalidArchive(f"{source.name} is an image layout of another version than 1: it is not understood")
        index = _json(source.read("index.json", _MAX_INDEX_BYTES), "index.json")
        try:
            entries = _index_entries(json.dumps({**index, "schemaVersion": 2, "mediaType": OCI_INDEX}).encode())
            listed = [
                referrer
                for entry in entries
                if archive_names.lists_referrers(entry)
                for referrer in _index_entries(self._manifest(entry))
            ]
        except InvalidManifest as error:
            raise InvalidArchive(f"index.json in {source.name}: {error}") from None
        entries = [entry for entry in entries if not archive_names.lists_referrers(entry)]
        known = {entry.digest for entry in entries}
        entries += [entry for entry in listed if entry.digest not in known and self._has(entry.digest)]
        if not entries:
            raise InvalidArchive(f"{source.name} holds no images")
        if len(entries) > _MAX_ENTRIES:
            raise InvalidArchive(f"{source.name} holds more than {_MAX_ENTRIES} images")
        return list({(entry.digest, archive_names.shown(entry)): entry for entry in entries}.values())

    def _read(self, entry: Descriptor) -> _Reading:
        """Read an entry's manifests, and see that what it is of no use without is there.

        Raises:
            ContentFault: it is not, or is not what it says.
        """
        reading, descriptor = _Reading(entry), entry
        for depth in range(_MAX_DEPTH + 1):
            data = reading.manifests[descriptor.digest] = self._manifest(descriptor)
            manifest = parse_manifest(data, descriptor.media_type)
            if depth == 0:
                reading.subject = _subject(data)
                reading.signs = archive_names.signs(entry, reading.subject)
            if isinstance(manifest, ImageManifest):
                self._weigh(manifest, reading)
                return reading
            descriptor = select_platform(manifest).descriptor
        raise InvalidManifest("it is an index of indexes of indexes: not understood")

    def _weigh(self, manifest: ImageManifest, reading: _Reading) -> None:
        """Note the parts of an image; the module, or all of a signature, must be there."""
        parts = {part.digest: part.size for part in (manifest.config, *manifest.layers)}
        needed = set(parts)
        if not reading.signs:
            layer = select_layer(manifest)
            needed, reading.size = {layer.digest}, layer.size
            if layer.size > self._max_module_bytes:
                raise TooLarge(
                    f"its module has {layer.size} bytes, more than the limit of {self._max_module_bytes}: raise it"
                )
        elif sum(parts.values()) > self._max_module_bytes:
            raise TooLarge(f"it has more than {self._max_module_bytes} bytes: that is no signature")
        for digest in parts:
            if digest in needed and not self._has(digest):
                raise InvalidArchive(f"its part {digest} is not in the archive: make the archive again")
        reading.parts = {digest: size for digest, size in parts.items() if self._has(digest)}

    def _manifest(self, descriptor: Descriptor) -> bytes:
        """A manifest's verified bytes."""
        digest = descriptor.digest
        if descriptor.size > MAX_MANIFEST_BYTES:
            raise TooLarge(f"its manifest {digest} has {descriptor.size} bytes: it cannot be that of a module")
        if self._source.size(_path(digest)) is None:
            try:
                return self._layout.read(digest, MAX_MANIFEST_BYTES)
            except (NotInStore, StoreDamaged):
                raise InvalidArchive(f"its manifest {digest} is not in the archive: make the archive again") from None
        data = self._source.read(_path(digest), MAX_MANIFEST_BYTES)
        if len(data) != descriptor.size or Digest.of(data, digest.algorithm) != digest:
            raise InvalidArchive(f"its manifest {digest} was changed or damaged: copy the archive again")
        return data

    def _has(self, digest: Digest) -> bool:
        return self._source.size(_path(digest)) is not None or self._layout.has(digest)

    def _take(self, digest: Digest, size: int) -> None:
        """See that a part is in the store, whole."""
        if digest in self._whole:
            return
        if not self._stored(digest, size):
            path, told = _path(digest), self._source.size(_path(digest))
            if told != size:
                what = "not in the archive, and damaged in the store" if told is None else f"{told} bytes, not {size}"
                raise InvalidArchive(f"its part {digest} is {what}: copy the archive again")
            self._layout.add_blob(self._counted(path), digest, size)
            self._result.copied_bytes += size
        else:
            self._tell(size)
        self._whole.add(digest)

    def _stored(self, digest: Digest, size: int) -> bool:
        try:
            return self._layout.verify(digest) == size
        except (NotInStore, StoreDamaged):
            return False

    def _counted(self, path: str) -> Iterator[bytes]:
        for chunk in self._source.chunks(path):
            yield chunk
            self._tell(len(chunk))

    def _tell(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total)


def _index_entries(raw: bytes) -> list[Descriptor]:
    parsed = parse_manifest(raw)
    if not isinstance(parsed, ImageIndex):
        raise InvalidManifest("a list of referrers is no index")
    return [entry.descriptor for entry in parsed.entries]


def _subject(data: bytes) -> Digest | None:
    """What a manifest refers to. Source: OCI image specification 1.1, manifest.md, "subject"."""
    subject = json.loads(data).get("subject")
    try:
        return Digest.parse(str(subject["digest"])) if isinstance(subject, dict) else None
    except (KeyError, InvalidDigest):
        raise InvalidManifest("it refers to something without a valid digest") from None


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _json(data: bytes, name: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InvalidArchive(f"{name} in the archive is not a JSON object")
    return document
