"""Requests to an API server and their answers, over connections that can be ended from another thread."""

import json
import math
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from proplet.manager.kubernetes_access import Client, Sockets, reaching
from proplet.manager.kubernetes_errors import UnreadableError, refusal
from proplet.manager.ports import StoreUnavailableError

Document = dict[str, Any]

JSON: Final = "application/json"
_TIMEOUT_S: Final = (5.0, 20.0)  # to connect, and to wait for (more of) an answer
# A watch hears a bookmark every minute at the latest; when it does not, its connection is dead.
_WATCH_TIMEOUT_S: Final = (5.0, 100.0)
_CREDENTIALS_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `what` says for messages what it is for."""

    method: str
    path: str
    what: str
    body: Document | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    content_type: str = JSON


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


class Transport:
    """The connections to one API server. Its methods block; they are for threads."""

    def __init__(self, client: Client, sockets: Sockets) -> None:
        self._client = client.api
        self._renew = client.renew
        self._sockets = sockets
        self._known_credentials: Mapping[str, str] = {}
        self._credentials_until = -math.inf
        self.heard_at = time.monotonic()  # when something came last

    def ask(self, request: Request) -> Document:
        """Send a request and return the answer.

        Raises:
            StoreError: as `KubernetesApi.request`.
        """
        try:
            response = self._send(request, _TIMEOUT_S)
            with reaching(request.what):
                data = response.read()
        finally:
            self._sockets.leave()
        return _object(data, request.what)

    def stream(self) -> Stream:
        """Return what one endless answer is read through."""
        return Stream(self._sockets)

    def listen(self, stream: Stream, request: Request) -> Generator[list[Document]]:
        """Yield the lines of an endless answer, those that came together in one list, until it or `stream` ends.

        The first list is empty: it tells that the answer has begun.

        Raises:
            StoreError: as `KubernetesApi.request`; none because of what `Stream.close` does.
        """
        if not stream.begin():
            return
        try:
            response = self._send(request, _WATCH_TIMEOUT_S)
            try:
                yield []
                for lines in _lines(response.response, request.what):
                    self.heard_at = time.monotonic()
                    yield [_object(line, request.what) for line in lines]
            finally:
                response.response.close()
        except StoreUnavailableError:
            if not stream.closed:
                raise
        finally:
            stream.end()

    def _send(self, request: Request, timeout: tuple[float, float]) -> Any:
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

    def _send_once(self, request: Request, timeout: tuple[float, float]) -> Any:
        body = request.body
        headers = {"Accept": JSON} if body is None else {"Accept": JSON, "Content-Type": request.content_type}
        path = f"{request.path}?{urlencode(request.query)}" if request.query else request.path
        # Past the client's serialization, which copies documents that are plain already.
        headers.update(self._credentials())
        url = self._client.configuration.host + path
        response = self._client.call_api(request.method, url, headers, body, _request_timeout=timeout)
        self.heard_at = time.monotonic()
        return response

    def _credentials(self) -> Mapping[str, str]:
        """The headers that say who we are. A token is asked for every few seconds: it may be replaced at any time."""
        now = time.monotonic()
        if now >= self._credentials_until:
            serialized = self._client.param_serialize("GET", "/", header_params={}, auth_settings=["BearerToken"])
            self._known_credentials, self._credentials_until = serialized[2], now + _CREDENTIALS_S
        return self._known_credentials

    def cut(self) -> None:
        """End whatever waits on a connection; what comes after takes new ones."""
        self._sockets.cut_all()
        self._client.rest_client.pool_manager.clear()

    def close(self) -> None:
        """Close the sockets: whatever still waits on one fails at once, and nothing is sent any more."""
        self._sockets.close()
        self._client.close()


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
