"""What is forgotten so that a store stays bounded: finished Tasks, the longest finished first."""

from proplet.manager.model import Kind, Task
from proplet.manager.phases import TERMINAL
from proplet.manager.ports import ConflictError, NotFoundError, Store


async def prune(store: Store, keep: int, *, before: float | None = None) -> int:
    """Delete the finished Tasks beyond the `keep` last finished, and those finished before `before`; return how many.

    Scheduled Tasks are kept, they run again; so is a Task that somebody starts again meanwhile. `before` is an epoch
    time. Raises StoreUnavailableError; what was deleted until then stays deleted.
    """
    finished = [
        task
        for task in (await store.list(Kind.TASK)).items
        if isinstance(task, Task) and task.status.phase in TERMINAL and not task.spec.schedule
    ]
    finished.sort(key=lambda task: (task.status.finished_at, task.meta.version), reverse=True)
    old = [task for task in finished[:keep] if before is not None and task.status.finished_at < before]
    count = 0
    for task in [*old, *finished[keep:]]:
        try:
            await store.delete(Kind.TASK, task.meta.key, task.meta.version)
        except (ConflictError, NotFoundError):
            continue  # changed or deleted by somebody else since the list
        count += 1
    return count
