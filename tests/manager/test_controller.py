"""The controller on the memory store, with scripted proplets: whole lives of tasks, and what disturbs them."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace

import anyio
import pytest

from proplet.agent.wire import (
    FINISHED,
    Inventory,
    InventoryItem,
    LogLines,
    MeterTerms,
    PropletMetrics,
    Reason,
    RestartPolicy,
    Result,
    TaskMetrics,
    TaskSample,
)
from proplet.manager.bus import Heard, TooLargeError
from proplet.manager.model import Key, Kind, Meta, Proplet, PropletPhase, PropletSelector, PropletSpec, Resource
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.ports import BusError, ChangeType, NotFoundError, NotRunningError, StoreUnavailableError
from proplet.manager.store_memory import MemoryStore
from tests.manager.fakes import FAST, FakeBus, Node, eventually, open_node

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with open_node(MemoryStore()) as node:
        yield node


async def running(node: Node, name: str, attempt: int = 1) -> str:
    task = await node.until(name, lambda t: (t.status.phase, t.status.attempt) == (Phase.RUNNING, attempt))
    return task.id


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


async def test_a_proplet_that_announces_itself_is_recorded_and_marked_offline_when_it_leaves(node: Node) -> None:
    pi = node.proplet("pi-1")

    async def until(wanted: PropletPhase) -> None:
        with anyio.fail_after(5):
            async for change in node.store.watch(Kind.PROPLET, 0):
                latest = (await node.store.list(Kind.PROPLET)).items[0]
                if isinstance(latest, Proplet) and latest.status.phase is wanted:
                    break
                assert change.version

    await until(PropletPhase.RUNNING)
    pi.vanish()
    await until(PropletPhase.OFFLINE)
    assert not node.controller.liveness("pi-1").alive
    pi.appear()
    await until(PropletPhase.RUNNING)
    assert node.controller.liveness("pi-1").alive
    assert node.controller.liveness("nobody").alive is False


async def test_a_declared_proplet_is_known_by_the_id_of_its_connection(node: Node) -> None:
    spec = PropletSpec(connection={"clientId": "4711"})
    await node.store.create(Proplet(Meta("camera"), spec))
    node.proplet("4711", instant=True)
    await node.create("add", selector=PropletSelector("camera"))
    assert (await node.ended("add")).status.proplet_id == "4711"
    assert [p.meta.name for p in (await node.store.list(Kind.PROPLET)).items] == ["camera"]


async def test_a_proplet_whose_id_is_the_name_of_another_is_recorded_under_a_name_of_its_own(node: Node) -> None:
    await node.store.create(Proplet(Meta("pi"), PropletSpec(connection={"clientId": "4711"})))
    node.proplet("pi", instant=True)
    await node.create("add", selector=PropletSelector("discovered-pi"))
    done = await node.ended("add")
    assert done.status.proplet_id == "pi"


async def test_heartbeats_write_nothing(node: Node) -> None:
    pi = node.proplet("pi-1")
    await eventually(lambda: node.controller._roster.idle)
    before = (await node.store.list(Kind.PROPLET)).version
    for _ in range(50):
        pi.beat()
        await anyio.lowlevel.checkpoint()
    await eventually(lambda: node.controller._roster.idle)
    assert (await node.store.list(Kind.PROPLET)).version == before


async def test_a_lost_proplets_tasks_run_on_another_one_and_the_old_attempt_is_stopped_when_it_comes_back(
    node: Node,
) -> None:
    first = node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    first.vanish()
    second = node.proplet("pi-2")
    await running(node, "add", attempt=2)
    first.appear()
    await eventually(lambda: not first.held)
    assert [(s.id, s.ext.attempt) for s in first.stopped if s.ext] == [(task.id, 1)]
    second.finish(task.id, "42")
    done = await node.ended("add")
    assert (done.status.attempt, done.status.proplet_id, done.status.results) == (2, "pi-2", "42")


async def test_a_proplet_that_falls_silent_without_a_will_is_lost_too(node: Node) -> None:
    first = node.proplet("pi-1")
    await node.create("add")
    await running(node, "add")
    first.vanish(will=False)
    second = node.proplet("pi-2")
    with anyio.fail_after(8):
        while (await node.get("add")).status.attempt < 2:
            second.beat()
            await anyio.sleep(0.05)


async def test_a_task_whose_proplet_never_comes_back_waits_and_says_where_it_was(node: Node) -> None:
    pi = node.proplet("pi-1")
    await node.create("add")
    await running(node, "add")
    pi.vanish()
    waiting = await node.until("add", lambda t: t.status.phase is Phase.PENDING)
    waiting = await node.until("add", lambda t: "pi-1 fits but is offline" in t.status.message)
    assert waiting.status.failures == 1


async def test_a_result_from_an_outbox_counts_although_its_proplet_was_taken_for_lost(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    pi.vanish()
    await node.until("add", lambda t: t.status.phase is Phase.PENDING)
    pi.plugged = True
    pi.finish(task.id, "42")
    done = await node.ended("add")
    assert (done.status.phase, done.status.results, done.status.attempt) == (Phase.COMPLETED, "42", 1)
    assert len(pi.started) == 1


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


async def test_a_proplet_that_lost_its_memory_gets_the_same_attempt_again(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    pi.forget_everything()
    pi.appear()
    await eventually(lambda: len(pi.started) == 2)
    pi.finish(task.id, "42")
    assert (await node.ended("add")).status.phase is Phase.COMPLETED


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


async def test_a_proplet_of_the_reference_is_driven_without_attempts(node: Node) -> None:
    old = node.proplet("old", ours=False)
    task = await node.create("add")
    await running(node, "add")
    assert len(node.bus.starts) == 1
    old.finish(task.id, "42")
    done = await node.ended("add")
    assert (done.status.phase, done.status.results) == (Phase.COMPLETED, "42")


async def test_a_proplet_of_the_reference_that_never_answers_loses_its_task_after_the_deadline(node: Node) -> None:
    old = node.proplet("old", ours=False)

    async def beat() -> None:
        while True:
            old.beat()
            await anyio.sleep(0.1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat)
        await node.create("add", active_deadline_seconds=0.2)
        done = await node.ended("add")
        tasks.cancel_scope.cancel()
    assert (done.status.phase, done.status.reason) == (Phase.FAILED, Reason.TIMEOUT)
    await eventually(lambda: [s.id for s in old.stopped] == [done.id])


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


async def test_a_task_that_must_never_be_restarted_is_interrupted_when_its_proplet_is_lost(node: Node) -> None:
    pi = node.proplet("pi-1")
    node.proplet("pi-2")
    await node.create("add", restart_policy=RestartPolicy.NEVER, selector=PropletSelector("pi-1"))
    await running(node, "add")
    pi.vanish()
    done = await node.ended("add")
    assert (done.status.phase, done.status.reason) == (Phase.INTERRUPTED, Reason.LOST)


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


async def test_a_proplet_of_the_reference_that_restarted_gets_its_tasks_again(node: Node) -> None:
    old = node.proplet("old", ours=False)
    await node.create("add")
    never = await node.create("never", restart_policy=RestartPolicy.NEVER)
    await running(node, "add")
    await running(node, "never")
    old.forget_everything()
    old.appear()
    await eventually(lambda: len(old.started) == 3)
    assert never.id not in {uid for uid, _ in old.held}


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
        failures = 0

        async def record(self, resource: Resource) -> Resource:
            self.failures += 1
            if self.failures % 3:
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


async def test_nothing_is_kept_of_tasks_that_are_gone(node: Node) -> None:
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
