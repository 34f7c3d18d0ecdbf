"""Federated learning end to end: three proplets train a linear model on data of their own, and one of them dies.

Who takes part in which round is decided by freezing (SIGSTOP) and thawing proplets, never by how fast they are.
"""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from proplet.agent.client import ApiError, Client, Target
from proplet.manager.updates import read_envelope
from tests.federated.trainer import mean_squared_error, samples
from tests.support.modules import module
from tests.support.mosquitto import free_port, mosquitto_program
from tests.support.node import NodeProcess
from tests.support.registry import running_registry

pytestmark = [pytest.mark.mosquitto, pytest.mark.registry, pytest.mark.slow, pytest.mark.timeout(300)]

DEVICES = ("device-1", "device-2", "device-3")
DATA = {name: samples(seed, 10 * seed) for seed, name in enumerate(DEVICES, 1)}
EVERYTHING = [row for rows in DATA.values() for row in rows]

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
proplets = ["device-1", "device-2", "device-3"]
[manager]
"""
DEVICE = """
[node]
id = "{name}"
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
class Farm:
    """A hub with broker and manager, three devices, and a registry that has the client."""

    hub: NodeProcess
    devices: dict[str, NodeProcess]
    client: Client
    image: str
    frozen: set[str] = field(default_factory=set)

    def learn(self, **spec: Any) -> None:
        """Apply the FederatedJob `plane`."""
        given = {
            "experimentId": "plane-1",
            "modelRef": "oci://models/plane:0",
            "taskWasmImage": self.image,
            "participants": [{"propletId": name} for name in DEVICES],
            "hyperparams": {"learning_rate": 0.2, "epochs": 3, "data": DATA, **spec.pop("hyperparams", {})},
            "kOfN": 2,
            "timeoutSeconds": 120,
            "rounds": {"total": 5},
            "aggregator": {"algorithm": "fedavg"},
        }
        job = {
            "apiVersion": "propeller.propeller.abstractmachines.fr/v1alpha1",
            "kind": "FederatedJob",
            "metadata": {"name": "plane"},
            "spec": {**given, **spec},
        }
        self.client.apply(json.dumps(job))

    def status(self, kind: str, name: str) -> dict[str, Any]:
        """A resource's status; empty where it does not exist yet."""
        try:
            return dict(self.client.get(kind, name).get("status", {}))
        except ApiError as error:
            if error.status != 404:
                raise
            return {}

    def round(self, number: int) -> dict[str, Any]:
        return self.status("trainingrounds", f"round-{number}-plane")

    def answered(self, number: int) -> set[str]:
        """Who has given its update to a round."""
        return {p["propletId"] for p in self.round(number).get("participants", ()) if p["updateReceived"]}

    def until(self, met: Callable[[], Any], what: str, within_s: float = 90.0) -> Any:
        deadline = time.monotonic() + within_s
        while not (found := met()):
            if time.monotonic() > deadline:
                there = {kind: self.client.list(kind)["items"] for kind in ("federatedjobs", "trainingrounds", "tasks")}
                raise AssertionError(f"not within {within_s} s: {what}; {json.dumps(there)[-8000:]}")
            threading.Event().wait(0.05)
        return found

    def freeze(self, name: str) -> None:
        """It hears and says nothing until it is thawed."""
        os.kill(self.devices[name].pid, signal.SIGSTOP)
        self.frozen.add(name)

    def thaw(self, name: str) -> None:
        os.kill(self.devices[name].pid, signal.SIGCONT)
        self.frozen.discard(name)

    def kill(self, name: str) -> None:
        self.devices[name].kill()
        self.frozen.discard(name)

    def ended(self) -> dict[str, Any]:
        """The job's status when it is over."""
        final = ("Completed", "Failed")
        return dict(
            self.until(
                lambda: (s := self.status("federatedjobs", "plane")).get("phase") in final and s, "the job's end"
            )
        )

    def losses(self, rounds: int) -> list[float]:
        """What the model after each round is off by on all the data, computed here."""
        models = [read_envelope(self.round(number)["aggregate"]) for number in range(1, rounds + 1)]
        return [mean_squared_error(model.parameters().values, EVERYTHING) for model in models]


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    mosquitto_program()
    port = free_port()
    with ExitStack() as stack:
        registry = stack.enter_context(running_registry(tmp_path / "registry"))
        registry.push("fl/trainer", "1", module("trainer"))
        hub = stack.enter_context(NodeProcess(tmp_path / "hub", HUB.format(port=port)))
        known = json.loads((tmp_path / "hub/state/broker/broker-credentials.json").read_text())["identities"]
        devices = {}
        for name in DEVICES:
            node = devices[name] = NodeProcess(tmp_path / name, DEVICE.format(name=name, port=port))
            key = tmp_path / name / "key"
            key.write_text(next(i["password"] for i in known if i["username"] == name))
            key.chmod(0o600)
            stack.enter_context(node)
        client = Client(Target(socket=tmp_path / "hub/run/proplet.sock"), timeout_s=10)
        farm = Farm(hub, devices, client, f"{registry.address}/fl/trainer:1")
        farm.until(
            lambda: len([p for p in client.list("proplets")["items"] if p["status"]["phase"] == "Running"]) == 4,
            "four proplets",
        )
        yield farm


