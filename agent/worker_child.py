"""A child process of the agent: started with a clean environment and a private channel, never outliving us.

Place in the flow: `runtime_link` starts workers with it, `fetch` builders. The child dies with its parent (the kernel's
parent-death signal, and end of file on the channel), gets no ``PROPLET_*`` variable, and its standard streams are not
ours. It is started from the event loop's own thread on purpose: the parent-death signal is tied to the *thread* that
forked, and pool threads end when idle.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import anyio

from proplet.agent.worker_frames import RECEIVE_BYTES, Decoder, FrameError, encode

# What a child may know of our environment; nothing of ours is a secret under these names.
_KEPT: Final = frozenset(
    "PATH LANG LC_ALL LC_CTYPE TZ HOME TMPDIR PYTHONPATH PYTHONHOME VIRTUAL_ENV LD_LIBRARY_PATH".split()
)
_TAIL_BYTES: Final = 4096


class ChildGoneError(Exception):
    """The child has ended or its channel broke; `exit_text` of the child says how."""


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the few variables a child gets, plus `extra`."""
    return {name: value for name, value in os.environ.items() if name in _KEPT} | dict(extra or {})


class Child:
    """One child process and the agent's end of its channel. Used from the event loop only."""

    def __init__(
        self, module: str, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        """Start ``python -m module FD PARENT arguments``.

        Raises:
            OSError: no process or no socket can be had.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._errors = os.fdopen(os.memfd_create(module), "wb+", buffering=0)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                env=child_environment(environment),
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            self._socket.close()
            self._errors.close()
            raise
        finally:
            theirs.close()
        self._socket.setblocking(False)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._closed = False
        self.killed_by_us = False

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """True once the process has ended."""
        return self._process.poll() is not None

    def send(self, messages: Iterable[Any]) -> bool:
        """Send now what the channel takes; False means that `flush` has to send the rest.

        Raises:
            ChildGoneError: the channel is broken.
        """
        data = encode(messages)
        if self._unsent:
            self._unsent += data
            return False
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ChildGoneError(str(error)) from error
        if sent == len(data):
            return True
        self._unsent += memoryview(data)[sent:]
        return False

    async def flush(self) -> None:
        """Send what `send` could not. Only one caller at a time.

        Raises:
            ChildGoneError: the channel is broken.
        """
        while self._unsent:
            try:
                await anyio.wait_writable(self._socket)
                del self._unsent[: self._socket.send(memoryview(self._unsent).tobytes()[:RECEIVE_BYTES])]
            except BlockingIOError:
                continue
            except (OSError, anyio.ClosedResourceError) as error:
                raise ChildGoneError(str(error)) from error

    async def receive(self) -> list[Any]:
        """Wait for messages and return all that have arrived.

        Raises:
            ChildGoneError: the child closed its end, ended, or talks nonsense.
        """
        while True:
            try:
                data = self._socket.recv(RECEIVE_BYTES)
                if not data:
                    raise ChildGoneError("end of file")
                if messages := list(self._decoder.feed(data)):
                    return messages
            except BlockingIOError:
                try:
                    await anyio.wait_readable(self._socket)
                except anyio.ClosedResourceError as error:
                    raise ChildGoneError("closed") from error
            except (OSError, FrameError) as error:
                raise ChildGoneError(str(error)) from error

    def kill(self) -> None:
        """Send SIGKILL (it ends a stopped process, too). Harmless when the child has ended."""
        self.killed_by_us = True
        if self._process.poll() is None:
            self._process.kill()

    async def wait(self) -> int:
        """Wait for the end and return the exit code, negative for a signal."""
        while self._process.poll() is None:
            await anyio.wait_readable(self._pidfd)
        return self._process.returncode

    def exit_text(self) -> str:
        """How the child ended, for people: ``killed by SIGSEGV`` or ``exit status 3: last line of its errors``."""
        code = self._process.poll()
        if code is None:
            return "still running"
        if code < 0:
            return f"killed by {_signal_name(-code)}"
        tail = self.last_errors().strip().rsplit("\n", 1)[-1]
        return f"exit status {code}{': ' if tail else ''}{tail}"

    def last_errors(self) -> str:
        """The last bytes the child wrote to its standard error."""
        if self._errors.closed:
            return ""
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace")

    async def aclose(self) -> None:
        """Close the channel, give the child half a second to go by itself, then kill it. Leaves no zombie."""
        if self._closed:
            return
        self._closed = True
        with anyio.CancelScope(shield=True):
            anyio.notify_closing(self._socket)
            self._socket.close()
            with anyio.move_on_after(0 if self.killed_by_us else 0.5):
                await self.wait()
            self.kill()
            await self.wait()
            os.close(self._pidfd)
            self._errors.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
