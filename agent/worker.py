"""The worker: a persistent child process that runs guests in threads (``python -m proplet.agent.worker FD PARENT``).

Place in the flow: `runtime` sends orders over the channel, `host` runs them, reports go back. The main thread only
reads, so that a stop or a ping is heard whatever the guests do. Threads are made as they are needed, with a stack large
enough for any guest, and stay. End of file on the channel ends the process at once, whoever still runs.
"""

import contextlib
import os
import queue
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from proplet.agent.worker_frames import RECEIVE_BYTES, Decoder, encode
from proplet.agent.worker_orders import (
    DONE,
    FAILED,
    LOAD,
    LOADED,
    OUTPUT,
    PING,
    PONG,
    READY,
    RUN,
    SAMPLE,
    SAMPLED,
    SETUP,
    STOP,
    Order,
    Setup,
)
from proplet.agent.worker_start import enter

_OOM_SCORE = 500


class Worker:
    """The channel, the threads, and what they share."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = 0
        self._lock = threading.Lock()
        self._outgoing: deque[Any] = deque()
        self._sending = threading.Lock()
        self._host: Any = None

    def serve(self) -> None:
        """Read and obey until the channel ends."""
        decoder = Decoder()
        while data := self._channel.recv(RECEIVE_BYTES):
            for kind, content in decoder.feed(data):
                self._obey(kind, content)

    def _obey(self, kind: int, content: Any) -> None:
        if kind == RUN:
            order = Order(*content)
            self._host.expect(order.number)
            self._submit(lambda: self._run(order))
        elif kind == STOP:
            self._host.stop(content)
        elif kind == PING:
            self._report(PONG, content)
        elif kind == SAMPLE:
            self._submit(lambda: self._report(SAMPLED, [content[0], self._host.sample()]))
        elif kind == LOAD:
            self._submit(lambda: self._load(*content))
        elif kind == SETUP:
            self._setup(Setup(*content))

    def _setup(self, setup: Setup) -> None:
        from proplet.agent import engines
        from proplet.agent.cache import CacheError, device_key

        if (refused := engines.refusal(setup.engine)) is not None:
            self._report(FAILED, f"the WebAssembly engine cannot be used here: {refused}")
            return
        try:
            from proplet.agent.host import Host
            from proplet.agent.host_engine import THREAD_STACK, Library
            from proplet.agent.host_output import Teller
            from proplet.agent.task_logs import LogLimits

            limits = LogLimits(setup.log_rate_bytes, setup.log_burst_bytes)
            teller = Teller(limits, lambda content: self._report(OUTPUT, content), lambda: bool(self._outgoing))
            self._host = Host(Library(device_key(Path(setup.key_dir)), setup.loaded_bytes, setup.engine), teller)
        except (ImportError, RuntimeError, OSError, CacheError) as error:
            self._report(FAILED, f"the WebAssembly engine cannot be used here: {error}")
            return
        threading.stack_size(THREAD_STACK)
        self._report(READY, os.getpid())

    def _submit(self, work: Callable[[], None]) -> None:
        with self._lock:
            spare = self._idle > 0
            if spare:
                self._idle -= 1
        if not spare:
            threading.Thread(target=self._work_on, daemon=True).start()
        self._work.put(work)

    def _work_on(self) -> None:
        while True:
            self._work.get()()
            with self._lock:
                self._idle += 1

    def _load(self, request: int, module: Any) -> None:
        path, metered, stack_bytes = module
        refusal = None
        try:
            refusal = self._host.load(path, metered=metered, stack_bytes=stack_bytes)
        except Exception:  # noqa: BLE001  the same
            traceback.print_exc()
        self._report(LOADED, [request, refusal])

    def _run(self, order: Order) -> None:
        try:
            report = list(self._host.run(order))
        except Exception:  # noqa: BLE001  a defect of ours must not cost the others their worker
            traceback.print_exc()
            report = [order.number, "internal", "", f"the worker failed: {sys.exception()!r}"]
        self._report(DONE, report)

    def _report(self, kind: int, content: Any) -> None:
        """Send; reports that threads finish meanwhile go out together with the next write."""
        self._outgoing.append([kind, content])
        while self._outgoing and self._sending.acquire(blocking=False):
            try:
                batch = []
                with contextlib.suppress(IndexError):
                    while True:
                        batch.append(self._outgoing.popleft())
                self._send(batch)
            finally:
                self._sending.release()

    def _send(self, batch: Iterable[Any]) -> None:
        try:
            self._channel.sendall(encode(batch))
        except OSError:
            os._exit(0)  # the agent is gone


def main() -> None:
    """Be the worker."""
    worker = Worker(enter(oom_score=_OOM_SCORE))
    try:
        worker.serve()
    finally:
        # No finalizers: guests may still be running, and closing what they use would crash.
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(0 if sys.exc_info()[0] is None else 1)


if __name__ == "__main__":
    main()
