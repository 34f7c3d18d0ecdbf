"""Runs at times: when a scheduled Task may start, when it starts again, what a run that is overdue does. Pure.

`status.next_run` is the next time of the schedule. A pending Task whose `not_before` is that time waits for it; once it
is dispatched, `next_run` moves on (to nothing, where it runs only once). The meaning is that of Kubernetes' CronJob:

* A Task without `isRecurring` runs once, at the next time after it was made; a recurring one at each. Never at once.
* Times that passed unseen (manager away, clock set forward, Task suspended) are made up for by one run, the last one's;
  with `startingDeadlineSeconds` only if that is not longer ago, else they are left out.
* `suspend` keeps runs from starting; one that is under way goes on.
* A Task is one object and has one run at a time. So `Allow` means `Forbid`: a time that comes while the last run is
  under way is left out. `Replace` stops that run, and starts the new one when it has ended.
* A clock that is set back moves the plan: the next run is never further away than the next but one time. By a few
  seconds it moves nothing, so no time is run twice.
"""

import math
from dataclasses import replace
from typing import Final

from proplet.agent.codec import rfc3339
from proplet.manager import outcome
from proplet.manager.exchange import Decision, Moment
from proplet.manager.model import Task, TaskStatus
from proplet.manager.schedule import Schedule, ScheduleError, parse

REPLACE: Final = "Replace"
_A_MOMENT: Final = 0.001  # so that a deadline has passed when it is looked at


def gate(task: Task, at: Moment) -> Decision | None:
    """Return what a pending scheduled Task waits for; None: its time has come."""
    status = task.status
    if _opened(status):
        return None
    plan = _plan(task)
    if isinstance(plan, str):
        return Decision(replace(status, message=plan), why="InvalidSchedule")
    if not status.next_run or (status.next_run > at.wall and _stale(task, plan, at)):
        return _waits(task, plan.after(at.wall))
    if status.next_run > at.wall:
        return Decision(wake=_mono(status.next_run, at), why="WaitingForSchedule")
    missed = _missed(task, plan, at)
    if missed is None:
        return None
    if task.spec.is_recurring:
        return _waits(task, plan.after(at.wall), after=f"{missed}; ")
    return Decision(outcome.skipped(status, missed, at.wall))


def again(task: Task, at: Moment) -> Decision:
    """Return what becomes of a recurring Task whose last run is over."""
    status, plan = task.status, _plan(task)
    if task.spec.suspend or isinstance(plan, str):
        return Decision()  # until its spec changes
    if not status.next_run or (status.next_run > at.wall and _stale(task, plan, at)):
        return Decision(_planned(task, plan.after(at.wall)))
    if status.next_run > at.wall:
        return Decision(wake=_mono(status.next_run, at))
    if _missed(task, plan, at) is not None:
        return Decision(_planned(task, plan.after(at.wall)))
    return Decision(replace(outcome.restarted(status), not_before=status.next_run))


def following(task: Task, at: Moment) -> float:
    """Return the next run after the one that begins now; 0.0 if there is none."""
    plan = _plan(task)
    if not task.spec.is_recurring or isinstance(plan, str):
        return 0.0
    return plan.after(at.wall) or 0.0


def overrun(task: Task, at: Moment) -> TaskStatus | None:
    """Return the status of a Task that is still under way when its next run is due; None: nothing is due."""
    spec, status = task.spec, task.status
    if not spec.schedule or not spec.is_recurring or spec.suspend or status.stop_requested:
        return None
    if not status.next_run or status.next_run > at.wall:
        return None
    if spec.concurrency_policy == REPLACE:
        return replace(status, stop_requested=True)
    return replace(status, next_run=following(task, at))


def wake(task: Task, at: Moment) -> float:
    """Return when (monotonic) the next run of a Task under way is due."""
    waits = task.spec.schedule and task.spec.is_recurring and not task.spec.suspend and not task.status.stop_requested
    return _mono(task.status.next_run, at) if waits and task.status.next_run else math.inf


def expires(task: Task, at: Moment) -> float:
    """Return when (monotonic) a run that is due must not start any more."""
    spec, status = task.spec, task.status
    if not spec.schedule or spec.starting_deadline_seconds is None or _opened(status):
        return math.inf
    plan = _plan(task)
    last = status.next_run if isinstance(plan, str) else max(status.next_run, plan.latest(at.wall) or 0.0)
    return _mono(last + spec.starting_deadline_seconds, at) + _A_MOMENT


def _opened(status: TaskStatus) -> bool:
    """Whether the run has begun: it is being placed again, or somebody asked for it."""
    if status.next_run and status.not_before == status.next_run:
        return False
    return status.next_run > 0.0 or status.attempt > 0


def _plan(task: Task) -> Schedule | str:
    try:
        return parse(task.spec.schedule or "", task.spec.timezone)
    except ScheduleError as error:
        return f"spec.schedule, with spec.timezone, {error}"


def _stale(task: Task, plan: Schedule, at: Moment) -> bool:
    """Whether the plan was made for another spec, or by a clock that has been set back since."""
    planned = task.status.next_run
    if task.status.observed_generation != task.meta.generation or not plan.names(planned):
        return True
    first = plan.after(at.wall)
    second = plan.after(first) if first is not None else None
    return second is not None and planned > second


def _missed(task: Task, plan: Schedule, at: Moment) -> str | None:
    """Why the run that is due must not start any more, or None."""
    deadline = task.spec.starting_deadline_seconds
    if deadline is None:
        return None
    last = max(task.status.next_run, plan.latest(at.wall) or 0.0)
    if at.wall - last <= deadline:
        return None
    return f"its start at {_text(last)} was missed by more than {deadline:g} s"


def _waits(task: Task, moment: float | None, after: str = "") -> Decision:
    status = _planned(task, moment)
    if not status.next_run:
        return Decision(replace(status, message="its schedule has no time any more"), why="InvalidSchedule")
    message = f"{after}its next run is due at {_text(status.next_run)}"
    return Decision(replace(status, not_before=status.next_run, message=message), why="WaitingForSchedule")


def _planned(task: Task, moment: float | None) -> TaskStatus:
    return replace(task.status, next_run=moment or 0.0, observed_generation=task.meta.generation)


def _mono(moment: float, at: Moment) -> float:
    return at.mono + moment - at.wall


def _text(moment: float) -> str:
    return f"{rfc3339(int(moment))[:19]}Z"
