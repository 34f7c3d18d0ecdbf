"""A store in memory and the loop around the decisions: the least that lets a job and its rounds run by hand."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from proplet.manager import federation, rounds
from proplet.manager.model import (
    Aggregator,
    FederatedJob,
    FederatedSpec,
    Kind,
    Meta,
    Participant,
    Resource,
    Rounds,
    Task,
    TrainingRound,
)
from proplet.manager.phases import Phase
from proplet.manager.rules import check
from proplet.manager.work import Related, Told, WorkDecision

THREE = ("device-1", "device-2", "device-3")


def a_job(
    participants: Sequence[str] = THREE, k: int = 2, total: int = 2, timeout: int = 60, **more: Any
) -> FederatedJob:
    given = {
        "experiment_id": "e",
        "model_ref": "oci://models/m:0",
        "task_wasm_image": "registry/trainer:1",
        "participants": tuple(map(Participant, participants)),
        "k_of_n": k,
        "timeout_seconds": timeout,
        "rounds": Rounds(total),
        "aggregator": Aggregator("fedavg"),
    }
    return FederatedJob(Meta("job", "edge", uid="job-uid"), FederatedSpec(**{**given, **more}))


def update(*values: float, samples: int = 1, **more: Any) -> str:
    data = json.dumps(list(values)).encode()
    plain = {"update_b64": base64.b64encode(data).decode(), "format": "json-f64", "num_samples": samples, **more}
    return json.dumps(plain)


@dataclass
class Scene:
    """Everything there is, by kind and name, and what was told. Time stands still until it is moved."""

    job: FederatedJob | None = field(default_factory=a_job)
    tasks: dict[str, Task] = field(default_factory=dict)
    rounds: dict[str, TrainingRound] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    now: float = 1000.0
    stopped: list[str] = field(default_factory=list)
    wakes: dict[str, float] = field(default_factory=dict)
    _uids: int = 0

    def settle(self) -> None:
        """Look at everything until nothing changes any more."""
        for _ in range(20):
            before = (self.job, dict(self.tasks), dict(self.rounds))
            for name in list(self.rounds):
                decision = self.look(name)
                assert isinstance(decision.work, TrainingRound)
                self.rounds[name] = decision.work
            if self.job is not None:
                decision = federation.decide(self.job, Related(self.tasks, self.rounds), self.now)
                self.apply(decision)
                assert isinstance(decision.work, FederatedJob)
                self.job = decision.work
            if before == (self.job, self.tasks, self.rounds):
                return
        raise AssertionError("it never comes to rest")

    def look(self, name: str) -> WorkDecision:
        """Look at one round, and do what it says but for its status."""
        decision = rounds.decide(self.rounds[name], Related(self.tasks, self.rounds, self.job), self.now)
        self.apply(decision)
        self.wakes[name] = decision.wake_at
        return decision

    def apply(self, decision: WorkDecision) -> None:
        for resource in decision.create:
            self._create(resource)
        assert decision.delete == ()
        for key in decision.stop:
            assert key.namespace == "edge"
            self.stopped.append(key.name)
            self.end(key.name, Phase.INTERRUPTED)
        self.told += decision.told

    def _create(self, resource: Resource) -> None:
        self._uids += 1
        assert check(resource) == [], check(resource)
        assert resource.meta.namespace == "edge"
        made: Any = replace(resource, meta=replace(resource.meta, uid=f"uid-{self._uids}"))
        where: dict[str, Any] = self.tasks if resource.kind is Kind.TASK else self.rounds
        where.setdefault(resource.meta.name, made)

    def end(self, name: str, phase: Phase = Phase.COMPLETED, results: str | None = None, error: str = "") -> None:
        """A Task comes to its end."""
        task = self.tasks[name]
        status = replace(task.status, phase=phase, results=results, error=error or None)
        self.tasks[name] = replace(task, status=status)

    def answer(self, number: int, device: int, *values: float, **more: Any) -> None:
        """A participant's update arrives, and is looked at."""
        self.end(f"round-{number}-job-device-{device}", results=update(*values, **more))
        self.settle()

    def round(self, number: int) -> TrainingRound:
        return self.rounds[f"round-{number}-job"]

    def reasons(self) -> list[str]:
        return [told.reason for told in self.told]

    def statuses(self, number: int) -> Mapping[str, str]:
        return {each.proplet_id: each.status for each in self.round(number).status.participants}
