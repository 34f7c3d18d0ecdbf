"""Deleting tasks that run where the store knows finalizers: what is marked, stopped and let go."""

from dataclasses import replace

from proplet.agent.wire import Reason
from proplet.manager.deletion import FINALIZER
from proplet.manager.exchange import Policy
from proplet.manager.phases import Phase
from tests.manager.worlds import Story, story


def marking(**spec: object) -> Story:
    told = story("a", **spec)
    told.world = replace(told.world, policy=Policy(finalizers=True))
    return told


def deleted(told: Story) -> Story:
    told.task = replace(told.task, meta=replace(told.task.meta, deleted_at=told.at.wall))
    return told


def test_a_short_task_gets_no_mark() -> None:
    told = marking().look().after(0.5).holds("a").after(1).result("a")
    assert (told.status.phase, told.marks) == (Phase.COMPLETED, [])


def test_a_task_that_lasts_is_marked_after_a_while_and_the_mark_goes_with_its_end() -> None:
    told = marking().look().after(0.5).holds("a")
    told.sleep()
    assert (told.mono, told.marks, told.task.meta.finalizers) == (102.0, [True], (FINALIZER,))
    told.after(50).result("a")
    assert (told.status.phase, told.marks, told.task.meta.finalizers) == (Phase.COMPLETED, [True, False], ())


def test_a_daemon_is_marked_before_it_is_sent() -> None:
    told = marking(daemon=True)
    assert told.look().marks == [True]
    assert (told.status.phase, len(told.starts)) == (Phase.SCHEDULED, 1)


def test_a_mark_is_made_up_for_after_a_restart() -> None:
    told = marking().look().holds("a")
    told.mono += 100
    assert told.look().marks == [True]


def test_a_deleted_task_that_runs_is_stopped_and_then_let_go() -> None:
    told = deleted(marking().look().holds("a").after(3)).look()
    assert (told.status.phase, told.status.stop_requested, len(told.stops)) == (Phase.RUNNING, True, 1)
    assert told.marks == [True], "it is not let go before it has ended"
    told.after(1).result("a", "", error="stopped", reason=Reason.STOPPED)
    assert (told.status.phase, told.marks) == (Phase.INTERRUPTED, [True, False])


def test_a_deleted_task_whose_proplet_is_gone_is_let_go() -> None:
    told = marking().look().holds("a").after(3)
    told.peer("a", alive=False, lost=True)
    told.peer("b")
    deleted(told).look()
    assert (told.status.phase, told.marks, len(told.starts)) == (Phase.INTERRUPTED, [True, False], 1)


def test_a_deleted_task_that_waits_to_be_placed_again_is_let_go_and_not_placed() -> None:
    told = marking().look().holds("a").after(3)
    told.peer("a", alive=False, lost=True)
    told.look()
    assert told.status.phase is Phase.PENDING
    told.peer("a")
    deleted(told).look()
    assert (told.status.phase, told.marks, len(told.starts)) == (Phase.PENDING, [True, False], 1)


def test_what_others_keep_from_going_is_not_started_any_more() -> None:
    told = story("a", status=None)
    told.task = replace(told.task, meta=replace(told.task.meta, finalizers=("other.example/x",), deleted_at=5.0))
    assert told.look().starts == []
    assert told.marks == []


def test_a_broadcast_that_lasts_is_marked_too() -> None:
    told = story("a", "b", broadcast=True)
    told.world = replace(told.world, policy=Policy(finalizers=True))
    told.look().holds("a").after(3)
    assert told.marks == [True]
    deleted(told).look()
    assert len(told.stops) == 2


def test_nothing_is_marked_where_the_store_needs_no_marks() -> None:
    told = story("a", daemon=True).look().holds("a").after(100)
    assert told.marks == []
