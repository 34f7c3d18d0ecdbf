"""The node dies at random moments, again and again, under load; no accepted task is lost, doubled or wrong.

`CRASH_ROUNDS` sets how often (200 in CI), `CRASH_SEED` repeats a run; the seed is printed.
"""

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from proplet.agent.client import ApiError, Client, NodeUnreachableError, Target
from tests.support.mosquitto import free_port, mosquitto_program
from tests.support.node import NodeProcess

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow, pytest.mark.timeout(1500)]

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "200" if os.environ.get("CI") == "true" else "20"))
TASKS_A_ROUND = 5
END_S = 240.0
CONFIG = """
[node]
id = "pi"
state_dir = "state"
cache_dir = "cache"
runtime_dir = "run"
[mqtt]
domain = "d"
channel = "c"
[agent]
liveliness_interval = "1s"
[broker]
engine = "{engine}"
port = {port}
[manager]
"""
MODULE = "AGFzbQEAAAABBwFgAn9/AX8DAgEABwgBBG1haW4AAAoJAQcAIAAgAWoL"
TASK = """
apiVersion: propeller.propeller.abstractmachines.fr/v1
kind: Task
metadata: {{name: {name}}}
spec:
  name: {name}
  functionName: main
  file: {module}
  inputs: [{a}, {b}]
  restartPolicy: OnFailure
  backoffLimit: 1000
"""


class Load:
    """Applies tasks and remembers which the node accepted: those whose application was answered."""

    def __init__(self, socket: Path, dice: random.Random) -> None:
        self._client = Client(Target(socket=socket), timeout_s=10)
        self._dice = dice
        self.accepted: dict[str, str] = {}
        self.unsure: dict[str, str] = {}
        self.ended: dict[str, dict[str, Any]] = {}

    def apply(self) -> None:
        name = f"t{len(self.accepted) + len(self.unsure)}"
        a, b = self._dice.randrange(10**6), self._dice.randrange(10**6)
        self.unsure[name] = str(a + b)
        self._client.apply(TASK.format(name=name, module=MODULE, a=a, b=b))
        self.accepted[name] = self.unsure.pop(name)

    def look(self) -> dict[str, dict[str, Any]]:
        """Every task's status; one that had ended must not have changed since."""
        statuses = {t["metadata"]["name"]: t["status"] for t in self._client.list("tasks")["items"]}
        for name, before in self.ended.items():
            assert statuses[name] == before, f"{name} ended twice"
        self.ended |= {n: s for n, s in statuses.items() if s["phase"] not in ("pending", "scheduled", "running")}
        return statuses

    def wait_for_the_end(self) -> dict[str, dict[str, Any]]:
        deadline = time.monotonic() + END_S
        while True:
            statuses = self.look()
            if len(self.ended) == len(statuses):
                return statuses
            assert time.monotonic() < deadline, {n: s for n, s in statuses.items() if n not in self.ended}
            threading.Event().wait(0.2)


def crash_during_the_start(node: NodeProcess, dice: random.Random) -> None:
    with node.spawn():
        threading.Event().wait(dice.uniform(0, 0.8))
        node.kill()


def crash_under_load(node: NodeProcess, load: Load, dice: random.Random) -> None:
    node.start()
    if dice.random() < 0.3:
        load.look()
    killer = threading.Timer(dice.uniform(0, 0.5), node.kill)
    killer.start()
    try:
        for _ in range(TASKS_A_ROUND):
            load.apply()
    except (NodeUnreachableError, ApiError):
        pass  # it died while it was asked: nothing was promised
    killer.join()


def kill_the_broker(node: NodeProcess, load: Load, dice: random.Random) -> None:
    """Its memory goes with it; the node starts it again and everything still comes to its end."""
    node.start()
    for _ in range(TASKS_A_ROUND):
        load.apply()
        if dice.random() < 0.3:
            for child in psutil.Process(node.pid).children():
                if child.name() == "mosquitto":
                    forget_broker(node)
                    child.kill()
    load.wait_for_the_end()
    node.kill()


def forget_broker(node: NodeProcess) -> None:
    for state in (node.directory / "state" / "broker").rglob("mosquitto.db"):
        state.unlink()


@pytest.mark.parametrize(("engine", "rounds"), [("mosquitto", ROUNDS), ("amqtt", max(5, ROUNDS // 10))])
def test_every_accepted_task_ends_once_and_right_however_often_the_node_is_killed(
    tmp_path: Path, engine: str, rounds: int
) -> None:
    mosquitto_program()
    seed = int(os.environ.get("CRASH_SEED", random.SystemRandom().randrange(2**32)))
    print(f"\n{rounds} crashes, CRASH_SEED={seed}")
    dice = random.Random(seed)
    node = NodeProcess(tmp_path / "node", CONFIG.format(engine=engine, port=free_port()))
    load = Load(tmp_path / "node" / "run" / "proplet.sock", dice)
    try:
        for _ in range(rounds):
            chance = dice.random()
            if chance < 0.15:
                crash_during_the_start(node, dice)
            elif chance < 0.2:
                kill_the_broker(node, load, dice)
            else:
                crash_under_load(node, load, dice)
            if dice.random() < 0.2:
                forget_broker(node)
        node.start()
        statuses = load.wait_for_the_end()
    finally:
        node.kill()
    wrong = {
        name: statuses.get(name)
        for name, sum_ in load.accepted.items()
        if name not in statuses or (statuses[name]["phase"], statuses[name].get("results")) != ("completed", sum_)
    }
    assert not wrong, f"seed {seed}: {len(wrong)} of {len(load.accepted)} tasks"
    print(f"{len(load.accepted)} accepted tasks ended once and right")
    assert len(load.accepted) > rounds
