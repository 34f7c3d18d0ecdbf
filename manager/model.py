"""The resources a manager keeps, with `spec` (what is wanted) and `status` (what is so): all kinds in one place.

Pure values. The manifest's and the REST API's spellings of these fields are `manifest`'s and `rest`'s business. Sizes
are bytes, times are seconds, moments are seconds since the Unix epoch (UTC); 0.0 means never.
"""

from collections.abc import Mapping
from typing import Final

from proplet.manager.model_federated import (
    Aggregator,
    FederatedJob,
    FederatedSpec,
    FederatedStatus,
    JobReference,
    Participant,
    ParticipantStatus,
    Participation,
    Rounds,
    RoundSpec,
    RoundStatus,
    TrainingRound,
)
from proplet.manager.model_job import (
    ExecutionMode,
    JobSpec,
    JobStatus,
    PropellerJob,
    WorkPhase,
)
from proplet.manager.model_meta import (
    Condition,
    Key,
    Kind,
    Meta,
    Owner,
)
from proplet.manager.model_proplet import (
    DeviceMetrics,
    Proplet,
    PropletPhase,
    PropletSpec,
    PropletStatus,
    Replicas,
)
from proplet.manager.model_task import (
    PropletSelector,
    Resources,
    Task,
    TaskSpec,
    TaskStatus,
)

__all__ = [
    "RESOURCES",
    "WORKS",
    "Aggregator",
    "Condition",
    "DeviceMetrics",
    "ExecutionMode",
    "FederatedJob",
    "FederatedSpec",
    "FederatedStatus",
    "JobReference",
    "JobSpec",
    "JobStatus",
    "Key",
    "Kind",
    "Meta",
    "Owner",
    "Participant",
    "ParticipantStatus",
    "Participation",
    "PropellerJob",
    "Proplet",
    "PropletPhase",
    "PropletSelector",
    "PropletSpec",
    "PropletStatus",
    "Replicas",
    "Resource",
    "Resources",
    "RoundSpec",
    "RoundStatus",
    "Rounds",
    "Task",
    "TaskSpec",
    "TaskStatus",
    "TrainingRound",
    "WorkPhase",
]

Resource = Task | Proplet | PropellerJob | FederatedJob | TrainingRound

RESOURCES: Final[Mapping[Kind, type[Resource]]] = {
    Kind.TASK: Task,
    Kind.PROPLET: Proplet,
    Kind.JOB: PropellerJob,
    Kind.FEDERATED_JOB: FederatedJob,
    Kind.ROUND: TrainingRound,
}
# The kinds that consist of other resources.
WORKS: Final = (Kind.JOB, Kind.FEDERATED_JOB, Kind.ROUND)
