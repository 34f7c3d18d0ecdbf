"""``proplet top``: what tasks, or proplets, use, as last measured, with how long ago that was.

On a terminal the table is drawn again and again until the person ends it, in a pipe once.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from proplet.agent import render
from proplet.agent.cli import OK, USAGE, CliError
from proplet.agent.cli_session import Session, run
from proplet.agent.config_values import parse_duration

_LEAST_S: Final = 0.1
_DRAW_ANEW: Final = "\x1b[H\x1b[J"  # to the upper left corner, and erase what is below (ECMA-48)
_CLEAR: Final = "\x1b[2J"

Entry = Mapping[str, Any]
Column = tuple[str, Callable[[Entry, float], str]]


def top(options: argparse.Namespace) -> int:
    """Show it once, or go on."""
    return run(options, _top)


def _top(session: Session, options: argparse.Namespace) -> int:
    interval_s, namespace = _interval(options.interval), None if options.all_namespaces else options.namespace
    terminal = sys.stdout.isatty() and options.output == "table"
    goes_on = options.watch or (terminal and not options.once)
    if goes_on and terminal:
        sys.stdout.write(_CLEAR)
    while True:
        entries = session.top(namespace)[options.kind]
        if options.output == "json":
            text = json.dumps(entries, ensure_ascii=False) + "\n" if goes_on else render.as_json(entries)
        else:
            lines = table(options.kind, entries, time.time(), namespaces=options.all_namespaces)
            text = "".join(f"{line}\n" for line in lines) + ("\n" if goes_on and not terminal else "")
        sys.stdout.write(_DRAW_ANEW + text if goes_on and terminal else text)
        sys.stdout.flush()
        if not goes_on:
            return OK
        threading.Event().wait(interval_s)


def _interval(text: str) -> float:
    try:
        return max(_LEAST_S, parse_duration(text))
    except ValueError as error:
        raise CliError(f"--interval: {error}", USAGE) from error


def table(kind: str, entries: Sequence[Entry], now: float, *, namespaces: bool = False) -> list[str]:
    """Return the lines of a table of ``tasks`` or ``proplets``, who uses most of the CPU first."""
    if not entries:
        return ["no tasks are under way" if kind == "tasks" else "no proplets are known"]
    first = [("NAMESPACE", _text("namespace"))] if namespaces else []
    columns = [*first, *(_TASKS if kind == "tasks" else _PROPLETS)]
    ordered = sorted(entries, key=lambda one: (-(one.get("cpu_percent") or 0.0), str(one.get("name"))))
    cells = [[head for head, _ in columns], *([cell(one, now) for _, cell in columns] for one in ordered)]
    return list(render.aligned(cells))


def _text(key: str) -> Callable[[Entry, float], str]:
    return lambda one, _: render.one_line(one.get(key)) or "-"


def _percent(key: str) -> Callable[[Entry, float], str]:
    return lambda one, _: "-" if one.get(key) is None else f"{one[key]:.1f}"


def _since(key: str, after: str = "") -> Callable[[Entry, float], str]:
    def cell(one: Entry, now: float) -> str:
        then = render.moment(one.get(key))
        return "-" if then is None else render.age(now - then) + after

    return cell


def _state(one: Entry, _: float) -> str:
    return "alive" if one.get("alive") else "offline"


def _standing(one: Entry, _: float) -> str:
    """Where the device says that it stands; else its phase: a task in a crash loop is running by that."""
    return render.one_line(one.get("state") or one.get("phase")) or "-"


def _share(one: Entry, _: float) -> str:
    used, total = one.get("memory_bytes"), one.get("total_memory_bytes")
    return f"{100 * used / total:.1f}" if used is not None and total else "-"


def _memory(one: Entry, _: float) -> str:
    return render.size(one.get("memory_bytes"))


def _cpu_time(one: Entry, _: float) -> str:
    return render.duration(one.get("cpu_seconds"))


_TASKS: Final[Sequence[Column]] = (
    ("NAME", _text("name")),
    ("PROPLET", _text("proplet")),
    ("STATE", _standing),
    ("CPU%", _percent("cpu_percent")),
    ("CPU TIME", _cpu_time),
    ("MEMORY", _memory),
    ("UPTIME", _since("started_at")),
    ("RESTARTS", _text("restarts")),
    ("INVOCATIONS", _text("invocations")),
    ("MEASURED", _since("measured_at", " ago")),
)
_PROPLETS: Final[Sequence[Column]] = (
    ("NAME", _text("name")),
    ("STATE", _state),
    ("TASKS", _text("tasks")),
    ("CPU%", _percent("cpu_percent")),
    ("CPU TIME", _cpu_time),
    ("MEMORY", _memory),
    ("MEMORY%", _share),
    ("MACHINE CPU%", _percent("machine_cpu_percent")),
    ("MEASURED", _since("measured_at", " ago")),
)
