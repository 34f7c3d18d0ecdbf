"""mosquitto as a supervised child: its configuration, its life, and what an earlier one left behind."""

import base64
import hashlib
import json
import logging
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from proplet.manager.broker import BrokerError, BrokerSettings, check_names, check_port, is_loopback, url
from proplet.manager.broker_rules import CredentialsError, Identity, rules_of, write_private

log = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
LASTED_S = 30.0
"""A run that held this long resets the backoff and the count of failures."""
MAX_FAILURES = 6
_PACKET_OVERHEAD = 70 * 1024  # the longest topic and the headers
_HASH_ITERATIONS = 101  # mosquitto_passwd's own; guessing 256 random bits is not made harder by more
_POLL_S = 0.02


def password_line(username: str, password: str) -> str:
    """A line of mosquitto's password file: format 7, PBKDF2 with SHA-512 (mosquitto 2.0, ``password_mosq.c``)."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _HASH_ITERATIONS, 64)
    return f"{username}:$7${_HASH_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def acl_lines(identities: Sequence[Identity], domain: str, channel: str) -> list[str]:
    """Access rules as mosquitto writes them: nothing but what the rules of each identity name."""
    lines = []
    for identity in identities:
        rules = rules_of(identity, domain, channel)
        both = [name for name in rules.publish if name in rules.receive]
        lines += [f"user {identity.username}", *(f"topic readwrite {name}" for name in both)]
        lines += [f"topic write {name}" for name in rules.publish if name not in both]
        lines += [f"topic read {name}" for name in rules.receive if name not in both]
    return lines


def config_lines(settings: BrokerSettings, directory: Path, port: int, local_port: int) -> list[str]:
    """The configuration. Listeners without anonymous access, bounded queues, few writes to flash."""
    lines = [
        *_user(),
        "per_listener_settings false",
        "allow_anonymous false",
        f"password_file {directory / 'passwords'}",
        f"acl_file {directory / 'acl'}",
        "persistence true",
        f"persistence_location {directory}/",
        f"autosave_interval {settings.autosave_s}",
        f"max_inflight_messages {settings.max_inflight}",
        f"max_queued_messages {settings.max_queued_messages}",
        f"max_queued_bytes {settings.max_queued_bytes}",
        f"message_size_limit {settings.max_message_bytes}",
        f"max_packet_size {settings.max_message_bytes + _PACKET_OVERHEAD}",
        "set_tcp_nodelay true",
        "log_dest stderr",
        "log_timestamp false",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",
        *_listener(local_port if settings.tls else port, "127.0.0.1" if settings.tls else settings.host, settings),
    ]
    if settings.tls is not None:
        lines += _listener(port, settings.host, settings)
        lines += [f"certfile {settings.tls.cert_file}", f"keyfile {settings.tls.key_file}"]
        if settings.tls.ca_file is not None:
            lines += [f"cafile {settings.tls.ca_file}", "require_certificate true"]
    return lines


def _user() -> list[str]:
    """As root, mosquitto would become the user `mosquitto`, who cannot read our files and outlives us."""
    try:
        return [f"user {pwd.getpwuid(os.geteuid()).pw_name}"]
    except KeyError:
        return []  # a container's user without a name; it cannot change users anyway


def _listener(port: int, host: str, settings: BrokerSettings) -> list[str]:
    return [
        f"listener {port} {host}",
        f"max_connections {settings.max_connections}",
        # A client id is worth nothing without its password: else one client could take another's session.
        "use_username_as_clientid true",
    ]


def write_files(settings: BrokerSettings, identities: Sequence[Identity], port: int, local_port: int) -> Path:
    """Write configuration, passwords and rules (mode 0600), and return the configuration's path.

    Raises:
        BrokerError: the state directory cannot be written, or its path has what mosquitto cannot read.
    """
    directory = (settings.state_dir / "mosquitto").resolve()
    if not str(directory).isprintable() or str(directory) != str(directory).strip():
        raise BrokerError(f"mosquitto cannot read a path like {str(directory)!r}: choose another state directory")
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BrokerError(f"mosquitto's configuration cannot be written: {error}") from error
    write_identities(settings, identities, directory)
    _write(directory / "mosquitto.conf", config_lines(settings, directory, port, local_port))
    return directory / "mosquitto.conf"


def write_identities(settings: BrokerSettings, identities: Sequence[Identity], directory: Path) -> None:
    """Write the files that mosquitto reads again at SIGHUP. Raises BrokerError."""
    _write(directory / "acl", acl_lines(identities, settings.domain, settings.channel))
    _write(directory / "passwords", [password_line(identity.username, identity.password) for identity in identities])


def _write(path: Path, lines: Sequence[str]) -> None:
    try:
        write_private(path, "".join(line + "\n" for line in lines).encode())
    except CredentialsError as error:
        raise BrokerError(f"mosquitto's configuration cannot be written: {error}") from error


def command(program: str, config: Path) -> list[str]:
    """The command line of a mosquitto that dies with us, even when we are killed (PR_SET_PDEATHSIG)."""
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        return [setpriv, "--pdeathsig", "TERM", program, "-c", str(config)]
    shim = "import ctypes,os,sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-I", "-S", "-c", shim, program, "-c", str(config)]


def _started_at(pid: int) -> str | None:
    """The kernel's start time of a living process: with its pid it names one process and no later one."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else rest[18]
    except (OSError, IndexError, ValueError):
        return None


