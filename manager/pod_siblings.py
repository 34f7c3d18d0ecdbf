"""The Proplet resources of further replicas: found by the Proplet they belong to, and kept as they are wanted."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import cast

from proplet.manager.deployments import sibling, sibling_of
from proplet.manager.model import Key, Kind, Proplet
from proplet.manager.pod_template import Identity
from proplet.manager.ports import AlreadyExistsError, NotFoundError, Store


class Siblings:
    """Knows them from what the watch of Proplets tells and from its own writes, so that nobody lists all Proplets."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[str, dict[Key, None]] = {}  # by the uid of the Proplet they belong to

    def take_all(self, proplets: Iterable[Proplet]) -> None:
        """Forget all and know these."""
        self._keys.clear()
        for proplet in proplets:
            self.take(proplet)

    def take(self, proplet: Proplet, *, gone: bool = False) -> None:
        """A Proplet is as it is, or gone; only siblings are remembered."""
        owner = _owner_uid(proplet)
        if owner is None:
            return
        if not gone:
            self._keys.setdefault(owner, {})[proplet.meta.key] = None
        elif proplet.meta.key in self._keys.get(owner, ()):
            del self._keys[owner][proplet.meta.key]
            if not self._keys[owner]:
                del self._keys[owner]

    async def of(self, uid: str) -> list[Proplet]:
        """Return those of the Proplet with this uid. Raises StoreUnavailableError."""
        found = []
        for key in list(self._keys.get(uid, ())):
            with suppress(NotFoundError):
                other = cast("Proplet", await self._store.get(Kind.PROPLET, key))
                if _owner_uid(other) == uid:
                    found.append(other)
        return found

    async def keep(self, proplet: Proplet, identities: Sequence[Identity]) -> list[str]:
        """Have as many as there are further identities; return the names that others have. Raises StoreError."""
        wanted = dict[str, Proplet]()
        for replica, identity in enumerate(identities[1:], start=1):
            made = sibling(proplet, replica, identity)
            wanted[made.meta.name] = made
        for other in await self.of(proplet.meta.uid):
            asked = wanted.pop(other.meta.name, None)
            if asked is None:
                with suppress(NotFoundError):
                    await self._store.delete(Kind.PROPLET, other.meta.key)
                self.take(other, gone=True)
            else:
                await self._as_asked(other, asked)
        return [made.meta.name for made in wanted.values() if not await self._make(proplet, made)]

    async def _make(self, proplet: Proplet, asked: Proplet) -> bool:
        try:
            self.take(cast("Proplet", await self._store.create(asked)))
        except AlreadyExistsError:
            there = cast("Proplet", await self._store.get(Kind.PROPLET, asked.meta.key))
            if _owner_uid(there) != proplet.meta.uid:
                return False
            self.take(there)  # made by another turn of this manager, and not told by the watch yet
            await self._as_asked(there, asked)
        return True

    async def _as_asked(self, there: Proplet, asked: Proplet) -> None:
        if there.spec != asked.spec:
            await self._store.put(replace(there, spec=asked.spec))


def _owner_uid(proplet: Proplet) -> str | None:
    owner = proplet.meta.owner
    return owner.uid if owner is not None and sibling_of(proplet) is not None else None
