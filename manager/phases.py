"""A Task's phases in the control plane, as one literal table.

`completed`, `failed`, `skipped` and `interrupted` are final for one run; a start asked for again, or the next run
of a schedule, leads from them back to `pending` and counts as a new run. Source of the names: the reference's CRD.
"""

from enum import Enum
from types import MappingProxyType
from typing import Final


class Phase(Enum):
    """Where a Task stands; `number` is the reference's REST and wire value."""

    PENDING = "pending"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"

    @property
    def number(self) -> int:
        """The reference's number for this phase."""
        return list(Phase).index(self)


class Happening(Enum):
    """What can happen to a Task."""

    DISPATCHED = "dispatched"  # the intent to start it on a proplet is recorded
    CONFIRMED = "confirmed"  # the proplet says that it holds the task
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    SKIPPED = "skipped"
    LOST = "lost"  # its proplet no longer holds it: to be placed again
    RESTARTED = "restarted"  # a new run was asked for


TERMINAL: Final = frozenset({Phase.COMPLETED, Phase.FAILED, Phase.SKIPPED, Phase.INTERRUPTED})

_AGAIN = {Happening.RESTARTED: Phase.PENDING}

TRANSITIONS: Final = MappingProxyType(
    {
        Phase.PENDING: {
            Happening.DISPATCHED: Phase.SCHEDULED,
            Happening.FAILED: Phase.FAILED,
            Happening.INTERRUPTED: Phase.INTERRUPTED,
            Happening.SKIPPED: Phase.SKIPPED,
        },
        Phase.SCHEDULED: {
            Happening.CONFIRMED: Phase.RUNNING,
            Happening.SUCCEEDED: Phase.COMPLETED,
            Happening.FAILED: Phase.FAILED,
            Happening.INTERRUPTED: Phase.INTERRUPTED,
            Happening.LOST: Phase.PENDING,
        },
        Phase.RUNNING: {
            Happening.SUCCEEDED: Phase.COMPLETED,
            Happening.FAILED: Phase.FAILED,
            Happening.INTERRUPTED: Phase.INTERRUPTED,
            Happening.LOST: Phase.PENDING,
        },
        Phase.COMPLETED: _AGAIN,
        Phase.FAILED: _AGAIN,
        Phase.SKIPPED: _AGAIN,
        Phase.INTERRUPTED: _AGAIN,
    }
)


class IllegalTransitionError(RuntimeError):
    """The table has no such edge: a defect of ours, never of a peer's message."""


def advance(phase: Phase, happening: Happening) -> Phase:
    """Return the phase after `happening`.

    Raises:
        IllegalTransitionError: the table has no such edge.
    """
    try:
        return TRANSITIONS[phase][happening]
    except KeyError:
        raise IllegalTransitionError(f"{happening.value} cannot happen to a task that is {phase.value}") from None
