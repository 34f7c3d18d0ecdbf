"""What a module can ask for and what it offers, told from the names it imports and exports. Pure.

An import is no use yet: a program's language often imports all of WASI, whatever the program does. It is the bound:
what is not imported can never be asked for.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from proplet.agent import wit

# What a group of imports is for, and what a guest is given of it without being permitted anything.
_GROUPS: Final[Mapping[str, str]] = {
    "arguments and environment": "its own arguments and variables, nothing of the node's",
    "standard streams": "always there; output is capped",
    "clocks": "always there",
    "waiting": "always there; a limit of time or a stop ends it",
    "random": "always there",
    "ending itself": "always there",
    "directories": "only what permissions.dirs asks for and the node allows (proplet run --dir)",
    "outbound HTTP": "only with permissions.http where the node allows it, then to anywhere (proplet run --http)",
    "sockets": "only with permissions.tcp where the node allows it, and in the wasmtime program as the host runtime",
    "other": "not provided here: calling it, or starting the module, fails",
}
_PREVIEW1: Final = ("wasi_snapshot_preview1", "wasi_unstable")
# By the beginnings of names; the first that fits counts.
_CORE: Final = (
    ("args_", "arguments and environment"),
    ("environ_", "arguments and environment"),
    ("clock_", "clocks"),
    ("poll_oneoff", "waiting"),
    ("sched_yield", "waiting"),
    ("random_", "random"),
    ("proc_exit", "ending itself"),
    ("sock_", "sockets"),
    ("path_", "directories"),
    ("fd_prestat", "directories"),
    ("fd_", "standard streams"),
)
_COMPONENT: Final = (
    ("wasi:cli/environment", "arguments and environment"),
    ("wasi:cli/exit", "ending itself"),
    ("wasi:cli/", "standard streams"),
    ("wasi:io/poll", "waiting"),
    ("wasi:io/", "standard streams"),
    ("wasi:clocks/", "clocks"),
    ("wasi:random/", "random"),
    ("wasi:filesystem/", "directories"),
    ("wasi:sockets/", "sockets"),
    ("wasi:http/", "outbound HTTP"),
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A group of imports in words: `what` they are for, what a guest is `given` of it, and their names."""

    what: str
    given: str
    imports: tuple[str, ...]


def asks(imports: Iterable[Any], *, component: bool, serves_http: bool = False) -> tuple[Ask, ...]:
    """Return what a module can ask for; `imports` are those of `cache.Record`."""
    found: dict[str, list[str]] = {}
    for item in imports:
        what = _component_group(item, serves_http=serves_http) if component else _core_group(*item)
        found.setdefault(what, []).append(item if component else ".".join(item))
    return tuple(Ask(what, given, tuple(found[what])) for what, given in _GROUPS.items() if what in found)


def _core_group(module: str, name: str) -> str:
    return _first(_CORE, name) if module in _PREVIEW1 else "other"


def _component_group(name: str, *, serves_http: bool) -> str:
    if serves_http and name.startswith("wasi:http/types@"):
        return "standard streams"  # its requests and answers, which is what it serves
    return _first(_COMPONENT, name)


def _first(table: Sequence[tuple[str, str]], name: str) -> str:
    return next((what for beginning, what in table if name.startswith(beginning)), "other")


def signatures(functions: Mapping[str, Any], *, component: bool) -> dict[str, str]:
    """Return the exported functions by name, each with its type: WIT's for components, ``(i32) -> (i32)`` for others.

    Raises:
        wit.WitError: `functions` are not those of a `cache.Record`.
    """
    if component:
        return {name: str(wit.function_from_json(document)) for name, document in functions.items()}
    return {name: f"({', '.join(taken)}) -> ({', '.join(given)})" for name, (taken, given) in functions.items()}


def isolation(*, component: bool, waits: bool, serves_http: bool) -> tuple[str, str]:
    """Return the class, ``own`` or ``shared``, and in words who shares the guest's process."""
    if serves_http:
        return "own", "the wasmtime program in a process of its own"
    if waits:
        why = "it can block or hold memory inside the engine, where only the end of its process helps"
        return "own", f"a worker of its own: {why}"
    if component:
        return "shared", "the shared worker; one of its own as a daemon"
    return "shared", "the shared worker"
