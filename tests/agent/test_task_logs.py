"""Bytes to lines, whatever the cuts; and no more of them than is bearable."""

import itertools
import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.events import Outcome
from proplet.agent.log_feed import LogFeed, LogSettings
from proplet.agent.ports import Output
from proplet.agent.task_logs import LINE_BYTES, Bucket, Cutter, Gate, Line, LogLimits, RunLog, plain
from proplet.agent.wire import LogLines, Reason

KIB = 1024
TEXTS = st.lists(
    st.sampled_from(
        [b"a", b"\n", b"\r\n", b"\r", "\u20ac".encode(), "\U0001f600".encode(), b"\xff", b"\x80\x80", b"x" * 5000]
        + [b"y" * n for n in (LINE_BYTES - 1, LINE_BYTES, LINE_BYTES + 1)]
    )
    | st.binary(max_size=8),
    max_size=12,
).map(b"".join)


def chunks(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for begin, end in itertools.pairwise(places):
        yield data[begin:end]


def lines_of(parts: Iterator[bytes] | Sequence[bytes]) -> list[bytes]:
    cutter = Cutter()
    return [line for part in parts for line in cutter.feed(part)] + cutter.end()


@given(TEXTS, st.lists(st.integers(0, 60_000), max_size=12))
def test_however_output_is_cut_the_lines_are_the_same(data: bytes, cuts: list[int]) -> None:
    whole = lines_of([data])
    assert lines_of(chunks(data, cuts)) == whole
    assert all(len(line) <= LINE_BYTES and b"\n" not in line for line in whole)
    assert b"".join(whole).replace(b"\r", b"") == data.replace(b"\n", b"").replace(b"\r", b"")


@given(TEXTS.filter(lambda data: len(data) < 300))
def test_however_output_is_cut_even_byte_by_byte(data: bytes) -> None:
    assert lines_of([data[at : at + 1] for at in range(len(data))]) == lines_of([data])


@given(st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=20)))
def test_lines_of_text_come_out_as_they_went_in(lines: list[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    assert [line.decode() for line in lines_of([data])] == lines


@given(st.integers(0, 5))
def test_a_long_line_is_not_cut_within_a_character(before: int) -> None:
    text = "x" * before + "\U0001f600" * 10_000
    pieces = lines_of([text.encode()])
    assert len(pieces) == 3
    assert "".join(piece.decode() for piece in pieces) == text


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 40_000)), max_size=60))
def test_never_more_passes_than_the_rate_and_the_burst_allow(printed: list[tuple[float, int]]) -> None:
    limits, now, passed, lost = LogLimits(1000, 5000), 0.0, 0, 0
    gate = Gate(limits, now)
    for wait_s, size in printed:
        now += wait_s
        gate.note(now)
        if gate.passes(size, now):
            passed += max(size, 64)
        else:
            gate.lose(1, size)
            lost += 1
        assert passed <= 5000 + 1000 * now + 1
    assert gate.closed or gate.note(now) is None


def test_a_bucket_is_full_after_a_quiet_time_and_a_clock_that_stands_still_fills_nothing() -> None:
    bucket = Bucket(LogLimits(10, 100), 5.0)
    bucket.spend(100)
    assert [bucket.level(now) for now in (5.0, 6.0, 6.0, 4.0, 1000.0)] == [0, 10, 10, 10, 100]


def test_what_is_left_out_is_counted_and_said_once_lines_pass_again() -> None:
    log = RunLog(Gate(LogLimits(1024, 2048), 0.0))
    block = b"".join(b"%063d\n" % n for n in range(100))
    assert len(list(log.hear("stdout", block, 0.0))) == 32
    assert list(log.hear("stdout", b"still too soon\n", 0.5)) == []
    assert list(log.hear("stdout", b"", 0.9, (1000, 64_000))) == []
    said = list(log.hear("stdout", b"again\n", 1.0))
    assert said == [
        Line("stderr", "[proplet: 1069 lines (67 KiB) dropped: more than 1 KiB/s]"),
        Line("stdout", "again"),
    ]


def test_what_was_left_out_at_the_end_is_said_at_the_end() -> None:
    log = RunLog(Gate(LogLimits(64, 64), 0.0))
    assert [line.text for line in log.hear("stderr", b"a\nb\nc", 0.0)] == ["a"]
    assert [line.text for line in log.end(0.0)] == ["[proplet: 2 lines (4 bytes) dropped: more than 64 bytes/s]"]


def test_after_a_gap_a_line_begins_anew() -> None:
    log = RunLog(Gate(LogLimits(), 0.0))
    assert [line.text for line in log.hear("stdout", b"whole\nhal", 0.0, (1, 5))] == ["whole", "hal"]
    assert [line.text for line in log.hear("stdout", b"f\nnext\n", 100.0)][1:] == ["f", "next"]


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("as\tit is \u20ac", "as\tit is \u20ac"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x\x1b]8;;u\x1b\\y", "xy"),
        ("10%\r20%", "10%\\r20%"),
        ("\x1b[31", "\\x1b[31"),
        ("\x00\u202e", "\\x00\\u202e"),
    ],
)
def test_a_line_cannot_steer_a_terminal_or_a_log(printed: str, shown: str) -> None:
    assert plain(printed) == shown


# --- the feed ----------------------------------------------------------------------------------------------------


