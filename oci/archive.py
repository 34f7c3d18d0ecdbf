"""Images in a file: from the store into a tar archive that is itself an OCI image layout.

Form: OCI image specification 1.1, image-layout.md. Each image has its full name in
``org.opencontainers.image.ref.name``, which skopeo and oras look for, and in ``io.containerd.image.name``, which
containerd and docker do. Signatures and other referrers come along. The same images give the same bytes.

The way back is `proplet.oci.unarchive`.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from proplet.oci.archive_names import CONTAINERD_NAME, REF_NAME, SUBJECT
from proplet.oci.digest import Digest, VerifyingHasher
from proplet.oci.errors import ContentFault, DigestMismatch, InvalidManifest, NoPlatform, NotInStore, StoreDamaged
from proplet.oci.files import create_temporary, mapped, sync_directory
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
from proplet.oci.reference import Reference
from proplet.oci.settings import MAX_MANIFEST_BYTES
from proplet.oci.signatures import found_for
from proplet.oci.tarball import END, header, padding

LAYOUT_MARKER = b'{"imageLayoutVersion":"1.0.0"}'

_CHUNK = 256 * 1024
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Exported:
    """What went into an archive: names as in the store, and bytes of the whole archive."""

    images: tuple[str, ...]
    signatures: tuple[str, ...]
    size: int


@dataclass(slots=True)
class Contents:
    """Entries of an index, and every blob they need that the store has, with its size."""

    entries: dict[str, Descriptor] = field(default_factory=dict)
    blobs: dict[Digest, int] = field(default_factory=dict)
    manifests: list[Descriptor] = field(default_factory=list)  # children before parents: the order of a push


def stored(layout: OciLayout, text: str) -> tuple[str, Descriptor]:
    """The store's name for an image and what it stands for.

    Raises:
        NotInStore: it is not there.
        InvalidReference: it is no reference.
    """
    known = layout.references()
    if text.startswith("https://"):
        text = text.partition("#")[0]
        if text not in known:
            raise NotInStore(f"{text} is not in the store: `proplet image ls` shows what is")
    if text in known:
        return text, known[text]
    reference = Reference.parse(text)
    if (found := known.get(reference.store_name)) is not None:
        return reference.store_name, found
    if reference.digest is not None:  # pulled by tag, named by digest
        for name, descriptor in sorted(known.items()):
            if descriptor.digest == reference.digest and _repository(name) == reference.name:
                return reference.store_name, descriptor
    raise NotInStore(f"{reference} is not in the store: `proplet image ls` shows what is")


def contents(layout: OciLayout, names: Iterable[str], *, signatures: bool = True) -> Contents:
    """All that some images consist of, in the order they are named, and what signs or refers to them.

    Raises:
        NotInStore: an image, or a part without which it is none, is not there.
        StoreDamaged: a manifest has other bytes than its digest says.
    """
    found = Contents()
    for name, descriptor in dict(stored(layout, name) for name in names).items():
        found.entries[name] = descriptor
    pending = list(found.entries.items())
    seen: set[str] = set(found.entries)
    while pending:
        name, descriptor = pending.pop(0)
        found.entries[name] = descriptor
        for manifest in _close(layout, descriptor, found):
            if not signatures:
                continue
            for attached in sorted(found_for(layout, manifest)):
                if attached not in seen and (what := layout.resolve(attached)) is not None:
                    seen.add(attached)
                    pending.append((attached, what))
    return found


def export(
    layout: OciLayout,
    names: Sequence[str],
    write: Callable[[bytes], object],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Exported:
    """Write the archive of some images, piece by piece; ``progress`` is told bytes so far and of the whole.

    Raises:
        NotInStore, StoreDamaged: an image is not there, or not whole. What was written then is no archive.
    """
    found = contents(layout, names)
    files = {"oci-layout": LAYOUT_MARKER, "index.json": _index(found)}
    blobs = sorted(found.blobs.items())
    sizes = [*map(len, files.values()), *(size for _, size in blobs)]
    total = sum(512 + size + len(padding(size)) for size in sizes) + len(END)
    written = 0

    def put(data: bytes) -> None:
        nonlocal written
        write(data)
        written += len(data)
        progress(written, total)

    for name, data in files.items():
        put(header(name, len(data)) + data + padding(len(data)))
    for digest, size in blobs:
        put(header(f"blobs/{digest.algorithm}/{digest.hex}", size))
        for chunk in _verified(layout, digest, size):
            put(chunk)
        put(padding(size))
    put(END)
    wanted = {stored(layout, name)[0] for name in names}
    others = tuple(sorted(name for name in found.entries if name not in wanted))
    return Exported(tuple(sorted(wanted)), others, written)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under its name when it is complete and on the disk, or not at all.

    Raises:
        DiskFull, StoreReadOnly, StoreFailed: it cannot be written.
    """
    with mapped(path):
        if path.exists() and not path.is_file():  # a pipe or a device
            with path.open("wb") as pipe:
                yield pipe
            return
        temporary, file = create_temporary(path.absolute().parent)
    try:
        with mapped(path), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            with suppress(OSError):  # some USB sticks have no modes
                temporary.chmod(0o666 & ~_umask())
            temporary.rename(path)
            sync_directory(path.absolute().parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _index(found: Contents) -> bytes:
    entries = []
    for name, descriptor in sorted(found.entries.items()):
        annotations = {**descriptor.annotations, REF_NAME: name}
        if SUBJECT not in annotations and not name.endswith(".sig"):
            annotations[CONTAINERD_NAME] = name
        entries.append(
            {
                "mediaType": descriptor.media_type,
                "digest": str(descriptor.digest),
                "size": descriptor.size,
                "annotations": dict(sorted(annotations.items())),
            }
        )
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return json.dumps(document, separators=(",", ":")).encode()


def _close(layout: OciLayout, top: Descriptor, found: Contents) -> list[Digest]:
    """Add a manifest and everything below it; returns the digests of the manifests, from the top."""
    closed = [top.digest]

    def add(descriptor: Descriptor, depth: int, *, needed: bool) -> None:
        data = layout.read(descriptor.digest, MAX_MANIFEST_BYTES)
        try:
            manifest = parse_manifest(data, descriptor.media_type)
        except InvalidManifest:
            manifest = None  # of a kind we do not know: taken as it is
        if isinstance(manifest, ImageIndex):
            if depth >= _MAX_DEPTH:
                raise InvalidManifest(f"{top.digest} is an index of indexes without an end")
            used = _used(manifest) if needed else None
            for entry in manifest.entries:
                inner = entry.descriptor
                # Those for other platforms were not pulled.
                if inner.digest == used or layout.has(inner.digest):
                    closed.append(inner.digest)
                    add(inner, depth + 1, needed=inner.digest == used)
        elif manifest is not None:
            wanted = _needed(manifest) if needed else set()
            for part in (manifest.config, *manifest.layers):
                if layout.has(part.digest):
                    found.blobs[part.digest] = part.size
                elif part.digest in wanted:
                    raise NotInStore(f"the store does not hold {part.digest} of {top.digest}: pull the image again")
        if descriptor.digest not in found.blobs:
            found.blobs[descriptor.digest] = len(data)
            found.manifests.append(descriptor)

    add(top, 0, needed=True)
    return closed


def _used(index: ImageIndex) -> Digest | None:
    """The manifest of an index that would be run."""
    try:
        return select_platform(index).descriptor.digest
    except NoPlatform:
        return None


def _needed(manifest: ImageManifest) -> set[Digest]:
    """The parts without which it would be no image: of a module the module, of anything else all."""
    try:
        return {select_layer(manifest).digest}
    except ContentFault:
        return {manifest.config.digest, *(layer.digest for layer in manifest.layers)}


def _verified(layout: OciLayout, digest: Digest, size: int) -> Iterator[bytes]:
    hasher = VerifyingHasher(digest, what=f"the stored blob {digest.short}")
    with layout.open(digest) as file:
        while True:
            with mapped(layout.root):
                chunk = file.read(_CHUNK)
            if not chunk:
                break
            hasher.update(chunk)
            if hasher.count <= size:
                yield chunk
    try:
        hasher.finish()
    except DigestMismatch as error:
        raise StoreDamaged(f"{error}; remove {layout.path(digest)} and pull again") from None
    if hasher.count != size:
        raise StoreDamaged(f"the blob {digest} has {hasher.count} bytes, its manifest says {size}: not exported")


def _repository(name: str) -> str:
    head, at, _ = name.partition("@")
    return head if at else head.rpartition(":")[0]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
