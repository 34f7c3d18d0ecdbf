"""The display of transfers: lines where nobody watches, bars on a terminal that leave nothing, silence if unwanted."""

import io
import threading

import pytest

from proplet.agent.bars import bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_transfer_is_two_lines_where_nobody_watches() -> None:
    stream = io.StringIO()
    with bars(quiet=False, stream=stream) as shown:
        shown.begin("pulling", "example.com/x:1")
        for done in (0, 1024, 2048):
            shown.tell(done, 2048)
        shown.end()
    assert stream.getvalue() == "pulling example.com/x:1\npulling example.com/x:1: 2 KiB\n"


def test_what_is_quick_or_unwanted_is_not_shown() -> None:
    for quiet, stream, delay in ((True, io.StringIO(), 0.0), (True, Terminal(), 0.0), (False, Terminal(), 60.0)):
        with bars(quiet=quiet, stream=stream, delay_s=delay) as shown:
            shown.begin("pulling", "x")
            shown.tell(1, 10)
            shown.end()
        assert stream.getvalue() == ""


def test_a_bar_goes_away_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, appeared = Terminal(), threading.Event()

    def watched(text: str) -> int:
        if "pulling x\N{REPLACEMENT CHARACTER}[red]" in text:
            appeared.set()
        return io.StringIO.write(stream, text)

    stream.write = watched  # type: ignore[method-assign]

    def interrupted() -> None:
        with bars(quiet=False, stream=stream, delay_s=0) as shown:
            shown.begin("pulling", "x\x1b[red]")
            assert appeared.wait(20), stream.getvalue()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "\x1b[?25h" in stream.getvalue(), "the cursor is shown again"