class Manager:
    """Takes what is published, while it is connected."""

    def __init__(self) -> None:
        self.connected = True
        self.taken: list[LogLines] = []
        self.news = anyio.Event()

    async def tell(self, lines: LogLines) -> bool:
        await anyio.lowlevel.checkpoint()
        if self.connected:
            self.taken.append(lines)
        self.news.set()
        self.news = anyio.Event()
        return self.connected

    def texts(self, task_id: str = "t") -> list[str]:
        return [line for message in self.taken if message.task_id == task_id for line in message.lines]

    async def until(self, count: int, task_id: str = "t") -> list[str]:
        with anyio.fail_after(10):
            while len(self.texts(task_id)) < count:
                await self.news.wait()
        return self.texts(task_id)


@pytest.mark.anyio
async def test_lines_of_a_run_are_published_in_order_and_logged_with_their_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "proplet.task")
    feed, manager = LogFeed(LogSettings(), "pi", wall=lambda: 1.7e9), Manager()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.serve, manager, manager.tell)
        speaker = feed.voice("t", 3, wanted=True).run()
        speaker.hear(Output("stdout", b"one\ntw"))
        speaker.hear(Output("stderr", b"\x1b[31moops\x1b[0m\n"))
        speaker.hear(Output("stdout", b"o\nthree"))
        speaker.end(Outcome(Reason.OK, stdout=b"one\ntwo\nthree"))
        feed.voice("unwanted", 1, wanted=False).run().end(Outcome(Reason.OK, stdout=b"x"))
        assert await manager.until(4) == ["one", "\x1b[31moops\x1b[0m", "two", "three"]
        tasks.cancel_scope.cancel()
    assert {(m.proplet_id, m.attempt, m.at) for m in manager.taken} == {("pi", 3, 1.7e9)}
    assert [m.stream for m in manager.taken] == ["stdout", "stderr", "stdout"]
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [
        "task t stdout: one", "task t stderr: oops", "task t stdout: two", "task t stdout: three",
        "task unwanted stdout: x",
    ]  # fmt: skip


@pytest.mark.anyio
async def test_while_the_broker_is_away_the_last_lines_wait_and_the_largest_heap_makes_room() -> None:
    feed, manager = LogFeed(LogSettings(to_journal=False, queue_bytes=100 * KIB), "pi"), Manager()
    manager.connected = False
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.serve, manager, manager.tell)
        quiet = feed.voice("quiet", 1, wanted=True).run()
        quiet.hear(Output("stdout", b"a word\n"))
        loud = feed.voice("t", 1, wanted=True).run()
        for n in range(4000):
            loud.hear(Output("stdout", b"%05d\n" % n))
        manager.connected = True
        assert await manager.until(1, "quiet") == ["a word"]
        with anyio.fail_after(10):
            while manager.texts()[-1:] != ["03999"]:
                await manager.news.wait()
        tasks.cancel_scope.cancel()
    note, *kept = manager.texts()
    assert note == f"[proplet: {4000 - len(kept)} lines dropped: the broker was not there to take them]"
    assert kept == [f"{n:05d}" for n in range(4000 - len(kept), 4000)]
    assert len(kept) < 1000


@pytest.mark.anyio
@pytest.mark.parametrize("taken", [True, False])
async def test_a_task_may_print_while_its_lines_are_on_their_way(taken: bool) -> None:
    feed, manager = LogFeed(LogSettings(to_journal=False), "pi"), Manager()
    speaker = feed.voice("t", 1, wanted=True).run()
    printed = iter([b"second\n", b"third\n"])

    async def tell(lines: LogLines) -> bool:
        meanwhile = next(printed, b"")
        speaker.hear(Output("stderr", meanwhile))
        return await manager.tell(lines) if taken or not meanwhile else False

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.serve, manager, tell)
        speaker.hear(Output("stdout", b"first\n"))
        assert await manager.until(3) == ["first", "second", "third"]
        speaker.hear(Output("stdout", b"last\n"))
        assert (await manager.until(4))[-1] == "last", "it is still published"
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_what_was_left_out_is_said_though_nothing_more_is_printed() -> None:
    limits = LogLimits(64 * KIB, 64 * KIB)
    feed, manager = LogFeed(LogSettings(to_journal=False, limits=limits), "pi"), Manager()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.serve, manager, manager.tell)
        speaker = feed.voice("t", 1, wanted=True).run()
        speaker.hear(Output("stdout", b"x" * 63 + b"\n", (7, 500)))
        assert await manager.until(2) == ["x" * 63, "[proplet: 7 lines (500 bytes) dropped: more than 64 KiB/s]"]
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_runs_of_one_task_share_what_it_may_print() -> None:
    limits = LogLimits(1024, 64 * KIB)
    feed, manager = LogFeed(LogSettings(to_journal=False, limits=limits), "pi"), Manager()
    voice = feed.voice("t", 1, wanted=True, shared=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.serve, manager, manager.tell)
        for _ in range(5000):
            voice.run().end(Outcome(Reason.OK, stdout=b"called\n"))
        assert len(await manager.until(1024)) <= 1100
        tasks.cancel_scope.cancel()


def test_the_log_takes_a_bearable_number_of_lines_and_says_what_it_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "proplet.task")
    voice = LogFeed(LogSettings(), "pi").voice("t", 1, wanted=False)
    voice.run().end(Outcome(Reason.OK, stdout=b"x\n" * 3000))
    passed = len(caplog.records)
    assert 500 <= passed < 600
    deadline = time.monotonic() + 10
    while len(caplog.records) < passed + 2 and time.monotonic() < deadline:
        threading.Event().wait(0.05)
        voice.run().end(Outcome(Reason.OK, stdout=b"y\n"))
    warning, line = caplog.messages[passed:]
    assert re.fullmatch(r"2[45]\d\d lines of tasks' output were left out of this log: there were too many", warning)
    assert line == "task t stdout: y"
