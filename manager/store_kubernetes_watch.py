"""One list and watch after it, for ever: what keeps a cache of one kind in one namespace (or in all) up to date."""

import contextlib
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio import from_thread, to_thread

from proplet.manager.kubernetes_api import Collection, Document, KubernetesApi, Stream
from proplet.manager.kubernetes_errors import NotServedError, UnreadableError
from proplet.manager.model import Resource
from proplet.manager.ports import ChangeType, GoneError, StoreError, StoreUnavailableError
from proplet.manager.store_kubernetes_cache import Cache, Told
from proplet.manager.store_kubernetes_document import not_installed, read, version_of

FIRST_DELAY_S: Final = 0.2
LONGEST_DELAY_S: Final = 5.0

log = logging.getLogger(__name__)


class Reflector:
    """Keeps `cache` as the API server has the objects of a collection in a namespace, None for all namespaces.

    It takes one thread, and one slot of `KubernetesApi.watches`. A lost connection is opened again at the version it
    had come to; only when the server no longer knows what came after that, everything is listed again.
    """

    def __init__(self, api: KubernetesApi, collection: Collection, namespace: str | None, cache: Cache) -> None:
        self._api = api
        self._collection = collection
        self._namespace = namespace
        self._cache = cache
        self._version = 0
        self._listed = False
        self._heard = False
        self._delay = FIRST_DELAY_S
        self._complaint = ""

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            try:
                if not self._listed:
                    await self._list()
                self._heard = False
                await self._watch()
                if not self._heard:  # a server that ends every watch at once is not asked in a loop
                    await self._pause()
            except GoneError as error:
                log.info("listing the %s again: %s", self._collection.plural, error)
                self._listed = False
                await self._pause()
            except StoreError as error:
                self._fail(error)
                await self._pause()

    async def _list(self) -> None:
        resources, version = await to_thread.run_sync(
            self._read_list, abandon_on_cancel=True, limiter=self._api.watches
        )
        self._version, self._listed = version, True
        self._cache.listed(self._namespace, resources, version)

    def _read_list(self) -> tuple[list[Resource], int]:
        """In the thread."""
        resources, version = [], 0
        for page in self._api.pages(self._collection, self._namespace):
            version = version_of(page)
            for document in page.get("items") or ():
                try:
                    resources.append(read(document, self._collection))
                except UnreadableError as error:
                    log.warning("%s", error)
        return resources, version

    async def _watch(self) -> None:
        failure: StoreError | None = None
        async with closing(self._api.stream()) as stream:
            try:
                await to_thread.run_sync(self._read_watch, stream, limiter=self._api.watches)
            except StoreError as error:
                failure = error
        if failure is not None:
            raise failure

    def _read_watch(self, stream: Stream) -> None:
        """In the thread."""
        watch = self._api.watch(stream, self._collection, self._namespace, str(self._version))
        with contextlib.closing(watch) as answer:  # in this thread, also when what comes cannot be taken
            for events in answer:
                from_thread.run_sync(self._take, events)

    def _take(self, events: list[Document]) -> None:
        changes = [change for change in map(self._change, events) if change is not None]
        self._heard = self._heard or bool(events)
        self._delay = FIRST_DELAY_S
        if self._complaint:
            self._complaint = ""
            log.info("watching the %s again", self._collection.plural)
        self._cache.tell(self._namespace, changes, self._version)

    def _change(self, event: Document) -> Told | None:
        """Return the change that an event is, None for a bookmark and for what cannot be read."""
        document = event.get("object")
        if not isinstance(document, dict):
            raise UnreadableError(f"watch {self._collection.plural}: an event without an object")
        self._version = version_of(document)
        if event.get("type") == "BOOKMARK":
            return None
        try:
            kind = ChangeType(event.get("type"))
            # Most of what is told are our own writes, whose answers were read already.
            resource = self._cache.same(document["metadata"], self._version) or read(document, self._collection)
        except (UnreadableError, ValueError) as error:
            log.warning("%s", error)
            # The end of one that was readable once is told all the same.
            last = self._cache.told(document.get("metadata") or {}) if event.get("type") == "DELETED" else None
            return None if last is None else Told(ChangeType.DELETED, last, self._version)
        return Told(kind, resource, self._version)

    def _fail(self, error: StoreError) -> None:
        if isinstance(error, NotServedError):
            error = not_installed(self._collection)
        elif not isinstance(error, StoreUnavailableError):
            error = StoreUnavailableError(str(error))
        if str(error) != self._complaint:
            self._complaint = str(error)
            log.warning("the %s cannot be watched, trying again: %s", self._collection.plural, error)
        self._cache.failed(self._namespace, error)

    async def _pause(self) -> None:
        delay, self._delay = self._delay, min(self._delay * 2, LONGEST_DELAY_S)
        await anyio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  # so that many managers do not come at once


@asynccontextmanager
async def closing(stream: Stream) -> AsyncIterator[Stream]:
    """Close the stream when the block is cancelled: the thread that reads it is noticed by nothing else."""

    async def close_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stream.close()

    async with anyio.create_task_group() as group:
        group.start_soon(close_when_cancelled)
        yield stream
        group.cancel_scope.cancel()
