"""A hub with broker and manager, and a device beside it: tasks find their proplet, and another when it is lost."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from proplet.agent.client import Client, Target
from tests.support.mosquitto import free_port, mosquitto_program
from tests.support.node import ADDITION, NodeProcess

pytestmark = [pytest.mark.mosquitto]

LOOP = bytes(wasmtime.wat2wasm('(module (func (export "main") (loop br 0)))'))
HELLO = bytes(
    wasmtime.wat2wasm(
        """(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 16) "hello\\nthere\\n")
        (func (export "_start")
          (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 12))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))))"""
    )
)
HUB = """
[node]
id = "hub"
state_dir = "state"
cache_dir = "cache"
runtime_dir = "run"
[mqtt]
domain = "d"
channel = "c"
[agent]
liveliness_interval = "1s"
[broker]
port = {port}
proplets = ["device"]
[manager]
"""
DEVICE = """
[node]
id = "device"
state_dir = "state"
cache_dir = "cache"
runtime_dir = "run"
[mqtt]
address = "tcp://127.0.0.1:{port}"
domain = "d"
channel = "c"
client_key_file = "key"
[agent]
liveliness_interval = "1s"
"""


@dataclass
class Fleet:
    hub: NodeProcess
    device: NodeProcess
    client: Client

    def apply(self, name: str, module: bytes = ADDITION, **spec: Any) -> None:
        spec = {"name": name, "functionName": "main", "file": base64.b64encode(module).decode(), **spec}
        kind = {"apiVersion": "propeller.propeller.abstractmachines.fr/v1", "kind": "Task"}
        self.client.apply(json.dumps({**kind, "metadata": {"name": name}, "spec": spec}))

    def status(self, name: str) -> dict[str, Any]:
        return dict(self.client.get("tasks", name).get("status", {}))

    def until(self, met: Callable[[], Any], within_s: float = 30.0) -> Any:
        deadline = time.monotonic() + within_s
        while not (found := met()):
            assert time.monotonic() < deadline, self.client.list("tasks")
            threading.Event().wait(0.05)
        return found

    def ended(self, name: str, within_s: float = 30.0) -> dict[str, Any]:
        final = ("completed", "failed", "interrupted", "skipped")
        return dict(self.until(lambda: (s := self.status(name)).get("phase") in final and s, within_s))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    mosquitto_program()
    port = free_port()
    with NodeProcess(tmp_path / "hub", HUB.format(port=port)) as hub:
        identities = json.loads((tmp_path / "hub/state/broker/broker-credentials.json").read_text())["identities"]
        device = NodeProcess(tmp_path / "device", DEVICE.format(port=port))
        key = tmp_path / "device" / "key"
        key.write_text(next(i["password"] for i in identities if i["username"] == "device"))
        key.chmod(0o600)
        with device:
            client = Client(Target(socket=tmp_path / "hub/run/proplet.sock"), timeout_s=10)
            running = Fleet(hub, device, client)
            running.until(
                lambda: len([p for p in client.list("proplets")["items"] if p["status"]["phase"] == "Running"]) == 2
            )
            yield running


def test_a_task_runs_on_the_proplet_it_names(fleet: Fleet) -> None:
    for name in ("device", "hub"):
        fleet.apply(f"on-{name}", inputs=[10, 32], propletSelector={"propletId": name})
    for name in ("device", "hub"):
        status = fleet.ended(f"on-{name}")
        assert (status["phase"], status["results"], status["propletId"]) == ("completed", "42", name)


def test_tasks_that_name_nobody_are_spread_over_the_fleet(fleet: Fleet) -> None:
    for n in range(8):
        fleet.apply(f"t{n}", inputs=[n, 1])
    ended = [fleet.ended(f"t{n}") for n in range(8)]
    assert [s["results"] for s in ended] == [str(n + 1) for n in range(8)]
    assert {s["propletId"] for s in ended} == {"hub", "device"}


def test_a_broadcast_task_runs_everywhere_and_every_result_is_told(fleet: Fleet) -> None:
    fleet.apply("everywhere", inputs=[20, 22], broadcast=True)
    status = fleet.ended("everywhere")
    assert status["phase"] == "completed"
    assert {r["propletId"]: r["results"] for r in status["broadcastResults"]} == {"hub": "42", "device": "42"}


def test_what_a_task_printed_can_be_read(fleet: Fleet) -> None:
    fleet.apply("hello", HELLO, functionName="_start")
    assert fleet.ended("hello")["results"] == "hello\nthere\n"
    lines = fleet.until(lambda: [line for entry in fleet.client.logs("hello") for line in entry["lines"]])
    assert lines == ["hello", "there"]


def test_a_running_task_is_stopped_by_its_name(fleet: Fleet) -> None:
    fleet.apply("busy", LOOP)
    fleet.until(lambda: fleet.status("busy")["phase"] == "running")
    fleet.client.stop("busy")
    status = fleet.ended("busy")
    assert (status["phase"], status["reason"]) == ("interrupted", "stopped")


def test_a_task_that_cannot_be_placed_says_why_and_is_placed_when_it_can(fleet: Fleet) -> None:
    fleet.device.stop()
    fleet.apply("waits", inputs=[1, 1], propletSelector={"propletId": "device"})
    fleet.until(lambda: "device" in fleet.status("waits").get("message", ""))
    assert fleet.status("waits")["phase"] == "pending"
    fleet.device.start()
    assert fleet.ended("waits")["results"] == "2"


@pytest.mark.slow
def test_a_task_on_a_proplet_that_is_lost_runs_on_another(fleet: Fleet) -> None:
    fleet.apply("long", LOOP, activeDeadlineSeconds=8)
    holder = fleet.until(lambda: (s := fleet.status("long"))["phase"] == "running" and s["propletId"])
    if holder == "hub":  # the hub cannot be lost without the manager
        fleet.client.delete("tasks", "long")
        fleet.apply("long", LOOP, activeDeadlineSeconds=8, propletSelector={"matchLabels": {}})
        holder = fleet.until(lambda: (s := fleet.status("long"))["phase"] == "running" and s["propletId"])
    assert holder == "device"
    fleet.device.kill()
    fleet.until(lambda: fleet.status("long").get("propletId") == "hub", within_s=60)
    status = fleet.ended("long", within_s=60)
    assert (status["attempts"], status["reason"]) == (2, "timeout")
