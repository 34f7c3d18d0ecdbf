"""Calls to a Kubernetes API server: objects as plain documents, errors as `ports` has them.

Every call blocks one thread; `KubernetesApi` runs at most `writers` of them at once, and one more for every watch.
"""

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread

from proplet.manager.kubernetes_access import Access, Sockets, make_client
from proplet.manager.kubernetes_errors import event_error
from proplet.manager.kubernetes_transport import JSON, Document, Request, Stream, Transport

__all__ = ["Collection", "Document", "KubernetesApi", "Stream", "open_api"]

T = TypeVar("T")

WRITERS: Final = 8
WATCHES: Final = 16
MERGE: Final = "application/merge-patch+json"
_WATCH_FOR_S: Final = 600  # the server ends a watch after that; it is opened anew at its last version
_PAGE: Final = 100  # objects; one with a module in it can have a megabyte


@dataclass(frozen=True, slots=True)
class Collection:
    """A kind of object as the API serves it. The group "" is the core's."""

    group: str
    version: str
    plural: str
    kind: str
    selector: str = ""  # lists and watches have only objects with these labels

    @property
    def api_version(self) -> str:
        """What objects of it have as `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str = "", part: str = "") -> str:
        """The path of all objects (of a namespace), of one, or of a part of one (its `status`)."""
        parts = ["/apis", self.group] if self.group else ["/api"]
        parts.append(self.version)
        if namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        parts += [quote(piece, safe="") for piece in (name, part) if piece]
        return "/".join(parts)


class KubernetesApi:
    """One connection pool to one API server; made by `open_api`. Its blocking methods are for threads."""

    def __init__(self, transport: Transport, writers: int, watches: int) -> None:
        self._transport = transport
        self._writers = CapacityLimiter(writers)
        self.watches = CapacityLimiter(watches)
        self._expected = 0

    def stream(self) -> Stream:
        """Return what one watch is read through."""
        return self._transport.stream()

    def expect_watches(self, count: int) -> None:
        """Make room for that many more watches, which take a slot for as long as they last."""
        self._expected += count
        self.watches.total_tokens = max(self.watches.total_tokens, self._expected)

    async def run(self, call: Callable[..., T], *args: Any, limiter: CapacityLimiter | None = None, **kwargs: Any) -> T:
        """Run a blocking method of this object in a thread. When cancelled, it may have been carried out.

        It waits for one of the writers' slots, or for one of `limiter`.

        Raises:
            StoreError: as `request`.
        """
        work = partial(call, *args, **kwargs)
        return await to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter or self._writers)

    # --- blocking -----------------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: Document | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        what: str = "",
    ) -> Document:
        """Send a request and return the answer.

        Raises:
            NotFoundError: there is no such object. NotServedError: there is no such kind.
            AlreadyExistsError: it exists. ConflictError: it was changed since. GoneError: the version is too old.
            RefusedError: it was refused. StoreUnavailableError: the server cannot be reached or fails.
            UnreadableError: the answer is no JSON object.
        """
        return self._transport.ask(Request(method, path, what or f"{method} {path}", body, query or {}, content_type))

    def pages(self, collection: Collection, namespace: str | None = None) -> Iterator[Document]:
        """Yield the pages of a list of all objects, all as of one version. Raises as `request`."""
        chosen = {"labelSelector": collection.selector} if collection.selector else {}
        query: dict[str, Any] = {"limit": _PAGE, **chosen}
        while True:
            page = self.request("GET", collection.path(namespace), query=query, what=f"list {collection.plural}")
            yield page
            more = page.get("metadata", {}).get("continue")
            if not more:
                return
            query = {"limit": _PAGE, "continue": more, **chosen}

    def get(self, collection: Collection, namespace: str, name: str) -> Document:
        """Return one object. Raises as `request`."""
        return self.request("GET", collection.path(namespace, name), what=_what("get", collection, namespace, name))

    def create(self, collection: Collection, namespace: str, document: Document) -> Document:
        """Add an object. Raises as `request`."""
        name = str(document.get("metadata", {}).get("name", ""))
        what = _what("create", collection, namespace, name)
        return self.request("POST", collection.path(namespace), document, what=what)

    def replace(self, collection: Collection, namespace: str, name: str, document: Document) -> Document:
        """Write an object over the version that it names. Raises as `request`."""
        what = _what("update", collection, namespace, name)
        return self.request("PUT", collection.path(namespace, name), document, what=what)

    def patch(self, collection: Collection, namespace: str, name: str, patch: Document, *, part: str = "") -> Document:
        """Merge `patch` into an object or a part of it ("status"), null removes a field. Raises as `request`.

        A `metadata.resourceVersion` in it makes it a ConflictError when the object was changed since.
        """
        what = _what("patch", collection, namespace, name)
        path = collection.path(namespace, name, part)
        return self.request("PATCH", path, patch, content_type=MERGE, what=what)

    def delete(
        self, collection: Collection, namespace: str, name: str, *, uid: str = "", version: str = ""
    ) -> Document:
        """Delete an object, if it is still the one with `uid` and at `version`; what it owns goes, too.

        Returns the object where it has finalizers, else a Status. Raises as `request`.
        """
        conditions = {"uid": uid, "resourceVersion": version}
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {key: value for key, value in conditions.items() if value},
        }
        what = _what("delete", collection, namespace, name)
        return self.request("DELETE", collection.path(namespace, name), body, what=what)

    def watch(
        self, stream: Stream, collection: Collection, namespace: str | None, version: str
    ) -> Generator[list[Document]]:
        """Yield the events after `version`, those that came together in one list, until the server or `stream` ends it.

        The first list is empty: it tells that the watch is open.

        Raises:
            GoneError: `version` is too old. NotServedError, RefusedError, StoreUnavailableError: as `request`.
        """
        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": _WATCH_FOR_S,
        }
        if collection.selector:
            query["labelSelector"] = collection.selector
        what = f"watch {collection.plural}"
        request = Request("GET", collection.path(namespace), what, query=query)
        with closing(self._transport.listen(stream, request)) as answer:
            for events in answer:
                for event in events:
                    if event.get("type") == "ERROR":
                        raise event_error(event.get("object"), what)
                yield events

    @property
    def heard_at(self) -> float:
        """When something came from the server last, in monotonic seconds; at first, when this was made."""
        return self._transport.heard_at

    def cut(self) -> None:
        """End every connection, as it may be dead; a write that waits for its answer may have been carried out."""
        self._transport.cut()

    def close(self) -> None:
        """Close the sockets: whatever still waits on one fails at once, and nothing is sent any more."""
        self._transport.close()


@asynccontextmanager
async def open_api(access: Access, *, writers: int = WRITERS, watches: int = WATCHES) -> AsyncIterator[KubernetesApi]:
    """Load the Kubernetes client and yield the API of a cluster, which need not be there yet.

    `writers` calls and `watches` watches can be under way at once.

    Raises:
        AccessError: it is not known how to reach a cluster.
    """
    sockets = Sockets()
    client = await to_thread.run_sync(make_client, access, sockets, writers + watches)
    api = KubernetesApi(Transport(client, sockets), writers, watches)
    try:
        yield api
    finally:
        api.close()


def _what(verb: str, collection: Collection, namespace: str, name: str) -> str:
    return f"{verb} {collection.kind} {namespace}/{name}"
