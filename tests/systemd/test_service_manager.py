"""What a service says to systemd and reads from it, against a real datagram socket and a real stream."""

import io
import logging
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proplet.agent.systemd import (
    Directories,
    JournalFormatter,
    JournalHandler,
    Notifier,
    TerminalFormatter,
    configure_logging,
    directories,
    is_journal,
    watchdog_interval_s,
)


class ServiceManager:
    """The receiving end of sd_notify(3)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(5)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def heard(self) -> list[str]:
        return self._socket.recv(4096).decode().split("\n")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@proplet-{uuid.uuid4()}"
    with closing(ServiceManager(address)) as manager:
        yield manager


def test_every_stage_of_a_life_is_told(manager: ServiceManager) -> None:
    notifier = Notifier(manager.address)
    assert notifier.connected
    notifier.ready("2 tasks desired")
    assert manager.heard() == ["READY=1", "STATUS=2 tasks desired"]
    notifier.ready()
    assert manager.heard() == ["READY=1"]
    notifier.status("broker unreachable since 12 s")
    assert manager.heard() == ["STATUS=broker unreachable since 12 s"]
    notifier.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]
    notifier.extend_timeout(1.5)
    assert manager.heard() == ["EXTEND_TIMEOUT_USEC=1500000"]
    notifier.reloading()
    kind, stamp = manager.heard()
    assert kind == "RELOADING=1"
    assert int(stamp.removeprefix("MONOTONIC_USEC=")) > 0
    notifier.stopping("draining")
    assert manager.heard() == ["STOPPING=1", "STATUS=draining"]


def test_a_line_break_in_a_status_cannot_add_an_assignment(manager: ServiceManager) -> None:
    Notifier(manager.address).status("task x\nMAINPID=1\r\nfailed")
    assert manager.heard() == ["STATUS=task x MAINPID=1 failed"]


def test_the_address_is_taken_out_of_the_environment_so_children_do_not_inherit_it(manager: ServiceManager) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1"}
    Notifier.from_environment(environ).ready()
    assert manager.heard() == ["READY=1"]
    assert "NOTIFY_SOCKET" not in environ


def test_without_a_service_manager_nothing_is_sent_and_nothing_fails() -> None:
    notifier = Notifier.from_environment({})
    assert not notifier.connected
    notifier.ready("fine")
    notifier.watchdog()


def test_a_vanished_service_manager_is_logged_and_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier(str(tmp_path / "gone")).ready()
    assert "was not told READY=1" in caplog.text


def test_an_address_that_is_no_unix_socket_is_refused_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert not Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234"}).connected
    assert "vsock:2:1234 is not a Unix socket" in caplog.text


def test_the_watchdog_is_fed_twice_per_period_by_the_watched_process_only() -> None:
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 15.0
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000"}) == 15.0
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    for nobody in ({}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "5", "WATCHDOG_PID": "x"}):
        assert watchdog_interval_s(nobody) is None


def test_systemds_directories_win_and_the_first_of_several_is_taken() -> None:
    environ = {
        "STATE_DIRECTORY": "/var/lib/proplet:/var/lib/other",
        "CACHE_DIRECTORY": "/var/cache/proplet",
        "RUNTIME_DIRECTORY": "/run/proplet",
        "CONFIGURATION_DIRECTORY": "/etc/proplet",
        "CREDENTIALS_DIRECTORY": "/run/credentials/proplet.service",
        "HOME": "/home/ann",
        "XDG_STATE_HOME": "/home/ann/state",
    }
    assert directories(environ) == Directories(
        state=Path("/var/lib/proplet"),
        cache=Path("/var/cache/proplet"),
        runtime=Path("/run/proplet"),
        config=Path("/etc/proplet"),
        credentials=Path("/run/credentials/proplet.service"),
    )


def test_a_person_gets_xdg_directories() -> None:
    plain = {"HOME": "/home/ann"}
    assert directories(plain) == Directories(
        state=Path("/home/ann/.local/state/proplet"),
        cache=Path("/home/ann/.cache/proplet"),
        runtime=Path("/home/ann/.local/state/proplet/run"),
        config=Path("/home/ann/.config/proplet"),
        credentials=None,
    )
    chosen = {"XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c", "XDG_CONFIG_HOME": "/e", "XDG_RUNTIME_DIR": "/r"}
    assert directories(plain | chosen) == Directories(
        state=Path("/s/proplet"),
        cache=Path("/c/proplet"),
        runtime=Path("/r/proplet"),
        config=Path("/e/proplet"),
        credentials=None,
    )


def test_relative_directories_are_ignored() -> None:
    found = directories({"HOME": "/home/ann", "XDG_STATE_HOME": "state", "CACHE_DIRECTORY": "cache"})
    assert found.state == Path("/home/ann/.local/state/proplet")
    assert found.cache == Path("/home/ann/.cache/proplet")


WITHOUT_A_HOME = """
import os
from proplet.agent.systemd import DirectoryError, directories
os.environ.pop("HOME", None)
os.setuid(54321)
try:
    directories({})
