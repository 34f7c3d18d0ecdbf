"""A controller that begins anew, falls behind, loses its store for a while, or has its clock set: no task is lost."""

import time
from collections import Counter
from dataclasses import replace
from typing import ClassVar

import anyio
import pytest

from proplet.agent.wire import (
    Reason,
)
from proplet.manager.model import Kind, Resource
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.ports import StoreUnavailableError
from proplet.manager.store_memory import MemoryStore
from tests.manager.fakes import FakeBus, Node, eventually, open_node, running

pytestmark = pytest.mark.anyio


async def test_tasks_in_flight_survive_the_end_of_the_manager_and_end_once() -> None:
    store, bus = MemoryStore(), FakeBus()
    async with open_node(store, bus) as node:
        pi = node.proplet("pi-1")
        names = [f"t-{n}" for n in range(20)]
        for name in names:
            await node.create(name)
        for name in names[:10]:
            await running(node, name)
    held = sorted({uid for uid, _ in pi.held})
    for uid in held[:5]:
        pi.finish(uid, "while it was away")  # nobody hears it, and the broker keeps nothing
    async with open_node(store, bus) as node:
        await eventually(lambda: len(pi.started) == 20)
        for uid in [uid for uid, _ in list(pi.held)]:
            pi.finish(uid, "42")
        for name in names:
            done = await node.ended(name)
            assert (done.status.phase, done.status.attempt) == (Phase.COMPLETED, 1)
        assert len(pi.started) == 20


async def test_somebody_else_changing_the_task_meanwhile_loses_nothing(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    for n in range(20):
        fresh = await node.get("add")
        await node.store.put(replace(fresh, meta=replace(fresh.meta, labels={"n": str(n)})))
        await anyio.lowlevel.checkpoint()
    await running(node, "add")
    pi.finish(task.id, "42")
    fresh = await node.get("add")
    await node.store.put(replace(fresh, meta=replace(fresh.meta, labels={"n": "last"})))
    done = await node.ended("add")
    assert (done.status.phase, done.meta.labels, len(pi.started)) == (Phase.COMPLETED, {"n": "last"}, 1)


async def test_a_controller_that_fell_behind_lists_again() -> None:
    store = MemoryStore(history=2)
    async with open_node(store) as node:
        node.proplet("pi-1", instant=True)
        gone = await node.create("gone", held=True)
        for n in range(30):
            await node.create(f"t-{n}")
        await node.store.delete(Kind.TASK, gone.meta.key)
        with anyio.fail_after(8):
            while any(t.status.phase not in TERMINAL for t in (await store.list(Kind.TASK)).items):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert node.controller._book.get(gone.id) is None


async def test_a_store_that_is_away_for_a_while_loses_nothing() -> None:
    class Flaky(MemoryStore):
        tries: ClassVar = Counter[str]()

        async def record(self, resource: Resource) -> Resource:
            self.tries[resource.id] += 1
            if self.tries[resource.id] % 3:
                raise StoreUnavailableError("the disk is full")
            return await super().record(resource)

    async with open_node(Flaky()) as node:
        node.proplet("pi-1", instant=True)
        for n in range(5):
            await node.create(f"t-{n}")
        for n in range(5):
            assert (await node.ended(f"t-{n}", within=30.0)).status.attempt == 1


@pytest.mark.parametrize("step", [10.0**9, -(10.0**9)])
async def test_a_clock_that_is_set_while_tasks_run_loses_none(step: float) -> None:
    offset = [0.0]
    async with open_node(MemoryStore(), clock=lambda: time.time() + offset[0]) as node:
        pi = node.proplet("pi-1")
        task = await node.create("add")
        await running(node, "add")
        offset[0] = step
        pi.beat()
        for _ in range(3):
            await anyio.sleep(0.15)
            pi.beat()
        pi.end(task.id, 1, error="the node was restarted", reason=Reason.INTERRUPTED)
        await running(node, "add", attempt=2)
        pi.end(task.id, 2, error="the node was restarted", reason=Reason.INTERRUPTED)
        await running(node, "add", attempt=3)  # after a backoff by the new time
        pi.finish(task.id, "42")
        assert (await node.ended("add")).status.results == "42"
