"""The Kubernetes API as the store: implements `ports.Store` for every kind; what has returned is in the cluster's etcd.

Reads come from a cache that a watch per kind (and namespace, where the manager may not see all of them) keeps, and that
has our own writes at once. Writes are patches of what changed, locked to the version they were decided on.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import anyio

from proplet.manager.kubernetes_api import Collection, Document, KubernetesApi
from proplet.manager.kubernetes_errors import NotServedError
from proplet.manager.manifest import GROUPS
from proplet.manager.model import RESOURCES, Key, Kind, Resource
from proplet.manager.ports import (
    AlreadyExistsError,
    Change,
    Clock,
    ConflictError,
    Listing,
    NotFoundError,
    RefusedError,
    StoreError,
)
from proplet.manager.store_kubernetes_cache import Cache, Removed
from proplet.manager.store_kubernetes_document import (
    collection_of,
    new_object,
    not_installed,
    put_patch,
    read,
    status_write,
)
from proplet.manager.store_kubernetes_watch import Reflector
from proplet.manager.store_table import missing

HISTORY: Final = 1024  # each keeps an old version of a resource in memory; our own watchers are never far behind


class KubernetesStore:
    """Implements `ports.Store`; made by `open_kubernetes_store`. A call that is cancelled may have been carried out.

    What differs from the other stores: the API server gives every resource its uid, also where one was given, and
    resources of the same second that were there before this store are listed by name.
    """

    def __init__(
        self,
        api: KubernetesApi,
        *,
        group: str,
        namespaces: Sequence[str],
        kinds: Iterable[Kind],
        clock: Clock,
        history: int,
    ) -> None:
        self._api = api
        self._clock = clock
        self._namespaces: tuple[str | None, ...] = tuple(dict.fromkeys(namespaces)) or (None,)
        self._collections = {kind: collection_of(kind, group) for kind in kinds}
        self._caches = {kind: Cache(kind, self._namespaces, history) for kind in self._collections}

    def reflectors(self) -> list[Reflector]:
        """What has to run for the store to be up to date: one for every kind and namespace."""
        return [
            Reflector(self._api, self._collections[kind], namespace, cache)
            for kind, cache in self._caches.items()
            for namespace in self._namespaces
        ]

    @property
    def problem(self) -> StoreError | None:
        """Why the store is not up to date now (what it has may be old), None when it is."""
        return next((cache.problem for cache in self._caches.values() if cache.problem), None)

    async def ready(self) -> None:
        """Wait until everything was listed once. Raises StoreUnavailableError: it cannot be, now."""
        for cache in self._caches.values():
            await cache.ready()

    async def list(self, kind: Kind) -> Listing:
        """Return everything of a kind, in order of creation. Raises StoreUnavailableError."""
        return await self._caches[kind].listing()

    async def get(self, kind: Kind, key: Key) -> Resource:
        """Return one. Raises NotFoundError, StoreUnavailableError."""
        if not self._watched(key):
            raise missing(kind, str(key))
        cache = self._caches[kind]
        await cache.ready()
        known = cache.known(key)
        if isinstance(known, Removed):
            raise missing(kind, str(key))
        if known is None or cache.doubted(key):
            return await self._fetch(kind, key)
        return known

    async def find(self, kind: Kind, uid: str) -> Resource:
        """Return the one with this uid. Raises NotFoundError, StoreUnavailableError."""
        cache = self._caches[kind]
        await cache.settle()
        key = cache.key_of(uid)
        if key is None:
            raise missing(kind, uid)
        return await self.get(kind, key)

    async def create(self, resource: Resource) -> Resource:
        """Add a resource. Raises AlreadyExistsError, StoreUnavailableError; NotFoundError: there is no namespace."""
        collection, key = self._collections[resource.kind], resource.meta.key
        if not self._watched(key):
            seen = ", ".join(map(str, self._namespaces))
            raise RefusedError(f"this manager does not see the namespace {key.namespace}; it sees {seen}")
        document = new_object(resource, collection)
        try:
            made = await self._call(self._api.create, collection, key.namespace, document)
        except AlreadyExistsError as error:
            raise AlreadyExistsError(f"{resource.kind.value} {key} exists") from error
        found = self._learn(made)
        # The API server drops the status of what is created.
        bare = RESOURCES[resource.kind](resource.meta).status
        while found.status == bare != resource.status:
            try:
                return await self.record(replace(resource, meta=found.meta))
            except ConflictError:  # somebody saw it already
                found = await self.get(resource.kind, key)
        return found

    async def put(self, resource: Resource) -> Resource:
        """Write meta and spec. Raises ConflictError, NotFoundError, StoreUnavailableError."""
        collection = self._collections[resource.kind]
        current = await self._current(resource)
        patch = put_patch(current, resource, collection)
        if patch is None:
            return current
        return self._settled(read(await self._patch(current, patch), collection))

    async def record(self, resource: Resource) -> Resource:
        """Write the status. Raises ConflictError, NotFoundError, StoreUnavailableError."""
        current = await self._current(resource)
        write = status_write(current, resource, round(self._clock(), 6))
        if write is None:
            return current
        answer = await self._patch(current, write.patch, "status")
        return self._settled(write.read(answer, self._collections[resource.kind]))

    async def delete(self, kind: Kind, key: Key, version: int | None = None) -> Resource:
        """Remove one. Raises NotFoundError, ConflictError, StoreUnavailableError."""
        collection, cache = self._collections[kind], self._caches[kind]
        while True:
            current = await self.get(kind, key)
            if version is not None and version != current.meta.version:
                current = await self._fetch(kind, key)
                _require_version(current, version)
            meta = current.meta
            try:
                answer = await self._call(
                    self._api.delete, collection, key.namespace, key.name, uid=meta.uid, version=str(meta.version)
                )
            except NotFoundError as error:
                cache.remove(current)
                raise missing(kind, str(key)) from error
            except ConflictError:
                cache.doubt(key, meta.version)
                if version is not None:
                    raise
                continue  # what it was last is part of the answer
            if answer.get("kind") == collection.kind:
                return self._settled(read(answer, collection))
            cache.remove(current)
            return current

    def watch(self, kind: Kind, since: int) -> AsyncIterator[Change]:
        """Yield every change of a kind after version `since`. Raises GoneError, StoreUnavailableError."""
        return self._caches[kind].follow(since)

    # --- the server ---------------------------------------------------------------------------------------------------

    async def _current(self, wanted: Resource) -> Resource:
        """What is written over, at the version that the writer has read."""
        current = await self.get(wanted.kind, wanted.meta.key)
        if current.meta.version < wanted.meta.version:
            current = await self._fetch(wanted.kind, wanted.meta.key)
        _require_version(current, wanted.meta.version)
        return current

    async def _fetch(self, kind: Kind, key: Key) -> Resource:
        collection, cache = self._collections[kind], self._caches[kind]
        known = cache.known(key)
        try:
            answer = await self._call(self._api.get, collection, key.namespace, key.name)
        except NotFoundError as error:
            if known is not None and not isinstance(known, Removed):
                cache.remove(known)
            raise missing(kind, str(key)) from error
        return self._learn(answer)

    async def _patch(self, current: Resource, patch: Document, part: str = "") -> Document:
        collection, cache, key = self._collections[current.kind], self._caches[current.kind], current.meta.key
        try:
            return await self._call(self._api.patch, collection, key.namespace, key.name, patch, part=part)
        except ConflictError:
            cache.doubt(key, current.meta.version)
            raise
        except NotFoundError as error:
            cache.remove(current)
            raise missing(current.kind, str(key)) from error

    def _learn(self, answer: Document) -> Resource:
        kind = Kind(answer.get("kind"))
        return self._caches[kind].learn(read(answer, self._collections[kind]))

    def _settled(self, resource: Resource) -> Resource:
        """Take an answer to a write, after which the resource may be gone with its last finalizer."""
        cache = self._caches[resource.kind]
        if resource.meta.deleted_at and not resource.meta.finalizers:
            cache.remove(resource)
            return resource
        return cache.learn(resource)

    async def _call(
        self, call: Callable[..., Document], collection: Collection, *args: Any, **options: Any
    ) -> Document:
        try:
            return await self._api.run(call, collection, *args, **options)
        except NotServedError as error:
            raise not_installed(collection) from error

    def _watched(self, key: Key) -> bool:
        return None in self._namespaces or key.namespace in self._namespaces


def _require_version(current: Resource, version: int) -> None:
    if current.meta.version != version:
        name = f"{current.kind.value} {current.meta.key}"
        raise ConflictError(f"{name} is at version {current.meta.version}, not {version}: read it again")


@asynccontextmanager
async def open_kubernetes_store(
    api: KubernetesApi,
    *,
    group: str = GROUPS[0],
    namespaces: Sequence[str] = (),
    kinds: Iterable[Kind] = tuple(Kind),
    clock: Clock = time.time,
    history: int = HISTORY,
) -> AsyncIterator[KubernetesStore]:
    """Watch the resources of a cluster and yield them as a store, at once; they are there when it is `ready`.

    `group` is the API group that is served. `namespaces` are those the manager sees, none for all: with some, no
    permission beyond them is needed, and each kind has a watch in each of them. Only `kinds` can be read and written.
    `history` bounds how many changes of a kind a watcher can be behind.
    """
    store = KubernetesStore(api, group=group, namespaces=namespaces, kinds=kinds, clock=clock, history=history)
    try:
        async with anyio.create_task_group() as tasks:
            reflectors = store.reflectors()
            api.expect_watches(len(reflectors))
            for reflector in reflectors:
                tasks.start_soon(reflector.run)
            yield store
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) == 1:  # the block's own error, as if there were no task group here
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        raise
