"""The controller on the memory store, with scripted proplets: whole lives of tasks."""

from dataclasses import replace

import anyio
import pytest

from proplet.agent.wire import (
    LogLines,
    MeterTerms,
    PropletMetrics,
    Reason,
    TaskMetrics,
    TaskSample,
)
from proplet.manager.model import Key, Kind, Proplet, PropletSelector
from proplet.manager.phases import Phase
from proplet.manager.ports import ChangeType
from proplet.manager.store_memory import MemoryStore
from tests.manager.fakes import FAST, Node, eventually, open_node, running

pytestmark = pytest.mark.anyio


async def test_a_task_goes_from_pending_to_completed_with_its_result(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add", inputs=("10", "32"))
    await running(node, "add")
    pi.finish(task.id, "42")
    done = await node.ended("add")
    assert (done.status.phase, done.status.results, done.status.reason) == (Phase.COMPLETED, "42", Reason.OK)
    assert (done.status.attempt, done.status.proplet_id) == (1, "pi-1")
    assert done.status.dispatched_at <= done.status.started_at <= done.status.finished_at


async def test_a_task_that_waits_is_placed_when_a_proplet_appears(node: Node) -> None:
    task = await node.create("add")
    waiting = await node.until("add", lambda t: t.status.message != "")
    assert waiting.status.message == "no proplet is known yet: none has announced itself"
    node.proplet("pi-1", instant=True)
    done = await node.ended("add")
    assert (done.status.phase, done.status.message) == (Phase.COMPLETED, "")
    assert task.id == done.id


async def test_a_task_that_waits_is_placed_when_a_label_makes_a_proplet_fit(node: Node) -> None:
    node.proplet("pi-1", instant=True)
    await node.create("add", selector=PropletSelector(match_labels={"site": "roof"}))
    await node.until("add", lambda t: "it lacks the label site=roof" in t.status.message)
    record = await node.store.get(Kind.PROPLET, Key("pi-1"))
    assert isinstance(record, Proplet)
    await node.store.put(replace(record, meta=replace(record.meta, labels={"site": "roof"})))
    assert (await node.ended("add")).status.phase is Phase.COMPLETED


async def test_a_finished_task_is_deleted_after_its_time_to_live(node: Node) -> None:
    node.proplet("pi-1", instant=True)
    await node.create("add", ttl_seconds_after_finished=0)

    with anyio.fail_after(5):
        async for change in node.store.watch(Kind.TASK, 0):
            if change.type is ChangeType.DELETED:
                break


async def test_a_full_proplet_gets_the_next_task_when_one_ends() -> None:
    async with open_node(MemoryStore(), window=3) as node:
        pi = node.proplet("pi-1")
        names = [f"t-{n}" for n in range(9)]
        for name in names:
            await node.create(name)
        await eventually(lambda: len(pi.started) == 3)
        most = 0
        while len(pi.done) < 9:
            most = max(most, len(pi.held))
            for uid, _ in list(pi.held):
                pi.finish(uid)
            await anyio.sleep(0.01)
        assert most <= 3
        for name in names:
            assert (await node.ended(name)).status.phase is Phase.COMPLETED


async def test_a_broadcast_runs_on_every_proplet_and_lists_their_results(node: Node) -> None:
    ours, old = node.proplet("ours"), node.proplet("old", ours=False)
    task = await node.create("add", broadcast=True)
    await running(node, "add")
    ours.finish(task.id, "1")
    old.finish(task.id, "2")
    done = await node.ended("add")
    assert done.status.phase is Phase.COMPLETED
    assert {e["proplet_id"]: e["results"] for e in done.status.broadcast_results} == {"ours": "1", "old": "2"}
    assert len(node.bus.starts) == 1


async def test_metrics_and_logs_are_kept_in_memory_within_bounds(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    for n in range(150):
        pi.say(PropletMetrics("pi-1", timestamp=float(n)))
        pi.say(TaskMetrics(task.id, "pi-1", TaskSample(memory_bytes=n)))
        pi.say(LogLines("pi-1", task.id, 1, lines=(f"line {n}",)))
    pi.say(LogLines("pi-1", "another-managers", 1, lines=("not ours",)))
    assert len(node.controller.proplet_metrics("pi-1")) == 100
    assert [m.metrics.memory_bytes for m in node.controller.task_metrics(task.id)][-1] == 149
    assert len(node.controller.task_logs(task.id)) == 150
    assert node.controller.task_logs("another-managers") == ()
    await node.store.delete(Kind.TASK, task.meta.key)
    await eventually(lambda: node.controller.task_logs(task.id) == ())


async def test_a_measurement_confirms_the_attempt_that_it_is_of_and_its_last_one_none(node: Node) -> None:
    pi = node.proplet("pi-1")
    pi.stage = "compiling"
    task = await node.create("add", latent=True)
    await node.until("add", lambda t: t.status.phase is Phase.SCHEDULED)
    pi.say(TaskMetrics(task.id, "pi-1", ext=MeterTerms(attempt=7)))
    pi.say(TaskMetrics(task.id, "pi-1", ext=MeterTerms(attempt=1, final=True)))
    await anyio.wait_all_tasks_blocked()
    assert (await node.get("add")).status.phase is Phase.SCHEDULED
    pi.say(TaskMetrics(task.id, "pi-1", ext=MeterTerms(attempt=1)))
    await running(node, "add")


async def test_nothing_is_kept_of_tasks_that_are_gone() -> None:
    # Its proplet only answers, so it may be silent for as long as 200 tasks take.
    async with open_node(MemoryStore(), policy=replace(FAST, silence_s=60.0)) as node:
        pi = node.proplet("pi-1", instant=True)
        for n in range(200):
            await node.create(f"t-{n}", ttl_seconds_after_finished=0)
        with anyio.fail_after(60):
            while (await node.store.list(Kind.TASK)).items:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        controller = node.controller
        book, fleet = controller._book, controller._fleet
        # The watch tells of a deletion after it has happened; what it brings is looked at once more.
        await eventually(lambda: len(book._deleted) == 200 and controller._queue.idle)
        assert (book._tasks, book._contacts, book._mail, book._awaiting) == ({}, {}, {}, {})
        assert (fleet._where, fleet.held["pi-1"], len(book.crowd), book._broadcasts) == ({}, set(), 0, set())
        assert len(controller._errands._stops) == 0
        assert pi.acks >= 200
