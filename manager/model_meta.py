"""What every resource has: its kind, its name, what it belongs to, and the conditions of its status.

Pure values. Times are seconds, moments are seconds since the Unix epoch (UTC); 0.0 means never.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """What a resource is; the value is the manifest's `kind`."""

    TASK = "Task"
    PROPLET = "Proplet"
    JOB = "PropellerJob"
    FEDERATED_JOB = "FederatedJob"
    ROUND = "TrainingRound"


@dataclass(frozen=True, slots=True)
class Key:
    """What identifies a resource of a kind."""

    name: str
    namespace: str = "default"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Owner:
    """The resource, in the same namespace, that a resource was made for; it is deleted when that one is.

    `api_version` is its group and version where another program made it, "" for a kind of ours.
    """

    kind: str
    name: str
    uid: str
    controller: bool = True
    api_version: str = ""


@dataclass(frozen=True, slots=True)
class Meta:
    """What every resource has. `version` changes with every write, `generation` with every change of the spec.

    A resource with `finalizers` is not removed when it is deleted: `deleted_at` says since when it is to go, and it
    goes with the last of its finalizers.
    """

    name: str
    namespace: str = "default"
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    created_at: float = 0.0
    updated_at: float = 0.0
    generation: int = 1
    version: int = 0
    owner: Owner | None = None
    finalizers: tuple[str, ...] = ()
    deleted_at: float = 0.0

    @property
    def key(self) -> Key:
        """Name and namespace."""
        return Key(self.name, self.namespace)


@dataclass(frozen=True, slots=True)
class Condition:
    """One aspect of a status, with why and since when."""

    type: str
    status: bool
    reason: str = ""
    message: str = ""
    last_transition_time: float = 0.0
