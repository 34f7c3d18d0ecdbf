"""The Deployments of proplets as the API server has them: listed, watched, and told to the loop that keeps them."""

import logging
from collections.abc import Callable, Sequence
from typing import Final, cast

import anyio
from anyio import from_thread, to_thread

from proplet.manager.deployments import REPLICA_LABEL, SELECTOR
from proplet.manager.kubernetes_api import Collection, Document, KubernetesApi, Stream
from proplet.manager.kubernetes_errors import UnreadableError
from proplet.manager.model import Key
from proplet.manager.ports import GoneError, StoreError
from proplet.manager.store_kubernetes_watch import closing

log = logging.getLogger(__name__)

DEPLOYMENTS: Final = Collection("apps", "v1", "deployments", "Deployment", SELECTOR)
RETRY_S: Final = 2.0


class DeploymentFeed:
    """Those with our label, in some namespaces (None: in all). `on_news` is told the key of every owner to look at."""

    def __init__(self, api: KubernetesApi, namespaces: Sequence[str | None], on_news: Callable[[Key], None]) -> None:
        self._api = api
        self._namespaces = namespaces
        self._on_news = on_news
        self._listed: set[str | None] = set()
        self._found: dict[Key, Document] = {}
        self._owned: dict[Key, dict[Key, None]] = {}  # by the key of the Proplet
        self._early: set[Key] = set()

    async def run(self) -> None:
        """List and watch until cancelled."""
        async with anyio.create_task_group() as tasks:
            for namespace in self._namespaces:
                tasks.start_soon(self._keep_up, namespace)

    def listed(self, owner: Key) -> bool:
        """Whether everything is known; if not, `owner` is news once it is."""
        if self._listed.issuperset(self._namespaces):
            return True
        self._early.add(owner)
        return False

    def get(self, key: Key) -> Document | None:
        """Return one, as it was last told or `learn`ed."""
        return self._found.get(key)

    def of(self, owner: Key, uid: str) -> list[Document]:
        """Return those that belong to the Proplet with this key and uid."""
        return [document for document in self.named(owner) if owner_uid(document) == uid]

    def named(self, owner: Key) -> list[Document]:
        """Return those that belong to a Proplet of this name, or did."""
        return [self._found[key] for key in self._owned.get(owner, ())]

    def learn(self, document: Document) -> None:
        """The server answered with this."""
        self._forget(key_of(document))
        self._found[key_of(document)] = document
        if (owner := _owner_key(document)) is not None:
            self._owned.setdefault(owner, {})[key_of(document)] = None

    def _forget(self, key: Key) -> None:
        document = self._found.pop(key, None)
        owner = _owner_key(document) if document is not None else None
        if owner is not None:
            del self._owned[owner][key]
            if not self._owned[owner]:
                del self._owned[owner]

    # --- the watch ----------------------------------------------------------------------------------------------------

    async def _keep_up(self, namespace: str | None) -> None:
        told = ""
        while True:
            try:
                version = await to_thread.run_sync(
                    self._list, namespace, abandon_on_cancel=True, limiter=self._api.watches
                )
                while True:
                    before, version = version, await self._follow(namespace, version)
                    told = ""
                    if version == before:  # a server that ends every watch at once is not asked in a loop
                        await anyio.sleep(RETRY_S)
            except GoneError:
                await anyio.sleep(RETRY_S)
            except StoreError as error:
                if told != str(error):  # not every two seconds, where the manager may not see Deployments at all
                    told = str(error)
                    log.warning("Deployments cannot be watched, trying again: %s", error)
                await anyio.sleep(RETRY_S)

    def _list(self, namespace: str | None) -> str:
        """In a thread."""
        version, items = "", list[Document]()
        for page in self._api.pages(DEPLOYMENTS, namespace):
            version = str(page.get("metadata", {}).get("resourceVersion", ""))
            items += page.get("items") or ()
        from_thread.run_sync(self._take_all, namespace, items)
        return version

    async def _follow(self, namespace: str | None, version: str) -> str:
        """Watch until the server ends it; return the version it came to."""
        last, failure = [version], list[StoreError]()
        async with closing(self._api.stream()) as stream:
            try:
                await to_thread.run_sync(self._read, stream, namespace, last, limiter=self._api.watches)
            except StoreError as error:
                failure.append(error)
        if failure:
            raise failure[0]
        return last[0]

    def _read(self, stream: Stream, namespace: str | None, last: list[str]) -> None:
        """In a thread."""
        for events in self._api.watch(stream, DEPLOYMENTS, namespace, last[0]):
            for event in events:
                document = event.get("object")
                if not isinstance(document, dict):
                    raise UnreadableError("watch deployments: an event without an object")
                last[0] = str(document.get("metadata", {}).get("resourceVersion", last[0]))
                if event.get("type") != "BOOKMARK":
                    from_thread.run_sync(self._take, document, event.get("type") == "DELETED")

    def _take_all(self, namespace: str | None, items: Sequence[Document]) -> None:
        before = [document for key, document in self._found.items() if namespace in (None, key.namespace)]
        for document in before:  # one that is listed again is only looked at once more
            self._take(document, gone=True)
        for document in items:
            self._take(document, gone=False)
        self._listed.add(namespace)
        early, self._early = self._early, set()
        for owner in early:
            self._on_news(owner)

    def _take(self, document: Document, gone: bool) -> None:
        if gone:
            self._forget(key_of(document))
        else:
            self.learn(document)
        if (owner := _owner_key(document)) is not None:
            self._on_news(owner)


def key_of(document: Document) -> Key:
    """Name and namespace of an object."""
    return Key(document["metadata"]["name"], document["metadata"]["namespace"])


def owner_of(document: Document) -> Document | None:
    """Return the reference to the Proplet that a Deployment belongs to."""
    for reference in document["metadata"].get("ownerReferences") or ():
        if reference.get("controller") and reference.get("kind") == "Proplet":
            return cast("Document", reference)
    return None


def _owner_key(document: Document) -> Key | None:
    owner = owner_of(document)
    return Key(str(owner.get("name")), key_of(document).namespace) if owner is not None else None


def owner_uid(document: Document) -> str:
    """Return the uid of the Proplet that a Deployment belongs to, or ""."""
    owner = owner_of(document)
    return str(owner.get("uid")) if owner is not None else ""


def replica_of(document: Document) -> int:
    """Which replica a Deployment is."""
    text = str((document["metadata"].get("labels") or {}).get(REPLICA_LABEL, "0"))
    return int(text) if text.isascii() and text.isdigit() else 0


def generation_of(document: Document) -> tuple[str, int]:
    """Which object it is, and how often what is wanted of it has changed."""
    meta = document["metadata"]
    value = meta.get("generation")
    return str(meta.get("uid")), value if type(value) is int else 0
