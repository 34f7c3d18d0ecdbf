"""Tasks that are deleted while they run: when a deletion has to wait for their end, and that they are stopped. Pure.

A Task that is gone is stopped when the deletion is noticed, which needs nothing but its proplet's word. A manager that
is away at that moment would never learn of it; so, where the store knows finalizers, a Task that lasts is marked with
ours: a daemon before it starts, another one once it has been running for a while. The mark goes when the run is over.
"""

import math
from dataclasses import replace
from typing import Final

from proplet.manager.exchange import Moment, Policy
from proplet.manager.model import Task, TaskStatus

FINALIZER: Final = "propeller.propeller.abstractmachines.fr/stop"
_CLOCK_SET_BACK_S: Final = 1.0


def is_marked(task: Task) -> bool:
    """Whether it has our finalizer."""
    return FINALIZER in task.meta.finalizers


def with_mark(task: Task, *, marked: bool) -> Task:
    """Return the Task with our finalizer, or without."""
    others = tuple(name for name in task.meta.finalizers if name != FINALIZER)
    return replace(task, meta=replace(task.meta, finalizers=(*others, FINALIZER) if marked else others))


def asked(task: Task) -> TaskStatus | None:
    """Return the status of a Task under way that was deleted: its end is asked for; None: it was not, or that was."""
    if not task.meta.deleted_at or task.status.stop_requested:
        return None
    return replace(task.status, stop_requested=True)


def mark(task: Task, policy: Policy, at: Moment) -> tuple[bool | None, float]:
    """Return whether a Task under way is to be marked now, and when (monotonic) it will be, unless it ends."""
    if not policy.finalizers or is_marked(task) or task.meta.deleted_at:
        return None, math.inf
    due = task.status.dispatched_at + policy.finalize_after_s
    if at.wall >= due or task.spec.lasts or task.status.dispatched_at - at.wall > _CLOCK_SET_BACK_S:
        return True, math.inf
    return None, at.mono + due - at.wall
