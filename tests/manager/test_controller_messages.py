"""The controller and messages that are lost, refused, too large, late, or of others."""

from dataclasses import replace

import anyio
import pytest

from proplet.agent.wire import (
    FINISHED,
    Inventory,
    InventoryItem,
    Reason,
    Result,
)
from proplet.manager.bus import Heard, TooLargeError
from proplet.manager.model import Resource
from proplet.manager.phases import Phase
from proplet.manager.ports import BusError, StoreUnavailableError
from proplet.manager.store_memory import MemoryStore
from tests.manager.fakes import FAST, Node, eventually, open_node, running

pytestmark = pytest.mark.anyio


async def test_a_result_is_acknowledged_only_when_it_is_recorded() -> None:
    class Flaky(MemoryStore):
        down = False

        async def record(self, resource: Resource) -> Resource:
            if self.down:
                raise StoreUnavailableError("the disk is full")
            return await super().record(resource)

    store = Flaky()
    async with open_node(store) as node:
        pi = node.proplet("pi-1")
        task = await node.create("add")
        await running(node, "add")
        acked: list[bool] = []
        store.down = True
        key = (task.id, 1)
        pi.end(*key, silently=True)
        node.controller.hear(Heard(pi.done[key], lambda: acked.append(True)))
        await anyio.sleep(0.1)
        assert acked == []
        assert (await node.get("add")).status.phase is Phase.RUNNING
        store.down = False
        done = await node.ended("add")
        await eventually(lambda: acked == [True])
        assert done.status.phase is Phase.COMPLETED


async def test_results_of_unknown_tasks_are_acknowledged_and_dropped(node: Node) -> None:
    acked: list[bool] = []
    node.controller.hear(Heard(Result("another-managers", "pi-1", "42"), lambda: acked.append(True)))
    assert acked == [True]


async def test_a_broker_that_refuses_is_tried_again_with_the_same_attempt(node: Node) -> None:
    node.bus.fail = BusError("not connected")
    pi = node.proplet("pi-1", instant=True)
    await node.create("add")
    await node.until("add", lambda t: t.status.phase is Phase.SCHEDULED)
    await anyio.sleep(0.05)
    node.down()
    node.bus.fail = None
    node.up()
    done = await node.ended("add")
    assert (done.status.phase, done.status.attempt, len(pi.started)) == (Phase.COMPLETED, 1, 1)


async def test_a_start_that_got_lost_on_the_way_is_sent_again(node: Node) -> None:
    pi = node.proplet("pi-1", instant=True)
    node.bus.drop = True
    await node.create("add")
    await eventually(lambda: len(node.bus.starts) == 1)
    node.bus.drop = False
    done = await node.ended("add")
    assert (done.status.phase, done.status.attempt, len(pi.started)) == (Phase.COMPLETED, 1, 1)


async def test_a_start_that_is_too_large_fails_the_task(node: Node) -> None:
    node.proplet("pi-1")
    node.bus.fail = TooLargeError("a message of 20 MB exceeds the limit")
    await node.create("add")
    done = await node.ended("add")
    assert (done.status.phase, done.status.reason) == (Phase.FAILED, Reason.INVALID_COMMAND)


async def test_a_result_that_the_broker_lost_is_told_again_when_the_task_is_missing_from_the_inventory(
    node: Node,
) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    pi.end(task.id, 1, results="42", silently=True)
    node.down()
    node.up(session_present=False)  # the broker is new and empty; everybody says hello
    done = await node.ended("add")
    assert (done.status.phase, done.status.results, done.status.attempt) == (Phase.COMPLETED, "42", 1)
    assert len(pi.started) == 1


async def test_a_lost_result_is_missed_even_if_nobody_reconnects(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    pi.end(task.id, 1, results="42", silently=True)

    async def beat() -> None:
        while True:
            pi.beat()
            await anyio.sleep(0.1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat)
        done = await node.ended("add")
        tasks.cancel_scope.cancel()
    assert (done.status.results, done.status.attempt) == ("42", 1)


async def test_a_result_said_to_be_on_the_way_that_never_comes_is_asked_for(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    pi.inventory()  # heard before, and now it has ended: the broker has lost the result
    pi.end(task.id, 1, results="42", silently=True)
    ended = InventoryItem(task.id, 1, FINISHED)

    async def repeat() -> None:
        while True:
            pi.say(Inventory("pi-1", (ended,)))
            pi.beat()
            await anyio.sleep(0.05)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(repeat)
        done = await node.ended("add")
        tasks.cancel_scope.cancel()
    assert (done.status.results, done.status.attempt, len(pi.started)) == ("42", 1, 1)


async def test_a_stop_of_a_task_that_never_reached_its_proplet_ends_with_the_next_inventory() -> None:
    async with open_node(MemoryStore(), policy=replace(FAST, hello_every_s=1000.0, silence_s=60.0)) as node:
        node.proplet("pi-1")
        node.bus.drop = True
        task = await node.create("add")
        await eventually(lambda: len(node.bus.starts) == 1)
        await node.controller.stop(task.id)
        node.bus.drop = False
        done = await node.ended("add")
        assert (done.status.phase, done.status.error) == (
            Phase.INTERRUPTED,
            "stopped; proplet pi-1 no longer held it",
        )


async def test_what_another_manager_started_is_left_alone(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    start = pi.started[0]
    pi.held["another-managers", 1] = replace(start, id="another-managers")
    pi.appear()
    pi.finish(task.id)
    await node.ended("add")
    assert pi.stopped == []
