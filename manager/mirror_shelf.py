"""The store as the mirror sees it: repositories, their tags, and which blobs belong to each. Read-only.

A blob is served only under a repository one of whose images needs it. So what came with a task and has no name, and
what another repository keeps to itself, cannot be had by guessing. All methods of `Shelf` read files: call them in a
thread.
"""

import hashlib
import json
import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from proplet.oci.collecting import note_use
from proplet.oci.digest import Digest
from proplet.oci.errors import OciError, StoreDamaged
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import ImageIndex, parse_manifest
from proplet.oci.reference import Reference
from proplet.oci.settings import MAX_MANIFEST_BYTES

_CHUNK: Final = 256 * 1024
_MAX_DEPTH: Final = 4
_REMEMBERED: Final = 4096
SUBJECT: Final = "io.proplet.subject"


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest's bytes, compared with its digest."""

    digest: Digest
    media_type: str
    data: bytes


@dataclass(slots=True)
class Repository:
    """What the store has of one repository.

    Attributes:
        tags: tag to manifest.
        manifests: every manifest of its images that is here.
        blobs: what these need, manifests included, by which top manifest.
        subjects: what refers to a manifest, by that.
    """

    tags: dict[str, Digest] = field(default_factory=dict)
    manifests: set[Digest] = field(default_factory=set)
    blobs: dict[Digest, Digest] = field(default_factory=dict)
    subjects: dict[Digest, list[Digest]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True, slots=True)
class _Links:
    """What one manifest leads to."""

    manifests: tuple[Digest, ...]
    blobs: tuple[Digest, ...]
    subject: Digest | None


_Identity = tuple[int, int, int, int]


class Shelf:
    """The repositories of a store, read anew when its index changes."""

    def __init__(self, layout: OciLayout) -> None:
        self.layout = layout
        self._lock = threading.Lock()
        self._seen: _Identity | None = None
        self._repositories: Mapping[str, Repository] = {}
        self._links: dict[Digest, _Links] = {}
        self._sound: OrderedDict[Digest, tuple[_Identity, bool]] = OrderedDict()
        self._checking: dict[Digest, threading.Lock] = {}

    def repositories(self) -> Mapping[str, Repository]:
        """Return every repository, by its name with the registry.

        Raises:
            StoreFault: the index cannot be read.
        """
        with self._lock:
            now = _identity(self.layout.root / "index.json")
            if now is None or now != self._seen:
                self._repositories = self._read()
                self._seen = now
            return self._repositories

    def document(self, digest: Digest) -> Document:
        """Return a manifest, verified.

        Raises:
            NotInStore, StoreDamaged: it is not here, or not whole.
        """
        data = self.layout.read(digest, MAX_MANIFEST_BYTES)
        with suppress(OciError):
            return Document(digest, parse_manifest(data).media_type, data)
        raise StoreDamaged(f"the stored {digest.short} is no manifest")

    def sound(self, digest: Digest) -> int:
        """Return a blob's size, after all of it was compared with its digest once since its file was last written.

        Large blobs are looked at often and read seldom (a HEAD before each GET), so a file is hashed at the first look
        and then known by its identity. What rots later is found when it is sent: `Reading` hashes what passes.

        Raises:
            NotInStore, StoreDamaged: it is not here, or not whole.
        """
        path = self.layout.path(digest)
        with self._lock:
            checking = self._checking.setdefault(digest, threading.Lock())
        with checking:
            now = _identity(path)
            before, good = self._sound.get(digest, (None, False))
            if now is None or before != now:
                good = False
                try:
                    self.layout.verify(digest)
                    good = True
                finally:
                    self._judge(digest, now, good=good)
            if not good:
                raise StoreDamaged(f"the stored {digest.short} is damaged")
            return now[2] if now else 0

    def note(self, *digests: Digest) -> None:
        """Note that blobs are used, for the collection that removes what was not for longest."""
        with suppress(OciError):
            note_use(self.layout, digests)

    def doubt(self, digest: Digest) -> None:
        """Take a blob for damaged, until its file is another: that was seen while it was sent."""
        self._judge(digest, _identity(self.layout.path(digest)), good=False)

    def refresh(self) -> None:
        """Read the index anew at the next question: something was pulled."""
        with self._lock:
            self._seen = None

    def _judge(self, digest: Digest, identity: _Identity | None, *, good: bool) -> None:
        with self._lock:
            self._checking.pop(digest, None)
            self._sound.pop(digest, None)
            if identity is not None:
                self._sound[digest] = (identity, good)
                while len(self._sound) > _REMEMBERED:
                    self._sound.popitem(last=False)

    # What is below runs under the lock.

    def _read(self) -> dict[str, Repository]:
        found: dict[str, Repository] = defaultdict(Repository)
        links: dict[Digest, _Links] = {}
        for name, entry in self.layout.references().items():
            try:
                reference = Reference.parse(name)
            except OciError:
                continue  # a module by URL, or another tool's name
            if reference.store_name != name:
                continue
            repository = found[reference.name]
            if reference.tag is not None and reference.digest is None:
                repository.tags[reference.tag] = entry.digest
            for digest, linked in self._walk(entry.digest, links):
                repository.manifests.add(digest)
                for blob in (digest, *linked.blobs):
                    repository.blobs.setdefault(blob, entry.digest)
                if linked.subject is not None:
                    _refer(repository, linked.subject, digest)
            with suppress(OciError):
                _refer(repository, Digest.parse(entry.annotations.get(SUBJECT, "")), entry.digest)
        self._links = links
        return dict(found)

    def _walk(self, top: Digest, links: dict[Digest, _Links]) -> Iterator[tuple[Digest, _Links]]:
        # Level by level and each manifest once: indexes may list the same one a thousand times, at every depth.
        level, seen = [top], {top}
        for _ in range(_MAX_DEPTH + 1):
            below: list[Digest] = []
            for digest in level:
                linked = links.get(digest) or self._links.get(digest)
                if linked is None:
                    try:
                        linked = _links(self.layout.read(digest, MAX_MANIFEST_BYTES))
                    except OciError:
                        continue  # not here, or damaged: it is looked for again when the index changes
                links[digest] = linked
                yield digest, linked
                below += [inner for inner in dict.fromkeys(linked.manifests) if inner not in seen]
                seen.update(below)
            level = below


