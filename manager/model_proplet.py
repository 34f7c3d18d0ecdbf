"""Proplets: the devices that run Tasks, as declared and as they are.

Pure values. Sizes are bytes, times are seconds, moments are seconds since the Unix epoch (UTC); 0.0 means never.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from proplet.agent.wire import Metadata
from proplet.manager.model_meta import Condition, Kind, Meta
from proplet.manager.model_task import Resources


class PropletPhase(Enum):
    """The reference's phases of a proplet."""

    INITIALIZING = "Initializing"
    RUNNING = "Running"
    OFFLINE = "Offline"


@dataclass(frozen=True, slots=True)
class PropletSpec:
    """A device as declared. Standalone, one that announces itself gets a record with an empty spec."""

    type: str = "external"
    device_type: str | None = None
    capabilities: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    connection: Mapping[str, Any] = field(default_factory=dict)
    k8s: Mapping[str, Any] = field(default_factory=dict)
    declared: bool = True


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many pods of a proplet of type k8s are there: ready, and ready for long enough."""

    ready: int = 0
    available: int = 0


@dataclass(frozen=True, slots=True)
class DeviceMetrics:
    """What a device uses: shares in thousandths of a per cent, as the reference counts them, and bytes."""

    timestamp: float = 0.0
    cpu_milli_percent: int = 0
    memory_milli_percent: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PropletStatus:
    """What is known of a device. `proplet_id` on the wire is the record's name unless its connection says otherwise.

    Heartbeats live in memory (`registry`); only changes of phase and description are written.
    """

    phase: PropletPhase = PropletPhase.INITIALIZING
    last_seen: float = 0.0
    metadata: Metadata | None = None
    extensions: tuple[str, ...] = ()  # topics it announced: own, inventory, logs, progress
    encodings: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    alive: bool = False
    task_count: int = 0  # Tasks assigned to it, finished ones included as long as they are kept
    available_resources: Resources | None = None
    replicas: Replicas | None = None
    latest_metrics: DeviceMetrics | None = None
    observed_generation: int = 0


@dataclass(frozen=True, slots=True)
class Proplet:
    """A device that runs tasks."""

    meta: Meta
    spec: PropletSpec = field(default_factory=PropletSpec)
    status: PropletStatus = field(default_factory=PropletStatus)
    kind: Kind = field(default=Kind.PROPLET, init=False)

    @property
    def id(self) -> str:
        """The id it has on the wire."""
        connection = self.spec.connection
        return str(connection.get("clientId") or connection.get("entityId") or self.meta.name)
