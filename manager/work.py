"""What a work is (a resource that consists of others), what it is told, and what it decides: types only, pure.

A work is looked at whenever it or one of its related resources changes, or its time has come. `decide(related, now)`
returns what is to be: status to record, children to make, to change or to delete. Children are made before the status
is recorded, under names that follow from the work's: after a crash in between they are found again, not made twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from proplet.manager.model import FederatedJob, Key, PropellerJob, Resource, Task, TrainingRound

Work = PropellerJob | FederatedJob | TrainingRound


@dataclass(frozen=True, slots=True)
class Related:
    """What a work is decided over: Tasks of its namespace that it made or refers to by name, and its rounds."""

    tasks: Mapping[str, Task] = field(default_factory=dict)
    rounds: Mapping[str, TrainingRound] = field(default_factory=dict)
    job: FederatedJob | None = None  # of a round: the job it belongs to


@dataclass(frozen=True, slots=True)
class Told:
    """What a person is told of a work, once: an Event in Kubernetes, a line in the log."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class WorkDecision:
    """What a look at a work came to, to be done in this order.

    `create` are resources to make (one that exists is left as it is), `delete` names Tasks to delete, `stop` Tasks to
    stop, `release` Tasks that were made suspended and are to run now, `work` is the work with the status to record
    (unchanged: nothing is recorded), `wake_at` the moment of the next look that no change will bring (0.0: none).
    """

    work: Work
    create: tuple[Resource, ...] = ()
    delete: tuple[Key, ...] = ()
    stop: tuple[Key, ...] = ()
    release: tuple[Key, ...] = ()
    told: tuple[Told, ...] = ()
    wake_at: float = 0.0
