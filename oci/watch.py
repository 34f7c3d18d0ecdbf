"""The end of a pull, by time or by the caller's wish, enforced even while a socket blocks."""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from proplet.oci.errors import PullCancelled, PullTimeout

_TICK_S = 0.1  # how late a cancellation may be noticed
_MOST_SOCKETS = 64


class Watch:
    """The deadline of a whole pull, and the caller's wish to stop, both enforced while a socket blocks.

    A thread shuts every adopted connection down when time is up or ``cancelled()`` says so; the blocked read then fails
    and ``check`` says why. ``cancelled`` is called in that thread and must be quick.
    """

    def __init__(self, seconds: float, cancelled: Callable[[], bool]) -> None:
        """Start watching; ``close`` ends it."""
        self._seconds = seconds
        self._cancelled = cancelled
        self._over = threading.Event()  # set when the pull is over
        self._halted = threading.Event()  # set when it must stop
        self._error: type[PullCancelled | PullTimeout] | None = None
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._end = time.monotonic() + seconds
        self._thread = threading.Thread(target=self._run, name="proplet-pull-watch", daemon=True)
        self._thread.start()

    def remaining(self) -> float:
        """Seconds left, never less than a tick."""
        return max(self._end - time.monotonic(), _TICK_S)

    def check(self) -> None:
        """Go on, or stop.

        Raises:
            PullCancelled: the caller said so.
            PullTimeout: the total limit is reached.
        """
        self._look()
        if self._error is PullCancelled:
            raise PullCancelled("the pull was cancelled")
        if self._error is PullTimeout:
            raise PullTimeout(
                f"the pull took longer than its limit of {self._seconds:g} s: try again or raise the limit"
            )

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than the pull may go on.

        Raises:
            PullCancelled, PullTimeout: as for ``check``.
        """
        self._halted.wait(seconds)
        self.check()

    def adopt(self, connection: socket.socket) -> None:
        """Shut this connection down too when the time comes. A duplicate is kept: TLS takes over the original."""
        with self._lock:
            self._sockets.append(socket.socket(fileno=os.dup(connection.fileno())))
            # A transfer that breaks again and again makes many; requests keeps no more than a few of them in use.
            for old in self._sockets[:-_MOST_SOCKETS]:
                old.close()
            del self._sockets[:-_MOST_SOCKETS]
        if self._halted.is_set():
            self._shut()

    def close(self) -> None:
        """End the thread and let go of the connections."""
        self._over.set()
        self._thread.join()
        with self._lock:
            for connection in self._sockets:
                connection.close()
            self._sockets.clear()

    def _run(self) -> None:
        while not self._over.wait(_TICK_S) and not self._halted.is_set():
            self._look()

    def _look(self) -> None:
        if self._error is None and (self._cancelled() or time.monotonic() >= self._end):
            self._error = PullTimeout if time.monotonic() >= self._end else PullCancelled
            self._halted.set()
            self._shut()

    def _shut(self) -> None:
        with self._lock:
            for connection in self._sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
