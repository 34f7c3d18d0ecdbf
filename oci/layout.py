"""The store on disk: an OCI image layout whose blobs are named by their content.

Form: OCI image specification 1.1, image-layout.md (``oci-layout``, ``index.json``, ``blobs/<algorithm>/<hex>``), so
that skopeo and oras read it. What a reference resolved to is an entry of ``index.json`` with its full name in
``org.opencontainers.image.ref.name``.

Safe with several processes and after a kill at any point: a blob appears under its name by one rename of a complete,
synced file; ``index.json`` is replaced the same way under a lock. A writer holds a lock on its temporary file, so
whoever opens the store next can tell leftovers (unlocked) from work in progress.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from proplet.oci.blobs import BlobWriter, PartialBlob
from proplet.oci.digest import Digest, VerifyingHasher
from proplet.oci.errors import (
    DigestMismatch,
    NotInStore,
    StoreDamaged,
)
from proplet.oci.files import check_space, mapped, remove_leftovers, replace
from proplet.oci.manifest import OCI_INDEX, Descriptor

REF_NAME = "org.opencontainers.image.ref.name"

_CHUNK = 256 * 1024
_MAX_INDEX_BYTES = 64 * 1024 * 1024


class OciLayout:
    """A directory in OCI image-layout form, made on first use with modes 0700 and 0600.

    Raises:
        StoreReadOnly, DiskFull, StoreFailed: the directory cannot be made or written.
        StoreDamaged: it is a layout of another version, or not a layout.
    """

    def __init__(self, root: Path) -> None:
        """Open the store, making it if needed, and remove what killed writers left."""
        self.root = root
        self._index = root / "index.json"
        with mapped(root):
            for directory in (root, root / "blobs", root / "blobs" / "sha256"):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lay_out()
            for directory in (root, *(root / "blobs").iterdir()):
                remove_leftovers(directory)

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self.root / "blobs" / digest.algorithm / digest.hex

    def has(self, digest: Digest) -> bool:
        """Whether the blob is here. Its content is not read: see ``verify``."""
        return self.path(digest).is_file()

    def verify(self, digest: Digest) -> int:
        """Read the whole blob and compare; returns its size.

        Raises:
            NotInStore: it is not here.
            StoreDamaged: its content has another digest; the file stays until it is removed or written again.
        """
        with self.open(digest) as file:
            return self._compare(digest, file)

    def _compare(self, digest: Digest, file: BinaryIO) -> int:
        hasher = VerifyingHasher(digest, what=f"the stored blob {digest.short}")
        with mapped(self.root):
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
        try:
            hasher.finish()
        except DigestMismatch as error:
            raise StoreDamaged(f"{error}; remove {self.path(digest)} and pull again") from None
        return hasher.count

    def open(self, digest: Digest) -> BinaryIO:
        """The blob, opened for reading, unchecked; the caller closes it.

        Raises:
            NotInStore: it is not here.
        """
        with mapped(self.root):
            try:
                return self.path(digest).open("rb")
            except FileNotFoundError:
                raise NotInStore(f"the store {self.root} does not hold {digest}: pull it first") from None

    def open_verified(self, digest: Digest) -> BinaryIO:
        """The blob, opened for reading at its beginning after all of it was compared with its digest.

        Raises:
            NotInStore, StoreDamaged: as for ``verify``.
        """
        file = self.open(digest)
        try:
            self._compare(digest, file)
            with mapped(self.root):
                file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def read(self, digest: Digest, limit: int) -> bytes:
        """A small blob's verified bytes.

        Raises:
            NotInStore: it is not here.
            StoreDamaged: it has another digest, or more than ``limit`` bytes.
        """
        with self.open(digest) as file, mapped(self.root):
            data = file.read(limit + 1)
        if len(data) > limit or Digest.of(data, digest.algorithm) != digest:
            raise StoreDamaged(
                f"the stored blob {digest} was changed or damaged: remove {self.path(digest)} and pull again"
            )
        return data

    def new_blob(self, expected: Digest | None = None, size: int | None = None, what: str = "the blob") -> BlobWriter:
        """A writer for a blob that must have this digest and size, where they are given.

        Raises:
            DiskFull: there is not enough free space for ``size`` bytes.
            StoreReadOnly, StoreFailed: the temporary file cannot be made.
        """
        directory = self.root / "blobs" / (expected.algorithm if expected else "sha256")
        with mapped(self.root):
            directory.mkdir(mode=0o700, exist_ok=True)
            if size is not None:
                check_space(directory, size)
            return BlobWriter(directory, expected, size, what)

    def continue_blob(self, expected: Digest, size: int, what: str, pause: Callable[[float], None]) -> PartialBlob:
        """A writer for a transfer that begins where an earlier one broke off; alone among all processes.

        While another process fetches the same blob, ``pause`` is called with the seconds to wait; it may raise.

        Raises:
            DiskFull: there is not enough free space for the rest.
            StoreReadOnly, StoreFailed: the partial file cannot be made or read.
        """
        directory = self.root / "blobs" / expected.algorithm
        with mapped(self.root):
            directory.mkdir(mode=0o700, exist_ok=True)
        return PartialBlob(directory, expected, size, what, pause)

    def add_blob(
        self, source: bytes | BinaryIO | Iterable[bytes], expected: Digest | None = None, size: int | None = None
    ) -> Digest:
        """Store bytes, a file's content or chunks; returns their digest. Storing the same twice changes nothing.

        Raises:
            DigestMismatch, SizeMismatch: the content is not what was expected.
            DiskFull, StoreReadOnly, StoreFailed: the disk.
        """
        if isinstance(source, bytes):
            size = len(source) if size is None else size
            digest = Digest.of(source, expected.algorithm if expected else "sha256")
            if self._holds(digest, source) and (expected is None or expected == digest) and size == len(source):
                return digest
        with self.new_blob(expected, size) as writer:
            for chunk in _chunks(source):
                writer.write(chunk)
            return writer.commit()

    def remove_blob(self, digest: Digest) -> None:
        """Remove the blob if it is here. Who has it open keeps reading it.

        Raises:
            StoreReadOnly, StoreFailed: the disk.
        """
        with mapped(self.root):
            self.path(digest).unlink(missing_ok=True)

    def resolve(self, name: str) -> Descriptor | None:
        """The manifest that ``set_reference`` last recorded for this name, or None.

        Raises:
            StoreDamaged: ``index.json`` cannot be understood.
        """
        return self.references().get(name)

    def references(self) -> dict[str, Descriptor]:
        """Every recorded name and its manifest.

        Raises:
            StoreDamaged: ``index.json`` cannot be understood.
        """
        found = {}
        for entry in self._read_index()["manifests"]:
            descriptor = _descriptor_from_json(entry, self._index)
            if name := descriptor.annotations.get(REF_NAME):
                found[name] = descriptor
        return found

    def set_reference(self, name: str, descriptor: Descriptor) -> None:
        """Record what a name resolved to, in place of what it did before. The manifest blob must be here already.

        Raises:
            NotInStore: the manifest is not here.
            DiskFull, StoreReadOnly, StoreFailed, StoreDamaged: the disk.
        """
        if not self.has(descriptor.digest):
            raise NotInStore(f"the store {self.root} does not hold the manifest {descriptor.digest}: add it first")
        entry = {
            "mediaType": descriptor.media_type,
            "digest": str(descriptor.digest),
            "size": descriptor.size,
            "annotations": {**descriptor.annotations, REF_NAME: name},
        }
        self._change_index(name, entry)

    def remove_reference(self, name: str) -> None:
        """Forget a name; its blobs stay.

        Raises:
            DiskFull, StoreReadOnly, StoreFailed, StoreDamaged: the disk.
        """
        self._change_index(name, None)

    def entries(self) -> list[dict[str, Any]]:
        """The index's entries as they are, also those that others wrote.

        Raises:
            StoreDamaged: ``index.json`` cannot be understood.
        """
        return list(self._read_index()["manifests"])

    @contextmanager
    def editing(self) -> Iterator["IndexEdit"]:
        """The index's entries, alone among all processes that change them.

        Raises:
            StoreReadOnly, StoreFailed, StoreDamaged: the disk.
        """
        with mapped(self.root), self._locked():
            yield IndexEdit(self._index, self._read_index())

    def _change_index(self, name: str, entry: dict[str, Any] | None) -> None:
        with mapped(self.root), self._locked():
            index = self._read_index()
            entries = index["manifests"]
            kept = [item for item in entries if (item.get("annotations") or {}).get(REF_NAME) != name]
            changed = kept if entry is None else [*kept, entry]
            if entry not in entries or len(changed) != len(entries):
                index["manifests"] = changed
                replace(self._index, json.dumps(index, indent=1).encode())

    def _holds(self, digest: Digest, data: bytes) -> bool:
        with suppress(OSError):
            return self.path(digest).read_bytes() == data
        return False

    def _read_index(self) -> dict[str, Any]:
        with mapped(self.root), self._index.open("rb") as file:
            raw = file.read(_MAX_INDEX_BYTES)
        try:
            index = json.loads(raw)
            entries = index["manifests"]
        except (ValueError, RecursionError, TypeError, KeyError):
            entries = None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise StoreDamaged(f"{self._index} is not an index: remove it, the modules are pulled again when needed")
        return dict(index)

    def _lay_out(self) -> None:
        marker = self.root / "oci-layout"
        if marker.exists() and self._index.exists():
            if b'"1.0.' not in marker.read_bytes():
                raise StoreDamaged(
                    f"{marker} is not that of an image layout of version 1.0: give the store its own directory"
                )
            return
        with self._locked():
            # Index first: who sees the marker finds a whole layout.
            if not self._index.exists():
                replace(self._index, json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode())
            if not marker.exists():
                replace(marker, b'{"imageLayoutVersion": "1.0.0"}')

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes that change the index."""
        descriptor = os.open(self.root / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class IndexEdit:
    """Made by ``OciLayout.editing``; what is dropped is gone when ``save`` returns."""

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        self._path = path
        self._index = index
        self.entries: list[dict[str, Any]] = index["manifests"]

    def drop(self, goes: Callable[[str, str], bool]) -> None:
        """Leave out the entries of which `goes` says so; it is asked with the name, perhaps empty, and the digest."""
        self.entries = [
            entry
            for entry in self.entries
            if not goes(str((entry.get("annotations") or {}).get(REF_NAME) or ""), str(entry.get("digest")))
        ]

    def save(self) -> None:
        """Write the index, if it has changed."""
        if self.entries != self._index["manifests"]:
            self._index["manifests"] = self.entries
            replace(self._path, json.dumps(self._index, indent=1).encode())


def _chunks(source: bytes | BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
    elif hasattr(source, "read"):
        while chunk := source.read(_CHUNK):
            yield chunk
    else:
        yield from source


def _descriptor_from_json(entry: dict[str, Any], index: Path) -> Descriptor:
    try:
        annotations = {str(key): str(value) for key, value in (entry.get("annotations") or {}).items()}
        return Descriptor(str(entry["mediaType"]), Digest.parse(str(entry["digest"])), int(entry["size"]), annotations)
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise StoreDamaged(f"{index} has an entry that is no descriptor ({error}): remove the file") from None
