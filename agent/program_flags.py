"""Which flags of the wasmtime program a task may give (`cli_args` under the host runtime). Looks where links lead.

The program would do as they say: open any directory, read any file, run native code. So a task's flags are held
against what it was granted, and what is not known to be harmless is refused.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Final

from proplet.agent.wire import Permissions, Reason

# Groups of options, by their letters and long names; in each the keys that a task may set.
_GROUPS: Final = {
    "O": "optimize",
    "C": "codegen",
    "W": "wasm",
    "S": "wasi",
    "D": "debug",
}
_LETTERS: Final = {name: letter for letter, name in _GROUPS.items()}
_KEYS: Final = {
    "O": re.compile(r"[a-z0-9-]+"),
    # Not the compiler's own (cranelift-...): some of these take away what memory safety stands on.
    "C": re.compile(r"compiler|collector|parallel-compilation|inlining|cranelift-debug-verifier"),
    # Not all-proposals, and none that the engine's makers call unfinished.
    "W": re.compile(
        r"nan-canonicalization|fuel|epoch-interruption|max-[a-z-]+|unknown-(exports-allow|imports-(trap|default))"
        r"|trap-on-grow-failure|timeout|async-stack-(size|zeroing)|bulk-memory|multi-(memory|value)|reference-types|simd"
        r"|relaxed-simd(-deterministic)?|tail-call|memory64|component-model(-async)?|concurrency-support|gc|gc-support"
        r"|function-references|custom-page-sizes|wide-arithmetic|branch-hinting|extended-const|exceptions"
    ),
    # Not threads: each is one of the machine, and their number has no limit.
    "S": re.compile(
        r"cli|cli-exit-with-code|common|nn|http|http-outgoing-body-[a-z-]+|config|config-var|keyvalue"
        r"|keyvalue-in-memory-data|preview2|preview0|p3|network-error-code|inherit-std(in|out|err)|max-[a-z-]+"
        r"|hostcall-fuel"
    ),
    "D": re.compile(r"debug-info|address-map|max-backtrace|symbols"),
}
_NETWORK: Final = frozenset({"inherit-network", "allow-ip-name-lookup", "tcp", "udp"})
_WITH_VALUE: Final = frozenset({"--invoke", "--dir", "--env"})


class FlagError(Exception):
    """A task's flag is not taken; `reason` goes into its result."""

    def __init__(self, message: str, reason: Reason = Reason.PERMISSION_DENIED) -> None:
        super().__init__(message)
        self.reason = reason


def checked(arguments: Sequence[str], permissions: Permissions) -> tuple[str, ...]:
    """Return a task's flags, each in one piece; directories are left out, as what is granted is given anyway.

    Raises:
        FlagError: a flag is not one of those, or asks for more than the task was granted.
    """
    kept: list[str] = []
    for name, value in _pairs(arguments):
        if name == "--dir":
            _check_directory(value, permissions)
        elif name == "--env":
            if "=" not in value:
                raise FlagError(f"--env {value}: nothing is inherited here; write --env {value}=VALUE")
            kept.append(f"--env={value}")
        elif name == "--invoke":
            kept.append(f"--invoke={value}")
        else:
            _check_group(name, value, permissions)
            kept.append(f"-{name}{value}")
    return tuple(kept)


def check_directories(permissions: Permissions) -> None:
    """Refuse directories that the program's ``--dir HOST::GUEST`` cannot say.

    Raises:
        FlagError: there is one.
    """
    for grant in permissions.dirs:
        if "::" in grant.host or "::" in grant.guest:
            raise FlagError(f"the directory {grant.host} cannot be given to the wasmtime program: its name has '::'")


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every flag with its value, however it is written: ``-Shttp``, ``-S http``, ``--wasi=http``, ``--wasi http``."""
    waiting = iter(arguments)
    for argument in waiting:
        if argument.startswith("--"):
            name, given, value = argument.partition("=")
            letter = _LETTERS.get(name[2:])
            if name not in _WITH_VALUE and letter is None:
                raise FlagError(_refusal(argument))
            if not given:
                value = _next(waiting, argument)
            yield letter or name, value
        elif argument.startswith("-") and argument[1:2] in _GROUPS:
            value = argument[2:]
            yield argument[1], value.removeprefix("=") if value else _next(waiting, argument)
        else:
            raise FlagError(_refusal(argument))


def _next(waiting: Iterator[str], argument: str) -> str:
    try:
        return next(waiting)
    except StopIteration:
        raise FlagError(f"{argument} lacks its value", Reason.INVALID_ARGUMENTS) from None


def _check_group(letter: str, value: str, permissions: Permissions) -> None:
    for option in value.split(","):
        key = option.partition("=")[0].strip()
        if letter == "S" and key in _NETWORK:
            if not permissions.tcp and option.partition("=")[2] not in ("n", "no", "false"):
                raise FlagError(
                    f'-S {option}: the task has no permission for sockets; it asks with permissions.tcp ["*"]'
                )
        elif not _KEYS[letter].fullmatch(key):
            raise FlagError(f"-{letter} {option}: a task may not give this option of -{letter} to the wasmtime program")


def _check_directory(value: str, permissions: Permissions) -> None:
    host, _, guest = value.partition("::")
    real = os.path.realpath(host) if host.startswith("/") and "\0" not in host else host  # as what is granted is
    if not any(real == grant.host and (guest or host) == grant.guest for grant in permissions.dirs):
        raise FlagError(
            f"--dir {value}: the task was not granted this directory; it asks with permissions.dirs, and the node "
            "allows with [agent.permissions] dirs"
        )


def _refusal(flag: str) -> str:
    return (
        f"{flag}: a task may not give this flag to the wasmtime program (allowed: -O -C -W -S -D --invoke --env --dir)"
    )
