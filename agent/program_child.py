"""The wasmtime program as a child process: started with nothing of ours, its output always read, its end always seen.

Like `worker_child.Child` it is started from the event loop's own thread: the parent-death signal, which
`program_start` arms, is tied to the thread that forked.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import anyio

from proplet.agent import program_start

_READ_BYTES: Final = 64 * 1024
# Of one stream in a second: a guest that prints faster waits, and the agent has time for others.
_STREAM_BYTES_PER_S: Final = 2 * 1024 * 1024
_OOM_SCORE: Final = 600
_STREAMS: Final = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the kernel keeps the program to: without `network` it opens no connection, and it writes below `writable`.

    Where the kernel cannot see to the latter the program is started all the same, unless it `protects` something.
    `directories` are arguments ``--dir=HOST::GUEST`` of the command, with HOST, which is opened without a link.
    """

    network: bool = False
    writable: tuple[str, ...] = ()
    protects: bool = False
    directories: tuple[tuple[str, str], ...] = ()


class ProgramChild:
    """One run of the program. Used from the event loop only."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], bounds: Bounds) -> None:
        """Start `command`.

        Raises:
            OSError: no process can be had.
        """
        setting = json.dumps({"parent": os.getpid(), "oom_score": _OOM_SCORE, **asdict(bounds)})
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(program_start.__file__)), setting, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._pipes = dict(zip(_STREAMS, (self._process.stdout, self._process.stderr), strict=True))
        for pipe in self._pipes.values():
            os.set_blocking(pipe.fileno(), False)
        self._pidfd = os.pidfd_open(self._process.pid)
        self.cpu_s = 0.0
        self.peak_bytes = 0

    @property
    def pid(self) -> int:
        """The process id; the program is the only process of its group."""
        return self._process.pid

    async def listen(self, hear: Callable[[str, bytes], None]) -> None:
        """Tell `hear` all output of both streams, until their end."""
        async with anyio.create_task_group() as tasks:
            for stream in _STREAMS:
                tasks.start_soon(self._drain, stream, hear)

    async def _drain(self, stream: str, hear: Callable[[str, bytes], None]) -> None:
        descriptor = self._pipes[stream].fileno()
        since, taken = time.monotonic(), 0
        while True:
            try:
                data = os.read(descriptor, _READ_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(descriptor)
                continue
            if not data:
                return
            hear(stream, data)
            taken += len(data)
            early_s = since + taken / _STREAM_BYTES_PER_S - time.monotonic()
            if early_s < -1:
                since, taken = time.monotonic(), 0
            await anyio.sleep(max(0.0, early_s))

    def send(self, number: signal.Signals) -> None:
        """Send a signal; harmless when the program has ended."""
        if self._process.returncode is None:
            signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> int:
        """Wait for the end and return the exit code, negative for a signal.

        `cpu_s` and `peak_bytes` then are what it used in all, its few milliseconds as `program_start` included.
        """
        if self._process.returncode is None:
            await anyio.wait_readable(self._pidfd)
            _, status, usage = os.wait4(self._process.pid, 0)  # noqa: ASYNC222  it has ended
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu_s, self.peak_bytes = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        return int(self._process.returncode)

    async def aclose(self) -> None:
        """Kill it if it still runs, and let go of all that it held. Leaves no zombie."""
        with anyio.CancelScope(shield=True):
            self.send(signal.SIGKILL)
            await self.wait()
            os.close(self._pidfd)
            for pipe in self._pipes.values():
                pipe.close()
