"""Conversation with the service manager: readiness, watchdog, directories and log lines as systemd wants them.

No dependency on systemd's library: the protocol is a datagram of ``KEY=value`` lines (sd_notify(3)), a few environment
variables (systemd.exec(5), sd_watchdog_enabled(3)) and a digit in front of a log line (sd-daemon(3)). Outside of a
service every part falls back to what suits a person at a terminal. Installing the unit is in `proplet.agent.unit`.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

#: The name below every directory of ours, the service's user and group.
NAME = "proplet"

#: Where the service of this machine listens; a person's own node listens in `Directories.runtime`.
SERVICE_SOCKET = Path("/run") / NAME / "proplet.sock"

#: Where the service of this machine reads its configuration.
SERVICE_CONFIG = Path("/etc") / NAME / "proplet.toml"

# PID 1 drains its socket at once; if it ever does not, losing a status line is better than a stuck event loop.
_SEND_TIMEOUT_S = 0.5


class DirectoryError(Exception):
    """No place for the program's files can be named; the message says which variable settles it."""


@dataclass(frozen=True, slots=True)
class Directories:
    """Where this process keeps its files. Nothing is created here; `credentials` is None without LoadCredential=.

    Attributes:
        state: what must survive (0700): journal, database, keys.
        cache: what may be deleted at any time: modules, compiled code.
        runtime: sockets and process ids, gone after a reboot.
        config: ``proplet.toml`` and ``manifests.d``.
        credentials: one file per secret, given by the service manager.
    """

    state: Path
    cache: Path
    runtime: Path
    config: Path
    credentials: Path | None


def directories(environ: Mapping[str, str] = os.environ) -> Directories:
    """Return the directories systemd prepared, else those of the XDG Base Directory Specification; never ``/tmp``.

    Each variable counts for itself, so that a unit which sets only some of them works too.

    Raises:
        DirectoryError: neither a variable nor a home directory names a place.
    """
    state = _directory(environ, "STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state")
    runtime = _given(environ, "RUNTIME_DIRECTORY")
    if runtime is None:
        session = _absolute(environ.get("XDG_RUNTIME_DIR", ""))
        runtime = session / NAME if session is not None else state / "run"
    return Directories(
        state=state,
        cache=_directory(environ, "CACHE_DIRECTORY", "XDG_CACHE_HOME", ".cache"),
        runtime=runtime,
        config=_directory(environ, "CONFIGURATION_DIRECTORY", "XDG_CONFIG_HOME", ".config"),
        credentials=_given(environ, "CREDENTIALS_DIRECTORY"),
    )


def _directory(environ: Mapping[str, str], given: str, xdg: str, below_home: str) -> Path:
    named = _given(environ, given)
    if named is not None:
        return named
    base = _absolute(environ.get(xdg, ""))
    if base is None:
        home = _absolute(environ.get("HOME", "")) or _home_of_user()
        if home is None:
            raise DirectoryError(f"no home directory: set {given} or {xdg} to an absolute path")
        base = home / below_home
    return base / NAME


def _given(environ: Mapping[str, str], name: str) -> Path | None:
    # systemd.exec(5): several directories are separated by colons; ours are single, the first is meant.
    return _absolute(environ.get(name, "").partition(":")[0])


def _absolute(text: str) -> Path | None:
    # The XDG specification wants relative paths ignored; a relative state directory would depend on where one stands.
    return Path(text) if text.startswith("/") else None


def _home_of_user() -> Path | None:
    try:
        return _absolute(str(Path.home()))
    except RuntimeError:
        return None


class Notifier:
    """The line to the service manager. Without one every call does nothing; a failed send is logged, never raised."""

    def __init__(self, address: str = "") -> None:
        """Talk to `address`: a path, or ``@name`` for an abstract socket; empty means nobody listens.

        The constructor is for tests; a program takes `from_environment`.
        """
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> "Notifier":
        """Take ``NOTIFY_SOCKET`` out of the environment, so that no child speaks in our name (mosquitto does)."""
        address = environ.pop("NOTIFY_SOCKET", "")
        if address and address[0] not in "/@":
            # vsock: addresses exist between a virtual machine and its host; a service never gets one.
            logging.getLogger(__name__).warning("NOTIFY_SOCKET=%s is not a Unix socket; ignored", address)
            address = ""
        return cls(address)

    @property
    def connected(self) -> bool:
        """Whether a service manager asked to be told."""
        return bool(self._address)

    def ready(self, status: str = "") -> None:
        """Say that start-up, or a reload, is finished. Never wait for the network before it."""
        self._send("READY=1", *_status(status))

    def status(self, text: str) -> None:
        """Show one line in ``systemctl status``."""
        self._send(*_status(text))

    def reloading(self) -> None:
        """Say that the configuration is being read again; `ready` ends it."""
        # The time stamp lets systemd tell this reload from an earlier one (Type=notify-reload).
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> None:
        """Say that the shutdown has begun."""
        self._send("STOPPING=1", *_status(status))

    def watchdog(self) -> None:
        """Prove to be alive; call it every `watchdog_interval_s` and only from what would stall if the node stalled."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for `seconds` more from now, while starting, reloading or stopping."""
        self._send(f"EXTEND_TIMEOUT_USEC={max(0, round(seconds * 1_000_000))}")

    def _send(self, *lines: str) -> None:
        if not self._address or not lines:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.settimeout(_SEND_TIMEOUT_S)
                line.connect(self._address)
                line.sendall("\n".join(lines).encode("utf-8", "replace"))
        except OSError as error:
            logging.getLogger(__name__).warning("the service manager was not told %s: %s", lines[0], error)


