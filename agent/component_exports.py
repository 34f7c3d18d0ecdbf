"""Which exported function of a component is meant by a name, by the reference's rules and beyond; knows no engine.

Place in the flow: `host_component` calls what is found here; the command line checks a name with it before a run. An
empty name, ``_start`` and ``fl-round-...`` mean the command (``wasi:cli/run``). Any other is ``name``, or
``instance#name`` with or without the instance's version; a bare name is looked for in exported instances, too, and a
component that is a command runs under any name.
"""

from collections.abc import Collection
from typing import Final

from proplet.agent.wit import Unsupported

ASYNCHRONOUS: Final = Unsupported("async")  # stands for the result of a function that is declared ``async``
RUN: Final = "wasi:cli/run@0.2."
_HANDLER: Final = "wasi:http/incoming-handler@"
_COMMANDS: Final = ("", "_start")
_ROUND: Final = "fl-round-"
_SHOWN: Final = 20


class UnknownExportError(ValueError):
    """Nothing is exported under a name, or several things are; the message says what is."""


def command(names: Collection[str]) -> str | None:
    """Return the full name of the command among the exported functions `names`."""
    return next((name for name in names if name.startswith(RUN) and name.endswith("#run")), None)


def find(names: Collection[str], wanted: str) -> str:
    """Return the full name of the exported function that `wanted` means; a command's for a name that nothing has.

    Raises:
        UnknownExportError: there is none; or several, in different instances.
    """
    fallback = command(names)
    if wanted in _COMMANDS or wanted.startswith(_ROUND):
        if fallback is None:
            raise UnknownExportError(f"the component is no command (wasi:cli/run); {exported(names)}")
        return fallback
    found = matching(names, wanted)
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownExportError(f"'{wanted}' may be any of {', '.join(found[:_SHOWN])}: name one of them")
    if fallback is not None and "#" not in wanted:
        return fallback
    raise UnknownExportError(f"Export '{wanted}' not found in component; {exported(names)}")


def matching(names: Collection[str], wanted: str) -> list[str]:
    """Return the full names that `wanted` may mean."""
    if wanted in names:
        return [wanted]
    instance, _, function = wanted.rpartition("#")
    found = []
    for name in names:
        place, _, last = name.rpartition("#")
        if place and last == function and instance in {"", place.partition("@")[0]}:
            found.append(name)
    return found


def exported(names: Collection[str]) -> str:
    """Say what a component exports."""
    if any(name.startswith(_HANDLER) for name in names):
        return "it serves HTTP (wasi:http/incoming-handler) and is started as a service"
    listed = ", ".join(sorted(names)[:_SHOWN]) or "no functions"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"it exports {listed}{more}"
