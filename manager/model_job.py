"""PropellerJobs: Tasks that are started together, one after the other, or as they depend on each other."""

from dataclasses import dataclass, field
from enum import Enum

from proplet.manager.model_meta import Condition, Kind, Meta
from proplet.manager.model_task import TaskSpec


class ExecutionMode(Enum):
    """In which order a job's Tasks run; `configurable` follows their `dependsOn`."""

    PARALLEL = "parallel"
    SEQUENTIAL = "sequential"
    CONFIGURABLE = "configurable"


class WorkPhase(Enum):
    """Where a job, a federated job or a training round stands; a job never aggregates."""

    PENDING = "Pending"
    RUNNING = "Running"
    AGGREGATING = "Aggregating"
    COMPLETED = "Completed"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job consists of: Tasks it makes (each named by its spec's `name`), and Tasks that exist (`task_refs`)."""

    name: str = ""
    execution_mode: ExecutionMode = ExecutionMode.CONFIGURABLE
    tasks: tuple[TaskSpec, ...] = ()
    task_refs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How far a job is."""

    phase: WorkPhase = WorkPhase.PENDING
    start_time: float = 0.0
    finish_time: float = 0.0
    task_count: int = 0
    completed_count: int = 0
    failed_count: int = 0
    skipped_count: int = 0
    interrupted_count: int = 0
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0


@dataclass(frozen=True, slots=True)
class PropellerJob:
    """Tasks with one purpose."""

    meta: Meta
    spec: JobSpec = field(default_factory=JobSpec)
    status: JobStatus = field(default_factory=JobStatus)
    kind: Kind = field(default=Kind.JOB, init=False)
