"""How far a preparation is, on standard error: a bar on a terminal, plain lines otherwise, nothing if unwanted."""

import sys
import time
from types import TracebackType
from typing import Any, Final, Protocol, Self, TextIO

from proplet.agent.ports import Stage
from proplet.agent.render import size

#: What is over before somebody could read it is not shown; rich is only loaded for what lasts longer.
DELAY_S: Final = 0.3


class Progress(Protocol):
    """Is told the stages of a preparation, in order, any number of times each."""

    def __call__(self, stage: Stage) -> None:
        """Take note."""
        ...

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End; what only makes sense while it lasts is removed."""
        ...


def progress(*, quiet: bool, stream: TextIO | None = None, delay_s: float = DELAY_S) -> Progress:
    """Return the display that suits `stream` (standard error); a bar appears after `delay_s` seconds."""
    stream = sys.stderr if stream is None else stream
    if quiet:
        return _Lines(None)
    return _Bar(stream, delay_s) if stream.isatty() else _Lines(stream)


def new_bar(stream: TextIO) -> Any:
    """Return rich's display of bars, each with a description and a field `amount`, which leaves nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        console=Console(file=stream),
        transient=True,
    )


class _Lines:
    """One plain line when a stage begins; with no stream, nothing."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._stage = ""

    def __call__(self, stage: Stage) -> None:
        if self._stream is not None and stage.name != self._stage and stage.name in ("fetching", "compiling"):
            self._stage = stage.name
            total = f" {size(stage.bytes_total)}" if stage.bytes_total else ""
            self._stream.write(f"{stage.name}{total}\n")
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        pass


class _Bar:
    """A bar that appears when the preparation lasts, and goes away with it."""

    def __init__(self, stream: TextIO, delay_s: float) -> None:
        self._stream = stream
        self._delay_s = delay_s
        self._began = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._stage_began = self._began

    def __call__(self, stage: Stage) -> None:
        if self._bar is None:
            if time.monotonic() - self._began < self._delay_s:
                return
            self._open()
        # Only of fetching is known how far it is; a bar without a total moves to and fro.
        total = stage.bytes_total if stage.name == "fetching" else 0
        if stage.name != self._stage:
            self._stage = stage.name
            self._stage_began = time.monotonic()
            self._bar.reset(self._task, total=total or None, description=stage.name)
        self._bar.update(self._task, completed=stage.bytes_done, total=total or None, amount=self._amount(stage, total))

    def _amount(self, stage: Stage, total: int) -> str:
        if not stage.bytes_done or stage.name != "fetching":
            return size(stage.bytes_total) if stage.bytes_total else ""
        spent = time.monotonic() - self._stage_began
        speed = f", {size(stage.bytes_done / spent)}/s" if spent > self._delay_s else ""
        return f"{size(stage.bytes_done)}{f' of {size(total)}' if total else ''}{speed}"

    def _open(self) -> None:
        self._bar = new_bar(self._stream)
        self._task = self._bar.add_task("", total=None, amount="")
        self._bar.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
