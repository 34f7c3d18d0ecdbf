"""What a manager measures about itself, and the same as Prometheus' text format.

`MeasuredStore` stands before the real store and counts what passes; nothing else needs to know that it is measured.
Source of the format: prometheus.io, "Exposition formats", version 0.0.4.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

from proplet.manager.model import Key, Kind, Resource, Task
from proplet.manager.phases import Phase
from proplet.manager.ports import (
    AlreadyExistsError,
    Change,
    ChangeType,
    Clock,
    ConflictError,
    GoneError,
    Listing,
    NotFoundError,
    Store,
    StoreError,
)

T = TypeVar("T")

BUCKETS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_WAITING: Final = 10_000  # tasks whose wait is measured at a time
_ERRORS: Final[Mapping[type[StoreError], str]] = {
    ConflictError: "conflict",
    NotFoundError: "not_found",
    AlreadyExistsError: "already_exists",
    GoneError: "gone",
}


@dataclass(slots=True)
class Histogram:
    """How long something took: counts up to each of `BUCKETS`, in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Add one."""
        self.counts[sum(1 for bound in BUCKETS if seconds > bound)] += 1
        self.total += seconds

    def lines(self, name: str) -> Iterator[str]:
        """Yield it as Prometheus has it."""
        count = 0
        for bound, found in zip((*BUCKETS, "+Inf"), self.counts, strict=True):
            count += found
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {count}"


@dataclass(slots=True)
class Measures:
    """Everything that is measured."""

    errors: Counter[str] = field(default_factory=Counter)  # of the store, by kind
    writes: int = 0
    dispatch: Histogram = field(default_factory=Histogram)
    phases: dict[str, Phase] = field(default_factory=dict)  # of every Task, by uid
    waiting: dict[str, float] = field(default_factory=dict)  # by uid: since when it is known and not dispatched

    def learn(self, task: Task, mono: float) -> None:
        """A Task is like this now."""
        uid, phase = task.meta.uid, task.status.phase
        before = self.phases.get(uid)
        self.phases[uid] = phase
        if phase is Phase.PENDING:
            if before is not Phase.PENDING and not task.status.attempt and len(self.waiting) < _WAITING:
                self.waiting[uid] = mono
        else:
            self._dispatched(uid, mono)

    def _dispatched(self, uid: str, mono: float) -> None:
        since = self.waiting.pop(uid, None)
        if since is not None:
            self.dispatch.observe(mono - since)

    def forget(self, uid: str) -> None:
        """A Task is gone."""
        self.phases.pop(uid, None)
        self.waiting.pop(uid, None)

    def lines(self, gauges: Mapping[str, tuple[str, float]]) -> Iterator[str]:
        """Yield all of it, and `gauges`: value and explanation by name."""
        yield "# HELP proplet_tasks Tasks that exist, by phase."
        yield "# TYPE proplet_tasks gauge"
        found = Counter(self.phases.values())
        for phase in Phase:
            yield f'proplet_tasks{{phase="{phase.value}"}} {found[phase]}'
        yield "# HELP proplet_dispatch_seconds From a Task's creation being known to its dispatch being recorded."
        yield "# TYPE proplet_dispatch_seconds histogram"
        yield from self.dispatch.lines("proplet_dispatch_seconds")
        yield "# HELP proplet_store_errors_total Calls of the store (the API server) that failed, by kind."
        yield "# TYPE proplet_store_errors_total counter"
        for kind in sorted({*_ERRORS.values(), "unavailable", *self.errors}):
            yield f'proplet_store_errors_total{{kind="{kind}"}} {self.errors[kind]}'
        yield "# HELP proplet_store_writes_total Writes of the store (the API server) that were asked for."
        yield "# TYPE proplet_store_writes_total counter"
        yield f"proplet_store_writes_total {self.writes}"
        for name, (text, value) in gauges.items():
            yield f"# HELP {name} {text}"
            yield f"# TYPE {name} gauge"
            yield f"{name} {value:g}"


class MeasuredStore:
    """A store, and what passes through it counted. Implements `ports.Store`."""

    def __init__(self, store: Store, measures: Measures, monotonic: Clock = time.monotonic) -> None:
        self._store = store
        self._measures = measures
        self._monotonic = monotonic
        self._told = 0  # up to which version of Tasks was learned; who watches beside is told the same once more

    async def list(self, kind: Kind) -> Listing:
        """See the store."""
        listing = await self._counted(self._store.list(kind))
        if kind is Kind.TASK and listing.version >= self._told:
            self._told = listing.version
            known = {task.meta.uid for task in listing.items}
            for uid in self._measures.phases.keys() - known:
                self._measures.forget(uid)
            for task in listing.items:
                self._learn(task)
        return listing

    async def get(self, kind: Kind, key: Key) -> Resource:
        """See the store."""
        return await self._counted(self._store.get(kind, key))

    async def find(self, kind: Kind, uid: str) -> Resource:
        """See the store."""
        return await self._counted(self._store.find(kind, uid))

    async def create(self, resource: Resource) -> Resource:
        """See the store."""
        return await self._written(self._store.create(resource))

    async def put(self, resource: Resource) -> Resource:
        """See the store."""
        return await self._written(self._store.put(resource))

    async def record(self, resource: Resource) -> Resource:
        """See the store."""
        return await self._written(self._store.record(resource))

    async def delete(self, kind: Kind, key: Key, version: int | None = None) -> Resource:
        """See the store."""
        self._measures.writes += 1
        return await self._counted(self._store.delete(kind, key, version))

    async def watch(self, kind: Kind, since: int) -> AsyncIterator[Change]:
        """See the store."""
        try:
            async with aclosing(cast("Any", self._store.watch(kind, since))) as changes:
                async for change in changes:
                    if kind is Kind.TASK and change.version > self._told:
                        self._told = change.version
                        if change.type is ChangeType.DELETED:
                            self._measures.forget(change.resource.meta.uid)
                        else:
                            self._learn(change.resource)
                    yield change
        except StoreError as error:
            self._count(error)
            raise

    async def _written(self, call: Awaitable[Resource]) -> Resource:
        self._measures.writes += 1
        resource = await self._counted(call)
        if resource.meta.version > self._told:  # an answer may come after the watch has told of the Task's end
            self._learn(resource)
        return resource

    async def _counted(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except StoreError as error:
            self._count(error)
            raise

    def _count(self, error: StoreError) -> None:
        name = next((name for kind, name in _ERRORS.items() if isinstance(error, kind)), "unavailable")
        self._measures.errors[name] += 1

    def _learn(self, resource: Resource) -> None:
        if isinstance(resource, Task):
            self._measures.learn(resource, self._monotonic())


Gauges = Callable[[], Mapping[str, tuple[str, float]]]
