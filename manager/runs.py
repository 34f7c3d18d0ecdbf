"""Runs asked for and asked to end, by a person or a program: written to the store, where the controller finds them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from proplet.manager import outcome
from proplet.manager.job_plan import HELD, STOP, TASK_IDS
from proplet.manager.jobs import ENDED
from proplet.manager.model import Kind, PropellerJob, Resource, Task
from proplet.manager.phases import TERMINAL
from proplet.manager.ports import ConflictError, NotRunningError, Store


def merged(current: Resource, wanted: Resource) -> Resource:
    """Return a resource with a manifest's spec, labels and annotations, at its own version: so that a race shows.

    That somebody stopped a job is no manifest's to take back.
    """
    kept = {name: text for name, text in current.meta.annotations.items() if name in (STOP, TASK_IDS)}
    meta = replace(current.meta, labels=wanted.meta.labels, annotations={**kept, **wanted.meta.annotations})
    result: Resource = replace(cast("Any", current), meta=meta, spec=wanted.spec)
    return result


async def ask_start(store: Store, uid: str) -> Task:
    """Release a held task, run a finished one again; of one under way it is no-op. Raises NotFoundError."""
    while True:
        task = await _find(store, uid)
        try:
            if task.spec.held:
                task = cast("Task", await store.put(replace(task, spec=replace(task.spec, held=False))))
            if task.status.phase in TERMINAL:
                task = cast("Task", await store.record(replace(task, status=outcome.restarted(task.status))))
            return task
        except ConflictError:
            continue


async def ask_stop(store: Store, uid: str, wall: float) -> Task:
    """Have the current run end; a pending one is `interrupted` at once. Raises NotFoundError, NotRunningError."""
    while True:
        task = await _find(store, uid)
        status = outcome.stop_asked(task, wall)
        if status is None:
            raise NotRunningError(f"task {task.meta.name} is {task.status.phase.value}; there is no run to stop")
        try:
            return cast("Task", await store.record(replace(task, status=status)))
        except ConflictError:
            continue


async def _find(store: Store, uid: str) -> Task:
    return cast("Task", await store.find(Kind.TASK, uid))


async def let_job_go(store: Store, uid: str) -> PropellerJob:
    """Let a job go that waits for its start; of one under way it is no-op. Raises NotFoundError, NotRunningError."""
    return await _annotate(store, uid, lambda given: {name: text for name, text in given.items() if name != HELD})


async def have_job_end(store: Store, uid: str) -> PropellerJob:
    """Have a job end: its Tasks are stopped, no more are made. Raises NotFoundError, NotRunningError."""
    return await _annotate(store, uid, lambda given: {**given, STOP: "true"})


async def _annotate(store: Store, uid: str, change: Callable[[Mapping[str, str]], Mapping[str, str]]) -> PropellerJob:
    while True:
        job = cast("PropellerJob", await store.find(Kind.JOB, uid))
        if job.status.phase in ENDED:
            raise NotRunningError(f"job {job.meta.name} has ended ({job.status.phase.value}); make a new one")
        try:
            changed = await store.put(replace(job, meta=replace(job.meta, annotations=change(job.meta.annotations))))
        except ConflictError:
            continue
        return cast("PropellerJob", changed)
