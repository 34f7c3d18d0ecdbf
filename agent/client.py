"""The command line's way to a running node: its HTTP API, over the node's Unix socket or a URL.

Synchronous and of the standard library alone, because a command must answer at once; what is heavy of that is imported
with the first request.
"""

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote, unquote, urlencode, urlsplit

from proplet.agent.systemd import NAME, SERVICE_SOCKET, DirectoryError, directories

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

SOCKET_NAME: Final = f"{NAME}.sock"
_TIMEOUT_S: Final = 30.0
_SLOWEST_S: Final = 60.0  # for an answer that a device far away gives
_WATCH_TIMEOUT_S: Final = 60.0  # four of the node's heartbeats
_RECONNECT_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0)
_MAX_LINE: Final = 64 * 1024 * 1024  # a manifest may carry a module


class NodeUnreachableError(Exception):
    """No node answers; the message says where it was looked for and what to do."""


class ApiError(Exception):
    """The node refused; `status` is HTTP's, `reason` a word for programs, the message its own."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of a watch: `type` is ADDED, MODIFIED, DELETED, or SYNCED after the last of what there was.

    `object` is the manifest, None at SYNCED. `version` orders changes; 0 for what there was at the beginning.
    """

    type: str
    object: dict[str, Any] | None
    version: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where a node is: a Unix socket, or a host. `prefix` goes before every path."""

    socket: Path | None = None
    host: str = ""
    port: int = 7070
    tls: bool = False
    prefix: str = ""
    token: str = field(default="", repr=False)

    def __str__(self) -> str:
        if self.socket is not None:
            return f"unix:{self.socket}"
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, token: str = "") -> Self:
        """Read ``unix:/path``, ``/path``, or ``http(s)://[:TOKEN@]host[:port][/prefix]``.

        Raises:
            ValueError: it is none of these.
        """
        path = text.removeprefix("unix://").removeprefix("unix:")
        if path.startswith("/"):
            return cls(socket=Path(path))
        parts = urlsplit(text)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"a node's address is unix:/path or http(s)://host:port, not {text!r}")
        tls = parts.scheme == "https"
        return cls(
            host=parts.hostname,
            port=parts.port or 7070,
            tls=tls,
            prefix=parts.path.rstrip("/"),
            token=token or unquote(parts.password or ""),
        )


class Client:
    """A node's API. Every method raises NodeUnreachableError and ApiError."""

    def __init__(self, target: Target, timeout_s: float = _TIMEOUT_S) -> None:
        """Talk to `target`; nothing is sent yet. `connect` is what programs call."""
        self.target = target
        self._timeout_s = timeout_s

    @classmethod
    def connect(
        cls, target: str | None = None, *, token: str = "", environ: Mapping[str, str] = os.environ
    ) -> "Client":
        """Return a client of the node at `target`, or, without one, of the node on this machine.

        Without a target: ``PROPLET_SOCKET``, else the service's socket, else the one of this person's own node,
        whichever is listened on. The token is `token`, else the URL's, else ``PROPLET_TOKEN``.

        Raises:
            NodeUnreachableError: nobody listens on any of these.
            ValueError: `target` is no address.
        """
        named = target or environ.get("PROPLET_SOCKET")
        if named:
            found = Target.parse(named, token)
            if found.token or found.socket is not None:
                return cls(found)
            return cls(Target.parse(named, environ.get("PROPLET_TOKEN", "")))
        problems: list[OSError] = []
        for path in _local_sockets(environ):
            try:
                _open_socket(path, _TIMEOUT_S).close()
            except OSError as error:
                problems.append(error)
            else:
                return cls(Target(socket=path))
        raise _nobody(list(_local_sockets(environ)), problems)

    # --- what the node does ---

    def node(self) -> dict[str, Any]:
        """Return what the node is and what is on."""
        return self._json("GET", "/api/v1/node")

    def top(self, namespace: str | None = None) -> dict[str, Any]:
        """Return ``{tasks, proplets}``: what is under way, and what it and the proplets use, as last measured."""
        return self._json("GET", _query("/api/v1/top", namespace=namespace))

    def list(self, kind: str, namespace: str | None = None) -> dict[str, Any]:
        """Return ``{"items": [manifest...], "version": n}`` of a kind, such as tasks."""
        return self._json("GET", _query(f"/api/v1/{_part(kind)}", namespace=namespace))

    def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
        """Return one manifest."""
        return self._json("GET", _path(kind, namespace, name))

    def apply(self, manifests: str, *, dry_run: bool = False) -> Sequence[dict[str, Any]]:
        """Create or update what YAML or JSON text says; return what became of each, in order, with its `action`."""
        path = _query("/api/v1/apply", dryRun="true" if dry_run else None)
        answer = self._json("POST", path, manifests.encode("utf-8"), "application/yaml")
        items: Sequence[dict[str, Any]] = answer["items"]
        return items

    def delete(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
        """Delete one resource; return its last state."""
        return self._json("DELETE", _path(kind, namespace, name))

    def start(self, name: str, namespace: str = "default", *, kind: str = "tasks") -> dict[str, Any]:
        """Ask for a run of a task, or let a job (`propellerjobs`) go; return its manifest."""
        return self._json("POST", f"{_path(kind, namespace, name)}/start")

    def stop(self, name: str, namespace: str = "default", *, kind: str = "tasks") -> dict[str, Any]:
        """Ask for the end of a task's run, or of a job (`propellerjobs`); return its manifest."""
        return self._json("POST", f"{_path(kind, namespace, name)}/stop")

    def invoke(
        self,
        name: str,
        namespace: str = "default",
        *,
        inputs: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> dict[str, Any]:
        """Call a latent task; return ``{results, error, reason, exit_code, usage, proplet_id}`` as far as known.

        Inputs replace those of the task if there are any; `env` adds to its variables. At most 30 seconds.

        Raises:
            ApiError: it cannot be invoked (409), or nobody answered (504).
        """
        wanted = {"inputs": list(inputs), "env": dict(env or {}), "timeout_seconds": timeout_s}
        body = json.dumps(wanted).encode("utf-8")
        return self._json("POST", f"{_path('tasks', namespace, name)}/invoke", body, "application/json", _SLOWEST_S)

    def logs(self, name: str, namespace: str = "default") -> Sequence[dict[str, Any]]:
        """Return a task's last output: ``{proplet_id, attempt, stream, lines, at}``, oldest first."""
        items: Sequence[dict[str, Any]] = self.logs_since(name, namespace)["items"]
        return items

    def logs_since(self, name: str, namespace: str = "default", since: int = 0, wait_s: int = 0) -> dict[str, Any]:
        """Return a task's output after `since`: ``{items, next, ended}``, `next` being what to go on from.

        Where there is none it waits for it, `wait_s` seconds at the most and not beyond the end of the task.
        """
        path = _query(f"{_path('tasks', namespace, name)}/logs", since=since, wait=wait_s)
        return self._json("GET", path, timeout_s=self._timeout_s + wait_s)

    def watch(
        self, kind: str, *, since: int | None = None, namespace: str | None = None, name: str | None = None
    ) -> Iterator[WatchEvent]:
        """Yield the changes of a kind since a version; without one, all there is, SYNCED, then the changes.

        A lost connection is taken up again where it was lost, for some seconds. Close the generator to end it.

        Raises:
            ApiError: also with status 410: the changes since that version are no longer known, list again.
        """
        failures = 0
        while True:
            path = _query("/api/v1/watch", kind=kind, since=since, namespace=namespace, name=name)
            try:
                for event in self._events(path):
                    failures = 0
                    since = event.version or since
                    yield event
                failures += 1  # the node ended it: it shuts down, or restarts
            except NodeUnreachableError:
                failures += 1
                if since is None or failures > len(_RECONNECT_S):
                    raise
            if failures > len(_RECONNECT_S):
                raise NodeUnreachableError(f"the node at {self.target} ends every watch; its log says why")
            if failures:
                threading.Event().wait(_RECONNECT_S[failures - 1])

    # --- HTTP ---

    def _json(
        self, method: str, path: str, body: bytes | None = None, content_type: str = "", timeout_s: float = 0.0
    ) -> dict[str, Any]:
        import http.client

        connection = self._connection(timeout_s or self._timeout_s)
        try:
            with self._send(connection, method, path, body, content_type) as response:
                payload = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()
        answer = _object(payload)
        if response.status >= 400:
            raise _refusal(response.status, answer)
        return answer

    def _events(self, path: str) -> Iterator[WatchEvent]:
        import http.client

        connection = self._connection(_WATCH_TIMEOUT_S)
        try:
            with self._send(connection, "GET", path) as response:
                if response.status >= 400:
                    raise _refusal(response.status, _object(response.read()))
                yield from _read_events(response)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def _connection(self, timeout_s: float) -> "HTTPConnection":
        from http.client import HTTPConnection, HTTPSConnection

        target = self.target
        if target.socket is None:
            return (HTTPSConnection if target.tls else HTTPConnection)(target.host, target.port, timeout=timeout_s)
        connection = HTTPConnection("localhost", timeout=timeout_s)
        try:
            # A connection that has its socket already does not open one.
            connection.sock = _open_socket(target.socket, timeout_s)
        except OSError as error:
            raise _nobody([target.socket], [error]) from error
        return connection

    def _send(
        self,
        connection: "HTTPConnection",
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = "",
    ) -> "HTTPResponse":
        headers = {"Accept": "application/json, text/event-stream", "User-Agent": NAME}
        if self.target.token:
            headers["Authorization"] = f"Bearer {self.target.token}"
        if content_type:
            headers["Content-Type"] = content_type
        connection.request(method, self.target.prefix + path, body, headers)
        return connection.getresponse()

    def _unreachable(self, error: Exception) -> NodeUnreachableError:
        hint = ""
        if isinstance(error, ConnectionRefusedError):
            hint = "; is the node up, and its API's TCP listener on?"
        return NodeUnreachableError(f"the node at {self.target} does not answer: {_said(error)}{hint}")


def _local_sockets(environ: Mapping[str, str]) -> Iterator[Path]:
    yield SERVICE_SOCKET
    try:
        own = directories(environ).runtime / SOCKET_NAME
    except DirectoryError:
        return
    if own != SERVICE_SOCKET:
        yield own


def _open_socket(path: Path, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(os.fspath(path))
    except BaseException:
        sock.close()
        raise
    return sock


def _nobody(paths: list[Path], problems: list[OSError]) -> NodeUnreachableError:
    for path, error in zip(paths, problems, strict=True):
        if isinstance(error, PermissionError):
            return NodeUnreachableError(
                f"a node runs here, but {path} is not yours to use: join its group "
                f"(sudo usermod -aG {NAME} $USER, then log in again), or use sudo"
            )
    looked = ", ".join(str(path) for path in paths)
    return NodeUnreachableError(
        f"no node runs here (looked for {looked}): start one with `{NAME} up`, or name one with its socket or URL; "
        "a node without a manager has no API"
    )


def _read_events(response: "HTTPResponse") -> Iterator[WatchEvent]:
    """Parse server-sent events (WHATWG HTML, 9.2.6); comments and unknown fields are passed over."""
    name, data, version = "", [], 0
    while line := response.readline(_MAX_LINE):
        text = line.decode("utf-8").rstrip("\r\n")
        key, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            name = value
        elif key == "data":
            data.append(value)
        elif key == "id":
            version = int(value)
        elif not text and data:
            yield _event(name, _object("\n".join(data).encode("utf-8")), version)
            name, data, version = "", [], 0


def _event(name: str, body: dict[str, Any], version: int) -> WatchEvent:
    if name == "gone":
        raise _refusal(410, body)
    if name == "error":
        raise _refusal(503, body)
    return WatchEvent(name, body.get("object"), version)


def _object(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload) if payload else {}
    except ValueError:
        value = {"error": payload[:200].decode("utf-8", "replace")}
    return value if isinstance(value, dict) else {}


def _refusal(status: int, body: dict[str, Any]) -> ApiError:
    return ApiError(status, str(body.get("error") or f"the node answered {status}"), str(body.get("reason", "")))


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _part(text: str) -> str:
    return quote(text, safe="")


def _path(kind: str, namespace: str, name: str) -> str:
    return f"/api/v1/{_part(kind)}/{_part(namespace)}/{_part(name)}"


def _query(path: str, **parameters: Any) -> str:
    given = {name: value for name, value in parameters.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path