class Reading:
    """A span of a blob on its way out, hashed as it passes when it is all of it. A context manager."""

    def __init__(self, path: Path, digest: Digest, first: int, size: int, *, whole: bool) -> None:
        self._digest = digest
        self._left = size
        self._hash = hashlib.new(digest.algorithm) if whole else None
        self._file = path.open("rb")  # its bytes stay readable, even if the file is removed meanwhile
        self._file.seek(first)

    def next(self) -> bytes:
        """Return the next bytes, none at the end. The last are only returned when all of them were right.

        Raises:
            StoreDamaged: they were not; nobody must take what was sent for the blob.
        """
        chunk = self._file.read(min(_CHUNK, self._left))
        if not chunk and self._left:
            raise StoreDamaged(f"the stored {self._digest.short} has become shorter while it was read")
        self._left -= len(chunk)
        if self._hash is not None:
            self._hash.update(chunk)
            if not self._left and self._hash.hexdigest() != self._digest.hex:
                raise StoreDamaged(f"the stored {self._digest.short} was damaged")
        return chunk

    @property
    def more(self) -> bool:
        """Whether there are more bytes."""
        return self._left > 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _links(data: bytes) -> _Links:
    manifest = parse_manifest(data)
    subject = None
    document: dict[str, Any] = json.loads(data)
    with suppress(OciError, AttributeError, TypeError):
        subject = Digest.parse(str((document.get("subject") or {}).get("digest", "")))
    if isinstance(manifest, ImageIndex):
        return _Links(tuple(entry.descriptor.digest for entry in manifest.entries), (), subject)
    return _Links((), (manifest.config.digest, *(layer.digest for layer in manifest.layers)), subject)


def _refer(repository: Repository, subject: Digest, referrer: Digest) -> None:
    if referrer not in repository.subjects[subject]:
        repository.subjects[subject].append(referrer)


def _identity(path: Path) -> _Identity | None:
    try:
        status = os.stat(path)  # noqa: PTH116  (a symlink in the store is followed, as by every reader of it)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns
