"""What tasks print, from the guest to `proplet logs`: a whole node on a real broker, and the command beside it."""

import base64
import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proplet.agent.client import Client, Target
from tests.cli.command import COMMAND, Done, environment, proplet_now
from tests.node.test_fleet import Fleet, fleet
from tests.support.modules import module
from tests.support.mosquitto import free_port, mosquitto_program
from tests.support.node import NodeProcess

pytestmark = [pytest.mark.mosquitto]
__all__ = ["fleet"]

CONFIG = """
[node]
id = "hub"
state_dir = "state"
cache_dir = "cache"
runtime_dir = "run"
[mqtt]
domain = "d"
channel = "c"
[broker]
port = {port}
[manager]
"""
MIB = 1024 * 1024


@dataclass
class Hub:
    process: NodeProcess
    client: Client
    home: Path

    def apply(self, name: str, guest: str, function: str, **spec: Any) -> None:
        wasm = base64.b64encode(module(guest)).decode()
        kind = {"apiVersion": "propeller.propeller.abstractmachines.fr/v1", "kind": "Task", "metadata": {"name": name}}
        self.client.apply(json.dumps({**kind, "spec": {"name": name, "functionName": function, "file": wasm, **spec}}))

    def logs(self, name: str, *more: str) -> Done:
        return proplet_now(self.home, ["logs", "--server", self.socket, name, *more])

    @property
    def socket(self) -> str:
        return str(self.process.directory / "run/proplet.sock")

    def ended(self, name: str) -> dict[str, Any]:
        final = ("completed", "failed", "interrupted")
        return dict(until(lambda: (s := self.client.get("tasks", name).get("status", {})).get("phase") in final and s))

    @contextmanager
    def following(self, name: str, *, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
        """``proplet logs -f`` as somebody watches it."""
        command = [COMMAND, "logs", "--server", self.socket, "-f", name]
        environ = environment(self.home)
        with subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environ) as process:
            try:
                yield process
            finally:
                process.kill()


def until(met: Callable[[], Any], within_s: float = 30.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := met()):
        assert time.monotonic() < deadline, "not in time"
        threading.Event().wait(0.05)
    return found


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    mosquitto_program()
    home = tmp_path / "home"
    home.mkdir()
    with NodeProcess(tmp_path / "hub", CONFIG.format(port=free_port())) as process:
        client = Client(Target(socket=tmp_path / "hub/run/proplet.sock"), timeout_s=10)
        until(lambda: [p for p in client.list("proplets")["items"] if p["status"]["phase"] == "Running"])
        yield Hub(process, client, home)


def test_a_daemon_is_followed_live_and_ctrl_c_ends_that_and_not_the_daemon(hub: Hub) -> None:
    hub.apply("counter", "counter", "_start", daemon=True)
    with hub.following("counter") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [line.strip() for line in itertools.islice(process.stdout, 60)]
        assert lines == [str(n) for n in range(60)]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "")
    assert [int(line) for line in rest.splitlines()] == list(range(60, 60 + rest.count("\n")))
    assert hub.client.get("tasks", "counter")["status"]["phase"] == "running"
    code, out, errors = hub.logs("counter", "--tail", "3", "--timestamps")
    assert (code, errors, out.count("\n")) == (0, "", 3)
    assert re.fullmatch(r"(20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \d+\n){3}", out)
    assert re.search(r"INFO +proplet.task: task \S+ stdout: 59\n", hub.process.log)


def test_following_ends_with_the_task_and_has_all_of_it(hub: Hub) -> None:
    hub.apply("halves", "counter", "halves", inputs=[400])
    hub.apply("short", "printer", "void")
    with hub.following("halves") as process:
        assert process.communicate(timeout=20) == ("", "\u20ac half \u20ac\n")
        assert process.returncode == 0
    with hub.following("short") as process:
        assert process.communicate(timeout=20) == ("hello\n", "")
    assert hub.logs("short") == Done(0, "hello\n", "")
    assert hub.logs("short", "--tail", "0") == Done(0, "", "")
    assert hub.logs("short", "--since", "1h") == Done(0, "hello\n", "")
    assert hub.logs("short", "--tail", "x").code == 2


def test_a_flood_is_dropped_with_its_count_while_the_node_stays_small_and_quick(hub: Hub) -> None:
    hub.apply("first", "addition", "main", inputs=[1, 2])
    hub.ended("first")
    before = _rss(hub.process.pid)
    hub.apply("flood", "counter", "flood", daemon=True, limits={"cpuTime": "5m"})
    with hub.following("flood", stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        notes = [process.stderr.readline() for _ in range(2)]
        assert all(re.fullmatch(r"\[proplet: \d+ lines \(\d+ MiB\) dropped: more than 64 KiB/s\]\n", n) for n in notes)
        for n in range(5):
            began = time.monotonic()
            hub.apply(f"beside-{n}", "addition", "main", inputs=[1, 2])
            assert hub.ended(f"beside-{n}")["results"] == "3"
            assert time.monotonic() - began < 3
        assert process.poll() is None
    assert _rss(hub.process.pid) - before < 24 * MIB
    hub.client.stop("flood")
    assert hub.ended("flood")["phase"] == "interrupted"
    assert len(hub.process.log) < 4 * MIB


def test_what_invocations_print_is_their_tasks(hub: Hub) -> None:
    hub.apply("latent", "printer", "void", latent=True)
    until(lambda: hub.client.get("tasks", "latent").get("status", {}).get("phase") == "running")
    for _ in range(3):
        hub.client.invoke("latent")
    until(lambda: hub.logs("latent") == Done(0, "hello\nhello\nhello\n", ""))


def test_of_a_broadcast_every_line_says_whose_it_is(fleet: Fleet, tmp_path: Path) -> None:
    fleet.apply("everywhere", module("printer"), functionName="void", broadcast=True)
    fleet.ended("everywhere")
    socket = tmp_path / "hub/run/proplet.sock"
    code, out, errors = proplet_now(tmp_path, ["logs", "--server", socket, "-f", "everywhere"])
    assert (code, errors) == (0, "")
    assert sorted(out.splitlines()) == ["[device] hello", "[hub] hello"]


def _rss(pid: int) -> int:
    """The memory of the node's own process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
