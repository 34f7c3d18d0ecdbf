"""What the store holds, what of it goes when there is too much, and the removing.

An image is what a name in ``index.json`` leads to: manifests, configuration, layers, modules taken out of layers. Blobs
stay while any image has them; signatures go with the image they are of. What no name leads to (modules that came with
a task, images whose tag has moved on) is kept for its own sake, until it has not been used for longest.

Last use is the time of an image's first blob, or of the blob without a name: `pins.note_use`. What a process has pinned
(`proplet.oci.pins`), or a task needs that is not finished, stays. First the names go, then the blobs, all under the
lock of the index and with the blobs claimed: whoever pins one and then finds it may rely on it.
"""

import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from proplet.oci import pins
from proplet.oci.digest import Digest
from proplet.oci.errors import InvalidDigest, StoreBusy, StoreInUse
from proplet.oci.files import mapped
from proplet.oci.layout import IndexEdit, OciLayout
from proplet.oci.pins import Claims
from proplet.oci.survey import Blob, StoredImage, Survey, size_of, survey

_DAY_S: Final = 24 * 3600.0
#: A blob without a name that was written so lately may be part of what somebody is just about to name.
GRACE_S: Final = 15 * 60.0

#: What is needed beyond what is pinned, by digest or name, and by whom; None: whoever needs something has pinned it.
Needed = Callable[[], Mapping[str, str] | None]