def test_three_proplets_learn_in_five_rounds_although_one_dies_in_the_second(farm: Farm) -> None:
    farm.freeze("device-1")
    farm.freeze("device-3")
    farm.learn()
    farm.until(lambda: farm.answered(1) == {"device-2"}, "the first update of the first round")
    farm.freeze("device-2")
    farm.thaw("device-3")
    farm.until(lambda: farm.answered(1) == {"device-2", "device-3"}, "the end of the first round")
    farm.until(lambda: farm.answered(2) == {"device-3"}, "the first update of the second round")
    farm.kill("device-2")
    assert farm.round(2)["phase"] == "Running"
    farm.thaw("device-1")

    status = farm.ended()
    assert (status["phase"], status["currentRound"], status["completedRounds"]) == ("Completed", 5, 5)
    assert status["conditions"][-1]["reason"] == "Completed"
    for number in range(2, 6):
        assert farm.answered(number) == {"device-1", "device-3"}
        assert farm.round(number)["updatesReceived"] == 2
    losses = farm.losses(5)
    assert all(after < before for before, after in itertools.pairwise(losses)), losses
    assert losses[-1] < losses[0] / 10
    told = [farm.round(number)["aggregate"]["metrics"]["loss"] for number in range(1, 6)]
    assert all(after < before for before, after in itertools.pairwise(told)), told
    assert read_envelope(status["aggregate"]).global_version == 5
    dead = {p["propletId"]: p["status"] for p in status["participants"]}["device-2"]
    assert dead == "Stopped"


def test_an_update_outlives_the_manager_that_received_it(farm: Farm) -> None:
    farm.freeze("device-1")
    farm.freeze("device-2")
    farm.learn(rounds={"total": 2}, hyperparams={"format": "f32-delta"})
    farm.until(lambda: farm.answered(1) == {"device-3"}, "the first update")
    farm.kill("device-3")  # nobody can send it again
    farm.hub.kill()
    farm.hub.start()
    farm.thaw("device-1")
    farm.thaw("device-2")
    assert farm.ended()["phase"] == "Completed"
    assert "device-3" in farm.answered(1)
    assert farm.answered(2) == {"device-1", "device-2"}
    losses = farm.losses(2)
    assert losses[1] < losses[0]


def test_what_was_made_for_a_job_goes_with_it(farm: Farm) -> None:
    for name in DEVICES:
        farm.freeze(name)
    farm.learn()
    farm.until(lambda: len(farm.client.list("tasks")["items"]) == 3, "the tasks of the first round")
    farm.client.delete("federatedjobs", "plane")
    farm.until(lambda: not farm.client.list("trainingrounds")["items"], "the rounds' end")
    farm.until(lambda: not farm.client.list("tasks")["items"], "the tasks' end")
