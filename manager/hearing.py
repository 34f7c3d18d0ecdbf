"""What proplets say, sorted: into signals for their tasks, news for the roster, and what is only kept in memory.

Synchronous and quick: the bus calls it for every message, in order. A message whose meaning must be recorded first is
acknowledged later, with its signal; every other one at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proplet.agent.wire import (
    FINISHED,
    Alive,
    Discovery,
    Inventory,
    InvokeResult,
    LogLines,
    Progress,
    PropletMetrics,
    Result,
    TaskMetrics,
)
from proplet.manager.core import UNDER_WAY, stray
from proplet.manager.exchange import Ended, Holds, Lacks, SessionLost, Signal
from proplet.manager.model import Task
from proplet.manager.observed import Observed
from proplet.manager.roster import Roster

_SETTLING_S = 2.0
_RESTING = ("running", "serving", "deployed")
_WITH_NOTE = ("waiting", "crash_loop", "serving")


@dataclass(frozen=True, slots=True)
class Tell:
    """Where what was heard goes: signals to tasks, and attempts nobody wants to where they are stopped.

    `signal` gets the task's uid, what it is told, and the acknowledgement to give when that is recorded.
    """

    signal: Callable[[str, Signal, Callable[[], None]], None]
    unwanted: Callable[[str, str, int | None], None]
    task: Callable[[str], Task | None]
    deleted: Callable[[str], bool]
    held_by: Callable[[str], set[str]]
    answered: Callable[[InvokeResult], None]


def nothing_to_do() -> None:
    """The acknowledgement of what needs none."""


class Hearing:
    """Sorts messages."""

    def __init__(self, tell: Tell, roster: Roster, observed: Observed, wall: Callable[[], float]) -> None:
        self._tell = tell
        self._roster = roster
        self._observed = observed
        self._wall = wall

    def hear(self, message: Any, done: Callable[[], None]) -> None:
        """Take one message; `done` acknowledges it."""
        match message:
            case Result():
                self._result(message, done)
                return
            case Alive():
                self._roster.heard(message)
            case Discovery():
                self._discovered(message)
            case Inventory():
                self._inventory(message)
            case Progress():
                self._progress(message)
            case TaskMetrics():
                self._task_metrics(message)
            case PropletMetrics():
                self._observed.proplets.add(message.proplet_id, message)
                self._roster.measured(message)
            case LogLines() if self._tell.task(message.task_id) is not None:
                self._observed.logs.add(message)
            case InvokeResult():
                self._tell.answered(message)
            case _:
                pass
        done()

    def _discovered(self, message: Discovery) -> None:
        self._roster.discovered(message)
        if message.ext is None:  # the reference's proplets say it once, when they start, and remember nothing
            for uid in self._tell.held_by(message.proplet_id):
                self._tell.signal(uid, SessionLost(), nothing_to_do)

    def _result(self, result: Result, done: Callable[[], None]) -> None:
        if self._tell.task(result.task_id) is None:
            done()  # deleted, or another manager's
        else:
            self._observed.logs.ended(result.task_id)
            self._observed.states.forget(result.task_id, result.proplet_id)
            self._tell.signal(result.task_id, Ended(result), done)

    def _inventory(self, inventory: Inventory) -> None:
        """It lists everything the proplet holds, so it also says what it does not hold."""
        proplet_id, named = inventory.proplet_id, set[str]()
        for item in inventory.tasks:
            task, ended = self._tell.task(item.id), item.state == FINISHED
            if ended and stray(task, proplet_id, item):
                continue  # its result is on the way and will be acknowledged; there is nothing to stop
            if stray(task, proplet_id, item) or (task is None and self._tell.deleted(item.id)):
                self._tell.unwanted(item.id, proplet_id, item.attempt)
            elif task is not None:
                named.add(item.id)
                if not ended:
                    self._observed.states.add(item.id, proplet_id, item.attempt, item.state)
                known = Holds(
                    proplet_id, item.attempt, ended, *_standing(task, item.state, item.message), item.image_digest
                )
                self._tell.signal(item.id, known, nothing_to_do)
        for uid in self._tell.held_by(proplet_id) - named:
            self._tell.signal(uid, Lacks(proplet_id), nothing_to_do)

    def _progress(self, progress: Progress) -> None:
        task = self._tell.task(progress.task_id)
        if progress.attempt is not None and task is not None:
            self._observed.states.add(progress.task_id, progress.proplet_id, progress.attempt, progress.stage)
            standing = _standing(task, progress.stage, progress.message)
            self._confirms(task, Holds(progress.proplet_id, progress.attempt, False, *standing, progress.image_digest))

    def _task_metrics(self, metrics: TaskMetrics) -> None:
        task = self._tell.task(metrics.task_id)
        if task is None:
            return
        self._observed.tasks.add(metrics.task_id, metrics)
        if metrics.ext is not None and metrics.ext.attempt is not None:
            if not metrics.ext.final:
                self._confirms(task, Holds(metrics.proplet_id, metrics.ext.attempt))
            return
        # The reference's name no attempt: only what has begun since the dispatch is of the current one.
        began = self._wall() - metrics.metrics.uptime_seconds
        if began >= task.status.dispatched_at - _SETTLING_S:
            self._confirms(task, Holds(metrics.proplet_id, task.status.attempt))

    def _confirms(self, task: Task, holds: Holds) -> None:
        if task.status.phase in UNDER_WAY:
            self._tell.signal(task.id, holds, nothing_to_do)


def _standing(task: Task, state: str, message: str) -> tuple[bool, str | None]:
    """Whether a proplet's word for a task's state means that it runs, or lies ready; and what it says to that.

    That is why it waits, or where it serves.
    A latent task is running once it can be invoked; of any other, what a proplet holds is on its way.
    """
    rests = state in _RESTING
    note = message if state in _WITH_NOTE else "" if rests else None
    return rests or not task.spec.latent, note
