"""Modules and images into a registry: blobs first, manifests last, nothing sent that the registry has.

Source: OCI distribution specification 1.1, "Push" (blobs monolithic or in chunks, mounting from another repository,
manifests, the fallback for manifests with a subject). Synchronous, as `proplet.oci.pull` is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from proplet.oci.archive import contents, stored
from proplet.oci.artifact import make_artifact
from proplet.oci.connection import Connection
from proplet.oci.digest import Digest
from proplet.oci.errors import DigestMismatch, InvalidReference, TooLarge
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_MANIFEST
from proplet.oci.reference import Reference
from proplet.oci.settings import MAX_MANIFEST_BYTES, RegistrySettings
from proplet.oci.upload import Blob, Uploads

_CHUNK = 256 * 1024

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What is in the registry now. ``size``: of its blobs; ``sent_bytes``: what the registry did not have yet."""

    reference: Reference
    digest: Digest
    size: int
    sent_bytes: int
    signatures: int = 0


def push_file(
    path: Path,
    reference: Reference,
    settings: RegistrySettings,
    *,
    created: float,
    annotations: Mapping[str, str] | None = None,
    progress: Progress = lambda _done, _total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Pushed:
    """Make an artifact of a ``.wasm`` file and push it. ``created`` is a POSIX time.

    Raises:
        NotWasm: it is no module.
        TooLarge: nobody with these settings could pull it.
        DigestMismatch: the reference names another digest than it has, or the registry says so.
        RegistryFault, InvalidCredentials: the registry.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        artifact = make_artifact(file, path.name, created, tag=reference.tag, annotations=annotations)
        limit = settings.max_module_bytes
        if artifact.layer.size > limit:
            raise TooLarge(f"{path} has {artifact.layer.size} bytes, more than the limit of {limit}: raise it")
        _pinned(reference, artifact.digest)
        blobs = (
            Blob(artifact.layer.digest, artifact.layer.size, partial(_file_chunks, file)),
            Blob(Digest.of(artifact.config), len(artifact.config), lambda at: iter([artifact.config[at:]])),
        )
        manifest = _Manifest(artifact.manifest, OCI_MANIFEST, artifact.digest, reference.tag)
        sent = _push(reference, settings, blobs, [manifest], progress=progress, cancelled=cancelled)
    return Pushed(reference, artifact.digest, sum(blob.size for blob in blobs), sent)


def push_stored(
    layout: OciLayout,
    name: str,
    reference: Reference | None,
    settings: RegistrySettings,
    *,
    progress: Progress = lambda _done, _total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Pushed:
    """Push an image of the store, with what signs it, under its own name or another.

    Raises:
        NotInStore, StoreDamaged: the store does not have it, or not whole.
        DigestMismatch, RegistryFault, InvalidCredentials: as for `push_file`.
    """
    own, top = stored(layout, name)
    target = reference if reference is not None else _own_reference(own)
    _pinned(target, top.digest)
    found = contents(layout, [own])
    documents = {descriptor.digest for descriptor in found.manifests}
    home = _home(own, target)
    blobs = [
        Blob(digest, size, partial(_stored_chunks, layout, digest), home)
        for digest, size in found.blobs.items()
        if digest not in documents
    ]
    # Signatures keep their tags; parts of an index have none.
    tags = {entry.digest: _tag(entry_name) for entry_name, entry in found.entries.items()}
    tags[top.digest] = target.tag
    manifests = [
        _Manifest(layout.read(one.digest, MAX_MANIFEST_BYTES), one.media_type, one.digest, tags.get(one.digest))
        for one in found.manifests
    ]
    sent = _push(target, settings, blobs, manifests, progress=progress, cancelled=cancelled)
    return Pushed(target, top.digest, sum(blob.size for blob in blobs), sent, len(found.entries) - 1)


def _own_reference(name: str) -> Reference:
    if name.startswith("https://"):
        raise InvalidReference(f"{name} came without a registry: say under which name to push it")
    return Reference.parse(name)


@dataclass(frozen=True, slots=True)
class _Manifest:
    data: bytes
    media_type: str
    digest: Digest
    tag: str | None


def _push(
    reference: Reference,
    settings: RegistrySettings,
    blobs: Sequence[Blob],
    manifests: Sequence[_Manifest],
    *,
    progress: Progress,
    cancelled: Callable[[], bool],
) -> int:
    """Push everything, manifests in their order; returns how many bytes had to be sent."""
    total = sum(blob.size for blob in blobs)
    done = sent = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    with Connection(reference, settings, cancelled, actions="pull,push") as connection:
        uploads = Uploads(connection, tell)
        for blob in blobs:
            if uploads.blob(blob):
                sent += blob.size
            else:
                tell(blob.size)
        for manifest in manifests:
            uploads.manifest(manifest.data, manifest.media_type, manifest.digest, manifest.tag)
    return sent


def _file_chunks(file: BinaryIO, offset: int) -> Iterator[bytes]:
    file.seek(offset)
    while chunk := file.read(_CHUNK):
        yield chunk


def _stored_chunks(layout: OciLayout, digest: Digest, offset: int) -> Iterator[bytes]:
    """A blob of the store; read and compared before the first of it goes."""
    with layout.open(digest) if offset else layout.open_verified(digest) as file:
        yield from _file_chunks(file, offset)


def _pinned(reference: Reference, digest: Digest) -> None:
    if reference.digest is not None and reference.digest != digest:
        raise DigestMismatch(f"{reference} names another digest than the image to push has, {digest}: leave it out")


def _tag(name: str) -> str | None:
    """The tag in a name of the store."""
    return None if "@" in name else name.rpartition(":")[2]


def _home(name: str, target: Reference) -> str | None:
    """Where the target's registry may have the blobs of an image with this name already."""
    if name.startswith("https://"):
        return None
    own = Reference.parse(name)
    return own.repository if own.registry == target.registry and own.repository != target.repository else None