@dataclass(frozen=True, slots=True)
class Removed:
    """An image that went, or a blob without a name (then there are no `names`); `size` is what that freed, in bytes."""

    names: tuple[str, ...]
    digest: Digest
    size: int
    last_used: float


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did, or would do. Sizes in bytes; `in_use` of what had to stay although it was its turn."""

    removed: tuple[Removed, ...]
    size_before: int
    size: int
    in_use: int = 0
    leftovers: int = 0  # of broken-off downloads

    @property
    def freed(self) -> int:
        """How much is free now that was not."""
        return self.size_before - self.size + self.leftovers


def note_use(layout: OciLayout, digests: Iterable[Digest], now: float | None = None) -> None:
    """Note that blobs are used, at most once a day for each: see `pins.note_use`."""
    for digest in digests:
        pins.note_use(layout.root, digest, now)


def nobody() -> Mapping[str, str] | None:
    """Nothing is needed beyond what is pinned."""
    return None


def collect(
    layout: OciLayout,
    budget: int,
    *,
    keep: Collection[Digest] = (),
    needed: Needed = nobody,
    dry_run: bool = False,
    now: float | None = None,
) -> Collected:
    """Remove what was not used for longest, until the store has no more than `budget` bytes or nothing else may go.

    `keep` stays in any case. `needed` may be asked twice: before the pins are looked at and, if it knew nothing then,
    after; a node that ends in between leaves its needs to it.

    Raises:
        StoreBusy: a node that is just starting holds everything.
        StoreDamaged: the index cannot be understood.
        StoreReadOnly, DiskFull, StoreFailed: the disk.
    """
    now = time.time() if now is None else now
    if (size := size_of(layout)) <= budget:
        return Collected((), size, size, leftovers=sweep(layout, dry_run=dry_run, now=now))
    told = needed()
    with layout.editing() as index, Claims(layout.root, looking=dry_run) as claims:
        found = survey(layout, index.entries)
        leftovers = sweep(layout, dry_run=dry_run, now=now)
        total = found.size
        if total <= budget:
            return Collected((), total, total, leftovers=leftovers)
        if claims.everything_is_held():
            raise StoreBusy("a node is just starting and has not said yet what it needs: try again in a moment")
        if told is None:
            told = needed()
        removal = _Removal(found, claims, told or {}, keep)
        in_use = 0
        for item in _by_last_use(found, now):
            if total - removal.freed <= budget:
                break
            if removal.user_of(item) is None:
                removal.add(item)
            else:
                in_use += item.size
        if not dry_run:
            removal.carry_out(layout, index)
        return Collected(tuple(removal.removed), total, total - removal.freed, in_use, leftovers)


def remove(layout: OciLayout, wanted: Iterable["StoredImage | Blob | str"], needed: Needed = nobody) -> Collected:
    """Remove images or blobs of a survey; a name only takes that name from its image, and the image with its last.

    Raises:
        StoreInUse: one of them is needed; nothing is removed.
        StoreBusy, StoreDamaged, StoreReadOnly, DiskFull, StoreFailed: as for `collect`.
    """
    wanted = tuple(wanted)
    told = needed()
    with layout.editing() as index, Claims(layout.root) as claims:
        found = survey(layout, index.entries)
        if claims.everything_is_held():
            raise StoreBusy("a node is just starting and has not said yet what it needs: try again in a moment")
        if told is None:
            told = needed()
        removal = _Removal(found, claims, told or {}, ())
        names = {item for item in wanted if isinstance(item, str)}
        digests = {item.digest for item in wanted if not isinstance(item, str)}
        for item in found.items:
            dropped = names.intersection(item.names)
            if not dropped and item.digest not in digests:
                continue
            if (user := removal.user_of(item)) is not None:
                raise StoreInUse(f"{_called(item)} is in use{user}: nothing was removed")
            if item.digest in digests or set(item.names) == dropped:
                removal.add(item)
            else:
                removal.forget(item, dropped)
        removal.carry_out(layout, index)
        return Collected(tuple(removal.removed), found.size, found.size - removal.freed)


def used_by(layout: OciLayout, found: Survey, told: Mapping[str, str]) -> dict[Digest, str]:
    """What of a survey must stay, by the digest of the image or blob, and who needs it, as far as that is known."""
    with Claims(layout.root, looking=True) as claims:
        everything = claims.everything_is_held()
        removal = _Removal(found, claims, told, ())
        users = {item.digest: removal.user_of(item) for item in found.items}
    return {digest: user or "" for digest, user in users.items() if user is not None or everything}


def sweep(layout: OciLayout, *, dry_run: bool = False, now: float | None = None) -> int:
    """Remove downloads that nobody has gone on with for a day, and what was taken out of layers that are gone.

    Returns the bytes that frees.

    Raises:
        StoreReadOnly, StoreFailed: the disk.
    """
    now = time.time() if now is None else now
    freed = 0
    with mapped(layout.root):
        for path in (layout.root / "blobs").glob("*/.partial-*"):
            with suppress(FileNotFoundError):
                freed += _sweep_partial(path, now, dry_run=dry_run)
        for path in (layout.root / "unpacked").glob("*-*"):
            with suppress(InvalidDigest):
                if not layout.has(Digest(*path.name.split("-", 1))) and not dry_run:
                    path.unlink(missing_ok=True)
    return freed


def _sweep_partial(path: Path, now: float, *, dry_run: bool) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if abs(now - status.st_mtime) < _DAY_S or not status.st_nlink:
            return 0
        if not dry_run:
            path.unlink(missing_ok=True)
        return status.st_size
    except BlockingIOError:
        return 0  # somebody goes on with it
    finally:
        os.close(descriptor)


def _by_last_use(found: Survey, now: float) -> Iterator[StoredImage | Blob]:
    """What can be removed, longest unused first. Signatures whose image is here go with it, not before."""
    hosts = {digest for image in found.images if image.signs is None for digest in image.members}
    items: list[StoredImage | Blob] = [image for image in found.images if image.signs not in hosts]
    items += [blob for blob in found.loose if abs(now - blob.last_used) >= GRACE_S]
    yield from sorted(items, key=lambda item: (item.last_used, item.digest))


def _called(item: StoredImage | Blob) -> str:
    return item.names[0] if item.names else item.digest.short


@dataclass(slots=True)
class _Removal:
    """A removal being put together: what is claimed, what goes, and how much that frees."""

    found: Survey
    claims: Claims
    told: Mapping[str, str]
    keep: Collection[Digest]
    freed: int = 0
    removed: list[Removed] = field(default_factory=list)
    _going: set[Digest] = field(default_factory=set)  # images and blobs, by their own digest
    _names: set[str] = field(default_factory=set)
    _blobs: list[Digest] = field(default_factory=list)
    _claimed: set[Digest] = field(default_factory=set)
    _users: Counter[Digest] = field(default_factory=Counter)  # of every blob: images, and loose things in use

    def __post_init__(self) -> None:
        self.keep = frozenset(self.keep)
        for image in self.found.images:
            self._users.update(image.members)
        for blob in self.found.loose:
            # A manifest that only a digest leads to keeps what it names.
            if self._user(blob.digest) is not None:
                self._users.update(blob.members)

    def user_of(self, item: StoredImage | Blob) -> str | None:
        """Who needs it, as words to be put behind "in use", perhaps none; None if nobody does: then it is claimed."""
        for name in item.names:
            if name in self.told:
                return f" by {self.told[name]}"
        users = [self._user(digest) for digest in sorted(item.own)]
        if isinstance(item, Blob) and self._users[item.digest]:
            users.append("")  # part of something without a name that is in use
        return max((user for user in users if user is not None), key=len, default=None)

    def _user(self, digest: Digest) -> str | None:
        if (user := self.told.get(str(digest))) is not None:
            return f" by {user}"
        if digest in self.keep:
            return ""
        if digest not in self._claimed:
            if not self.claims.claim(digest):
                return ""
            self._claimed.add(digest)
        return None

    def add(self, item: StoredImage | Blob) -> None:
        """Let it go, with signatures that are of nothing else."""
        if item.digest in self._going:
            return
        before = self.freed
        self._take(item)
        left = {d for i in self.found.images if i.signs is None and i.digest not in self._going for d in i.members}
        gone = item.members if isinstance(item, StoredImage) else frozenset()
        for image in self.found.images:
            if image.signs in gone and image.signs not in left and image.digest not in self._going:
                self._take(image)
        self.removed.append(Removed(item.names, item.digest, self.freed - before, item.last_used))

    def _take(self, item: StoredImage | Blob) -> None:
        self._going.add(item.digest)
        self._names.update(item.names)
        for digest in item.members if isinstance(item, StoredImage) else (item.digest,):
            if isinstance(item, StoredImage):
                self._users[digest] -= 1
            if self._users[digest] <= 0 and digest in self.found.blobs and self._user(digest) is None:
                self._blobs.append(digest)
                self.freed += self.found.blobs[digest].size

    def forget(self, item: StoredImage | Blob, names: Collection[str]) -> None:
        """Only take names from it."""
        self._names.update(names)
        self.removed.append(Removed(tuple(sorted(names)), item.digest, 0, item.last_used))

    def carry_out(self, layout: OciLayout, index: IndexEdit) -> None:
        """First the names, then the blobs: dying in between leaves blobs too many, never a name without its blobs."""
        going = {str(image.digest) for image in self.found.images if image.digest in self._going}
        index.drop(lambda name, digest: name in self._names or digest in going)
        index.save()
        with mapped(layout.root):
            for digest in dict.fromkeys(self._blobs):
                layout.path(digest).unlink(missing_ok=True)
                (layout.root / "unpacked" / f"{digest.algorithm}-{digest.hex}").unlink(missing_ok=True)
