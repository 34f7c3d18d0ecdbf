"""What ``proplet run --invoke`` calls: a name that the module exports, and its arguments, also in parentheses.

``--invoke 'greet("world")'`` is how `wasmtime run` has it for components; ``--invoke greet`` with ``'"world"'`` behind
the module is the same here. What is exported stands in the compiled module's record: a mistyped name is caught before
the runtime falls back to the usual entry points.
"""

import re
from collections.abc import Sequence
from typing import Final

from proplet.agent.cache import CompileCache
from proplet.agent.cli import USAGE, CliError
from proplet.agent.component_exports import command, matching
from proplet.agent.config_reader import did_you_mean
from proplet.agent.ports import Artefact, ModuleKind

_START: Final = "_start"
_USUAL: Final = ("main", "run", _START)
_SHOWN: Final = 20
# Text in quotes is one piece, whatever is in it; so is a comment; else every character is.
_PIECE: Final = re.compile(
    r'"""(?s:.*?)"""|"(?:[^"\\]|\\.)*+"|' + r"'(?:[^'\\]|\\.)(?:[^'\\\n]*+)'" + r"|//[^\n]*+|(?s:.)"
)


def entry(artefact: Artefact, invoke: str, arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the export that `invoke` names and its inputs.

    Raises:
        CliError: the module does not export it; or there are arguments both in parentheses and behind the module.
    """
    record = CompileCache(artefact.path.parent.parent, 0).find(artefact.path)
    names = None if record is None else list(record.functions)
    wanted, inputs = invoke, arguments
    if (names is None or invoke not in names) and "(" in invoke:
        wanted, inside = split_call(invoke)
        if arguments:
            raise CliError(f"--invoke {invoke}: it has its arguments, {arguments[0]} is one too many", USAGE)
        inputs = inside
    if names is not None:
        _check(names, wanted, component=artefact.kind is ModuleKind.COMPONENT)
    return wanted, inputs


def usual(artefact: Artefact) -> None:
    """Check that there is something to call where no export was named.

    Raises:
        CliError: it exports none of the usual entry points.
    """
    record = CompileCache(artefact.path.parent.parent, 0).find(artefact.path)
    if record is None or artefact.serves_http:
        return
    names, what = list(record.functions), "module exports no function main, run or _start"
    if artefact.kind is ModuleKind.COMPONENT:
        there, what = command(names) is not None, "component is no command (it exports no wasi:cli/run)"
    else:
        there = any(name in names for name in _USUAL)
    if not there:
        ways = f"choose an export with --invoke: {', '.join(names[:_SHOWN])}" if names else "it exports no functions"
        raise CliError(f"the {what}; {ways}")


def _check(names: list[str], wanted: str, *, component: bool) -> None:
    if wanted in names or (component and (wanted == _START or matching(names, wanted))):
        return
    what = "component" if component else "module"
    listed = ", ".join(names[:_SHOWN]) or "no functions"
    raise CliError(f"the {what} exports no function `{wanted}`{did_you_mean(wanted, names)}; it exports {listed}")


def split_call(text: str) -> tuple[str, list[str]]:
    """Return the name and the arguments of ``name(first, second)``, the arguments as they stand there.

    Raises:
        CliError: the parentheses do not match.
    """
    name, _, rest = text.strip().partition("(")
    arguments, depth = [""], 1
    for piece in _PIECE.findall(rest):
        if depth == 0 and piece.strip():
            raise CliError(f"--invoke {text}: something stands behind the closing parenthesis", USAGE)
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(piece, 0)
        if depth == 1 and piece == ",":
            arguments.append("")
        elif depth > 0:
            arguments[-1] += piece
    if depth != 0:
        raise CliError(f"--invoke {text}: the parentheses do not match; write NAME(ARGUMENT, ...)", USAGE)
    if not arguments[-1].strip():
        arguments.pop()
    return name.strip(), [argument.strip() for argument in arguments]
