"""Calls to a Kubernetes API server: objects as plain documents, errors as `ports` has them.

Every call blocks one thread; `KubernetesApi` runs at most `writers` of them at once, and one more for every watch.
"""

import json
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

from anyio import CapacityLimiter, to_thread

from proplet.manager.kubernetes_access import Access, Client, Sockets, make_client, reaching
from proplet.manager.kubernetes_errors import UnreadableError, event_error, refusal
from proplet.manager.ports import StoreUnavailableError

T = TypeVar("T")
Document = dict[str, Any]

WRITERS: Final = 8
WATCHES: Final = 16
MERGE: Final = "application/merge-patch+json"
_JSON: Final = "application/json"
_TIMEOUT_S: Final = (5.0, 20.0)  # to connect, and to wait for (more of) an answer
# A watch hears a bookmark every minute at the latest; when it does not, its connection is dead.
_WATCH_TIMEOUT_S: Final = (5.0, 100.0)
_WATCH_FOR_S: Final = 600  # the server ends a watch after that; it is opened anew at its last version
_PAGE: Final = 100  # objects; one with a module in it can have a megabyte
_CREDENTIALS_S: Final = 5.0


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


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    what: str
    body: Document | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    content_type: str = _JSON


class Stream:
    """One watch, read in one thread; `close` may be called from any, and ends the reading."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._lock = threading.Lock()
        self._thread: int | None = None
        self.closed = False

    def begin(self) -> bool:
        """The calling thread reads from now on; false when it was closed before."""
        with self._lock:
            if not self.closed:
                self._thread = threading.get_ident()
            return not self.closed

    def end(self) -> None:
        """The calling thread reads no more."""
        with self._lock:
            self._thread = None
        self._sockets.leave()

    def close(self) -> None:
        """End it, whatever it waits for."""
        with self._lock:
            self.closed = True
            if self._thread is not None:
                self._sockets.cut(self._thread)


class KubernetesApi:
    """One connection pool to one API server; made by `open_api`. Its blocking methods are for threads."""

    def __init__(self, client: Client, sockets: Sockets, writers: int, watches: int) -> None:
        self._client = client.api
        self._renew = client.renew
        self._sockets = sockets
        self._writers = CapacityLimiter(writers)
        self.watches = CapacityLimiter(watches)
        self._expected = 0
        self._known_credentials: Mapping[str, str] = {}
        self._credentials_until = -math.inf

    def stream(self) -> Stream:
        """Return what one watch is read through."""
        return Stream(self._sockets)

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
        content_type: str = _JSON,
        what: str = "",
    ) -> Document:
        """Send a request and return the answer.

        Raises:
            NotFoundError: there is no such object. NotServedError: there is no such kind.
            AlreadyExistsError: it exists. ConflictError: it was changed since. GoneError: the version is too old.
            RefusedError: it was refused. StoreUnavailableError: the server cannot be reached or fails.
            UnreadableError: the answer is no JSON object.
        """
        what = what or f"{method} {path}"
        try:
            response = self._send(_Request(method, path, what, body, query or {}, content_type), _TIMEOUT_S)
            with reaching(what):
                data = response.read()
        finally:
            self._sockets.leave()
        return _object(data, what)

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
    ) -> Iterator[list[Document]]:
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
        if not stream.begin():
            return
        try:
            response = self._send(_Request("GET", collection.path(namespace), what, query=query), _WATCH_TIMEOUT_S)
            yield []  # it is open
            try:
                for lines in _lines(response.response, what):
                    events = [_object(line, what) for line in lines]
                    for event in events:
                        if event.get("type") == "ERROR":
                            raise event_error(event.get("object"), what)
                    yield events
            finally:
                response.response.close()
        except StoreUnavailableError:
            if not stream.closed:
                raise
        finally:
            stream.end()

    def _send(self, request: _Request, timeout: tuple[float, float]) -> Any:
        with reaching(request.what):
            response = self._send_once(request, timeout)
            if response.status == 401:  # a token was replaced, which is read only every minute; nothing was done
                response.read()
                self._renew()
                self._credentials_until = -math.inf
                response = self._send_once(request, timeout)
            if response.status >= 400:
                raise refusal(response.status, response.read(), request.what)
        return response

    def _send_once(self, request: _Request, timeout: tuple[float, float]) -> Any:
        body = request.body
        headers = {"Accept": _JSON} if body is None else {"Accept": _JSON, "Content-Type": request.content_type}
        path = f"{request.path}?{urlencode(request.query)}" if request.query else request.path
        # Past the client's serialization, which copies documents that are plain already.
        headers.update(self._credentials())
        url = self._client.configuration.host + path
        return self._client.call_api(request.method, url, headers, body, _request_timeout=timeout)

    def _credentials(self) -> Mapping[str, str]:
        """The headers that say who we are. A token is asked for every few seconds: it may be replaced at any time."""
        now = time.monotonic()
        if now >= self._credentials_until:
            serialized = self._client.param_serialize("GET", "/", header_params={}, auth_settings=["BearerToken"])
            self._known_credentials, self._credentials_until = serialized[2], now + _CREDENTIALS_S
        return self._known_credentials

    def close(self) -> None:
        """Close the sockets: whatever still waits on one fails at once, and nothing is sent any more."""
        self._sockets.close()
        self._client.close()


@asynccontextmanager
async def open_api(access: Access, *, writers: int = WRITERS, watches: int = WATCHES) -> AsyncIterator[KubernetesApi]:
    """Load the Kubernetes client and yield the API of a cluster, which need not be there yet.

    `writers` calls and `watches` watches can be under way at once.

    Raises:
        AccessError: it is not known how to reach a cluster.
    """
    sockets = Sockets()
    client = await to_thread.run_sync(make_client, access, sockets, writers + watches)
    api = KubernetesApi(client, sockets, writers, watches)
    try:
        yield api
    finally:
        api.close()


def _lines(response: Any, what: str) -> Iterator[list[bytes]]:
    """The lines of an answer as they come, those that came together in one list."""
    rest = b""
    while True:
        with reaching(what):
            data = response.read1(65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        whole = [line for line in lines if line]
        if whole:
            yield whole


def _object(data: bytes, what: str) -> Document:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise UnreadableError(f"{what}: the answer is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise UnreadableError(f"{what}: the answer is no object")
    return document


def _what(verb: str, collection: Collection, namespace: str, name: str) -> str:
    return f"{verb} {collection.kind} {namespace}/{name}"