except DirectoryError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="becoming a user without an account needs root")
def test_no_home_at_all_is_an_error_that_names_the_variables() -> None:
    said = subprocess.run([sys.executable, "-c", WITHOUT_A_HOME], capture_output=True, text=True, check=True).stdout
    assert said == "no home directory: set STATE_DIRECTORY or XDG_STATE_HOME to an absolute path\n"


def record(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord("proplet.agent.shell", level, __file__, 1, message, None, None)


@pytest.mark.parametrize(
    ("level", "digit"),
    [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)],
)
def test_journal_lines_begin_with_their_priority(level: int, digit: int) -> None:
    assert JournalFormatter().format(record(level, "hello")) == f"<{digit}>proplet.agent.shell: hello"


def test_every_line_of_a_traceback_keeps_the_priority() -> None:
    entry = record(logging.ERROR, "went wrong\n\nbadly")
    try:
        int("two\nlines")
    except ValueError:
        entry.exc_info = sys.exc_info()
    lines = JournalFormatter().format(entry).splitlines()
    assert len(lines) > 4
    assert all(line.startswith("<3>") for line in lines)


def test_terminal_lines_carry_time_and_level() -> None:
    entry = record(logging.WARNING, "careful")
    entry.created, entry.msecs = 0.25, 250.0
    assert TerminalFormatter().format(entry) == "1970-01-01T00:00:00.250Z WARNING proplet.agent.shell: careful"


def test_the_journal_is_recognised_by_device_and_inode_of_the_stream_itself(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream, (tmp_path / "other").open("w") as other:
        found = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(stream, environ)
        assert not is_journal(other, environ)
        assert not is_journal(io.StringIO(), environ)
        assert not is_journal(stream, {})
        assert not is_journal(stream, {"JOURNAL_STREAM": "a:b"})


def test_records_with_fields_go_to_the_journals_socket_and_to_the_stream_while_it_is_not_there(tmp_path: Path) -> None:
    stream, address = io.StringIO(), str(tmp_path / "socket")
    entry, plain = record(logging.INFO, "of a task"), record(logging.WARNING, "our own")
    entry.journal = {"PROPLET_TASK": "t", "PROPLET_NOTE": "two\nlines"}
    with closing(JournalHandler(stream, address)) as handler:
        handler.setFormatter(JournalFormatter())
        handler.handle(entry)
        handler.handle(plain)
        assert stream.getvalue() == "<6>proplet.agent.shell: of a task\n<4>proplet.agent.shell: our own\n"
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as journal:
            journal.bind(address)
            journal.settimeout(5)
            handler.handle(entry)
            told = journal.recv(4096)
    length = (9).to_bytes(8, "little")
    assert told == (
        b"MESSAGE=of a task\nPRIORITY=6\nSYSLOG_IDENTIFIER=proplet\nPROPLET_TASK=t\nPROPLET_NOTE\n%stwo\nlines\n"
        % length
    )
    assert stream.getvalue().count("\n") == 2


def test_the_log_goes_to_the_journal_with_priorities_and_to_a_file_with_times(tmp_path: Path) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    path = tmp_path / "log"
    try:
        with path.open("w") as stream:
            found = os.fstat(stream.fileno())
            root.handlers = []
            configure_logging(logging.INFO, stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
            logging.getLogger("proplet").info("first")
            configure_logging(logging.INFO, stream, {})
            logging.getLogger("proplet").info("second")
    finally:
        root.handlers = before
        root.setLevel(level)
    first, second = path.read_text().splitlines()
    assert first == "<6>proplet: first"
    assert second.endswith("Z INFO    proplet: second")
