"""A manager that fell behind what a store tells lists again, also where the store is away just then."""

import pytest

from proplet.manager.model import Key, Kind, Meta, PropellerJob, Proplet, PropletSpec
from proplet.manager.phases import Phase
from proplet.manager.ports import Listing, StoreUnavailableError
from proplet.manager.store_memory import MemoryStore
from proplet.manager.works import open_works
from tests.manager.fakes import Node, eventually, open_node

pytestmark = pytest.mark.anyio


MANY = 30


class Forgetful(MemoryStore):
    """Keeps few changes, so that whoever watches is soon behind; its next `failures` listings of a kind fail."""

    def __init__(self) -> None:
        super().__init__(history=16)
        self.failures: dict[Kind, int] = {}
        self.listed: list[Kind] = []

    async def list(self, kind: Kind) -> Listing:
        self.listed.append(kind)
        if self.failures.get(kind, 0):
            self.failures[kind] -= 1
            raise StoreUnavailableError("connection refused")
        return await super().list(kind)


async def add_proplets(node: Node, first: int, beyond: int) -> None:
    for number in range(first, beyond):
        await node.store.create(Proplet(Meta(f"camera-{number}"), PropletSpec(connection={"clientId": f"c{number}"})))


async def test_tasks_are_listed_until_that_works() -> None:
    store = Forgetful()
    async with open_node(store) as node:
        await node.create("first")
        await eventually(lambda: node.controller._version > 0)
        store.failures[Kind.TASK] = 1
        gone = await node.create("gone", held=True)
        for number in range(MANY):
            await node.create(f"t-{number}")
        await node.store.delete(Kind.TASK, gone.meta.key)
        await eventually(lambda: store.failures[Kind.TASK] == 0 and len(list(node.controller._book.all())) > MANY)
        node.proplet("pi-1", instant=True)
        await eventually(lambda: all(task.status.phase is Phase.COMPLETED for task in node.controller._book.all()))
        assert len(list(node.controller._book.all())) == MANY + 1
        assert node.controller._book.get(gone.id) is None
        await node.create("later")
        assert (await node.ended("later")).status.phase is Phase.COMPLETED


async def test_proplets_are_listed_until_that_works() -> None:
    store = Forgetful()
    async with open_node(store) as node:
        await add_proplets(node, 0, 1)
        await eventually(lambda: node.controller._registry.known("c0") is not None)
        store.failures[Kind.PROPLET] = 1
        await add_proplets(node, 1, MANY)
        await eventually(lambda: node.controller._registry.known(f"c{MANY - 1}") is not None)
        assert store.failures[Kind.PROPLET] == 0


async def test_a_proplet_that_was_deleted_meanwhile_is_not_remembered() -> None:
    store = Forgetful()
    async with open_node(store) as node:
        await add_proplets(node, 0, 1)
        await eventually(lambda: node.controller._registry.known("c0") is not None)
        await store.delete(Kind.PROPLET, Key("camera-0"))
        await add_proplets(node, 1, MANY)
        await eventually(lambda: node.controller._registry.known(f"c{MANY - 1}") is not None)
        await eventually(lambda: node.controller._registry.known("c0") is None)


async def test_works_are_listed_until_that_works() -> None:
    store = Forgetful()
    async with open_works(store, collect_garbage=False, retry_s=0.01) as works:
        await eventually(lambda: works.idle)
        store.failures[Kind.JOB] = 2
        for number in range(MANY):
            await store.create(PropellerJob(Meta(f"j-{number}")))
        await eventually(lambda: store.failures[Kind.JOB] == 0)
        late = await store.create(PropellerJob(Meta("late")))
        await eventually(lambda: works._kin.work(late.meta.uid) is not None)
