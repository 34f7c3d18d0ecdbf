"""Tasks that are started, stopped and deleted by whoever asks the controller or the store for it."""

import anyio
import pytest

from proplet.agent.wire import (
    Reason,
)
from proplet.manager.model import Kind
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.ports import BusError, NotFoundError, NotRunningError
from proplet.manager.store_memory import MemoryStore
from tests.manager.fakes import FakeBus, Node, eventually, open_node, running

pytestmark = pytest.mark.anyio


async def test_a_running_task_is_stopped(node: Node) -> None:
    node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    asked = await node.controller.stop(task.id)
    assert asked.status.stop_requested
    done = await node.ended("add")
    assert (done.status.phase, done.status.reason) == (Phase.INTERRUPTED, Reason.STOPPED)
    with pytest.raises(NotRunningError, match="interrupted"):
        await node.controller.stop(task.id)


async def test_a_stop_is_not_forgotten_by_a_restart_of_the_manager() -> None:
    store, bus = MemoryStore(), FakeBus()
    async with open_node(store, bus) as node:
        pi = node.proplet("pi-1")
        task = await node.create("add")
        await running(node, "add")
        pi.answers = False
        await node.controller.stop(task.id)
    pi.answers = True
    async with open_node(store, bus) as node:
        assert (await node.ended("add")).status.phase is Phase.INTERRUPTED


async def test_a_pending_task_is_stopped_at_once_and_can_be_started_again(node: Node) -> None:
    task = await node.create("add")
    assert (await node.controller.stop(task.id)).status.phase is Phase.INTERRUPTED
    node.proplet("pi-1", instant=True)
    assert (await node.controller.start(task.id)).status.phase is Phase.PENDING
    assert (await node.ended("add")).status.phase is Phase.COMPLETED
    again = await node.controller.start(task.id)
    assert again.status.results is None
    assert (await node.until("add", lambda t: t.status.attempt == 2 and t.status.phase in TERMINAL)).status.results


async def test_a_held_task_runs_when_it_is_started(node: Node) -> None:
    pi = node.proplet("pi-1", instant=True)
    task = await node.create("add", held=True)
    with pytest.raises(NotRunningError):
        await node.controller.stop(task.id)
    assert pi.started == []
    started = await node.controller.start(task.id)
    assert not started.spec.held
    assert (await node.ended("add")).status.phase is Phase.COMPLETED


async def test_starting_a_task_under_way_changes_nothing(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    assert (await node.controller.start(task.id)).status.phase is Phase.RUNNING
    assert len(pi.started) == 1


async def test_an_unknown_task_can_neither_be_started_nor_stopped(node: Node) -> None:
    for command in (node.controller.start, node.controller.stop):
        with pytest.raises(NotFoundError):
            await command("nobody")


async def test_a_deleted_task_is_stopped_and_stopped_again_if_it_turns_up(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    pi.answers = False
    await node.store.delete(Kind.TASK, task.meta.key)
    await eventually(lambda: len(pi.stopped) == 1)
    pi.answers = True
    pi.appear()
    await eventually(lambda: not pi.held)
    assert {(s.id, s.ext.attempt) for s in pi.stopped if s.ext} == {(task.id, 1)}


async def test_a_stop_of_a_deleted_task_waits_for_the_broker(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    node.bus.fail = BusError("not connected")
    await node.store.delete(Kind.TASK, task.meta.key)
    await anyio.sleep(0.05)
    assert pi.held
    node.bus.fail = None
    node.down()
    node.up()
    await eventually(lambda: not pi.held)
