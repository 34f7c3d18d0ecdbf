"""Command lines of the wasmtime program. Pure.

Values that another user of this machine could read in a list of processes do not belong into a command line: a guest's
environment goes through the program's own, as far as its names mean nothing to the program.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proplet.agent.ports import GuestLimits, Job, ModuleKind
from proplet.agent.wire import DirectoryGrant, Permissions

# What the loader, the C library, Rust's runtime and wasmtime look for: such a name must not reach the program itself.
_MEANS_SOMETHING: Final = re.compile(
    r"(LD|GLIBC|GCONV|MALLOC|RES|LC|RUST|RAYON|TOKIO|WASMTIME|XDG)_.*"
    r"|PATH|HOME|LANG|LANGUAGE|LOCPATH|NLSPATH|LOCALDOMAIN|HOSTALIASES|TZ|TZDIR|TMP|TMPDIR|TERM|NO_COLOR|CLICOLOR"
    r"|SSL_CERT_(FILE|DIR)"
)
_OWN_ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "NO_COLOR": "1"}


@dataclass(frozen=True, slots=True)
class Terms:
    """How the node has its guests run. `cache_config` is a file for the program, None for no cache of compiled code.

    With `pulley` they are byte code, for devices where memory may not become executable.
    """

    cache_config: Path | None = None
    pulley: bool = False
    request_timeout_s: float = 30.0
    max_requests: int = 32
    max_connections: int = 128


@dataclass(frozen=True, slots=True)
class Invocation:
    """A command line without the program itself, and the program's whole environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def serving(job: Job, address: str, terms: Terms) -> Invocation:
    """Return how to serve a component on `address` (``host:port``)."""
    given, environment = _environment(job.env)
    limits = [f"timeout={_milliseconds(terms.request_timeout_s)}ms", *_limits(job.limits)]
    arguments = (
        "serve",
        *_compiled(terms),
        f"-S{','.join(['cli=y', 'http=y', *_network(job.permissions)])}",
        f"-W{','.join(limits)}",
        f"--max-concurrent-requests={terms.max_requests}",
        f"--max-concurrent-connections={terms.max_connections}",
        *_directories(job.permissions),
        *given,
        f"--addr={address}",
        str(job.artefact.wasm),
    )
    return Invocation(arguments, environment)


def running(job: Job, flags: Sequence[str], terms: Terms) -> Invocation:
    """Return how to run a module or a command component; `flags` are the task's own, checked by `program_flags`.

    The node's limits stand behind them, where they win.
    """
    given, environment = _environment(job.env)
    component = job.artefact.kind is ModuleKind.COMPONENT
    named = _is_custom(job.export) and not any(flag.partition("=")[0] == "--invoke" for flag in flags)
    invoke: tuple[str, ...] = ()
    if named:
        invoke = (f"--invoke={job.export}({', '.join(job.inputs)})" if component else f"--invoke={job.export}",)
    network = [*_network(job.permissions), f"http={'y' if component else 'n'}"]
    arguments = (
        "run",
        *invoke,
        *flags,
        *_compiled(terms),
        f"-S{','.join(network)}",
        f"-W{','.join(_limits(job.limits))}",
        *_directories(job.permissions),
        *given,
        str(job.artefact.wasm),
        *(() if named and component else job.inputs),
    )
    return Invocation(arguments, environment)


def _is_custom(name: str) -> bool:
    """Whether a task's name is the function it calls; the reference gives its own names to rounds of learning."""
    return bool(name) and name != "_start" and not name.startswith("fl-round-")


def _compiled(terms: Terms) -> list[str]:
    cache = "n" if terms.cache_config is None else f"y,cache-config={terms.cache_config}"
    return [f"-Ccache={cache}", *(["--target=pulley64"] if terms.pulley else [])]


def _limits(limits: GuestLimits) -> list[str]:
    given = [f"max-memory-size={limits.memory_bytes}", f"max-wasm-stack={limits.stack_bytes}"]
    return given if limits.fuel is None else [*given, f"fuel={limits.fuel}"]


def _network(permissions: Permissions) -> list[str]:
    """Sockets and the resolution of names; outbound HTTP is `program_start`'s to take away."""
    may = "y" if permissions.tcp else "n"
    return [f"inherit-network={may}", f"allow-ip-name-lookup={may}"]


def _directories(permissions: Permissions) -> list[str]:
    return [directory(grant) for grant in permissions.dirs]


def directory(grant: DirectoryGrant) -> str:
    """Return how the program is given a directory."""
    return f"--dir={grant.host}::{grant.guest}"


def _environment(guest: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """What the command line says of the guest's environment, and what the program's own has to hold for that."""
    given: list[str] = []
    environment = dict(_OWN_ENVIRONMENT)
    for name, value in guest.items():
        if _MEANS_SOMETHING.fullmatch(name):
            given.append(f"--env={name}={value}")
        else:
            given.append(f"--env={name}")
            environment[name] = value
    return given, environment


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
