"""The SQLite store does what the memory store does, operation by operation, over restarts, too."""

import tempfile
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.manager.model import Key, Kind, Meta, Proplet, PropletPhase, PropletStatus, Resource, Task, TaskStatus
from proplet.manager.phases import Phase
from proplet.manager.ports import Store, StoreError
from proplet.manager.store_memory import MemoryStore
from proplet.manager.store_sqlite import open_sqlite_store
from tests.manager_store.contract import MODULE, collect, task

NAMES = st.sampled_from(["a", "b", "c"])
KINDS = st.sampled_from(Kind)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["create", "put", "record", "delete", "delete any", "reopen"]),
        KINDS,
        NAMES,
        st.integers(0, 3),
        st.booleans(),  # whether the version is the current one
    ),
    max_size=40,
)


class Pair:
    """Both stores, driven alike."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 1000.0
        self.memory = MemoryStore(self.clock)
        self.created = 0

    def clock(self) -> float:
        return self.now

    async def run(self, operations: list[tuple[str, Kind, str, int, bool]]) -> None:
        rest = list(operations)
        while True:
            async with open_sqlite_store(self.path, self.clock) as sqlite:
                start = (await self.memory.list(Kind.TASK)).version
                while rest:
                    step = rest.pop(0)
                    if step[0] == "reopen":
                        break
                    self.now += 1.5
                    await self.step(sqlite, *step)
                await self.compare(sqlite, start)
                if not rest:
                    return

    async def step(self, sqlite: Store, what: str, kind: Kind, name: str, number: int, current: bool) -> None:
        resource = await self.resource(what, kind, name, number, current)
        outcomes = [await outcome(self.call(store, what, resource, current)) for store in (self.memory, sqlite)]
        assert outcomes[0] == outcomes[1]

    async def resource(self, what: str, kind: Kind, name: str, number: int, current: bool) -> Resource:
        if what == "create":
            self.created += 1
            base: Resource = Proplet(Meta(name)) if kind is Kind.PROPLET else task(name, file=MODULE + bytes([number]))
            return replace(base, meta=Meta(name, uid=f"uid-{self.created % 5}"))
        try:
            found: Any = await self.memory.get(kind, Key(name))
        except StoreError:
            found = Proplet(Meta(name)) if kind is Kind.PROPLET else task(name)
        meta = replace(found.meta, version=found.meta.version - (not current))
        if isinstance(found, Task):
            spec = replace(found.spec, file=MODULE + bytes([number]), priority=number)
            phase = list(Phase)[number]
            return replace(found, meta=meta, spec=spec, status=TaskStatus(phase, attempt=number, results=str(number)))
        spec = replace(found.spec, capabilities=("x",) * number)
        return replace(found, meta=meta, spec=spec, status=PropletStatus(list(PropletPhase)[number % 3]))

    def call(self, store: Store, what: str, resource: Resource, current: bool) -> Awaitable[Resource]:
        if what == "create":
            return store.create(resource)
        if what == "put":
            return store.put(resource)
        if what == "record":
            return store.record(resource)
        version = resource.meta.version if what == "delete" else None
        return store.delete(resource.kind, resource.meta.key, version)

    async def compare(self, sqlite: Store, start: int) -> None:
        for kind in Kind:
            expected, found = await self.memory.list(kind), await sqlite.list(kind)
            assert found == expected
            for item in expected.items:
                assert await sqlite.find(kind, item.meta.uid) == item
            log = self.memory._logs[kind]
            count = sum(change.version > start for change in log._changes)
            if count:
                assert await collect(sqlite, kind, start, count) == await collect(self.memory, kind, start, count)


async def outcome(call: Awaitable[Resource]) -> Any:
    try:
        return await call
    except StoreError as error:
        return type(error), str(error)


@settings(max_examples=60)
@given(OPERATIONS)
def test_any_sequence_of_operations_has_the_same_outcome_on_both(
    operations: list[tuple[str, Kind, str, int, bool]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(Pair(Path(folder) / "store.db").run, operations)
