"""Races between deleting a task and what is still under way for it."""

from pathlib import Path

import anyio
import pytest

from proplet.manager.model import Key, Kind, Meta, Proplet, PropletSpec
from proplet.manager.store_memory import MemoryStore
from proplet.manager.store_sqlite import open_sqlite_store
from tests.manager.fakes import eventually, open_node

pytestmark = pytest.mark.anyio


async def test_a_task_deleted_in_the_commit_that_dispatches_it_is_not_started(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "s.db") as store, open_node(store) as node:
        pi = node.proplet("pi-1")
        await eventually(lambda: node.controller.liveness("pi-1").alive)
        deleted: list[str] = []
        for number in range(60):
            name = f"t{number}"
            task = await node.create(name)
            for _ in range(number % 6):
                await anyio.lowlevel.checkpoint()
            await store.delete(Kind.TASK, Key(name))
            deleted.append(task.id)
        for _ in range(200):
            await anyio.lowlevel.checkpoint()
        await eventually(lambda: not {uid for uid, _ in pi.held} & set(deleted))
        assert node.controller.liveness("pi-1").task_count == 0
        assert list(node.controller._book.all()) == []


async def test_a_broadcast_does_not_reach_proplets_that_serve_another_namespace() -> None:
    async with open_node(MemoryStore()) as node:
        spec = PropletSpec(declared=True)
        await node.store.create(Proplet(Meta("theirs", namespace="other"), spec))
        await eventually(lambda: node.controller.liveness("theirs").reason != "not known")
        theirs, ours = node.proplet("theirs", instant=True), node.proplet("ours", instant=True)
        await eventually(lambda: all(node.controller.liveness(name).alive for name in ("theirs", "ours")))
        await node.create("everywhere", broadcast=True)
        done = await node.ended("everywhere")
        assert [entry["proplet_id"] for entry in done.status.broadcast_results] == ["ours"]
        assert (len(ours.started), len(theirs.started)) == (1, 0)
