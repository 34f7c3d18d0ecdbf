"""Federated learning end to end on a hub: three proplets train a linear model, and one of them dies."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proplet.agent.client import ApiError, Client, Target
from tests.support.learning import DEVICE, DEVICES, Farm, falls, learn_although_one_dies
from tests.support.modules import module
from tests.support.mosquitto import free_port, mosquitto_program
from tests.support.node import NodeProcess
from tests.support.registry import running_registry

pytestmark = [pytest.mark.mosquitto, pytest.mark.registry, pytest.mark.timeout(300)]

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


@dataclass(frozen=True)
class OnHub:
    """The hub's resources."""

    client: Client

    def apply(self, manifest: Mapping[str, Any]) -> None:
        self.client.apply(json.dumps(manifest))

    def find(self, kind: str, name: str) -> Mapping[str, Any]:
        try:
            return self.client.get(kind, name)
        except ApiError as error:
            if error.status != 404:
                raise
            return {}

    def all(self, kind: str) -> Sequence[Mapping[str, Any]]:
        items: Sequence[Mapping[str, Any]] = self.client.list(kind)["items"]
        return items


@dataclass
class HubFarm(Farm):
    """With the hub that has the broker and the manager."""

    hub: NodeProcess | None = None
    client: Client | None = None


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[HubFarm]:
    mosquitto_program()
    port = free_port()
    with ExitStack() as stack:
        registry = stack.enter_context(running_registry(tmp_path / "registry"))
        registry.push("fl/trainer", "1", module("trainer"))
        hub = stack.enter_context(NodeProcess(tmp_path / "hub", HUB.format(port=port)))
        known = json.loads((tmp_path / "hub/state/broker/broker-credentials.json").read_text())["identities"]
        keys = {identity["username"]: identity["password"] for identity in known}
        devices = {
            name: stack.enter_context(
                NodeProcess(
                    tmp_path / name, DEVICE.format(name=name, address=f"tcp://127.0.0.1:{port}", key=keys[name])
                )
            )
            for name in DEVICES
        }
        client = Client(Target(socket=tmp_path / "hub/run/proplet.sock"), timeout_s=10)
        farm = HubFarm(devices, OnHub(client), f"{registry.address}/fl/trainer:1", hub=hub, client=client)
        farm.until(
            lambda: [p["status"]["phase"] for p in farm.resources.all("proplets")] == ["Running"] * 4, "four proplets"
        )
        yield farm


def test_three_proplets_learn_in_five_rounds_although_one_dies_in_the_second(farm: HubFarm) -> None:
    learn_although_one_dies(farm)


def test_an_update_outlives_the_manager_that_received_it(farm: HubFarm) -> None:
    farm.freeze("device-1", "device-2")
    farm.learn(rounds={"total": 2}, hyperparams={"format": "f32-delta"})
    farm.until(lambda: farm.answered(1) == {"device-3"}, "the first update")
    farm.devices["device-3"].kill()  # nobody can send it again
    assert farm.hub is not None
    farm.hub.kill()
    farm.hub.start()
    farm.thaw("device-1", "device-2")
    assert farm.ended()["phase"] == "Completed"
    assert "device-3" in farm.answered(1)
    assert farm.answered(2) == {"device-1", "device-2"}
    assert falls(farm.losses(2))


def test_what_was_made_for_a_job_goes_with_it(farm: HubFarm) -> None:
    farm.freeze(*DEVICES)
    farm.learn()
    farm.until(lambda: len(farm.resources.all("tasks")) == 3, "the tasks of the first round")
    assert farm.client is not None
    farm.client.delete("federatedjobs", "plane")
    farm.until(lambda: not farm.resources.all("trainingrounds"), "the rounds' end")
    farm.until(lambda: not farm.resources.all("tasks"), "the tasks' end")
