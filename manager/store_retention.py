"""What is forgotten so that a store stays bounded: finished Tasks, the longest finished first."""

from collections.abc import Iterable
from typing import Final

import anyio

from proplet.manager.model import Kind, Resource, Task
from proplet.manager.phases import TERMINAL
from proplet.manager.ports import ConflictError, NotFoundError, Store, StoreUnavailableError
from proplet.manager.store_weight import Scale

_AT_ONCE: Final = 64  # deletions, which share commits


def weight(resources: Iterable[Resource]) -> int:
    """Return how many bytes of modules and results `resources` hold in memory."""
    scale = Scale()
    for resource in resources:
        scale.put(resource)
    return scale.weight


async def prune(store: Store, keep: int, *, before: float | None = None, keep_bytes: int | None = None) -> int:
    """Delete the finished Tasks beyond the `keep` last finished, and those finished before `before`; return how many.

    With `keep_bytes`, also the longest finished ones until modules and results of all Tasks fit into that, but for
    the last finished one.

    Scheduled Tasks are kept, they run again; so is a Task that somebody starts again meanwhile. `before` is an epoch
    time. Raises StoreUnavailableError; what was deleted until then stays deleted.
    """
    tasks = [task for task in (await store.list(Kind.TASK)).items if isinstance(task, Task)]
    finished = [task for task in tasks if task.status.phase in TERMINAL and not task.spec.schedule]
    finished.sort(key=lambda task: (task.status.finished_at, task.meta.version), reverse=True)
    if keep_bytes is not None:
        scale = Scale()
        for task in tasks:
            scale.put(task)
        for count, task in zip(range(len(finished), 1, -1), reversed(finished), strict=False):
            if scale.weight <= keep_bytes:
                break
            scale.take(task)
            keep = min(keep, count - 1)
    old = [task for task in finished[:keep] if before is not None and task.status.finished_at < before]
    return await _delete(store, [*old, *finished[keep:]])


async def _delete(store: Store, tasks: list[Task]) -> int:
    count, problem = 0, None

    async def delete(task: Task) -> None:
        nonlocal count, problem
        try:
            await store.delete(Kind.TASK, task.meta.key, task.meta.version)
            count += 1
        except (ConflictError, NotFoundError):
            pass  # changed or deleted by somebody else since the list
        except StoreUnavailableError as error:
            problem = error

    for at in range(0, len(tasks), _AT_ONCE):
        async with anyio.create_task_group() as group:
            for task in tasks[at : at + _AT_ONCE]:
                group.start_soon(delete, task)
        if problem is not None:
            raise problem
    return count
