"""The controller and its proplets: who is known and recorded, who was lost, and what became of the tasks they had."""

import anyio
import pytest

from proplet.agent.wire import (
    Reason,
    RestartPolicy,
)
from proplet.manager.model import Kind, Meta, Proplet, PropletPhase, PropletSelector, PropletSpec
from proplet.manager.phases import Phase
from tests.manager.fakes import Node, eventually, running

pytestmark = pytest.mark.anyio


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


async def test_a_proplet_that_lost_its_memory_gets_the_same_attempt_again(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    await running(node, "add")
    pi.forget_everything()
    pi.appear()
    await eventually(lambda: len(pi.started) == 2)
    pi.finish(task.id, "42")
    assert (await node.ended("add")).status.phase is Phase.COMPLETED


async def test_a_task_that_must_never_be_restarted_is_interrupted_when_its_proplet_is_lost(node: Node) -> None:
    pi = node.proplet("pi-1")
    node.proplet("pi-2")
    await node.create("add", restart_policy=RestartPolicy.NEVER, selector=PropletSelector("pi-1"))
    await running(node, "add")
    pi.vanish()
    done = await node.ended("add")
    assert (done.status.phase, done.status.reason) == (Phase.INTERRUPTED, Reason.LOST)


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
