"""``proplet version`` and ``proplet completion``."""

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from proplet.agent.cli import OK, UNREACHABLE, CliError
from proplet.agent.cli_parser import build

if TYPE_CHECKING:
    from proplet.agent.cli_session import Session


def own_version() -> str:
    """Return this program's version, as its package has it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("proplet")
    except PackageNotFoundError:
        return "unknown"


def version(options: argparse.Namespace) -> int:
    """Print the versions; without a node that is this program's, and no failure unless a node was named."""
    from proplet.agent.cli_session import run

    sys.stdout.write(f"proplet {own_version()}\n")
    try:
        return run(options, _node_version)
    except CliError as error:
        if error.status != UNREACHABLE or options.server:
            raise
        return OK


def _node_version(session: "Session", _options: argparse.Namespace) -> int:
    node = session.node()
    parts = ", ".join(str(part) for part in node.get("services") or ())
    sys.stdout.write(f"node {node.get('version')} ({parts})\n")
    if engine := node.get("engine"):
        sys.stdout.write(f"engine {engine}\n")
    return OK


def completion(options: argparse.Namespace) -> int:
    """Print a static completion script; its head says how to install it."""
    parser = build()
    if options.shell == "fish":
        text = "\n".join(_fish(parser)) + "\n"
    else:
        import shtab

        for action in _actions(parser):
            if action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar == "KIND":
                # Only for completion: as arguments, `task` and `task/NAME` are understood, too.
                action.choices = ("tasks", "proplets")
        text = shtab.complete(parser, shell=options.shell)
    sys.stdout.write(text)
    return OK


_FILES = ("FILE", "HOST::GUEST", "MODULE|IMAGE")


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield every argument of a parser and of the commands below it."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to list what was added
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for below in action.choices.values():
                yield from _actions(below)


def _fish(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield a script for fish, which shtab does not know. Source: fish-shell, complete(1)."""
    yield "# fish completion for proplet: proplet completion fish > ~/.config/fish/completions/proplet.fish"
    yield "complete -c proplet -f"
    yield from _fish_level(parser, ())


def _fish_level(parser: argparse.ArgumentParser, path: tuple[str, ...]) -> Iterator[str]:
    seen = "__fish_seen_subcommand_from"
    where = " && ".join(f"{seen} {name}" for name in path)
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to list what was added
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            here = f"{where} && " if where else ""
            condition = f"{here}not {seen} {' '.join(action.choices)}"
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
            for name, below in action.choices.items():
                yield f"complete -c proplet -n {_quoted(condition)} -a {name} -d {_quoted(summaries.get(name, ''))}"
                yield from _fish_level(below, (*path, name))
            continue
        words = [f"-s {flag[1:]}" if len(flag) == 2 else f"-l {flag[2:]}" for flag in action.option_strings]
        condition = f"-n {_quoted(where)} " if where else ""
        if words:
            takes = "" if action.nargs == 0 else _fish_argument(action)
            text = _quoted(action.help or "")
            yield f"complete -c proplet {condition}{' '.join(words)}{takes} -d {text}"
        elif action.choices:
            yield f"complete -c proplet {condition}-a {_quoted(' '.join(map(str, action.choices)))}"


def _fish_argument(action: argparse.Action) -> str:
    if action.choices:
        return f" -x -a {_quoted(' '.join(map(str, action.choices)))}"
    return " -r -F" if action.metavar in _FILES else " -x"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