def _leftover(pid_file: Path, config: Path) -> tuple[int, str] | None:
    try:
        noted = json.loads(pid_file.read_bytes())
        pid, started = int(noted["pid"]), str(noted["started"])
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    ours = _started_at(pid) == started and str(config).encode() in words
    return (pid, started) if ours else None


async def end_leftover(pid_file: Path, config: Path) -> None:
    """End the mosquitto of an earlier, killed process of ours, if it still runs; nobody else's."""
    noted = await anyio.to_thread.run_sync(_leftover, pid_file, config)
    if noted is None:
        return
    pid, started = noted
    log.warning("ending the mosquitto of an earlier run (pid %d)", pid)
    for sig in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(pid, sig)
        with anyio.move_on_after(STOP_TIMEOUT_S / 2):
            while _started_at(pid) == started:  # noqa: ASYNC110 - no child of ours, nobody tells us
                await anyio.sleep(_POLL_S)
            return


class Mosquitto:
    """A supervised mosquitto; a `Broker`. A crash is followed by a restart on the same port."""

    engine: Literal["mosquitto"] = "mosquitto"

    def __init__(self, program: str, config: Path, host: str, port: int, settings: BrokerSettings) -> None:
        self.address = url(host, port)
        self._settings = settings
        self._command = command(program, config)
        self._pid_file = config.with_name("pid.json")
        self._host, self._port = host, port
        self._process: Process | None = None
        self._failure: BrokerError | None = None
        self._failed = anyio.Event()
        self._last_words = ""

    @property
    def pid(self) -> int | None:
        """Its process id, None between a crash and the restart."""
        return self._process.pid if self._process is not None else None

    async def update(self, identities: Sequence[Identity]) -> None:
        """As `Broker.update`; mosquitto reads its files again."""
        check_names(identities)
        await anyio.to_thread.run_sync(write_identities, self._settings, identities, self._pid_file.parent)
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGHUP)

    async def failed(self) -> None:
        """As `Broker.failed`."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    async def supervise(self, ready: anyio.Event) -> None:
        """Start it, set `ready` once it accepts connections, and start it again whenever it ends."""
        failures = 0
        while True:
            began = anyio.current_time()
            code = await self._run(ready)
            if self._failure is None and anyio.current_time() - began >= LASTED_S:
                failures = 0
            failures += 1
            words = f": {self._last_words}" if self._last_words else ""
            log.error("mosquitto ended (status %d)%s", code, words)
            if failures >= MAX_FAILURES or not ready.is_set():
                self._failure = BrokerError(
                    f"mosquitto does not stay up on {self.address} (status {code}){words}; its configuration is "
                    f"{self._pid_file.parent}; run it by hand to see more: {' '.join(self._command[-3:])}"
                )
                self._failed.set()
                return
            await anyio.sleep(min(10.0, 0.1 * 2.0**failures))

    async def _run(self, ready: anyio.Event) -> int:
        # A session of its own: Ctrl-C on the terminal is for us, who still need it to say goodbye.
        process = await anyio.open_process(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self._process = process
        try:
            await anyio.to_thread.run_sync(self._note_pid, process.pid)
            self._last_words = ""
            said_all = anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read_log, process, said_all)
                tasks.start_soon(self._announce, ready)
                code = await process.wait()
                with anyio.move_on_after(1):
                    await said_all.wait()
                tasks.cancel_scope.cancel()
            return code
        finally:
            self._process = None
            with anyio.CancelScope(shield=True):
                await _stop(process)

    def _note_pid(self, pid: int) -> None:
        with suppress(CredentialsError):
            write_private(self._pid_file, json.dumps({"pid": pid, "started": _started_at(pid)}).encode())

    async def _announce(self, ready: anyio.Event) -> None:
        while True:
            try:
                async with await anyio.connect_tcp(self._host, self._port):
                    ready.set()
                    return
            except OSError:
                await anyio.sleep(_POLL_S)

    async def _read_log(self, process: Process, said_all: anyio.Event) -> None:
        assert process.stderr is not None
        lines = BufferedByteReceiveStream(process.stderr)
        with suppress(anyio.IncompleteRead, anyio.ClosedResourceError, anyio.EndOfStream):
            while True:
                line = (await lines.receive_until(b"\n", 65536)).decode(errors="replace").strip()
                line = re.sub(r"^\d+: ", "", line)  # the time, until the configuration is read
                expected = "run as root" in line
                problem = line.startswith(("Error", "Warning")) and not expected
                if problem and line.startswith("Error:"):
                    self._last_words = line
                log.log(logging.WARNING if problem else logging.DEBUG, "mosquitto: %s", line)
        said_all.set()


async def _stop(process: Process) -> None:
    for sig in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(sig)
            with anyio.move_on_after(STOP_TIMEOUT_S):
                await process.wait()
    await process.aclose()


@asynccontextmanager
async def run_mosquitto(
    program: str, settings: BrokerSettings, identities: Sequence[Identity]
) -> AsyncIterator[Mosquitto]:
    """Run mosquitto on this node; it accepts connections when this yields.

    Raises:
        BrokerError: the port is occupied, or mosquitto does not start.
    """
    directory = (settings.state_dir / "mosquitto").resolve()
    await end_leftover(directory / "pid.json", directory / "mosquitto.conf")
    port = check_port(settings.host, settings.port)
    local_port = check_port("127.0.0.1", settings.local_port) if settings.tls else port
    host = settings.host if is_loopback(settings.host) and not settings.tls else "127.0.0.1"
    settings = replace(settings, port=port)
    config = await anyio.to_thread.run_sync(write_files, settings, identities, port, local_port)
    broker = Mosquitto(program, config, host, local_port, settings)
    ready = anyio.Event()
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broker.supervise, ready)
        with anyio.move_on_after(START_TIMEOUT_S):
            async with anyio.create_task_group() as first:
                first.start_soon(_until, ready, first.cancel_scope)
                first.start_soon(_until, broker._failed, first.cancel_scope)  # noqa: SLF001 - the same unit
        try:
            if ready.is_set():
                yield broker
        except Exception as error:  # noqa: BLE001 - raised below: it is the user's, and no group of ours
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not ready.is_set():
        late = BrokerError(f"mosquitto did not accept connections within {START_TIMEOUT_S:.0f} s")
        raise broker._failure or late  # noqa: SLF001 - the same unit


async def _until(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
