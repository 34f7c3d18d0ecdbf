"""What the pure decisions about Tasks are made with, besides the task: the fleet, the waiting times, the limits."""

from collections.abc import Callable
from dataclasses import dataclass, field

from proplet.manager.exchange import Policy
from proplet.manager.model import Key, Task
from proplet.manager.placement import Fleet
from proplet.manager.workflow import CircleOf


def _nothing_unsupported(_task: Task) -> str | None:
    return None


def _nobody(_key: Key) -> Task | None:
    return None


def _not_outranked(_task: Task) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class World:
    """The controller's picture.

    `unsupported` says what a task asks for that this version cannot do, `find` returns another task, `outranked` says
    whether tasks that come first wait for room on the same proplets, `circle` returns the names of a circle in which a
    pending task waits for itself (None: it is searched for).
    """

    fleet: Fleet
    policy: Policy = field(default_factory=Policy)
    unsupported: Callable[[Task], str | None] = _nothing_unsupported
    find: Callable[[Key], Task | None] = _nobody
    outranked: Callable[[Task], bool] = _not_outranked
    circle: CircleOf | None = None

    def tells(self, proplet_id: str) -> bool:
        """Whether the proplet says what it holds."""
        peer = self.fleet.peers.get(proplet_id)
        return peer is not None and peer.tells

    def type_of(self, proplet_id: str | None) -> str:
        """What kind of proplet it is, `external` or `k8s`."""
        peer = self.fleet.peers.get(proplet_id or "")
        return "external" if peer is None else peer.proplet.spec.type

    def name_of(self, proplet_id: str) -> str:
        """The name of its resource."""
        peer = self.fleet.peers.get(proplet_id)
        return proplet_id if peer is None else peer.proplet.meta.name

    def deadline(self, task: Task) -> float:
        """Seconds that a proplet which tells nothing is given for a task."""
        given = task.spec.active_deadline_seconds
        return (self.policy.silent_deadline_s if given is None else given) + self.policy.deadline_margin_s
