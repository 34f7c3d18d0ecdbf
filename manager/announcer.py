"""What a person is told of Tasks and Proplets as it happens: one event for every change that was recorded.

The controller and the roster say what a record was before and is now; what has not changed is not told again. Events
are news, not state: one that is lost is not told again either, the conditions say the same.

Where an event costs as much as a record (a cluster), a first attempt that ends well and soon is no news: nothing is
told of it. One that lasts is told of when it is marked as such (`deletion`).
"""

from typing import Final

from proplet.manager import conditions
from proplet.manager.deletion import is_marked
from proplet.manager.model import Condition, Proplet, PropletPhase, Resource, Task, TaskStatus
from proplet.manager.phases import Phase
from proplet.manager.ports import EventSink

_ENDS: Final = {
    Phase.COMPLETED: ("Completed", False),
    Phase.FAILED: ("Failed", True),
    Phase.SKIPPED: ("Skipped", False),
    Phase.INTERRUPTED: ("Interrupted", True),
}
_EXPECTED: Final = frozenset({"WaitingForSchedule", "WaitingForDependencies", "Suspended", "PlacedAgain"})


class NoEvents:
    """A sink that drops everything."""

    def emit(self, resource: Resource, reason: str, message: str, *, warning: bool = False) -> None:
        """Drop it."""


class Announcer:
    """Tells a sink. `sparing`: not of the success of a Task that never was marked as one that lasts."""

    def __init__(self, sink: EventSink | None = None, *, sparing: bool = False) -> None:
        self._sink = sink or NoEvents()
        self._sparing = sparing

    def task(self, before: Task, after: Task) -> None:
        """A Task's status was recorded."""
        was, now = before.status, after.status
        if now.failures > was.failures:
            where = was.assigned_proplet or was.proplet_id or "its proplets"
            self._sink.emit(after, "Lost", f"attempt {was.attempt} on {where} ended without a result", warning=True)
        if now.attempt > was.attempt and (not self._may_be_brief(after) or _waits(was)):
            self._dispatched(after)
        if now.phase is Phase.PENDING:
            self._pending(after, _scheduled(was), _scheduled(now))
        if now.phase is Phase.COMPLETED and self._may_be_brief(after) and not is_marked(after):
            return
        if now.phase in _ENDS and (was.phase is not now.phase or was.attempt != now.attempt):
            reason, warning = _ENDS[now.phase]
            self._sink.emit(after, reason, _ending(after, now), warning=warning)

    def lasting(self, task: Task) -> None:
        """A Task under way was marked."""
        if self._may_be_brief(task):
            self._dispatched(task)

    def _may_be_brief(self, task: Task) -> bool:
        first = task.status.attempt == 1 and not task.status.failures
        return self._sparing and first and not task.spec.daemon and not task.spec.broadcast

    def _dispatched(self, task: Task) -> None:
        status = task.status
        where = "every fitting proplet" if task.spec.broadcast else status.assigned_proplet or status.proplet_id or ""
        self._sink.emit(task, "Dispatched", f"attempt {status.attempt} was sent to {where}")

    def _pending(self, task: Task, was: Condition | None, now: Condition | None) -> None:
        if now is None or now.status or not now.message:
            return
        if was is None or (was.reason, was.message) != (now.reason, now.message):
            self._sink.emit(task, now.reason, now.message, warning=now.reason not in _EXPECTED)

    def proplet(self, before: Proplet | None, after: Proplet) -> None:
        """A Proplet's status was recorded, or the Proplet was made (`before` None)."""
        was = before.status.phase if before is not None else PropletPhase.INITIALIZING
        now, shown = after.status.phase, {condition.type: condition for condition in after.status.conditions}
        if now is not was and now is PropletPhase.RUNNING:
            self._sink.emit(after, "PropletOnline", f"proplet {after.id} is online")
        elif now is not was and now is PropletPhase.OFFLINE:
            away = shown.get(conditions.CONNECTED)
            self._sink.emit(after, "PropletOffline", away.message if away else "it is offline", warning=True)
        ready, old = shown.get(conditions.READY), before.status.conditions if before is not None else ()
        told = ready is None or any((one.reason, one.message) == (ready.reason, ready.message) for one in old)
        if ready is not None and ready.reason in conditions.REFUSALS and not told:
            self._sink.emit(after, ready.reason, ready.message, warning=True)


def _scheduled(status: TaskStatus) -> Condition | None:
    return next((one for one in status.conditions if one.type == conditions.SCHEDULED), None)


def _waits(status: TaskStatus) -> bool:
    """Whether it was told why it waits."""
    shown = _scheduled(status)
    return shown is not None and not shown.status and bool(shown.message)


def _ending(task: Task, status: TaskStatus) -> str:
    where = status.assigned_proplet or status.proplet_id
    text = status.error or ("it completed" if status.phase is Phase.COMPLETED else status.phase.value)
    return f"{text} (attempt {status.attempt} on {where})" if where and not task.spec.broadcast else text
