"""A farm of proplets that learn together, wherever the resources are kept; who answers when is decided by the test.

Proplets are frozen (SIGSTOP) and thawed, so that nothing depends on how fast they are.
"""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from proplet.manager.updates import read_envelope
from tests.federated.trainer import mean_squared_error, samples
from tests.support.node import NodeProcess

GROUP = "propeller.propeller.abstractmachines.fr"
DEVICES = ("device-1", "device-2", "device-3")
DATA = {name: samples(seed, 10 * seed) for seed, name in enumerate(DEVICES, 1)}
EVERYTHING = [row for rows in DATA.values() for row in rows]
PATIENCE_S = 90.0

DEVICE = """
[node]
id = "{name}"
state_dir = "state"
cache_dir = "cache"
runtime_dir = "run"
[mqtt]
address = "{address}"
domain = "d"
channel = "c"
client_key = "{key}"
[agent]
liveliness_interval = "1s"
"""


class Resources(Protocol):
    """Where the resources are: a node, or a cluster."""

    def apply(self, manifest: Mapping[str, Any]) -> object:
        """Create what a manifest says."""
        ...

    def find(self, kind: str, name: str) -> Mapping[str, Any]:
        """Return a resource, or nothing."""
        ...

    def all(self, kind: str) -> Sequence[Mapping[str, Any]]:
        """Return every resource of a kind."""
        ...


@dataclass
class Farm:
    """Three devices. `participants` are the names of their Proplets, in the order of `DEVICES`."""

    devices: Mapping[str, NodeProcess]
    resources: Resources
    image: str
    participants: Sequence[str] = DEVICES

    def learn(self, **spec: Any) -> None:
        """Apply the FederatedJob `plane`: 2 of 3, five rounds."""
        given = {
            "experimentId": "plane-1",
            "modelRef": "oci://models/plane:0",
            "taskWasmImage": self.image,
            "participants": [{"propletId": name} for name in self.participants],
            "hyperparams": {"learning_rate": 0.2, "epochs": 3, "data": DATA, **spec.pop("hyperparams", {})},
            "kOfN": 2,
            "timeoutSeconds": 120,
            "rounds": {"total": 5},
            "aggregator": {"algorithm": "fedavg"},
        }
        job = {
            "apiVersion": f"{GROUP}/v1alpha1",
            "kind": "FederatedJob",
            "metadata": {"name": "plane"},
            "spec": {**given, **spec},
        }
        self.resources.apply(job)

    def status(self, kind: str, name: str) -> dict[str, Any]:
        return dict(self.resources.find(kind, name).get("status") or {})

    def round(self, number: int) -> dict[str, Any]:
        return self.status("trainingrounds", f"round-{number}-plane")

    def answered(self, number: int) -> set[str]:
        """The devices that have given their update to a round."""
        name_of = dict(zip(self.participants, DEVICES, strict=True))
        given = self.round(number).get("participants") or ()
        return {name_of[part["propletId"]] for part in given if part["updateReceived"]}

    def until(self, met: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := met()):
            if time.monotonic() > deadline:
                there = {kind: self.resources.all(kind) for kind in ("federatedjobs", "trainingrounds", "tasks")}
                raise AssertionError(f"not within {PATIENCE_S:g} s: {what}; {json.dumps(there)[-8000:]}")
            threading.Event().wait(0.05)
        return found

    def freeze(self, *names: str) -> None:
        """They hear and say nothing until they are thawed."""
        for name in names:
            os.kill(self.devices[name].pid, signal.SIGSTOP)

    def thaw(self, *names: str) -> None:
        for name in names:
            os.kill(self.devices[name].pid, signal.SIGCONT)

    def ended(self) -> dict[str, Any]:
        """The job's status when it is over."""

        def over() -> dict[str, Any] | None:
            status = self.status("federatedjobs", "plane")
            return status if status.get("phase") in ("Completed", "Failed") else None

        return dict(self.until(over, "the job's end"))

    def losses(self, rounds: int) -> list[float]:
        """What the model after each round is off by on all the data, computed here."""
        models = [read_envelope(self.round(number)["aggregate"]) for number in range(1, rounds + 1)]
        return [mean_squared_error(model.parameters().values, EVERYTHING) for model in models]

    def told_losses(self, rounds: int) -> list[float]:
        """The same of the model before each round, as the proplets told it of their own data."""
        return [self.round(number)["aggregate"]["metrics"]["loss"] for number in range(1, rounds + 1)]


def falls(values: Sequence[float]) -> bool:
    """Whether each is less than the one before."""
    return all(after < before for before, after in itertools.pairwise(values))


def learn_although_one_dies(farm: Farm) -> dict[str, Any]:
    """Five rounds, 2 of 3; `device-2` answers in the first and dies in the second. Returns the job's status."""
    farm.freeze("device-1", "device-3")
    farm.learn()
    farm.until(lambda: farm.answered(1) == {"device-2"}, "the first update of the first round")
    farm.freeze("device-2")
    farm.thaw("device-3")
    farm.until(lambda: farm.answered(1) == {"device-2", "device-3"}, "the end of the first round")
    farm.until(lambda: farm.answered(2) == {"device-3"}, "the first update of the second round")
    farm.devices["device-2"].kill()
    assert farm.round(2)["phase"] == "Running"
    farm.thaw("device-1")

    status = farm.ended()
    assert (status["phase"], status["currentRound"], status["completedRounds"]) == ("Completed", 5, 5), status
    assert status["conditions"][-1]["reason"] == "Completed"
    for number in range(2, 6):
        assert farm.answered(number) == {"device-1", "device-3"}
        assert farm.round(number)["updatesReceived"] == 2
    losses, told = farm.losses(5), farm.told_losses(5)
    assert falls(losses), losses
    assert falls(told), told
    assert losses[-1] < losses[0] / 10
    assert read_envelope(status["aggregate"]).global_version == 5
    assert [each["status"] for each in status["participants"]] == ["Completed", "Stopped", "Completed"]
    return status
