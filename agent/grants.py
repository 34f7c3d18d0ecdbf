"""What a task may touch on this device: what it asks for, held against what the node's configuration allows.

Place in the flow: the shell asks before a module is fetched; what comes back is all that the guest is given. A task
gets what it asks for or does not run: a grant that is quietly less would fail later, and where nobody looks.

Directories are compared as they really are, all links followed, and it is that real path which is granted: the worker
opens it without following a link, so nobody can put one there in between. What the node itself lives from (its state,
keys, configuration) is never granted, nor what contains it. Looks at the disk; a dead mount can make that slow.

Networks are all or nothing. The engine's binding has no hook in which a guest's addresses could be checked, for HTTP
(wasi:http) or for sockets; a list of hosts would be a promise that nobody keeps. So both an ask and the node can only
say ``"*"``, which includes this machine's own services and its neighbours on the network. Sockets (which only the
wasmtime program opens for a component, not the engine in a worker) include UDP, listening and the resolution of names.
"""

import os
import re
import shutil
import site
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio

from proplet.agent.task_secrets import SecretError, Vault, resolve
from proplet.agent.wire import DirectoryGrant, Permissions, Reason, Start, StartTerms

ANYWHERE: Final = "*"
# Shows every process of this user, the node's environment among it; a container may have its host's somewhere else.
_PROCESSES: Final = Path("/proc")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
# Who writes there writes what the node runs at its next start.
_CODE: Final = (
    Path(sys.prefix),
    Path(sys.executable),
    Path(__file__).parent,
    Path(os.__file__).parent,
    Path(site.getusersitepackages()),
    *(Path(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place.startswith("/")),
)
_PROGRAM: Final = "wasmtime"  # of those that are named nowhere
_LOOKS_AT_ONCE: Final = 4
_MOST_DIRECTORIES: Final = 256  # each is an open file of the worker; the CRDs allow as many


@dataclass(frozen=True, slots=True)
class Granted:
    """What a task is given: `permissions`, and its `secrets` by variable."""

    permissions: Permissions = field(default_factory=Permissions)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


class GrantError(Exception):
    """A task is not given what it asks for; `reason` goes into its result, the message to the person."""

    def __init__(self, message: str, reason: Reason = Reason.PERMISSION_DENIED) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class AllowedDirectory:
    """A directory that tasks may ask for, or any below it. With `always` every task has it, asked or not.

    `guest` is where those see it that did not ask; `where` is the line of the configuration.
    """

    host: str
    read_only: bool = True
    always: bool = False
    guest: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The most that any task of this node is given: by default nothing.

    `own` are the node's files and directories; `programs` run guests, each a path or a name on the PATH. `file` is the
    configuration, for messages that say what to write.
    """

    dirs: tuple[AllowedDirectory, ...] = ()
    http: bool = False
    tcp: bool = False
    own: tuple[Path, ...] = ()
    programs: tuple[str, ...] = ()
    file: str = "the configuration file"
    vault: Vault = field(default_factory=Vault)


class Grants:
    """Grants under one ceiling, kept off the event loop where the disk has to be looked at."""

    def __init__(self, ceiling: Ceiling) -> None:
        self._ceiling = ceiling
        self._always = any(allowed.always for allowed in ceiling.dirs)
        self._looking = anyio.CapacityLimiter(_LOOKS_AT_ONCE)

    def at_once(self, start: Start) -> Granted | None:
        """Return what a task is given; None if that takes a look at the disk, or is refused: `grant` says why."""
        ext = start.ext or StartTerms()
        with suppress(GrantError):
            return None if self._looks(ext) else Granted(grant(ext.permissions, self._ceiling))
        return None

    async def grant(self, start: Start) -> Granted:
        """Return what a task is given. Raises GrantError. Cancelled, it leaves a thread to its dead disk."""
        ext = start.ext or StartTerms()
        if not self._looks(ext):
            return Granted(grant(ext.permissions, self._ceiling))
        return await anyio.to_thread.run_sync(self._granted, ext, abandon_on_cancel=True, limiter=self._looking)

    def _looks(self, ext: StartTerms) -> bool:
        return self._always or bool(ext.permissions.dirs or ext.secrets)

    def _granted(self, ext: StartTerms) -> Granted:
        permissions = grant(ext.permissions, self._ceiling)
        try:
            return Granted(permissions, resolve(ext.secrets, self._ceiling.vault))
        except SecretError as error:
            raise GrantError(str(error), error.reason) from None


def grant(asked: Permissions, ceiling: Ceiling) -> Permissions:
    """Return what a task that asks for `asked` is given; its directories are real paths, free of links.

    Raises:
        GrantError: it asks for more than is allowed, or for a directory that is not there.
    """
    return Permissions(
        dirs=tuple(_directories(asked, ceiling)),
        http=_network("http", "outbound HTTP", asked.http, ceiling, allowed=ceiling.http),
        tcp=_network("tcp", "sockets", asked.tcp, ceiling, allowed=ceiling.tcp),
    )


def _network(key: str, what: str, asked: tuple[str, ...], ceiling: Ceiling, *, allowed: bool) -> tuple[str, ...]:
    if not asked:
        return ()
    named = [host for host in asked if host != ANYWHERE]
    if named:
        raise GrantError(
            f"it asks for {what} to {', '.join(named)} only (permissions.{key}), but the engine cannot hold a guest to "
            f'hosts: ask for ["*"], anywhere, or for nothing'
        )
    if not allowed:
        raise GrantError(
            f"it asks for {what} (permissions.{key}), which agent.permissions.{key} does not allow; to allow it, set "
            f'{key} = ["*"] in [agent.permissions] of {ceiling.file}'
        )
    return (ANYWHERE,)


def _directories(asked: Permissions, ceiling: Ceiling) -> Iterator[DirectoryGrant]:
    if len(asked.dirs) > _MOST_DIRECTORIES:
        raise GrantError(
            f"it asks for {len(asked.dirs)} directories (permissions.dirs), more than {_MOST_DIRECTORIES}",
            Reason.INVALID_ARGUMENTS,
        )
    places: set[str] = set()
    for ask in asked.dirs:
        if _place(ask.guest) in places:
            raise GrantError(
                f"it asks for two directories at {ask.guest} of the guest (permissions.dirs): give each a place of "
                "its own",
                Reason.INVALID_ARGUMENTS,
            )
        places.add(_place(ask.guest))
        yield _directory(ask, ceiling, "it asks for the directory")
    for allowed in ceiling.dirs:
        guest = allowed.guest or allowed.host
        if allowed.always and _place(guest) not in places:
            ask = DirectoryGrant(allowed.host, guest, allowed.read_only)
            yield _directory(ask, ceiling, f"every task is given, by agent.permissions.dirs ({allowed.where}),")


def _place(guest: str) -> str:
    return guest.rstrip("/") or "/"


def _directory(ask: DirectoryGrant, ceiling: Ceiling, who: str) -> DirectoryGrant:
    host = ask.host
    if "\0" in host or not host.startswith("/") or ".." in Path(host).parts:
        raise GrantError(f"{who} {host!r} (permissions.dirs): the path must be absolute, and without `..`")
    # Where no directory is allowed none is looked at: it may be a dead server's, or be mounted by the look (autofs).
    real = Path(os.path.realpath(host) if ceiling.dirs else host)
    shown = host if str(real) == os.path.normpath(host) else f"{host} (really {real})"
    # Whether there is anything is told only to those who may look.
    covering = [allowed for allowed in ceiling.dirs if real.is_relative_to(os.path.realpath(allowed.host))]
    if not covering:
        raise GrantError(
            f"{who} {host} (permissions.dirs), which agent.permissions.dirs does not allow; to allow it, write in "
            f'{ceiling.file}: [[agent.permissions.dirs]] host = "{host}"{"" if ask.read_only else " read_only = false"}'
        )
    if not ask.read_only and all(allowed.read_only for allowed in covering):
        raise GrantError(
            f"{who} {shown} for writing (permissions.dirs), and agent.permissions.dirs ({covering[0].where}) allows "
            "reading only: ask with readOnly: true, or set read_only = false there"
        )
    code = () if ask.read_only else (*_CODE, *map(_program, (*ceiling.programs, _PROGRAM)))
    for own in (_PROCESSES, *_mounted_processes(), *ceiling.own, *code):
        kept = Path(os.path.realpath(own))
        if real.is_relative_to(kept) or kept.is_relative_to(real):
            relation = "belongs to" if real.is_relative_to(kept) else "contains"
            raise GrantError(
                f"{who} {shown} (permissions.dirs), but that {relation} {kept}, which the node itself lives from and "
                "no task is ever given, whatever the configuration allows: keep the tasks' files elsewhere"
            )
    _must_be_usable(real, f"{who} {shown} (permissions.dirs)", read_only=ask.read_only)
    return DirectoryGrant(str(real), ask.guest, ask.read_only)


def _program(name: str) -> Path:
    return Path(shutil.which(name) or (name if name.startswith("/") else sys.executable))


def _mounted_processes() -> list[Path]:
    with suppress(OSError):
        return process_mounts(_MOUNTS.read_text(errors="surrogateescape"))
    return []


def process_mounts(mounts: str) -> list[Path]:
    """Return where /proc is mounted, according to proc(5)'s ``mountinfo``."""
    found = []
    for line in mounts.splitlines():
        place, _, kind = line.partition(" - ")
        if kind.startswith("proc "):
            named = _OCTAL.sub(lambda match: chr(int(match[1], 8)), place.split(" ")[4])
            found.append(Path(named))
    return found


def _must_be_usable(real: Path, said: str, *, read_only: bool) -> None:
    why = ""
    try:
        if not real.is_dir():
            why = "is no directory" if real.exists() else "is not there"
        elif not os.access(real, os.R_OK | os.X_OK, effective_ids=True):
            why = f"cannot be read by the user of the node ({os.geteuid()})"
        elif not read_only and not os.access(real, os.W_OK, effective_ids=True):
            why = (
                f"cannot be written to by the node: either not by its user ({os.geteuid()}), or its service sees the "
                f"file system as read-only and needs ReadWritePaths={real}"
            )
    except OSError as error:
        why = f"cannot be looked at: {error.strerror}"
    if why:
        raise GrantError(f"{said}, but on this node it {why}", Reason.INVALID_ARGUMENTS)
