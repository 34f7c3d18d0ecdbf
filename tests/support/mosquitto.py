"""A real mosquitto for tests, configured exactly as the product configures it, on a free loopback port.

Use it by importing the fixture: ``from tests.support.mosquitto import mosquitto  # noqa: F401``.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from proplet.agent.mqtt import MqttSettings
from proplet.manager.broker import BrokerSettings, Identity, Role, find_mosquitto
from proplet.manager.broker_mosquitto import write_files
from tests.support.ports import free_port

DOMAIN, CHANNEL = "d", "c"
MANAGER = Identity("manager", "manager-secret", Role.MANAGER)
PROPLET = Identity("proplet-1", "proplet-1-secret", Role.PROPLET)
OTHER = Identity("proplet-2", "proplet-2-secret", Role.PROPLET)
OBSERVER = Identity("observer", "observer-secret", Role.OBSERVER)
IDENTITIES = (MANAGER, PROPLET, OTHER, OBSERVER)


def mosquitto_program() -> str:
    """The program, or skip the test; in CI nothing is skipped."""
    program = find_mosquitto()
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mosquitto is missing: apt-get install mosquitto")
        pytest.skip("apt-get install mosquitto")
    return program


class MosquittoServer:
    """One mosquitto: the same port, files and identities through every restart."""

    def __init__(
        self,
        directory: Path,
        identities: Sequence[Identity] = IDENTITIES,
        domain: str = DOMAIN,
        channel: str = CHANNEL,
        extra: Sequence[str] = (),
        more_ports: Sequence[int] = (),
        **settings: Any,
    ) -> None:
        self._program = mosquitto_program()
        self.identities = {identity.username: identity for identity in identities}
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.settings = BrokerSettings(directory, domain, channel, port=self.port, **settings)
        self.config = write_files(self.settings, identities, self.port, self.port)
        with self.config.open("a") as file:
            file.writelines(line + "\n" for line in extra)
        self._ports = [self.port, *more_ports]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        assert self._process is None
        log = self.config.with_name("log")
        with log.open("ab") as output:
            self._process = subprocess.Popen([self._program, "-c", str(self.config)], stderr=output, stdout=output)
        deadline = time.monotonic() + 10
        waiting = list(self._ports)
        while waiting:
            assert self._process.poll() is None, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", waiting[0]), 1).close()
                del waiting[0]
            except OSError:
                assert time.monotonic() < deadline, "mosquitto does not answer"
                self._process_wait(0.01)

    def _process_wait(self, seconds: float) -> None:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def stop(self) -> None:
        """End it as a service manager would; it saves its sessions."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def _end(self, sig: signal.Signals) -> None:
        if self._process is not None:
            deadline = time.monotonic() + 10
            while self._process.poll() is None:
                assert time.monotonic() < deadline, f"mosquitto did not end at {sig.name}"
                # Again: one that has begun to listen a moment ago may still forget a signal.
                self._process.send_signal(sig)
                self._process_wait(1.0)
            self._process = None

    def freeze(self) -> None:
        """Stop it from answering, as a half-open connection does."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def forget(self) -> None:
        """Delete what a stopped one has saved: sessions and queued messages."""
        assert self._process is None
        self.config.with_name("mosquitto.db").unlink(missing_ok=True)

    def link_settings(self, username: str, **changes: Any) -> MqttSettings:
        """How `username` reaches this server; `changes` override."""
        identity = self.identities[username]
        known = {"address": self.address, "client_id": username, "username": username, "password": identity.password}
        return MqttSettings(**(known | {"backoff_max_s": 0.2} | changes))


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[MosquittoServer]:
    """A running mosquitto with a manager, two proplets and an observer on domain `d`, channel `c`."""
    server = MosquittoServer(tmp_path / "broker")
    server.start()
    yield server
    server.kill()
    shutil.rmtree(tmp_path / "broker", ignore_errors=True)
