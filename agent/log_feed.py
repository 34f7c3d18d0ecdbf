"""Where the output of tasks goes on the device: into the program's own log, and to the managers that want it.

Place in the flow: the shell and the invocations take a `Voice` per task and a `Speaker` per run; the runtime tells the
speaker what is printed live, its outcome has the output of short runs. Lines go to the log at once, and into a queue
per task that `LogFeed.serve` publishes. All of it is telemetry: bounded, what is too much is left out and counted,
nothing here ever holds up a task. Used from the event loop only.
"""

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import anyio

from proplet.agent.events import Outcome
from proplet.agent.ports import Link, Notice, Output
from proplet.agent.task_logs import Bucket, Gate, Line, LogLimits, RunLog, plain
from proplet.agent.wire import LogLines

log = logging.getLogger(__name__)
task_log = logging.getLogger("proplet.task")

_MESSAGE_BYTES: Final = 64 * 1024
_LINE_COST: Final = 100  # what a line costs here beyond its text
_PACE_S: Final = 0.05  # between two rounds of publishing: what is printed meanwhile shares messages
_AGAIN_S: Final = 1.0
_JOURNAL_LINES: Final = LogLimits(200, 500)  # journald takes 10,000 lines in 30 s from a service; ours are among them
_AWAY: Final = "the broker was not there to take them"


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Where output goes, and how much of one task; `queue_bytes` is what waits for the broker, of all tasks."""

    to_journal: bool = True
    limits: LogLimits = field(default_factory=LogLimits)
    queue_bytes: int = 1024 * 1024


@dataclass(slots=True)
class _Batch:
    """Lines that go into one message."""

    stream: str
    at: float  # epoch seconds of the first
    lines: list[str] = field(default_factory=list)
    size: int = 0


class Voice:
    """One attempt at a task, on whose behalf one run or many speak."""

    def __init__(self, feed: "LogFeed", task_id: str, attempt: int | None, *, wanted: bool, shared: bool) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self.wanted = wanted
        self.shared = shared
        self.gate = Gate(feed.settings.limits, time.monotonic())
        self.queue: deque[_Batch] = deque()
        self.size = 0
        self.left_out = 0
        self._feed = feed

    def run(self) -> "Speaker":
        """Return what listens to one run."""
        return Speaker(self._feed, self)


class Speaker:
    """Hears one run; `hear` is what `Runtime.run` tells."""

    def __init__(self, feed: "LogFeed", voice: Voice) -> None:
        self._feed = feed
        self._voice = voice
        self._log: RunLog | None = None

    def hear(self, notice: Notice) -> None:
        """It has printed something."""
        if isinstance(notice, Output):
            self._take(notice.stream, notice.data, notice.lost)

    def end(self, outcome: Outcome) -> None:
        """It has ended. Of a run that was told nothing of, the outcome has all it printed."""
        if self._log is None:
            for stream, data in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
                if data:
                    most = self._feed.settings.limits.burst_bytes
                    lost = (data.count(b"\n", most), len(data) - most) if len(data) > most else (0, 0)
                    self._take(stream, data[:most], lost)
        if self._log is not None:
            self._feed.say(self._voice, self._log.end(time.monotonic(), final=not self._voice.shared))

    def _take(self, stream: str, data: bytes, lost: tuple[int, int]) -> None:
        if self._log is None:
            self._log = RunLog(self._voice.gate)
        self._feed.say(self._voice, self._log.hear(stream, data, time.monotonic(), lost))


class LogFeed:
    """All tasks' output of one node. `proplet_id` is who says it."""

    def __init__(self, settings: LogSettings, proplet_id: str, wall: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self._proplet_id = proplet_id
        self._wall = wall
        self._waiting: deque[Voice] = deque()  # those with something in their queue
        self._closed: set[Voice] = set()  # those of which lines were left out and not yet told of
        self._size = 0
        self._more = anyio.Event()
        self._journal = Bucket(_JOURNAL_LINES, time.monotonic())
        self._unlogged = 0

    def voice(self, task_id: str, attempt: int | None, *, wanted: bool, shared: bool = False) -> Voice:
        """Return a task's voice. `wanted`: its manager wants the lines. `shared`: many runs speak through it."""
        return Voice(self, task_id, attempt, wanted=wanted, shared=shared)

    def say(self, voice: Voice, lines: Iterable[Line]) -> None:
        """Log lines, and queue them for the manager."""
        logged = self.settings.to_journal and task_log.isEnabledFor(logging.INFO)
        for line in lines:
            if logged:
                self._write(voice, line)
            if voice.wanted:
                self._put(voice, line)
        if voice.gate.closed and voice not in self._closed:
            self._closed.add(voice)
            self._more.set()

    async def serve(self, link: Link, tell: Callable[[LogLines], Awaitable[bool]]) -> None:
        """Publish until cancelled; `tell` returns whether a message was taken."""
        while True:
            with anyio.move_on_after(_AGAIN_S if self._closed else float("inf")):
                await self._more.wait()
            self._more = anyio.Event()
            self._reopen()
            for _ in range(len(self._waiting)):
                if not link.connected:
                    break
                await self._publish(self._waiting.popleft(), tell)
            await anyio.sleep(_PACE_S if link.connected else _AGAIN_S)
            if self._waiting:
                self._more.set()

    def _reopen(self) -> None:
        """Tell of lines left out where nothing more was printed that would have."""
        now = time.monotonic()
        for voice in list(self._closed):
            if voice.gate.closed and (note := voice.gate.note(now)):
                self.say(voice, [Line("stderr", note)])
            if not voice.gate.closed:
                self._closed.discard(voice)

    async def _publish(self, voice: Voice, tell: Callable[[LogLines], Awaitable[bool]]) -> None:
        """Send a voice's oldest lines; if that fails, they stay the oldest."""
        batch = voice.queue.popleft()
        self._shrink(voice, batch)
        lines, left_out = batch.lines, voice.left_out
        if left_out:
            lines = [f"[proplet: {left_out} lines dropped: {_AWAY}]", *lines]
        message = LogLines(self._proplet_id, voice.task_id, voice.attempt, batch.stream, tuple(lines), batch.at)
        if await tell(message):
            voice.left_out -= left_out
        else:
            voice.queue.appendleft(batch)
            self._grow(voice, batch.size)
        # What it printed meanwhile has queued it already.
        if voice.queue and voice not in self._waiting:
            self._waiting.append(voice)

    def _put(self, voice: Voice, line: Line) -> None:
        size = len(line.text) + _LINE_COST
        last = voice.queue[-1] if voice.queue else None
        if last is None or last.stream != line.stream or last.size + size > _MESSAGE_BYTES:
            if last is None:
                self._waiting.append(voice)
            last = _Batch(line.stream, self._wall())
            voice.queue.append(last)
        last.lines.append(line.text)
        last.size += size
        self._grow(voice, size)
        self._more.set()

    def _grow(self, voice: Voice, size: int) -> None:
        """Count what waits; the task of which the most waits makes room."""
        voice.size += size
        self._size += size
        while self._size > self.settings.queue_bytes:
            largest = max(self._waiting, key=lambda each: each.size, default=voice)
            oldest = largest.queue.popleft()
            self._shrink(largest, oldest)
            largest.left_out += len(oldest.lines)
            if not largest.queue and largest in self._waiting:
                self._waiting.remove(largest)

    def _shrink(self, voice: Voice, batch: _Batch) -> None:
        voice.size -= batch.size
        self._size -= batch.size

    def _write(self, voice: Voice, line: Line) -> None:
        # Once it was too much, a second's worth has to pass first: what is said of it must not be a flood, too.
        if self._journal.level(time.monotonic()) < (_JOURNAL_LINES.rate_bytes if self._unlogged else 1):
            self._unlogged += 1
            return
        if self._unlogged:
            log.warning("%d lines of tasks' output were left out of this log: there were too many", self._unlogged)
            self._unlogged = 0
        self._journal.spend(1)
        about = {"PROPLET_TASK": voice.task_id, "PROPLET_ATTEMPT": voice.attempt or 1, "PROPLET_STREAM": line.stream}
        task_log.info("task %s %s: %s", plain(voice.task_id), line.stream, plain(line.text), extra={"journal": about})
