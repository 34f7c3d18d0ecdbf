"""Where a guest may serve: what it asks for, what the node allows, and which port is free.

The asking part is pure. A port that is free now may be taken before the program has it: `program` then tries the next.
"""

import ipaddress
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proplet.agent.wire import Reason

Host = ipaddress.IPv4Address | ipaddress.IPv6Address
_LISTENS: Final = "0A"
# What the wasmtime program would take there, by whose flags the reference's external runtime is told: known, no more.
_LETTERS: Final = frozenset("OCDWSRgH")
_WITH_VALUE: Final = frozenset(
    "optimize codegen debug wasm wasi record target config profile dir env gdbstub shutdown-addr header invoke preload"
    " argv0 max-instance-reuse-count max-instance-concurrent-reuse-count idle-instance-timeout max-concurrent-requests"
    " max-concurrent-connections".split()
)
_WITHOUT: Final = frozenset({"allow-precompiled", "no-logging-prefix"})


class AddressError(Exception):
    """A guest cannot serve where it asks to; `reason` goes into its result."""

    def __init__(self, message: str, reason: Reason = Reason.INVALID_ARGUMENTS) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Allowed:
    """Where guests may serve: on the address `host`, by themselves on ports `first` to `last`, or asked from `least`.

    A `host` that means every address (0.0.0.0, ::) allows each of them; this machine's own (127.0.0.1) is always
    allowed.
    """

    host: str = "127.0.0.1"
    first: int = 8222
    last: int = 8321
    least: int = 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """What a task asks for; None is whatever suits. `rest` are its other arguments, which mean nothing to a service."""

    host: Host | None = None
    port: int | None = None
    rest: tuple[str, ...] = ()


def asked_by(arguments: Sequence[str]) -> Asked:
    """Return what ``--addr H:P``, ``--addr=H:P``, ``--port N`` and ``--port=N`` say; the last one counts.

    Raises:
        AddressError: it is no address or no port, or nobody knows such a flag.
    """
    host: Host | None = None
    port: int | None = None
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, given, value = argument.partition("=")
        if name not in ("--addr", "--port"):
            rest.append(argument)
            if _takes_the_next(argument) and (following := next(waiting, None)) is not None:
                rest.append(following)
            continue
        if not given:
            value = next(waiting, "")
        if name == "--port":
            port = _port(value, argument)
        else:
            host, port = _address(value, argument)
    return Asked(host, port or None, tuple(rest))


def _takes_the_next(argument: str) -> bool:
    """Whether the value of a flag that is none of ours is the next argument. Raises AddressError: nobody knows it."""
    name, given, _ = argument.partition("=")
    if not name.startswith("-") or name[2:] in _WITHOUT:
        return False
    known = name[2:] in _WITH_VALUE if name.startswith("--") else name[1:2] in _LETTERS
    if not known:
        from difflib import get_close_matches

        near = get_close_matches(name, ["--addr", "--port", *(f"--{one}" for one in _WITH_VALUE)], n=1)
        hint = f"did you mean {near[0]}?" if near else "there are --addr HOST:PORT or --port N"
        raise AddressError(f"{argument}: a task that serves HTTP has no such flag; {hint}")
    return not given and (name.startswith("--") or len(name) == 2)


def _address(text: str, argument: str) -> tuple[Host, int]:
    name, colon, port = text.rpartition(":")
    if not colon:
        raise AddressError(f"{argument}: {text!r} is no address; write 127.0.0.1:8222 or [::1]:8222")
    name = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        host = ipaddress.ip_address("127.0.0.1" if name == "localhost" else name)
    except ValueError:
        raise AddressError(f"{argument}: {name!r} is no IP address; write 127.0.0.1:8222 or [::1]:8222") from None
    return host, _port(port, argument)


def _port(text: str, argument: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535):
        raise AddressError(f"{argument}: {text!r} is no port, which is a number from 1 to 65535")
    return int(text)


def granted(asked: Asked, allowed: Allowed) -> tuple[Host, int | None]:
    """Return the address to serve on, and the port if the task asks for one.

    A task that asks for every address gets what the node allows.

    Raises:
        AddressError: the node does not allow it.
    """
    ceiling = ipaddress.ip_address(allowed.host)
    if asked.port is not None and asked.port < allowed.least:
        text = f"port {asked.port} is below {allowed.least}, which is [runtime.http] least_port"
        raise AddressError(text, Reason.PERMISSION_DENIED)
    host = asked.host
    if host is None or (host.is_unspecified and not _covers(ceiling, host)):
        return ceiling, asked.port
    if not (host.is_loopback or _covers(ceiling, host)):
        text = f"it asks to serve on {host}, but [runtime.http] host allows {ceiling}: set it to {host}, or to 0.0.0.0"
        raise AddressError(text, Reason.PERMISSION_DENIED)
    return host, asked.port


def _covers(ceiling: Host, host: Host) -> bool:
    return ceiling == host or (ceiling.is_unspecified and (ceiling.version == 6 or host.version == 4))


def candidates(allowed: Allowed, taken: Collection[int]) -> Iterator[int]:
    """Return the ports to try for a task that asks for none; `taken` are our own."""
    return (port for port in range(allowed.first, allowed.last + 1) if port not in taken)


def is_free(host: Host, port: int) -> bool:
    """Return whether a server could listen there now.

    Raises:
        OSError: not on this address at all: it is none of this machine's.
    """
    family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(host), port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (98, 13):  # EADDRINUSE; EACCES: of the machine's own
                return False
            raise
    return True


def listens(pid: int, port: int) -> bool:
    """Return whether the process `pid` itself accepts connections on `port`: nobody else's socket is taken for its."""
    inodes = set[str]()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text("ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return False
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if str(entry.readlink()) in inodes:
                    return True
    return False


def url_host(host: Host) -> str:
    """Return the address as it stands before ``:port``."""
    return f"[{host}]" if host.version == 6 else str(host)
