"""``proplet start``, ``stop``, ``logs`` and ``wait``: one task at a time."""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from proplet.agent.cli import FAILED, NOT_FOUND, OK, TIMED_OUT, UNREACHABLE, USAGE, CliError
from proplet.agent.cli_resources import absent
from proplet.agent.cli_session import DeadlineError, Session, deadline, run
from proplet.agent.config_values import parse_duration
from proplet.agent.render import Manifest, at, one_line, printable

TERMINAL = ("completed", "failed", "skipped", "interrupted")
_POLL_S = 0.5
_PATIENCE_S = 10.0
T = TypeVar("T")


def start(options: argparse.Namespace) -> int:
    """Start a task."""
    return run(options, _start)


def _start(session: Session, options: argparse.Namespace) -> int:
    _known(session, options)
    session.start(options.namespace, options.name)
    sys.stdout.write(f"task/{options.name} started\n")
    return OK


def stop(options: argparse.Namespace) -> int:
    """Stop a task."""
    return run(options, _stop)


def _stop(session: Session, options: argparse.Namespace) -> int:
    _known(session, options)
    session.stop(options.namespace, options.name)
    sys.stdout.write(f"task/{options.name} stopped\n")
    return OK


def _known(session: Session, options: argparse.Namespace) -> Manifest:
    """Return the task, or say that it is not there and which one may be meant."""
    try:
        return session.get("tasks", options.namespace, options.name)
    except CliError as error:
        if error.status != NOT_FOUND:
            raise
        names = {str(at(item, "metadata.name")): item for item in session.list("tasks", options.namespace)}
        raise CliError(absent("tasks", options.name, names), NOT_FOUND) from None


# --- logs --------------------------------------------------------------------------------------------------------


def logs(options: argparse.Namespace) -> int:
    """Print a task's output: what it wrote to stdout on stdout, to stderr on stderr."""
    return run(options, _logs)


def _logs(session: Session, options: argparse.Namespace) -> int:
    seen: list[dict[str, Any]] = []
    task = _known(session, options)
    while True:
        # The phase is asked for first: what a finished task printed is there by then.
        ended = at(task, "status.phase") in TERMINAL
        now = list(_patiently(lambda: session.logs(options.namespace, options.name), options))
        _print_lines(fresh(seen, now))
        seen = now
        if ended or not options.follow:
            break
        threading.Event().wait(_POLL_S)
        task = _patiently(lambda: session.get("tasks", options.namespace, options.name), options)
    if not seen:
        session.say(f"no output of task {options.name} was sent here; it {_said(task)}")
        if _phase(task) not in TERMINAL:
            session.say(f"what a task prints is sent when it ends: proplet logs -f {options.name}")
        if at(task, "status.results"):
            session.say(f"it has results: proplet describe task {options.name}")
    return OK


def _patiently(ask: Callable[[], T], options: argparse.Namespace) -> T:
    """Return the node's answer; one who follows waits for a node that restarts."""
    until = time.monotonic() + (_PATIENCE_S if options.follow else 0)
    while True:
        try:
            return ask()
        except CliError as error:
            if error.status != UNREACHABLE or time.monotonic() >= until:
                raise
        threading.Event().wait(_POLL_S)


def fresh(before: Sequence[Any], now: Sequence[Any]) -> Sequence[Any]:
    """Return what is new in a list of last things, of which the oldest may have gone meanwhile."""
    for kept in range(min(len(before), len(now)), 0, -1):
        if before[-kept:] == now[:kept]:
            return now[kept:]
    return now


def _print_lines(entries: Sequence[dict[str, Any]]) -> None:
    for entry in entries:
        stream = sys.stderr if entry.get("stream") == "stderr" else sys.stdout
        for line in entry.get("lines") or ():
            stream.write(f"{printable(str(line))}\n")
        stream.flush()


# --- wait --------------------------------------------------------------------------------------------------------


def wait(options: argparse.Namespace) -> int:
    """Wait until a task is completed, finished (one way or another) or running."""
    return run(options, _wait)


def _wait(session: Session, options: argparse.Namespace) -> int:
    try:
        seconds = parse_duration(options.timeout)
    except ValueError as error:
        raise CliError(f"--timeout: {error}", USAGE) from error
    task = _known(session, options)
    try:
        with deadline(seconds):
            task = _until(session, options)
    except DeadlineError:
        task = session.get("tasks", options.namespace, options.name)
        message = f"task {options.name} is {_phase(task)} after {options.timeout}; proplet describe task {options.name}"
        raise CliError(message, TIMED_OUT) from None
    reached = _reached(options.until, task)
    if not reached:
        raise CliError(f"task {options.name} {_said(task)}", FAILED)
    sys.stdout.write(f"task/{options.name} {_phase(task)}\n")
    return OK


def _until(session: Session, options: argparse.Namespace) -> Manifest:
    """Return the task as soon as it is as wanted, or cannot get there any more in this run."""
    there = False
    with session.watch("tasks", options.namespace, options.name) as events:
        for event in events:
            there = there or event.object is not None
            if event.type == "DELETED" or not there:
                raise CliError(f"task {options.name} was deleted", NOT_FOUND)
            if event.object and (_reached(options.until, event.object) or _phase(event.object) in TERMINAL):
                return event.object
    raise CliError(f"the node ended the watch of task {options.name}")


def _phase(task: Manifest) -> str:
    return str(at(task, "status.phase") or "pending")


def _said(task: Manifest) -> str:
    """Return the phase as a verb, and why it is so if that is known."""
    why = one_line(at(task, "status.error")) or one_line(at(task, "status.message"))
    phase = _phase(task)
    verb = {"failed": "failed", "interrupted": "was interrupted", "skipped": "was skipped"}.get(phase, f"is {phase}")
    return f"{verb}{f': {why}' if why else ''}"


def _reached(until: str, task: Manifest) -> bool:
    phase = _phase(task)
    return phase == until or (until == "finished" and phase in TERMINAL)
