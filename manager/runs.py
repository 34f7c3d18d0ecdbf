"""Runs asked for and asked to end, by a person or a program: written to the store, where the controller finds them."""

from dataclasses import replace
from typing import cast

from proplet.manager import outcome
from proplet.manager.model import Kind, Task
from proplet.manager.phases import TERMINAL
from proplet.manager.ports import ConflictError, NotRunningError, Store


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
