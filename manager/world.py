"""What the pure decisions about Tasks are made with, besides the task: the fleet, the waiting times, the limits."""

from collections.abc import Callable
from dataclasses import dataclass, field

from proplet.manager.exchange import Policy
from proplet.manager.model import Task
from proplet.manager.placement import Fleet


def _nothing_unsupported(_task: Task) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class World:
    """The controller's picture. `unsupported` says what a task asks for that this version cannot do."""

    fleet: Fleet
    policy: Policy = field(default_factory=Policy)
    unsupported: Callable[[Task], str | None] = _nothing_unsupported

    def tells(self, proplet_id: str) -> bool:
        """Whether the proplet says what it holds."""
        peer = self.fleet.peers.get(proplet_id)
        return peer is not None and peer.tells

    def deadline(self, task: Task) -> float:
        """Seconds that a proplet which tells nothing is given for a task."""
        given = task.spec.active_deadline_seconds
        return (self.policy.silent_deadline_s if given is None else given) + self.policy.deadline_margin_s
