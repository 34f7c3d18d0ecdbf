"""Federated learning: FederatedJobs, and the TrainingRounds they consist of.

Times are seconds, moments are seconds since the Unix epoch (UTC); 0.0 means never.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from proplet.manager.model_job import WorkPhase
from proplet.manager.model_meta import Condition, Kind, Meta


@dataclass(frozen=True, slots=True)
class Participant:
    """One proplet that takes part: the name of the Proplet resource."""

    proplet_id: str = ""


@dataclass(frozen=True, slots=True)
class Rounds:
    """How many rounds there are; `strategy` is kept for the reference's manifests and chooses nothing."""

    total: int = 1
    strategy: str = ""


@dataclass(frozen=True, slots=True)
class Aggregator:
    """How updates are combined. `config` is kept for the reference's manifests."""

    algorithm: str = ""
    config: Any = None


@dataclass(frozen=True, slots=True)
class FederatedSpec:
    """What is to be learnt, by whom. A round needs `k_of_n` updates within `timeout_seconds`."""

    experiment_id: str = ""
    model_ref: str = ""
    task_wasm_image: str = ""
    participants: tuple[Participant, ...] = ()
    hyperparams: Any = None
    k_of_n: int = 0
    timeout_seconds: int = 0
    rounds: Rounds = field(default_factory=Rounds)
    aggregator: Aggregator = field(default_factory=Aggregator)


@dataclass(frozen=True, slots=True)
class ParticipantStatus:
    """How a proplet takes part in the current round."""

    proplet_id: str = ""
    status: str = ""
    last_update: float = 0.0


@dataclass(frozen=True, slots=True)
class FederatedStatus:
    """How far the learning is. `aggregate` is the newest global update, an envelope as in `updates`."""

    phase: WorkPhase = WorkPhase.PENDING
    current_round: int = 0
    completed_rounds: int = 0
    participants: tuple[ParticipantStatus, ...] = ()
    aggregated_model_ref: str | None = None
    aggregate: Mapping[str, Any] | None = None
    start_time: float = 0.0
    finish_time: float = 0.0
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0


@dataclass(frozen=True, slots=True)
class FederatedJob:
    """A model that several proplets train."""

    meta: Meta
    spec: FederatedSpec = field(default_factory=FederatedSpec)
    status: FederatedStatus = field(default_factory=FederatedStatus)
    kind: Kind = field(default=Kind.FEDERATED_JOB, init=False)


@dataclass(frozen=True, slots=True)
class JobReference:
    """The FederatedJob that a round belongs to, by name."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class RoundSpec:
    """One round. `global_update` is the aggregate of the round before, an envelope as in `updates`."""

    round_id: str = ""
    federated_job: JobReference = field(default_factory=JobReference)
    model_ref: str = ""
    task_wasm_image: str = ""
    participants: tuple[str, ...] = ()
    hyperparams: Any = None
    k_of_n: int = 0
    timeout_seconds: int = 0
    algorithm: str = ""
    experiment_id: str = ""
    global_update: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Participation:
    """A proplet's part in a round; `task_ref` names its Task."""

    proplet_id: str = ""
    task_ref: Mapping[str, Any] = field(default_factory=dict)
    status: str = ""
    update_received: bool = False


@dataclass(frozen=True, slots=True)
class RoundStatus:
    """How far a round is."""

    phase: WorkPhase = WorkPhase.PENDING
    start_time: float = 0.0
    end_time: float = 0.0
    participants: tuple[Participation, ...] = ()
    updates_received: int = 0
    updates_required: int = 0
    aggregated_model_ref: str | None = None
    aggregate: Mapping[str, Any] | None = None
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0


@dataclass(frozen=True, slots=True)
class TrainingRound:
    """One round of a FederatedJob: a Task for each participant, and the mean of what they answer."""

    meta: Meta
    spec: RoundSpec = field(default_factory=RoundSpec)
    status: RoundStatus = field(default_factory=RoundStatus)
    kind: Kind = field(default=Kind.ROUND, init=False)
