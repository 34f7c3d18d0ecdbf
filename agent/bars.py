"""How far transfers of images are, on standard error: bars on a terminal, plain lines elsewhere, nothing if unwanted.

For commands that move images (`cli_image_pull`, `cli_image_push`, `cli_image_archive`); `progress` does the same for
one module that is made ready to run.
"""

import sys
import threading
import time
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from proplet.agent.progress import DELAY_S, new_bar
from proplet.agent.render import one_line, size, without_user


class Bars(Protocol):
    """Is told how far each transfer is, one after the other; a context manager."""

    def begin(self, doing: str, name: str) -> None:
        """Begin another transfer, such as ``pulling``, ``example.com/x:v1``."""
        ...

    def tell(self, done: int, total: int | None) -> None:
        """So many bytes of so many are done; None while nobody knows."""
        ...

    def end(self) -> None:
        """The transfer is over, one way or another."""
        ...

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End, whatever happened: the terminal is as it was."""
        ...


def bars(*, quiet: bool, stream: TextIO | None = None, delay_s: float = DELAY_S) -> Bars:
    """Return the display that suits `stream` (standard error)."""
    stream = sys.stderr if stream is None else stream
    if quiet:
        return _Lines(None)
    return _Bars(stream, delay_s) if stream.isatty() else _Lines(stream)


class _Lines:
    """A line when a transfer begins, and one when its size is known; with no stream, nothing."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._what = ""
        self._sized = False

    def begin(self, doing: str, name: str) -> None:
        self._what, self._sized = f"{doing} {one_line(without_user(name))}", False
        self._say(self._what)

    def tell(self, done: int, total: int | None) -> None:
        if total and done < total and not self._sized:
            self._sized = True
            self._say(f"{self._what}: {size(total)}")

    def end(self) -> None:
        pass

    def _say(self, line: str) -> None:
        if self._stream is not None:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        pass


class _Bars:
    """One bar for each transfer that lasts; they go away at the end, what was done stands on standard output.

    A timer makes the bar, so that it is there, too, while nothing at all arrives.
    """

    def __init__(self, stream: TextIO, delay_s: float) -> None:
        self._stream = stream
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._bar: Any = None
        self._task: Any = None
        self._what = ""
        self._known: tuple[int, int | None] = (0, None)
        self._began = 0.0

    def begin(self, doing: str, name: str) -> None:
        self._what, self._known = f"{doing} {one_line(without_user(name))}", (0, None)
        self._began = time.monotonic()
        self._timer = threading.Timer(self._delay_s, self._open)
        self._timer.daemon = True
        self._timer.start()

    def tell(self, done: int, total: int | None) -> None:
        self._known = (done, total)
        with self._lock:
            self._show()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            self._timer = None
        if self._task is not None:
            self._bar.update(self._task, visible=False)
            self._task = None

    def _open(self) -> None:
        with self._lock:
            if self._bar is None:
                self._bar = new_bar(self._stream)
                self._bar.start()
            self._task = self._bar.add_task(self._what, total=None, amount="")
            self._show()

    def _show(self) -> None:
        if self._task is None:
            return
        done, total = self._known
        spent = time.monotonic() - self._began
        speed = f", {size(done / spent)}/s" if done and spent > 0 else ""
        amount = f"{size(done)}{f' of {size(total)}' if total else ''}{speed}" if done or total else ""
        self._bar.update(self._task, completed=done, total=total, amount=amount)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.end()
        if self._bar is not None:
            self._bar.stop()
