"""What guests print: kept for the outcome within a limit, and told live once a run is no longer young.

Place in the flow: engine threads write into a run's two `Capture`s; the worker's one `Teller` sends what is new to the
agent, at most every `PERIOD_S`. A run that ends before it is `YOUNG_S` old has told nothing: its outcome has all of it.
Of an older one everything is told, also what is left at its end, before its outcome. No thread wakes when nobody
printed, and what nobody takes in time is counted, not kept.

Of a job the first bytes are kept, for they are its result; of a daemon the last, so that it may print for years.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from proplet.agent.task_logs import DAEMON_BYTES, Bucket, LogLimits

PERIOD_S: Final = 0.2
YOUNG_S: Final = 0.25
_NOTHING: Final = bytearray()  # never written to


class Capture:
    """One output stream of a guest, kept up to `limit` bytes: the first, or the `last`. Called on engine threads."""

    __slots__ = ("_burst", "_kept", "_last", "_limit", "_live", "_lock", "_lost_bytes", "_lost_lines", "_noted",
                 "_pending", "_size", "_talk", "_told")  # fmt: skip

    def __init__(self, limit: int, *, last: bool = False, talk: "Talk | None" = None, burst: int = 0) -> None:
        self._limit = limit
        self._last = last
        self._talk = talk  # None: nobody wants to know
        self._burst = burst
        self._kept = bytearray()
        self._size = 0
        self._noted = talk is None
        self._live = last  # what is new is held apart; of a job that begins when it is first taken
        self._pending = bytearray() if last else _NOTHING
        self._lost_lines = self._lost_bytes = 0
        self._told = False
        self._lock = threading.Lock()

    @property
    def dropped(self) -> int:
        """How many bytes were neither kept nor told."""
        return 0 if self._last and self._told else self._size - min(self._limit, len(self._kept))

    def write(self, data: bytes) -> int:
        """Take `data`; the guest is told that all of it was written."""
        with self._lock:
            self._size += len(data)
            if self._last:
                self._keep_last(data)
            else:
                room = self._limit - len(self._kept)
                self._kept += data[:room]
                if not self._live and room < len(data):
                    self._lose(data[room:])
            if self._live:
                room = self._burst - len(self._pending)
                self._pending += data[:room]
                self._lose(data[room:])
        if not self._noted:
            self._noted = True
            assert self._talk is not None
            self._talk.note()
        return len(data)

    def take(self, allowed: int) -> tuple[bytes, int, int]:
        """Return what is new, at most `allowed` bytes, and the lines and bytes after it that were let go."""
        with self._lock:
            self._noted = self._talk is None
            self._told = True
            fresh = self._pending if self._live else self._kept[:]
            self._live, self._pending = True, bytearray()
            lines, size = self._lost_lines + fresh.count(b"\n", allowed), self._lost_bytes + len(fresh[allowed:])
            self._lost_lines = self._lost_bytes = 0
            return bytes(fresh[:allowed]), lines, size

    def value(self) -> bytes:
        """What was kept."""
        return bytes(self._kept[-self._limit :] if self._last and self._limit else self._kept)

    def _keep_last(self, data: bytes) -> None:
        if self._limit:
            self._kept += data[-self._limit :]
            if len(self._kept) > 2 * self._limit:
                del self._kept[: -self._limit]

    def _lose(self, data: bytes) -> None:
        if data:
            self._lost_lines += data.count(b"\n")
            self._lost_bytes += len(data)


class Talk:
    """One run's output."""

    __slots__ = ("_teller", "began", "bucket", "ended", "number", "stderr", "stdout", "told")

    def __init__(self, teller: "Teller", number: int, limit: int, *, daemon: bool) -> None:
        self.number = number
        self.began = time.monotonic()
        self.told = False
        self.ended = False
        self.bucket: Bucket | None = None
        self._teller = teller
        kept = min(limit, DAEMON_BYTES) if daemon else limit
        burst = teller.limits.burst_bytes
        self.stdout = Capture(kept, last=daemon, talk=self, burst=burst)
        self.stderr = Capture(kept, last=daemon, talk=self, burst=burst)

    def end(self) -> None:
        """The guest has returned: tell the rest, if anything was told. Before its outcome is reported."""
        self._teller.end(self)

    def note(self) -> None:
        """There is something new."""
        self._teller.note(self)


class Teller:
    """Sends what live guests print. `tell` gets [number, stream, data, lines lost, bytes lost] and must not block long.

    `limits` are half of what one run may tell; the agent, which makes lines of it, is the one that is exact.
    """

    def __init__(self, limits: LogLimits, tell: Callable[[list[Any]], None], congested: Callable[[], bool]) -> None:
        self.limits = LogLimits(2 * limits.rate_bytes, limits.burst_bytes)
        self._tell = tell
        self._congested = congested
        self._noted: deque[Talk] = deque()
        self._awake = False
        self._signal: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, name="teller", daemon=True).start()

    def listen(self, number: int, limit: int, *, daemon: bool) -> Talk:
        """Return where a run's output goes."""
        return Talk(self, number, limit, daemon=daemon)

    def note(self, talk: Talk) -> None:
        """There is something new; on an engine thread."""
        self._noted.append(talk)
        if not self._awake:
            self._awake = True
            self._signal.put(None)

    def end(self, talk: Talk) -> None:
        """See `Talk.end`."""
        with self._lock:
            talk.ended = True
            if talk.told:
                self._tell_new(talk, time.monotonic())

    def _serve(self) -> None:
        pause = threading.Event()
        while True:
            self._signal.get()
            while True:
                pause.wait(PERIOD_S)
                if not self._congested():  # the agent is behind: what it cannot take is let go
                    self._flush()
                if not self._noted:
                    self._awake = False  # who notes something from now on wakes this again
                    if not self._noted:
                        break
                    self._awake = True

    def _flush(self) -> None:
        now = time.monotonic()
        for _ in range(len(self._noted)):
            talk = self._noted.popleft()
            if talk.ended:
                continue
            with self._lock:
                if talk.ended:  # meanwhile
                    continue
                if now - talk.began < YOUNG_S:
                    self._noted.append(talk)
                else:
                    self._tell_new(talk, now)

    def _tell_new(self, talk: Talk, now: float) -> None:
        talk.told = True
        if talk.bucket is None:
            talk.bucket = Bucket(self.limits, now)
        for name, capture in (("stdout", talk.stdout), ("stderr", talk.stderr)):
            data, lines, size = capture.take(talk.bucket.level(now))
            talk.bucket.spend(len(data))
            if data or size:
                self._tell([talk.number, name, data, lines, size])
