"""Tasks that wait for others: whether a Task's dependencies let it run, keep it waiting, or leave it out. Pure.

`dependsOn` names Tasks of the same namespace that share the Task's workflow or job. With `runIf: success`, which is the
default, it runs when all have completed, and is skipped as soon as one has ended otherwise. With `runIf: failure` it
runs when all have ended and at least one did not complete, and is skipped when all did. What is not there is waited
for: it may yet be made. Tasks that wait for each other in a circle would wait for ever, so they fail.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from proplet.manager.model import Key, Task
from proplet.manager.phases import TERMINAL, Phase

Find = Callable[[Key], Task | None]
CircleOf = Callable[[Task], Sequence[str]]

ON_FAILURE: Final = "failure"
_NAMED: Final = 5
_MOST: Final = 10_000  # Tasks looked at in search of a circle


class Verdict(Enum):
    """What follows from the dependencies."""

    RUN = "run"
    WAIT = "wait"
    SKIP = "skip"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and why, for a person; the same while nothing changes."""

    verdict: Verdict
    message: str = ""


def judge(task: Task, find: Find, circle: CircleOf | None = None) -> Judgement:
    """Return what follows from the Tasks that this one depends on.

    `find` looks one up by its key; `circle` returns what `circle_of` does, where that is known without a search.
    """
    if not task.spec.depends_on:
        return Judgement(Verdict.RUN)
    missing, strangers, waiting, ended_badly = [], [], [], []
    for name in task.spec.depends_on:
        other = find(Key(name, task.meta.namespace))
        if other is None:
            missing.append(name)
        elif not _together(task, other):
            strangers.append(name)
        elif other.status.phase not in TERMINAL:
            waiting.append(name)
        elif other.status.phase is not Phase.COMPLETED:
            ended_badly.append(f"{name} ({other.status.phase.value})")
    on_failure = task.spec.run_if == ON_FAILURE
    if ended_badly and not on_failure:
        return Judgement(Verdict.SKIP, f"it runs only if these complete: {_list(ended_badly)}")
    if missing or strangers or waiting:
        message = _why(task, missing, strangers, waiting)
        # Who closes a circle waits for something new. So nobody else searches, least of all everybody after a restart.
        known = task.status.message == message and len(waiting) <= _NAMED
        names = _circle(task, find, circle) if waiting and not known else ()
        if names:
            return Judgement(Verdict.FAIL, f"its dependencies go in a circle: {' -> '.join(names)}")
        return Judgement(Verdict.WAIT, message)
    if on_failure and not ended_badly:
        return Judgement(Verdict.SKIP, "it runs only if one of its dependencies does not complete, and all did")
    return Judgement(Verdict.RUN)


def _circle(task: Task, find: Find, circle: CircleOf | None) -> Sequence[str]:
    return circle_of(task, find) if circle is None else circle(task)


def circle_of(task: Task, find: Find) -> Sequence[str]:
    """Return the names along a way from the Task over unfinished dependencies back to it; empty: there is none."""
    start, came_from = task.meta.key, dict[Key, Key]()
    stack, looked_at = [task], 0
    while stack and looked_at < _MOST:
        current = stack.pop()
        looked_at += 1
        for name in current.spec.depends_on:
            key = Key(name, task.meta.namespace)
            if key == start:
                return _way(current.meta.key, start, came_from)
            other = find(key)
            if other is None or key in came_from or other.status.phase is not Phase.PENDING:
                continue
            came_from[key] = current.meta.key
            stack.append(other)
    return ()


def _way(last: Key, start: Key, came_from: dict[Key, Key]) -> Sequence[str]:
    names = [start.name]
    while last != start:
        names.append(last.name)
        last = came_from[last]
    return (start.name, *reversed(names[1:]), start.name)


def _together(task: Task, other: Task) -> bool:
    """Whether both are of one workflow or job."""
    mine, its = task.spec, other.spec
    in_workflow = bool(mine.workflow_id) and mine.workflow_id == its.workflow_id
    return in_workflow or (bool(mine.job_id) and mine.job_id == its.job_id)


def _why(task: Task, missing: list[str], strangers: list[str], waiting: list[str]) -> str:
    parts = []
    if waiting:
        parts.append(f"it waits for {_list(waiting)}")
    if missing:
        parts.append(f"there is no Task {_list(missing)} in the namespace {task.meta.namespace}")
    if strangers:
        group = task.spec.workflow_id or task.spec.job_id
        parts.append(f"{_list(strangers)} is not of its workflow or job {group}")
    return "; ".join(parts)


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
