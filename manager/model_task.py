"""Tasks: what is to run, where and under which terms, and what became of it.

Pure values. Sizes are bytes, times are seconds, moments are seconds since the Unix epoch (UTC); 0.0 means never.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from proplet.agent.wire import Limits, MonitoringProfile, Permissions, PullPolicy, Reason, RestartPolicy, Usage
from proplet.manager.model_meta import Condition, Kind, Meta
from proplet.manager.phases import Phase


@dataclass(frozen=True, slots=True)
class PropletSelector:
    """Which proplets may have a task; every given part must match."""

    proplet_id: str | None = None
    match_labels: Mapping[str, str] = field(default_factory=dict)
    match_device_types: tuple[str, ...] = ()
    match_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resources:
    """What a task asks for, or a proplet has: CPUs (1.0 is one core) and bytes of memory; None is unstated."""

    cpu: float | None = None
    memory_bytes: int | None = None
    custom: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What is to run, where and under which terms. The vocabulary is ARCHITECTURE.md's, "One vocabulary"."""

    name: str = ""
    function_name: str = ""
    kind: str = "standard"
    image_url: str = ""
    file: bytes = b""
    inputs: tuple[str, ...] = ()
    cli_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    env_secrets: Mapping[str, Any] = field(default_factory=dict)
    selector: PropletSelector = field(default_factory=PropletSelector)
    preferred_proplet_type: str = "any"
    resources: Resources = field(default_factory=Resources)
    daemon: bool = False
    latent: bool = False
    broadcast: bool = False
    mode: str | None = None
    monitoring_profile: MonitoringProfile | None = None
    restart_policy: RestartPolicy | None = None
    backoff_limit: int | None = None
    active_deadline_seconds: float | None = None
    ttl_seconds_after_finished: int | None = None
    pull_policy: PullPolicy | None = None
    limits: Limits = field(default_factory=Limits)
    permissions: Permissions = field(default_factory=Permissions)
    encrypted: bool = False
    kbs_resource_path: str | None = None
    hal_storage_path: str | None = None
    depends_on: tuple[str, ...] = ()
    run_if: str | None = None
    workflow_id: str | None = None
    job_id: str | None = None
    schedule: str | None = None
    timezone: str | None = None
    is_recurring: bool = False
    suspend: bool = False
    concurrency_policy: str | None = None
    starting_deadline_seconds: float | None = None
    priority: int = 50
    metadata: Mapping[str, Any] = field(default_factory=dict)
    # Standalone only: `start` was not yet asked for (REST creates tasks that wait for POST .../start).
    held: bool = False

    @property
    def lasts(self) -> bool:
        """Whether it goes on until it is stopped: no deadline for its result, and for sure there when it is deleted."""
        return self.daemon or self.latent


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """What is so.

    `attempt` numbers dispatches and only grows, over restarts of the run, too; `failures` counts the attempts of the
    current run that failed or were lost. `not_before` delays the next dispatch (backoff).
    """

    phase: Phase = Phase.PENDING
    proplet_id: str | None = None
    attempt: int = 0
    failures: int = 0
    stop_requested: bool = False
    dispatched_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    next_run: float = 0.0
    not_before: float = 0.0
    results: str | None = None
    error: str | None = None
    reason: Reason | None = None
    message: str = ""  # why it is pending, or runs again and again, for a person
    exit_code: int | None = None
    resolved_image: str | None = None
    usage: Usage | None = None
    broadcast_results: tuple[Mapping[str, Any], ...] = ()
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0
    assigned_proplet: str | None = None  # the Proplet's name; its id on the wire is `proplet_id`


@dataclass(frozen=True, slots=True)
class Task:
    """A unit of work."""

    meta: Meta
    spec: TaskSpec = field(default_factory=TaskSpec)
    status: TaskStatus = field(default_factory=TaskStatus)
    kind: Kind = field(default=Kind.TASK, init=False)

    @property
    def id(self) -> str:
        """The id it has on the wire and in the REST API: its uid, as the reference's operator does."""
        return self.meta.uid
