"""Federated learning end to end in a cluster: kubectl, API server, manager and three agents; one of them dies."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent.mqtt_model import MqttSettings
from proplet.agent.topics import Route
from proplet.agent.wire import RoundStart
from proplet.manager.broker import Identity, Role
from tests.support.kubernetes import ApiError, ApiServer
from tests.support.kubernetes_manager import (
    GROUP,
    TOPICS,
    ManagerProcess,
    Workspace,
    eventually,
    install_crds,
    manager_arguments,
    proplet_manifest,
)
from tests.support.learning import DATA, DEVICE, DEVICES, Farm, learn_although_one_dies
from tests.support.modules import module
from tests.support.mosquitto import MANAGER, MosquittoServer
from tests.support.node import NodeProcess, open_peer
from tests.support.registry import running_registry

pytestmark = [pytest.mark.mosquitto, pytest.mark.registry, pytest.mark.timeout(300)]

# The names of Proplets in a cluster are not what the devices are called on the wire.
PARTICIPANTS = ("barn", "orchard.north", "pond")
ELSEWHERE = Identity("elsewhere", "elsewhere-secret", Role.MANAGER)


@dataclass(frozen=True)
class InCluster:
    """The resources of a namespace."""

    space: Workspace

    def apply(self, manifest: Mapping[str, Any]) -> None:
        self.space.apply(dict(manifest))

    def find(self, kind: str, name: str) -> Mapping[str, Any]:
        try:
            return self.space.get(kind, name)
        except ApiError as error:
            if error.status != 404:
                raise
            return {}

    def all(self, kind: str) -> Sequence[Mapping[str, Any]]:
        items: Sequence[Mapping[str, Any]] = json.loads(self.space.kubectl("get", kind, "-o", "json"))["items"]
        return items


@dataclass
class ClusterFarm(Farm):
    """With a way in for another manager."""

    elsewhere: MqttSettings | None = None


@pytest.fixture(scope="module")
def crds(api_server: ApiServer) -> str:
    return install_crds(api_server)


@pytest.fixture
def space(api_server: ApiServer, namespace: str, crds: str) -> Workspace:
    return Workspace(api_server, namespace)


@pytest.fixture
def farm(tmp_path: Path, space: Workspace) -> Iterator[ClusterFarm]:
    identities = [MANAGER, ELSEWHERE, *(Identity(name, f"{name}-secret", Role.PROPLET) for name in DEVICES)]
    with ExitStack() as stack:
        broker = MosquittoServer(tmp_path / "broker", identities)
        broker.start()
        stack.callback(broker.kill)
        registry = stack.enter_context(running_registry(tmp_path / "registry"))
        registry.push("fl/trainer", "1", module("trainer"))
        arguments = manager_arguments(broker, space.server, "--leader-elect", f"--lease-namespace={space.namespace}")
        manager = stack.enter_context(ManagerProcess(tmp_path / "manager", arguments))
        manager.until_ready()
        proplets = zip(PARTICIPANTS, DEVICES, strict=True)
        space.apply(*(proplet_manifest(name, device, broker.address) for name, device in proplets))
        devices = {
            name: stack.enter_context(
                NodeProcess(tmp_path / name, DEVICE.format(name=name, address=broker.address, key=f"{name}-secret"))
            )
            for name in DEVICES
        }
        for name in PARTICIPANTS:
            space.until("proplets", name, "Running")
        elsewhere = broker.link_settings(ELSEWHERE.username)
        yield ClusterFarm(devices, InCluster(space), f"{registry.address}/fl/trainer:1", PARTICIPANTS, elsewhere)


def test_three_proplets_of_a_cluster_learn_although_one_dies(farm: ClusterFarm, space: Workspace) -> None:
    learn_although_one_dies(farm)
    head, row = space.kubectl("get", "federatedjobs").splitlines()
    assert re.split(r"\s{2,}", head.strip()) == ["NAME", "PHASE", "CURRENT ROUND", "COMPLETED ROUNDS", "AGE"]
    assert re.match(r"plane +Completed +5 +5 +\d+", row), row
    head, *rows = space.kubectl("get", "trainingrounds").splitlines()
    assert re.split(r"\s{2,}", head.strip()) == ["NAME", "PHASE", "JOB", "UPDATES", "REQUIRED", "AGE"]
    assert len(rows) == 5
    assert all(re.match(r"round-\d-plane +Completed +plane +2 +2 +\d+", row) for row in rows), rows
    task = space.get("tasks", "round-2-plane-barn")
    assert task["metadata"]["labels"]["participant"] == "barn"
    (owner,) = task["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["apiVersion"]) == ("TrainingRound", "round-2-plane", f"{GROUP}/v1")
    described = space.kubectl("describe", "federatedjob", "plane")
    assert "All rounds completed" in described

    def told() -> str:
        said = space.kubectl("get", "events", "--field-selector", "involvedObject.name=plane")
        return said if said.count("RoundCompleted") == 5 else ""

    said = eventually(told, "the events of five rounds")
    assert "Round 5 of 5 is completed" in said


def test_a_round_that_is_started_over_mqtt_runs_as_a_job(farm: ClusterFarm) -> None:
    start = RoundStart("r-1", "oci://models/m:0", farm.image, DEVICES, {"epochs": 3, "data": DATA})

    async def publish() -> None:
        assert farm.elsewhere is not None
        async with open_peer(farm.elsewhere, TOPICS, "barn") as peer:
            await peer.send(Route.ROUND_START, start)

    anyio.run(publish)
    farm.until(lambda: farm.status("federatedjobs", "fl-r-1").get("phase") == "Completed", "the round's end")
    status = farm.status("trainingrounds", "round-1-fl-r-1")
    assert (status["updatesReceived"], status["updatesRequired"]) == (3, 3)
    assert [each["propletId"] for each in status["participants"]] == list(PARTICIPANTS)
