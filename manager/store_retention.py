"""What is forgotten so that a store stays bounded: finished Tasks and works, the longest finished first.

What somebody still needs is kept: Tasks of works that have not ended, each job's newest rounds, and Tasks that others
wait for. The other rounds go with their Tasks.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, cast

import anyio

from proplet.manager.model import WORKS, FederatedJob, Key, Kind, PropellerJob, Resource, Task, TrainingRound, WorkPhase
from proplet.manager.phases import TERMINAL
from proplet.manager.ports import ConflictError, NotFoundError, Store, StoreUnavailableError
from proplet.manager.store_weight import Scale

_ROUNDS: Final = 2  # of each job, whatever is left of them
_AT_ONCE: Final = 64  # deletions, which share commits
_ENDED: Final = frozenset({WorkPhase.COMPLETED, WorkPhase.FAILED})

_Work = PropellerJob | FederatedJob | TrainingRound


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

    Scheduled Tasks are kept, they run again; so is a Task that somebody starts again meanwhile, and what others still
    need. Of works that have ended, the `keep` last ended ones are kept; they are not counted. `before` is an epoch
    time. Raises StoreUnavailableError; what was deleted until then stays deleted.
    """
    tasks = [task for task in (await store.list(Kind.TASK)).items if isinstance(task, Task)]
    works = await _works(store)
    needed = _needed(tasks, works)
    finished = [
        task
        for task in tasks
        if task.status.phase in TERMINAL and not task.spec.schedule and task.meta.key not in needed
        if task.meta.owner is None or task.meta.owner.uid not in needed
    ]
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
    await _delete(store, _old_works(works, keep))
    count = await _delete(store, [*old, *finished[keep:]])
    if count:
        await _delete(store, _empty_rounds(works, (await store.list(Kind.TASK)).items))
    return count


async def _works(store: Store) -> list[_Work]:
    listings = [await store.list(kind) for kind in WORKS]
    return [cast("_Work", item) for listing in listings for item in listing.items]


def _needed(tasks: Iterable[Task], works: Iterable[_Work]) -> set[Key | str]:
    """The keys of Tasks that are waited for, and the uids of the works that have not ended."""
    needed: set[Key | str] = set()
    for work in works:
        if work.status.phase not in _ENDED:
            needed.add(work.meta.uid)
            if isinstance(work, PropellerJob):
                needed.update(Key(name, work.meta.namespace) for name in work.spec.task_refs)
    for task in tasks:
        if task.status.phase not in TERMINAL:
            needed.update(Key(name, task.meta.namespace) for name in task.spec.depends_on)
    return needed


def _old_works(works: list[_Work], keep: int) -> list[_Work]:
    """Those that ended before the `keep` last ones; rounds stay as long as their job."""
    ended = [work for work in works if work.status.phase in _ENDED and not _of_a_job(work)]
    ended.sort(key=_ended_at, reverse=True)
    return ended[keep:]


def _empty_rounds(works: list[_Work], tasks: Iterable[Resource]) -> list[_Work]:
    """The rounds that have ended and have no Tasks any more; but each job's newest two."""
    busy = {task.meta.owner.uid for task in tasks if task.meta.owner is not None}
    newest = Counter[str]()
    rounds = [work for work in works if _of_a_job(work)]
    for work in reversed(rounds):  # a job goes on from its newest, or is about to leave the one before
        owner = work.meta.owner.uid if work.meta.owner is not None else ""
        if newest[owner] < _ROUNDS:
            newest[owner] += 1
            busy.add(work.meta.uid)
    return [work for work in rounds if work.status.phase in _ENDED and work.meta.uid not in busy]


def _of_a_job(work: _Work) -> bool:
    return isinstance(work, TrainingRound) and work.meta.owner is not None


def _ended_at(work: _Work) -> float:
    return work.status.end_time if isinstance(work, TrainingRound) else work.status.finish_time


async def _delete(store: Store, resources: Sequence[Resource]) -> int:
    count, problem = 0, None

    async def delete(resource: Resource) -> None:
        nonlocal count, problem
        try:
            await store.delete(resource.kind, resource.meta.key, resource.meta.version)
            count += 1
        except (ConflictError, NotFoundError):
            pass  # changed or deleted by somebody else since the list
        except StoreUnavailableError as error:
            problem = error

    for at in range(0, len(resources), _AT_ONCE):
        async with anyio.create_task_group() as group:
            for resource in resources[at : at + _AT_ONCE]:
                group.start_soon(delete, resource)
        if problem is not None:
            raise problem
    return count
