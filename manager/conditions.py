"""The conditions of a Task and of a Proplet: what the reference shows, and why a Task waits. Pure.

Messages never hold how long ago something was: a condition that says the same is the same, and nothing is written.
`last_transition_time` moves only with the condition's status. Source of types, reasons and messages: the reference's
operator, as its public guide shows them; Scheduled and Completed are written beside, which its versions never did.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from proplet.manager.model import Condition, Proplet, PropletPhase, Task, TaskStatus
from proplet.manager.phases import TERMINAL, Phase

SCHEDULED: Final = "Scheduled"
STARTED: Final = "Started"
COMPLETED: Final = "Completed"
READY: Final = "Ready"
CONNECTED: Final = "Connected"

DUPLICATE_IDENTITY: Final = "DuplicateIdentity"
OTHER_CHANNEL: Final = "OtherChannel"
REFUSALS: Final = frozenset({DUPLICATE_IDENTITY, OTHER_CHANNEL})

_MOST: Final = 1024  # characters of a message; what a proplet says is in the status's `error` in full
_ENDS: Final[Mapping[Phase, tuple[str, str]]] = {
    Phase.COMPLETED: ("Completed", "Task completed successfully"),
    Phase.FAILED: ("Failed", "Task failed"),
    Phase.SKIPPED: ("Skipped", "Task was left out"),
    Phase.INTERRUPTED: ("Interrupted", "Task was stopped"),
}


def of_task(task: Task, status: TaskStatus, why: str, proplet_type: str, wall: float) -> tuple[Condition, ...]:
    """Return the conditions of a Task with this status.

    Args:
        task: the Task as it was before, for the broadcast it may be.
        status: its status now; what its conditions said before is in there.
        why: the reason why it is pending, one word; "": what was said before holds.
        proplet_type: of the proplet it is with, `external` or `k8s`.
        wall: now, epoch seconds.
    """
    before = {condition.type: condition for condition in status.conditions}
    if status.phase is Phase.PENDING:
        shown = _pending(status, why, before.get(SCHEDULED))
    elif status.phase in TERMINAL:
        shown = _over(status, _scheduled(task, status, before), proplet_type)
    else:
        shown = [_scheduled(task, status, before)]
        if status.phase is Phase.RUNNING:
            shown.append(_started(status, proplet_type))
    return settled(shown, status.conditions, wall)


def _pending(status: TaskStatus, why: str, before: Condition | None) -> list[Condition]:
    if why:
        return [Condition(SCHEDULED, status=False, reason=why, message=status.message)]
    if before is not None and not before.status:
        return [replace(before, message=status.message or before.message)]
    if status.message:
        return [Condition(SCHEDULED, status=False, reason="PlacedAgain", message=status.message)]
    return []


def _scheduled(task: Task, status: TaskStatus, before: Mapping[str, Condition]) -> Condition:
    if not status.dispatched_at:  # over before it was ever placed
        old = before.get(SCHEDULED)
        return old or Condition(SCHEDULED, status=False, reason="NotPlaced", message="it was not placed")
    where = "every fitting proplet" if task.spec.broadcast else (status.assigned_proplet or status.proplet_id or "")
    return Condition(SCHEDULED, True, "Assigned", f"assigned to {where}", status.dispatched_at)


def _started(status: TaskStatus, proplet_type: str) -> Condition:
    """The reference says it of a Task that has ended, too."""
    message = "Task is running" if proplet_type == "k8s" else "External task is running"
    if status.phase is Phase.RUNNING and status.message:
        message = f"{message}: {status.message}"
    return Condition(STARTED, True, "Running", message, status.started_at or status.dispatched_at)


def _over(status: TaskStatus, scheduled: Condition, proplet_type: str) -> list[Condition]:
    reason, message = _ENDS[status.phase]
    done = status.phase is Phase.COMPLETED
    ended = Condition(COMPLETED, done, reason, message if done else status.error or message, status.finished_at)
    if not status.dispatched_at:
        return [scheduled, ended]
    return [scheduled, _started(status, proplet_type), ended]


# --- proplets ---------------------------------------------------------------------------------------------------------


def of_proplet(proplet: Proplet, phase: PropletPhase, why: str, wall: float) -> tuple[Condition, ...]:
    """Return the conditions of a Proplet in this phase; `why` says why it is offline.

    Of a Proplet of type k8s only Connected is said here: whether it is ready is its Deployment's to say.
    """
    before = proplet.status.conditions
    connected = _connected(phase, why)
    if proplet.spec.type != "k8s":
        return settled([_ready(phase, why), *connected], before, wall)
    # In place, so that two that write different ones of them never write for the order's sake.
    kept = [(connected or [condition])[0] if condition.type == CONNECTED else condition for condition in before]
    new = [] if any(condition.type == CONNECTED for condition in before) else connected
    return settled([*kept, *new], before, wall)


def refused(proplet: Proplet, reason: str, message: str, wall: float) -> tuple[Condition, ...]:
    """Return the conditions of a Proplet that this manager cannot work with."""
    return settled([Condition(READY, status=False, reason=reason, message=message)], proplet.status.conditions, wall)


def _ready(phase: PropletPhase, why: str) -> Condition:
    if phase is PropletPhase.RUNNING:
        return Condition(READY, True, "PropletReady", "External proplet is ready and connected")
    if phase is PropletPhase.OFFLINE:
        return Condition(READY, False, "PropletOffline", f"External proplet is offline: {why}")
    return Condition(READY, False, "PropletInitializing", "Waiting for first connection from external proplet")


def _connected(phase: PropletPhase, why: str) -> list[Condition]:
    if phase is PropletPhase.RUNNING:
        return [Condition(CONNECTED, True, "PropletOnline", "Proplet is online")]
    if phase is PropletPhase.OFFLINE:
        return [Condition(CONNECTED, False, "PropletOffline", f"Proplet is offline: {why}")]
    return []


def settled(shown: Iterable[Condition], before: tuple[Condition, ...], wall: float) -> tuple[Condition, ...]:
    """The conditions with the times at which their statuses last changed."""
    old = {condition.type: condition for condition in before}
    return tuple(_timed(condition, old.get(condition.type), wall) for condition in shown)


def _timed(condition: Condition, before: Condition | None, wall: float) -> Condition:
    since = condition.last_transition_time or wall
    if before is not None and before.status == condition.status:
        since = before.last_transition_time
    return replace(condition, message=condition.message[:_MOST], last_transition_time=since)
