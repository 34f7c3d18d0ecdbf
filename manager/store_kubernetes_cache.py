"""What is known of one kind: what the watch has told, and our own writes that it has not told yet.

A write's answer is visible to reads at once. Lists and watches show what the watch has told, in its order, and first
wait until it has told our own writes; so a list and the changes after it fit together.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import anyio

from proplet.manager.model import Key, Kind, Resource
from proplet.manager.ports import Change, ChangeType, Listing, StoreError, StoreUnavailableError
from proplet.manager.store_log import ChangeLog

SETTLE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Removed:
    """We deleted the resource with this uid, and the watch has not told it yet."""

    uid: str


@dataclass(frozen=True, slots=True)
class Told:
    """A change as the watch tells it. `version` is its own; a deleted resource comes as it was last."""

    type: ChangeType
    resource: Resource
    version: int


class Cache:
    """Everything of a kind in some namespaces (None: in all). Used in the event loop only."""

    def __init__(self, kind: Kind, namespaces: Iterable[str | None], history: int) -> None:
        self.kind = kind
        self._rows: dict[Key, Resource] = {}
        self._keys: dict[str, Key] = {}  # by uid
        self._born: dict[str, int] = {}  # by uid: the version it was added at, where that is known
        self._ours: dict[Key, Resource | Removed] = {}
        self._stale: dict[Key, int] = {}
        self._log = ChangeLog(history)
        self._revision = 0
        self._positions: dict[str | None, int | None] = dict.fromkeys(namespaces)
        self._problems: dict[str | None, StoreError] = {}
        self._moved = anyio.Event()

    # --- reading ------------------------------------------------------------------------------------------------------

    def known(self, key: Key) -> Resource | Removed | None:
        """Return the newest that is known: the resource, that it was removed, or nothing."""
        return self._ours.get(key) or self._rows.get(key)

    def key_of(self, uid: str) -> Key | None:
        """The key of the resource with this uid, or None."""
        key = self._keys.get(uid)
        known = None if key is None else self.known(key)
        return key if not isinstance(known, Removed | None) and known.meta.uid == uid else None

    def told(self, metadata: Mapping[str, Any]) -> Resource | None:
        """Return the resource that has this metadata, as the watch told it last."""
        row = self._rows.get(Key(str(metadata.get("name")), str(metadata.get("namespace"))))
        return row if row is not None and row.meta.uid == metadata.get("uid") else None

    def same(self, metadata: Mapping[str, Any], version: int) -> Resource | None:
        """Return the resource that has this metadata and `version`, if it is known."""
        known = self.known(Key(str(metadata.get("name")), str(metadata.get("namespace"))))
        if known is None or isinstance(known, Removed) or known.meta.version != version:
            return None
        return known if known.meta.uid == metadata.get("uid") else None

    def doubt(self, key: Key, version: int) -> None:
        """The server says that this is not the newest version: ask before it is believed again."""
        self._stale[key] = version

    def doubted(self, key: Key) -> bool:
        """Whether what is known was found to be old."""
        known = self.known(key)
        if known is None or isinstance(known, Removed) or known.meta.version > self._stale.get(key, -1):
            self._stale.pop(key, None)
            return False
        return True

    async def listing(self) -> Listing:
        """Return everything, our own writes included, in order of creation. Raises StoreUnavailableError."""
        await self.settle()
        items = sorted(
            self._rows.values(), key=lambda r: (r.meta.created_at, self._born.get(r.meta.uid, 0), r.meta.name)
        )
        return Listing(tuple(items), self._revision)

    async def follow(self, since: int) -> AsyncIterator[Change]:
        """Yield every change after `since`, also over interruptions. Raises GoneError, StoreUnavailableError."""
        await self.ready()
        writes = dict(self._ours)
        while self._behind(writes):
            await self._moved.wait()
        async for change in self._log.follow(since, lambda: self._revision):
            yield change

    async def ready(self) -> None:
        """Wait until everything was listed once. Raises StoreUnavailableError: it cannot be, now."""
        await self._wait(lambda: None in self._positions.values(), "not listed")

    async def settle(self) -> None:
        """Wait until the watch has told all that we have written. Raises StoreUnavailableError."""
        await self.ready()
        if self._ours:
            waiting = dict(self._ours)
            await self._wait(lambda: self._behind(waiting), "not told")

    def _behind(self, writes: dict[Key, Resource | Removed]) -> bool:
        """Whether the watch has still to tell one of these writes of ours."""
        return any(
            self._ours.get(key) is entry
            if isinstance(entry, Removed)
            else (self._position(key.namespace) or 0) < entry.meta.version
            for key, entry in writes.items()
        )

    def _position(self, namespace: str) -> int | None:
        return self._positions[None if None in self._positions else namespace]

    async def _wait(self, lacking: Callable[[], bool], what: str) -> None:
        if not lacking():  # as nearly always, and what is below takes its time
            return
        try:
            with anyio.fail_after(SETTLE_S):
                while lacking():
                    if self._problems:
                        problem = next(iter(self._problems.values()))
                        raise type(problem)(*problem.args)
                    await self._moved.wait()
        except TimeoutError:
            raise StoreUnavailableError(
                f"the API server has {what} the {self.kind.value}s in {SETTLE_S:.0f} s"
            ) from None

    @property
    def problem(self) -> StoreError | None:
        """Why the watch does not get on now, None when it does."""
        return next(iter(self._problems.values()), None)

    # --- our own writes -----------------------------------------------------------------------------------------------

    def learn(self, resource: Resource) -> Resource:
        """Take what the server answered, if it is newer than what is known; return it."""
        key, known = resource.meta.key, self.known(resource.meta.key)
        if isinstance(known, Removed):
            newer = known.uid != resource.meta.uid
        else:
            newer = known is None or known.meta.version < resource.meta.version
        if newer and (self._position(key.namespace) or 0) < resource.meta.version:
            self._ours[key] = resource
            self._keys[resource.meta.uid] = key
        return resource

    def remove(self, resource: Resource) -> None:
        """The server says that this resource is gone."""
        # Where nothing is known of it, the watch has told its end already.
        known = self.known(resource.meta.key)
        if known is not None and _uid(known) == resource.meta.uid:
            self._ours[resource.meta.key] = Removed(resource.meta.uid)

    # --- the watch ----------------------------------------------------------------------------------------------------

    def listed(self, namespace: str | None, resources: Iterable[Resource], version: int) -> None:
        """Take a new list. Whoever follows from before it lists again: what happened in between is not known."""
        rows = {resource.meta.key: resource for resource in resources}
        for key in [k for k in self._rows if namespace in (None, k.namespace) and k not in rows]:
            self._drop(key)
        for resource in rows.values():
            self._keep(resource)
        for key, entry in list(self._ours.items()):
            if isinstance(entry, Removed) and namespace in (None, key.namespace):
                row = rows.get(key)
                if row is None or row.meta.uid != entry.uid:
                    self._told(key, entry)
        self._revision = max(self._revision, version)
        self._log.reset(self._revision)
        self._log.wake()
        self.reached(namespace, version)

    def tell(self, namespace: str | None, changes: Iterable[Told], version: int) -> None:
        """Take changes that the watch has told, up to `version`."""
        for change in changes:
            self._apply(change)
        self._log.wake()
        self.reached(namespace, version)

    def reached(self, namespace: str | None, version: int) -> None:
        """The watch is at `version` and gets on."""
        position = self._positions[namespace] = max(version, self._positions[namespace] or 0)
        for key, entry in list(self._ours.items()):
            told = not isinstance(entry, Removed) and entry.meta.version <= position
            if told and namespace in (None, key.namespace):
                self._told(key, entry)
        self._problems.pop(namespace, None)
        self._wake()

    def failed(self, namespace: str | None, error: StoreError) -> None:
        """The watch does not get on."""
        self._problems[namespace] = type(error)(*error.args)  # without the frames that it was raised in
        self._wake()

    def _apply(self, change: Told) -> None:
        resource, key = change.resource, change.resource.meta.key
        entry = self._ours.get(key)
        if change.type is ChangeType.DELETED:
            last = self._rows.get(key)
            if last is not None:  # the server gives a deleted object the version of its deletion
                resource = replace(resource, meta=replace(resource.meta, version=last.meta.version))
            self._drop(key)
            if isinstance(entry, Removed) and entry.uid == resource.meta.uid:
                self._told(key, entry)
        else:
            resource = self._keep(resource)
            if change.type is ChangeType.ADDED:
                self._born[resource.meta.uid] = change.version
        # Watches of several namespaces run beside each other; what is told later is later.
        self._revision = max(change.version, self._revision + 1)
        self._log.append(Change(change.type, resource, self._revision))

    def _keep(self, resource: Resource) -> Resource:
        old = self._rows.get(resource.meta.key)
        if old is not None and old.meta.uid != resource.meta.uid:
            self._drop(resource.meta.key)
        elif old is not None and old.spec == resource.spec:  # versions of a Task share its module in memory
            parts: dict[str, Any] = {"spec": old.spec}
            resource = replace(resource, **parts)
        self._rows[resource.meta.key] = resource
        self._keys[resource.meta.uid] = resource.meta.key
        return resource

    def _drop(self, key: Key) -> None:
        resource = self._rows.pop(key, None)
        if resource is not None:
            self._born.pop(resource.meta.uid, None)
            self._stale.pop(key, None)
            self._forget_uid(resource.meta.uid, key)

    def _told(self, key: Key, entry: Resource | Removed) -> None:
        del self._ours[key]
        self._forget_uid(_uid(entry), key)

    def _forget_uid(self, uid: str, key: Key) -> None:
        """Forget a uid that nothing at `key` has any more."""
        ours, row = self._ours.get(key), self._rows.get(key)
        if not any(part is not None and _uid(part) == uid for part in (ours, row)):
            self._keys.pop(uid, None)

    def _wake(self) -> None:
        if self._moved.statistics().tasks_waiting:
            self._moved.set()
            self._moved = anyio.Event()


def _uid(entry: Resource | Removed) -> str:
    return entry.uid if isinstance(entry, Removed) else entry.meta.uid
