"""Output of guests as lines: bytes cut anywhere in, whole lines out, and no more of them than is bearable. Pure.

Place in the flow: `host_output` bounds in the worker what crosses to the agent; `log_feed` makes lines of it there.
A line ends at its newline, at `LINE_BYTES`, or with the output. Where a task prints too much, lines are left out until
a second's worth may pass again; then one line says how many. Nothing here has a clock: moments are monotonic seconds.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

LINE_BYTES: Final = 16 * 1024
DAEMON_BYTES: Final = 64 * 1024  # kept of each stream of a daemon, for its outcome: the last
STREAMS: Final = ("stdout", "stderr")
_KIB: Final = 1024
_LEAST: Final = 64  # what a short line counts as: every line costs, here and wherever it goes
# ECMA-48: control sequences (colours, the cursor), operating system commands (titles, links), and two-byte escapes.
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")


@dataclass(frozen=True, slots=True)
class LogLimits:
    """What one task may print: bytes a second, and bytes at once after a quiet time (at least one line's)."""

    rate_bytes: int = 64 * _KIB
    burst_bytes: int = 256 * _KIB


class Bucket:
    """How many bytes may pass now: `rate` more with every second, never above `burst`."""

    def __init__(self, limits: LogLimits, now: float) -> None:
        self._limits = limits
        self._level = float(limits.burst_bytes)
        self._at = now

    def level(self, now: float) -> int:
        """Return the bytes that may pass at a moment."""
        limits = self._limits
        self._level = min(float(limits.burst_bytes), self._level + max(0.0, now - self._at) * limits.rate_bytes)
        self._at = now
        return int(self._level)

    def spend(self, size: int) -> None:
        """That many passed."""
        self._level -= size


class Cutter:
    """One stream's bytes on their way to lines; holds at most one unfinished line. However cut: the same lines."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._continues = False  # what is held goes on with a line of which a part was given out

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, without their newlines."""
        held = self._held
        held += data
        if len(held) <= LINE_BYTES and b"\n" not in data:
            return []
        *whole, rest = bytes(held).split(b"\n")
        lines: list[bytes] = []
        for line in whole:
            last = self._without_long_parts(line, lines).removesuffix(b"\r")
            if last or not self._continues:
                lines.append(last)
            self._continues = False
        held[:] = self._without_long_parts(rest, lines)
        return lines

    def end(self) -> list[bytes]:
        """Return the unfinished line, if there is one: nothing more will come, or something is missing here."""
        last = bytes(self._held).removesuffix(b"\r")
        self._held.clear()
        self._continues = False
        return [last] if last else []

    def _without_long_parts(self, line: bytes, lines: list[bytes]) -> bytes:
        while len(line) > LINE_BYTES:
            at = LINE_BYTES
            while at > LINE_BYTES - 4 and line[at] & 0xC0 == 0x80:  # not within a character
                at -= 1
            lines.append(line[:at])
            line = line[at:]
            self._continues = True
        return line


class Gate:
    """What one task may say, and the account of what was left out. Shared by all its runs."""

    def __init__(self, limits: LogLimits, now: float) -> None:
        self._limits = limits
        self._bucket = Bucket(limits, now)
        self._reopens_at = min(limits.rate_bytes, limits.burst_bytes)
        self._lines = 0
        self._bytes = 0

    @property
    def closed(self) -> bool:
        """Whether lines were left out of which nothing was said yet."""
        return self._bytes > 0

    def lose(self, lines: int, size: int) -> None:
        """Lines are left out, here or before they came here; from now on all are, until `note` has said so."""
        self._lines += max(lines, 1)
        self._bytes += size

    def passes(self, size: int, now: float) -> bool:
        """Return whether a line of that size may pass; then it is counted as passed."""
        size = max(size, _LEAST)
        if self.closed or self._bucket.level(now) < size:
            return False
        self._bucket.spend(size)
        return True

    def note(self, now: float, *, final: bool = False) -> str | None:
        """Return what there is to say of what was left out, once lines may pass again (or it is the end)."""
        if not self.closed or not (final or self._bucket.level(now) >= self._reopens_at):
            return None
        count, size = self._lines, self._bytes
        self._lines = self._bytes = 0
        plural = "line" if count == 1 else "lines"
        return f"[proplet: {count} {plural} ({_size(size)}) dropped: more than {_size(self._limits.rate_bytes)}/s]"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output."""

    stream: str
    text: str


class RunLog:
    """One run's output as lines; `gate` is its task's."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._cutters = {name: Cutter() for name in STREAMS}

    def hear(self, stream: str, data: bytes, now: float, lost: tuple[int, int] = (0, 0)) -> Iterator[Line]:
        """Yield what can be told. `lost` lines and bytes came after `data` and never got here."""
        cutter = self._cutters.get(stream)
        if cutter is None:
            return
        yield from self._let_pass(stream, cutter.feed(data), now)
        if lost[1]:
            yield from self._let_pass(stream, cutter.end(), now)
            self.gate.lose(*lost)

    def end(self, now: float, *, final: bool = True) -> Iterator[Line]:
        """Yield what is left: nothing more will come, or nothing at all of the task if it is `final`."""
        for stream, cutter in self._cutters.items():
            yield from self._let_pass(stream, cutter.end(), now)
        yield from self.reopened(now, final=final)

    def reopened(self, now: float, *, final: bool = False) -> Iterator[Line]:
        """Yield what there is to say of lines left out, if it is time."""
        if note := self.gate.note(now, final=final):
            yield Line("stderr", note)

    def _let_pass(self, stream: str, lines: list[bytes], now: float) -> Iterator[Line]:
        yield from self.reopened(now)
        for index, line in enumerate(lines):
            if not self.gate.passes(len(line) + 1, now):
                left_out = lines[index:]
                self.gate.lose(len(left_out), sum(map(len, left_out)) + len(left_out))
                return
            yield Line(stream, line.decode("utf-8", "replace"))


def plain(text: str) -> str:
    """Return a guest's line as it may stand in a log or on a terminal: no colours, no control characters.

    Escape sequences are taken out, as journalctl does; every other control character is shown by its code.
    """
    if text.isprintable():
        return text
    text = without_escapes(text)
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def without_escapes(text: str) -> str:
    """Return text without colours and other escape sequences of terminals."""
    return _ESCAPES.sub("", text) if "\x1b" in text else text


def _size(size: int) -> str:
    if size < _KIB:
        return f"{size} bytes"
    return f"{size / _KIB:.0f} KiB" if size < 10 * _KIB * _KIB else f"{size / _KIB / _KIB:.0f} MiB"