def _status(text: str) -> tuple[str, ...]:
    # A line break inside would begin another assignment.
    one_line = " ".join(text.split())
    return (f"STATUS={one_line}",) if one_line else ()


def watchdog_interval_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return how many seconds to leave between two `Notifier.watchdog` calls; None when nobody watches this process.

    It is half of the unit's WatchdogSec=, as sd_watchdog_enabled(3) recommends.
    """
    try:
        limit_us = int(environ.get("WATCHDOG_USEC", ""))
        watched = int(environ.get("WATCHDOG_PID", "") or os.getpid())
    except ValueError:
        return None
    if limit_us <= 0 or watched != os.getpid():
        return None
    return limit_us / 2_000_000


# syslog(3): 3 err, 4 warning, 6 info, 7 debug; 2 crit is kept for what the process cannot survive.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class JournalFormatter(logging.Formatter):
    """Log lines for the journal: priority in front (of every line of a traceback), no time, the journal has its own."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text, each of its lines beginning with ``<priority>``."""
        priority = _priority(record)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines() or [""])


class TerminalFormatter(logging.Formatter):
    """Log lines for a person or a file: UTC time to the millisecond, level, origin."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


def is_journal(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `stream` is the connection to the journal that systemd gave this very process.

    ``JOURNAL_STREAM`` alone proves nothing: it is inherited by children whose output goes elsewhere (systemd.exec(5)).
    """
    try:
        device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
        found = os.fstat(stream.fileno())
        return (found.st_dev, found.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False


class JournalHandler(logging.StreamHandler[TextIO]):
    """Writes to the journal; records with fields of their own over its socket, so that journalctl can select by them.

    Those are the records with an attribute `journal`, a mapping of names to values (systemd.journal-fields(7)).
    """

    def __init__(self, stream: TextIO, address: str = "/run/systemd/journal/socket") -> None:
        super().__init__(stream)
        self._address = address
        self._socket: socket.socket | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; whatever the socket does not take goes to the stream as all others do."""
        fields: Mapping[str, object] | None = getattr(record, "journal", None)
        if not fields or not self._send(record, fields):
            super().emit(record)

    def close(self) -> None:
        """Close the socket; the stream is its owner's."""
        if self._socket:
            self._socket.close()
        super().close()

    def _send(self, record: logging.LogRecord, fields: Mapping[str, object]) -> bool:
        told = {"MESSAGE": record.getMessage(), "PRIORITY": _priority(record), "SYSLOG_IDENTIFIER": NAME, **fields}
        try:
            if self._socket is None:
                self._socket = socket.socket(
                    socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
                )
            self._socket.sendto(b"".join(_field(name, str(value)) for name, value in told.items()), self._address)
        except OSError:
            return False
        return True


def _field(name: str, value: str) -> bytes:
    """Return a field as the journal's native protocol has it: a value with a line break comes after its length."""
    data = value.encode("utf-8", "replace")
    if b"\n" in data:
        return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
    return b"%s=%s\n" % (name.encode(), data)


def _priority(record: logging.LogRecord) -> int:
    return next((number for level, number in _PRIORITIES if record.levelno >= level), 7)


def configure_logging(
    level: int = logging.INFO, stream: TextIO | None = None, environ: Mapping[str, str] = os.environ
) -> None:
    """Send the program's log to `stream` (standard error), formatted for whoever reads it; replaces what was set up."""
    stream = sys.stderr if stream is None else stream
    journal = is_journal(stream, environ)
    out = JournalHandler(stream) if journal else logging.StreamHandler(stream)
    out.setFormatter(JournalFormatter() if journal else TerminalFormatter())
    logging.basicConfig(level=level, handlers=[out], force=True)
