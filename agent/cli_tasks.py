"""``proplet start``, ``stop``, ``logs`` and ``wait``: one task at a time, or one job (``job/NAME``)."""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from proplet.agent.cli import FAILED, NOT_FOUND, OK, TIMED_OUT, UNREACHABLE, USAGE, CliError
from proplet.agent.cli_resources import absent, kind_and_names
from proplet.agent.cli_session import DeadlineError, Session, deadline, run
from proplet.agent.config_values import parse_duration
from proplet.agent.render import Manifest, at, condition_message, moment, one_line, printable
from proplet.agent.task_logs import without_escapes

TERMINAL = ("completed", "failed", "skipped", "interrupted")
WORKS = ("propellerjobs", "federatedjobs", "trainingrounds")
_WORDS = {"propellerjobs": "job", "federatedjobs": "federated job", "trainingrounds": "training round"}
_POLL_S = 0.5
_PATIENCE_S = 10.0
_WAIT_S = 20
T = TypeVar("T")
Entry = dict[str, Any]


def start(options: argparse.Namespace) -> int:
    """Start a task, or a job that waits for that."""
    return run(options, _start)


def _start(session: Session, options: argparse.Namespace) -> int:
    kind, name = _named(options, ("tasks", "propellerjobs"))
    _known(session, kind, name, options)
    session.start(kind, options.namespace, name)
    sys.stdout.write(f"{kind[:-1]}/{name} started\n")
    return OK


def stop(options: argparse.Namespace) -> int:
    """Stop a task or a job."""
    return run(options, _stop)


def _stop(session: Session, options: argparse.Namespace) -> int:
    kind, name = _named(options, ("tasks", "propellerjobs"))
    _known(session, kind, name, options)
    session.stop(kind, options.namespace, name)
    sys.stdout.write(f"{kind[:-1]}/{name} stopped\n")
    return OK


def _named(options: argparse.Namespace, kinds: Sequence[str]) -> tuple[str, str]:
    """Return the kind, one of `kinds`, and the name of ``NAME`` (a task) or ``KIND/NAME``."""
    word, slash, name = options.name.partition("/")
    kind, names = kind_and_names(word, [name]) if slash else ("tasks", [word])
    if kind not in kinds or not names[0]:
        raise CliError(f"`{options.name}` is not what this command takes: NAME of a task{_or(kinds)}", USAGE)
    return kind, names[0]


def _or(kinds: Sequence[str]) -> str:
    return "".join(f", or {kind[:-1]}/NAME" for kind in kinds if kind != "tasks")


def _known(session: Session, kind: str, name: str, options: argparse.Namespace) -> Manifest:
    """Return the resource, or say that it is not there and which one may be meant."""
    try:
        return session.get(kind, options.namespace, name)
    except CliError as error:
        if error.status != NOT_FOUND:
            raise
        names = {str(at(item, "metadata.name")): item for item in session.list(kind, options.namespace)}
        if name in names:  # made in between
            return names[name]
        raise CliError(absent(kind, name, names), NOT_FOUND) from None


# --- logs --------------------------------------------------------------------------------------------------------


def logs(options: argparse.Namespace) -> int:
    """Print a task's output: what it wrote to stdout on stdout, to stderr on stderr."""
    return run(options, _logs)


def _logs(session: Session, options: argparse.Namespace) -> int:
    _, name = _named(options, ("tasks",))
    since_s, tail = _since(options), _tail(options)
    task = _known(session, "tasks", name, options)
    printer = Printer(timestamps=options.timestamps, by_proplet=bool(at(task, "spec.broadcast")))
    page = _patiently(partial(session.logs, options.namespace, name, 0, 0), options)
    chosen = chosen_lines(page["items"], tail=tail, after=time.time() - since_s if since_s else 0.0)
    printer.show(chosen)
    printed = bool(page["items"])
    while options.follow and not page["ended"]:
        page = _patiently(partial(session.logs, options.namespace, name, page["next"], _WAIT_S), options)
        printer.show(page["items"])
        printed = printed or bool(page["items"])
    if not printed:
        task = _known(session, "tasks", name, options)
        session.say(f"no output of task {name} was sent here; it {_said(task)}")
        if _phase(task) not in TERMINAL:
            session.say(f"to see what it prints from now on: proplet logs -f {name}")
        if at(task, "status.results"):
            session.say(f"it has results: proplet describe task {name}")
    return OK


def _since(options: argparse.Namespace) -> float:
    try:
        return parse_duration(options.since) if options.since else 0.0
    except ValueError as error:
        raise CliError(f"--since: {error}", USAGE) from error


