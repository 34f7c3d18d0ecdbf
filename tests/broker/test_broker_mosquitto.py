# ruff: noqa: ASYNC220, ASYNC240, PT012 - processes and /proc are what these tests are about
"""mosquitto as our child: it comes back, it goes with us, and it is never somebody else's."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from proplet.agent.mqtt import Disconnected, MqttSettings, parse_address
from proplet.manager.broker import BrokerError, BrokerSettings, TlsFiles, open_broker
from tests.broker.raw_client import RawClient
from tests.mqtt.certificates import make_certificates
from tests.mqtt.link_probe import linked
from tests.support.mosquitto import CHANNEL, DOMAIN, IDENTITIES, MANAGER, free_port, mosquitto_program

pytestmark = [pytest.mark.anyio, pytest.mark.mosquitto]


@pytest.fixture(autouse=True)
def _installed() -> None:
    mosquitto_program()


def settings_in(directory: Path, port: int = 0) -> BrokerSettings:
    return BrokerSettings(directory, DOMAIN, CHANNEL, engine="mosquitto", port=port)


async def _gone(pid: int) -> None:
    with anyio.fail_after(10):
        while True:
            try:
                os.kill(pid, 0)
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    return
            except (ProcessLookupError, FileNotFoundError):
                return
            await anyio.sleep(0.01)


async def test_a_killed_mosquitto_is_started_again_on_the_same_port(tmp_path: Path) -> None:
    async with open_broker(settings_in(tmp_path), IDENTITIES) as broker:
        first = broker.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        port = parse_address(broker.address).port
        with anyio.fail_after(10):
            while True:
                try:
                    client = await RawClient.connect(port, "manager", MANAGER.password)
                    break
                except (OSError, EOFError):
                    await anyio.sleep(0.02)
        assert client.return_code == 0
        assert broker.pid not in (None, first)
        client.cut()
        last = broker.pid
    assert last is not None
    await _gone(last)


async def test_a_mosquitto_that_cannot_stay_up_is_reported(tmp_path: Path) -> None:
    with anyio.fail_after(60), pytest.raises(BrokerError, match="no_such_option"):
        async with open_broker(settings_in(tmp_path), IDENTITIES) as broker:
            (tmp_path / "mosquitto" / "mosquitto.conf").write_text("no_such_option true\n")
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGKILL)
            await broker.failed()


CHILD = """
import sys, anyio
from pathlib import Path
from tests.support.mosquitto import IDENTITIES
from tests.broker.test_broker_mosquitto import settings_in
from proplet.manager.broker import open_broker
async def main():
    async with open_broker(settings_in(Path(sys.argv[1]), int(sys.argv[2])), IDENTITIES) as broker:
        print(broker.pid, flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


async def test_mosquitto_ends_when_we_are_killed(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), "0"],
        cwd=root,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
    ) as node:
        assert node.stdout is not None
        pid = int(await anyio.to_thread.run_sync(node.stdout.readline))
        os.kill(pid, 0)
        node.kill()
        await _gone(pid)


async def test_the_mosquitto_of_an_earlier_run_makes_room(tmp_path: Path) -> None:
    port = free_port()
    async with open_broker(settings_in(tmp_path, port), IDENTITIES) as broker:
        pid = broker.pid
    assert pid is not None
    leftover = subprocess.Popen(
        [mosquitto_program(), "-c", str(tmp_path / "mosquitto" / "mosquitto.conf")], stderr=subprocess.DEVNULL
    )
    try:
        started = Path(f"/proc/{leftover.pid}/stat").read_text().rpartition(")")[2].split()[19]
        (tmp_path / "mosquitto" / "pid.json").write_text(f'{{"pid": {leftover.pid}, "started": "{started}"}}')
        await _answers(port)
        async with open_broker(settings_in(tmp_path, port), IDENTITIES) as broker:
            assert leftover.wait(10) == 0
            assert parse_address(broker.address).port == port
    finally:
        leftover.kill()
        leftover.wait()


async def test_a_pid_that_now_belongs_to_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mosquitto").mkdir()
    with subprocess.Popen(["sleep", "60"]) as innocent:
        (tmp_path / "mosquitto" / "pid.json").write_text(f'{{"pid": {innocent.pid}, "started": "1"}}')
        async with open_broker(settings_in(tmp_path), IDENTITIES):
            assert innocent.poll() is None
        innocent.kill()


async def _answers(port: int) -> None:
    with anyio.fail_after(10):
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                await anyio.sleep(0.01)


@pytest.mark.parametrize("engine", ["mosquitto", "amqtt"])
async def test_an_occupied_port_is_an_error_that_names_it(tmp_path: Path, engine: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings = BrokerSettings(tmp_path, DOMAIN, CHANNEL, engine=engine, port=port)  # type: ignore[arg-type]
        with pytest.raises(BrokerError, match=f"port {port} on 127.0.0.1 .*set \\[broker\\] port"):
            async with open_broker(settings, IDENTITIES):
                pass


async def test_its_files_are_only_for_us(tmp_path: Path) -> None:
    async with open_broker(settings_in(tmp_path), IDENTITIES):
        for name in ("mosquitto.conf", "passwords", "acl", "pid.json"):
            assert (tmp_path / "mosquitto" / name).stat().st_mode & 0o777 == 0o600, name
        assert "secret" not in (tmp_path / "mosquitto" / "passwords").read_text()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
async def test_with_a_certificate_it_serves_the_network_by_tls_and_the_node_on_loopback(
    tmp_path: Path, host: str
) -> None:
    made, port = make_certificates(tmp_path / "tls"), free_port()
    tls = TlsFiles(made / "server.pem", made / "server.key", made / "ca.pem")
    settings = BrokerSettings(tmp_path / "state", DOMAIN, CHANNEL, engine="mosquitto", host=host, port=port, tls=tls)
    manager = MqttSettings(client_id="manager", username="manager", password=MANAGER.password, backoff_max_s=0.2)
    async with open_broker(settings, IDENTITIES) as broker:
        assert parse_address(broker.address).port != port
        async with linked(replace(manager, address=broker.address)):
            pass
        device = replace(manager, address=f"tls://127.0.0.1:{port}", ca_file=str(made / "ca.pem"))
        async with linked(device, connected=False) as link:
            await link.count(Disconnected, 1)  # it has no certificate
        device = replace(device, cert_file=str(made / "client.pem"), key_file=str(made / "client.key"))
        async with linked(device) as link:
            assert link.link.connected


async def test_sessions_survive_a_clean_restart_of_the_node(tmp_path: Path) -> None:
    port = free_port()
    async with open_broker(settings_in(tmp_path, port), IDENTITIES):
        client = await RawClient.connect(port, "manager", MANAGER.password, clean=False)
        await client.subscribe("fl/rounds/#")
        await client.goodbye()
    async with open_broker(settings_in(tmp_path, port), IDENTITIES):
        client = await RawClient.connect(port, "manager", MANAGER.password, clean=False)
        assert client.session_present
        client.cut()
