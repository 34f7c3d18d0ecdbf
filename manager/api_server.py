"""One listener of the API: its socket, and uvicorn without what a node does itself (signals, logs, clock ticks).

uvicorn times out idle keep-alive connections only; the protocol here adds a deadline for a request's head, and one for
a peer that stops reading, so neither a slow sender nor a slow reader holds memory for long.
"""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.abc
import anyio.lowlevel
import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_MAX_HEAD_BYTES: Final = 32 * 1024
_KEEP_ALIVE_S: Final = 15
_BACKLOG: Final = 128
_SETUP_TURNS: Final = 5
_SUN_PATH_BYTES: Final = 107  # unix(7): 108 with the final NUL


class ListenError(Exception):
    """The API cannot listen where it should; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Tls:
    """The certificate chain and key (PEM files) of a TCP listener."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Patience:
    """What a listener puts up with: connections at once, and seconds.

    `head_s` is for a request's head to arrive, `stalled_s` for a peer that does not read, `grace_s` for requests under
    way at the end.
    """

    max_connections: int = 128
    head_s: float = 10.0
    stalled_s: float = 30.0
    grace_s: int = 3


class _Config(uvicorn.Config):
    """uvicorn's configuration, with our deadlines for its connections."""

    patience = Patience()


class _Deadline:
    """Ends a connection unless it is put off in time."""

    def __init__(self, connection: H11Protocol, seconds: float) -> None:
        self._timer = connection.loop.call_later(seconds, connection.transport.abort)

    def off(self) -> None:
        """Let the connection live."""
        self._timer.cancel()


class _Connection(H11Protocol):
    """One HTTP/1.1 connection with deadlines for the request's head and for a peer that does not read."""

    config: _Config
    _head: _Deadline | None = None
    _stall: _Deadline | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._head = _Deadline(self, self.config.patience.head_s)

    def data_received(self, data: bytes) -> None:
        """Take bytes; once they make up a request's head, its deadline is off."""
        super().data_received(data)
        if self._head is not None and self.conn.their_state is not h11.IDLE:
            self._head.off()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE:
            if self._head is not None:
                self._head.off()
            self._head = _Deadline(self, _KEEP_ALIVE_S + self.config.patience.head_s)

    def pause_writing(self) -> None:
        """Give a peer that does not read a last chance."""
        super().pause_writing()
        self._stall = _Deadline(self, self.config.patience.stalled_s)

    def resume_writing(self) -> None:
        """Go on: the peer reads."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.off()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        for deadline in (self._head, self._stall):
            if deadline is not None:
                deadline.off()
        super().connection_lost(exc)


class Listener(uvicorn.Server):
    """uvicorn on one socket, until `stop`."""

    config: _Config

    def __init__(self, app: Any, sock: socket.socket, patience: Patience, tls: Tls | None) -> None:
        super().__init__(
            _Config(
                app,
                http=_Connection,
                loop="none",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="error",  # every scanner's nonsense would be a warning
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                limit_concurrency=patience.max_connections,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=patience.grace_s,
                h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
                ssl_certfile=tls.certificate if tls else None,
                ssl_keyfile=tls.key if tls else None,
            )
        )
        self.config.patience = patience
        self._socket = sock
        self._stop = anyio.Event()
        self._scope = anyio.CancelScope(shield=True)
        self.finished = anyio.Event()
        try:
            self.config.load()
        except OSError as error:  # ssl.SSLError is one
            raise ListenError(f"the API's certificate or key cannot be used: {error}") from error

    async def run_until_stopped(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Serve; `task_status` is told when connections are accepted.

        Cancellation from outside does not reach it: whoever runs it calls `stop`, and `abandon` if that takes too long.
        """
        self._task_status = task_status
        try:
            with self._scope:
                await self.serve(sockets=[self._socket])
        finally:
            self._drop_connections()
            self.finished.set()

    async def main_loop(self) -> None:
        """Wait for `stop`, instead of uvicorn's ten wake-ups a second."""
        self._task_status.started()
        await self._stop.wait()
        # asyncio drops a connection that it has accepted and not yet set up when its server closes, without closing it
        # (seen with Python 3.11): accept no more, and let the loop set up what it has.
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        for _ in range(_SETUP_TURNS):
            await anyio.lowlevel.checkpoint()

    def stop(self) -> None:
        """Accept nothing more, let requests under way finish, within the grace."""
        self._stop.set()

    def abandon(self) -> None:
        """End now."""
        self._scope.cancel()

    def _drop_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program."""
        yield


# --- sockets -----------------------------------------------------------------------------------------------------


def unix_socket(path: Path) -> socket.socket:
    """Return a listening Unix socket at `path`, mode 0660; one that a dead process left there is replaced.

    Raises:
        ListenError: a live process listens there, something else is there, or the place cannot be written.
    """
    if len(os.fsencode(path)) > _SUN_PATH_BYTES:
        raise ListenError(f"the socket's path is longer than {_SUN_PATH_BYTES} bytes: {path}; choose a shorter one")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        _clear(path)
        # Before bind: the file is never there with more permissions than these (unix(7) on Linux).
        os.fchmod(sock.fileno(), 0o660)
        sock.bind(os.fspath(path))
        path.chmod(0o660)  # the umask may have taken the group's
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror or error}") from error
    except ListenError:
        sock.close()
        raise
    return sock


def _clear(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(f"{path} exists and is no socket; move it away or configure another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except TimeoutError:
            pass  # a full backlog is a sign of life
        except OSError as error:
            raise ListenError(f"cannot tell who listens on {path}: {error.strerror}") from error
    raise ListenError(f"another node listens on {path}; stop it, or configure another socket for this one")


def remove_socket(path: Path, ours: os.stat_result) -> None:
    """Remove the socket's file, if it is still ours."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(path.lstat(), ours):
            path.unlink()


def tcp_socket(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket.

    Raises:
        ListenError: the address is in use, not this machine's, or not allowed.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        hint = "; another program listens there" if error.errno == errno.EADDRINUSE else ""
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror}{hint}") from error
    return sock