def _tail(options: argparse.Namespace) -> int | None:
    if options.tail is None:
        return None
    if not (options.tail.isascii() and options.tail.isdigit()):
        raise CliError(f"--tail: {options.tail!r} is not a number of lines", USAGE)
    return min(int(options.tail[:9]), 10**9)


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


def chosen_lines(items: Sequence[Entry], *, tail: int | None, after: float) -> Sequence[Entry]:
    """Return the last `tail` lines (None: all) of what was printed after a moment."""
    found = [item for item in items if not after or (moment(item["at"]) or 0.0) >= after]
    if tail is None:
        return found
    chosen: list[Entry] = []
    for item in reversed(found):
        lines = item["lines"][-tail:] if tail else []
        tail -= len(lines)
        if lines:
            chosen.append({**item, "lines": lines})
    return chosen[::-1]


class Printer:
    """Shows output on the stream it was written to; says where it comes from when that is not always the same."""

    def __init__(self, *, timestamps: bool, by_proplet: bool) -> None:
        self._timestamps = timestamps
        self._by_proplet = by_proplet
        self._last: tuple[str, int | None] | None = None

    def show(self, items: Sequence[Entry]) -> None:
        """Print entries of an answer."""
        for item in items:
            stream = sys.stderr if item["stream"] == "stderr" else sys.stdout
            origin = (str(item["proplet_id"]), item["attempt"])
            if not self._by_proplet and self._last not in {None, origin}:
                sys.stdout.flush()
                sys.stderr.write(f"--- attempt {origin[1] or 1} on {printable(origin[0])} ---\n")
            self._last = origin
            before = f"[{printable(origin[0])}] " if self._by_proplet else ""
            if self._timestamps:
                before += f"{printable(str(item['at']))} "
            stream.writelines(f"{before}{printable(without_escapes(str(line)))}\n" for line in item["lines"])
            stream.flush()


# --- wait --------------------------------------------------------------------------------------------------------


def wait(options: argparse.Namespace) -> int:
    """Wait until a task or a work is completed, finished (one way or another) or running."""
    return run(options, _wait)


def _wait(session: Session, options: argparse.Namespace) -> int:
    kind, name = _named(options, ("tasks", *WORKS))
    what = f"{_WORDS.get(kind, kind[:-1])} {name}"
    try:
        seconds = parse_duration(options.timeout)
    except ValueError as error:
        raise CliError(f"--timeout: {error}", USAGE) from error
    _known(session, kind, name, options)
    try:
        with deadline(seconds):
            found = _until(session, kind, name, what, options)
    except DeadlineError:
        found = session.get(kind, options.namespace, name)
        message = f"{what} is {_phase(found)} after {options.timeout}; proplet describe {kind[:-1]} {name}"
        if _phase(found) == "running" and (at(found, "spec.daemon") or at(found, "spec.latent")):
            lasting = "a daemon" if at(found, "spec.daemon") else "latent"
            message = f"{what} is {lasting} and runs until it is stopped: proplet wait --for running {name}"
        raise CliError(message, TIMED_OUT) from None
    if not _reached(options.until, found):
        raise CliError(f"{what} {_said(found)}", FAILED)
    sys.stdout.write(f"{kind[:-1]}/{name} {_phase(found)}\n")
    return OK


def _until(session: Session, kind: str, name: str, what: str, options: argparse.Namespace) -> Manifest:
    """Return the resource as soon as it is as wanted, or cannot get there any more in this run."""
    there = False
    with session.watch(kind, options.namespace, name) as events:
        for event in events:
            there = there or event.object is not None
            if event.type == "DELETED" or not there:
                raise CliError(f"{what} was deleted", NOT_FOUND)
            if event.object and (_reached(options.until, event.object) or _phase(event.object) in TERMINAL):
                return event.object
    raise CliError(f"the node ended the watch of {what}")


def _phase(manifest: Manifest) -> str:
    return str(at(manifest, "status.phase") or "pending").lower()


def _said(manifest: Manifest) -> str:
    """Return the phase as a verb, and why it is so if that is known."""
    why = one_line(at(manifest, "status.error")) or one_line(at(manifest, "status.message"))
    if manifest.get("kind") != "Task":
        why = condition_message(manifest)
    phase = _phase(manifest)
    verb = {"failed": "failed", "interrupted": "was interrupted", "skipped": "was skipped"}.get(phase, f"is {phase}")
    return f"{verb}{f': {why}' if why else ''}"


def _reached(until: str, manifest: Manifest) -> bool:
    phase = _phase(manifest)
    return phase == until or (until == "finished" and phase in TERMINAL)
