"""The manager's decisions about a task, as stories: what happens, and what is recorded and sent."""

from dataclasses import replace
from typing import Any

import pytest

from proplet.agent.wire import FederatedUpdate, InventoryItem, Limits, Reason, RestartPolicy, Result, Usage
from proplet.manager import outcome
from proplet.manager.core import stray
from proplet.manager.exchange import Ended
from proplet.manager.model import PropletSelector, Resources, TaskStatus
from proplet.manager.phases import TERMINAL, TRANSITIONS, Happening, IllegalTransitionError, Phase, advance
from proplet.manager.world import World
from tests.manager.worlds import EPOCH, USAGE, Story, story

# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("happening", Happening)
def test_every_pair_of_phase_and_happening_leads_where_the_table_says_or_is_illegal(
    phase: Phase, happening: Happening
) -> None:
    expected = TRANSITIONS[phase].get(happening)
    if expected is None:
        with pytest.raises(IllegalTransitionError, match=happening.value):
            advance(phase, happening)
    else:
        assert advance(phase, happening) is expected


def test_every_phase_has_a_way_to_a_final_one_and_every_final_one_a_way_to_another_run() -> None:
    def reach(phase: Phase) -> set[Phase]:
        seen, todo = set(), [phase]
        while todo:
            for after in TRANSITIONS[todo.pop()].values():
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
        return seen

    for phase in Phase:
        assert reach(phase) & TERMINAL
    for phase in TERMINAL:
        assert set(TRANSITIONS[phase]) == {Happening.RESTARTED}


# --- dispatch --------------------------------------------------------------------------------------------------------


def test_the_intent_is_recorded_before_the_start_is_sent() -> None:
    told = story("a").look()
    assert (told.status.phase, told.status.attempt, told.status.proplet_id) == (Phase.SCHEDULED, 1, "a")
    assert told.decision.status is None or told.decision.then  # one decision carried both
    assert [(p, s.id, s.ext.attempt) for p, s in told.starts if s.ext] == [("a", "uid-1", 1)]
    assert told.status.dispatched_at == EPOCH + 100


def test_a_start_carries_everything_the_task_says() -> None:
    told = story(
        "a",
        function_name="main",
        inputs=("10", "32"),
        cli_args=("--x",),
        env={"LEVEL": "7", "TASK_ID": "mine"},
        daemon=True,
        active_deadline_seconds=9.0,
        restart_policy=RestartPolicy.ON_FAILURE,
        backoff_limit=2,
        resources=Resources(memory_bytes=1 << 20),
        limits=Limits(cpu_s=3.0),
        env_secrets={"TOKEN": {"name": "vault", "key": "token"}},
        status=TaskStatus(resolved_image="sha256:" + "a" * 64),
    ).look()
    _, start = told.starts[0]
    assert (start.name, start.inputs, start.cli_args, start.daemon) == ("main", ("10", "32"), ("--x",), True)
    assert start.env == {"LEVEL": "7", "TASK_ID": "mine", "PROPLET_ID": "a"}
    assert (start.proplet_id, start.broadcast, start.state) == ("a", False, 1)
    assert start.ext is not None
    assert (start.ext.deadline_s, start.ext.restart_policy, start.ext.backoff_limit) == (
        9.0,
        RestartPolicy.ON_FAILURE,
        2,
    )
    assert start.ext.limits == Limits(memory_bytes=1 << 20, cpu_s=3.0)
    assert start.ext.image_digest == "sha256:" + "a" * 64
    assert start.ext.secrets == {"TOKEN": "vault/token"}
    assert "inventory" in start.ext.topics


def test_a_start_that_nobody_confirms_is_sent_again_with_the_same_attempt() -> None:
    told = story("a").look()
    gaps = []
    for _ in range(3):
        before = told.mono
        told.sleep()
        gaps.append(told.mono - before)
    assert [s.ext.attempt for _, s in told.starts if s.ext] == [1, 1, 1, 1]
    assert gaps == [5.0, 10.0, 20.0]


def test_a_start_that_is_never_confirmed_becomes_a_loss_and_goes_to_another_proplet() -> None:
    told = story("a", "b").look()
    first = told.status.proplet_id
    while told.status.attempt == 1:
        told.sleep()
    assert len([s for _, s in told.starts if s.ext and s.ext.attempt == 1]) == told.policy.max_sends
    assert told.status.phase is Phase.SCHEDULED
    assert told.status.proplet_id != first


def test_a_start_that_the_broker_did_not_take_is_sent_again_soon() -> None:
    told = story("a")
    told.broker = False
    told.look()
    told.broker = True
    told.sleep()
    assert told.mono == 101.0
    assert [s.ext.attempt for _, s in told.starts if s.ext] == [1, 1]


def test_nothing_is_dispatched_while_the_broker_is_away_and_the_task_says_so() -> None:
    told = story("a")
    told.fleet.connected = False
    told.look()
    assert told.status.phase is Phase.PENDING
    assert "not connected to its broker" in told.status.message
    told.fleet.connected = True
    assert told.look().status.phase is Phase.SCHEDULED


def test_a_start_that_is_too_large_for_the_broker_fails_the_task_with_the_reason() -> None:
    told = story("a").look().too_large()
    assert (told.status.phase, told.status.reason) == (Phase.FAILED, Reason.INVALID_COMMAND)
    assert "20 MB" in (told.status.error or "")


def test_a_held_task_waits_until_it_is_started() -> None:
    told = story("a", held=True).look()
    assert told.status == TaskStatus()
    told.task = replace(told.task, spec=replace(told.task.spec, held=False))
    assert told.look().status.phase is Phase.SCHEDULED


def test_what_this_version_cannot_do_fails_with_a_message() -> None:
    told = story("a", schedule="* * * * *")
    told.world = World(
        told.fleet, told.policy, lambda task: "schedules are not supported" if task.spec.schedule else None
    )
    told.look()
    assert (told.status.phase, told.status.reason) == (Phase.FAILED, Reason.NOT_SUPPORTED)
    assert told.status.error == "schedules are not supported"


# --- confirmation ----------------------------------------------------------------------------------------------------


def test_a_task_runs_when_its_proplet_says_so() -> None:
    told = story("a").look().after(1).holds("a")
    assert (told.status.phase, told.status.started_at) == (Phase.RUNNING, EPOCH + 101)
    assert told.after(800).status.phase is Phase.RUNNING
    assert len(told.starts) == 1


def test_a_proplet_that_stops_telling_what_it_holds_is_asked_again() -> None:
    told = story("a").look().holds("a").sleep()
    assert told.mono == 100 + 3 * told.policy.hello_every_s
    assert [s.ext.attempt for _, s in told.starts if s.ext] == [1, 1]
    while told.status.attempt == 1:
        told.sleep()
    assert told.status.failures == 1


@pytest.mark.parametrize(("name", "attempt"), [("b", 1), ("a", 2), ("a", 0)])
def test_the_word_of_another_proplet_or_about_another_attempt_confirms_nothing(name: str, attempt: int) -> None:
    assert story("a", "b", selector=PropletSelector("a")).look().holds(name, attempt).status.phase is Phase.SCHEDULED


def test_a_proplet_of_the_reference_runs_the_task_as_soon_as_the_broker_has_the_start() -> None:
    told = story("a", tells=False).look()
    assert told.status.phase is Phase.RUNNING
    assert len(told.starts) == 1


# --- results ---------------------------------------------------------------------------------------------------------


def test_a_result_completes_the_task_with_what_it_cost() -> None:
    told = story("a").look().holds("a").after(1)
    told.result(exit_code=0, image_digest="sha256:b", usage=USAGE)
    status = told.status
    assert (status.phase, status.results, status.error, status.reason) == (Phase.COMPLETED, "42", None, Reason.OK)
    assert (status.exit_code, status.resolved_image, status.usage) == (0, "sha256:b", USAGE)
    assert status.finished_at == EPOCH + 101


def test_a_result_that_comes_before_any_confirmation_counts() -> None:
    told = story("a").look().result()
    assert told.status.phase is Phase.COMPLETED
    assert told.status.started_at == told.status.dispatched_at


def test_of_a_task_that_was_over_at_once_its_usage_tells_when_it_began_to_run() -> None:
    stages = {"queue": 0.5, "fetch": 2.0, "compile": 1.0, "run": 0.25, "total": 3.75}
    told = story("a").look().after(10).result(usage=Usage(wall_seconds=stages))
    assert told.status.started_at == told.status.finished_at - 0.25
    quick = story("a").look().result(usage=Usage(wall_seconds={"run": 60.0}))
    assert quick.status.started_at == quick.status.dispatched_at, "never before it was sent"


def test_a_failure_of_the_guest_is_final() -> None:
    told = story("a").look().holds("a").result(error="it trapped", reason=Reason.TRAP, results="", exit_code=134)
    assert (told.status.phase, told.status.reason, told.status.error) == (Phase.FAILED, Reason.TRAP, "it trapped")
    assert told.status.exit_code == 134


def test_a_result_counts_once() -> None:
    told = story("a").look().holds("a").result()
    first = told.status
    told.result(results="43").result(error="no", reason=Reason.TRAP)
    assert told.status == first


def test_the_result_of_an_older_attempt_is_ignored() -> None:
    told = story("a", "b").look().holds("a")
    told.peer("a", alive=False, lost=True)
    told.look()
    assert (told.status.attempt, told.status.proplet_id) == (2, "b")
    before = told.status
    assert told.result("a", attempt=1).status == before
    assert told.result("b", attempt=2).status.phase is Phase.COMPLETED


def test_a_result_without_an_attempt_counts_for_the_current_one_of_that_proplet_only() -> None:
    told = story("a", "b", tells=False, selector=PropletSelector("a")).look()
    assert told.result("b", attempt=None).status.phase is Phase.RUNNING
    assert told.result("a", attempt=None, error="boom").status.phase is Phase.FAILED


def test_a_federated_result_names_its_proplet_only_inside() -> None:
    told = story("a", tells=False).look()
    update = FederatedUpdate("uid-1", "round-1", "b", 3, b"weights")
    assert told.look(Ended(Result("uid-1", "", update))).status.phase is Phase.RUNNING
    told.look(Ended(Result("uid-1", "", replace(update, proplet_id="a"))))
    assert told.status.phase is Phase.COMPLETED
    assert '"round_id": "round-1"' in (told.status.results or "")


def test_a_failed_federated_round_names_no_proplet_at_all() -> None:
    told = story("a", tells=False).look().result("", results="", attempt=None, error="boom")
    assert told.status.phase is Phase.FAILED


# --- interruptions and losses ----------------------------------------------------------------------------------------


def _interrupt(told: Story) -> Story:
    return told.result(
        told.status.proplet_id or "", results="", error="the node was restarted", reason=Reason.INTERRUPTED
    )


def test_an_interrupted_task_is_placed_again_as_a_new_attempt_at_once() -> None:
    told = _interrupt(story("a").look().holds("a"))
    assert (told.status.phase, told.status.attempt, told.status.failures) == (Phase.SCHEDULED, 2, 1)
    assert [s.ext.attempt for _, s in told.starts if s.ext] == [1, 2]


def test_an_interrupted_task_that_must_never_be_restarted_is_interrupted() -> None:
    told = _interrupt(story("a", restart_policy=RestartPolicy.NEVER).look().holds("a"))
    assert (told.status.phase, told.status.reason) == (Phase.INTERRUPTED, Reason.INTERRUPTED)
    assert told.status.error == "the node was restarted"


def test_interruptions_back_off_and_end_at_the_limit() -> None:
    told, waits = story("a").look(), []
    while told.status.phase not in TERMINAL:
        _interrupt(told)
        if told.status.phase is Phase.PENDING:
            waits.append(told.decision.wake - told.mono)
            told.sleep()
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert (told.status.phase, told.status.attempt) == (Phase.FAILED, 7)
    assert told.status.reason is Reason.INTERRUPTED
    assert "attempt 7" in (told.status.error or "")


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 0.0), (2, 1.0), (3, 2.0), (9, 128.0), (12, 300.0), (5000, 300.0)]
)
def test_the_backoff_doubles_from_one_second_to_five_minutes(failures: int, seconds: float) -> None:
    assert outcome.backoff(failures, story().policy) == seconds


def test_a_backoff_limit_of_none_allows_no_repetition() -> None:
    assert _interrupt(story("a", backoff_limit=0).look()).status.phase is Phase.FAILED


def test_the_tasks_of_a_lost_proplet_go_to_another_one() -> None:
    told = story("a", "b", selector=PropletSelector(match_labels={})).look()
    first = told.status.proplet_id or ""
    told.holds(first)
    told.peer(first, alive=False)
    assert told.look().status.phase is Phase.RUNNING  # it may come back
    told.peer(first, alive=False, lost=True)
    told.look()
    assert (told.status.phase, told.status.attempt) == (Phase.SCHEDULED, 2)
    assert told.status.proplet_id not in (None, first)


def test_a_lost_task_without_another_proplet_waits_and_says_why() -> None:
    told = story("a").look().holds("a")
    told.peer("a", alive=False, lost=True)
    told.after(20)
    assert told.status.phase is Phase.PENDING
    assert told.status.message == "no proplet is alive: a fits but is offline: last heard of at noon"
    assert told.decision.awaiting


def test_a_lost_attempt_that_turns_up_is_taken_up_again() -> None:
    told = story("a").look().holds("a")
    told.peer("a", alive=False, lost=True)
    told.after(20)
    told.holds("a", 1)
    assert (told.status.phase, told.status.attempt, told.status.failures) == (Phase.PENDING, 1, 1)  # still lost
    told.peer("a")
    told.holds("a", 1)
    assert (told.status.phase, told.status.attempt, told.status.failures) == (Phase.RUNNING, 1, 0)


def test_the_result_of_a_lost_attempt_counts_as_long_as_there_is_no_newer_one() -> None:
    told = story("a").look().holds("a")
    told.peer("a", alive=False, lost=True)
    told.after(20)
    told.result("a", attempt=1)
    assert (told.status.phase, told.status.results) == (Phase.COMPLETED, "42")


def test_an_ended_attempt_does_not_turn_up_again() -> None:
    told = story("a").look().holds("a")
    told.peer("a", alive=False)
    told.result("a", results="", error="restarted", reason=Reason.INTERRUPTED)
    assert (told.status.phase, told.status.proplet_id) == (Phase.PENDING, None)
    before = told.status
    assert told.result("a", attempt=1).status == before
    assert told.result("a", results="", error="again", reason=Reason.INTERRUPTED, attempt=1).status == before


def test_an_overloaded_proplet_rests_and_another_one_is_asked_without_counting_a_failure() -> None:
    told = story("a", "b").look()
    first = told.status.proplet_id or ""
    told.result(first, results="", error="10000 tasks wait", reason=Reason.OVERLOADED)
    assert (told.status.phase, told.status.failures) == (Phase.PENDING, 0)
    told.sleep()
    assert told.status.phase is Phase.SCHEDULED
    assert told.status.proplet_id not in (first, None)


def test_an_inventory_that_lacks_a_running_task_has_its_start_repeated_after_a_moment() -> None:
    told = story("a").look().holds("a").lacks("a")
    assert len(told.starts) == 1
    told.sleep()
    assert told.mono == 103.0
    assert [s.ext.attempt for _, s in told.starts if s.ext] == [1, 1]
    assert told.result().status.phase is Phase.COMPLETED  # a known attempt is answered with its result


def test_a_task_its_proplet_neither_names_nor_answers_for_is_lost() -> None:
    told = story("a", restart_policy=RestartPolicy.NEVER).look().holds("a").lacks("a")
    while told.status.phase not in TERMINAL:
        told.sleep()
    assert (told.status.phase, told.status.reason) == (Phase.INTERRUPTED, Reason.LOST)
    assert "did not confirm" in (told.status.error or "")


def test_after_a_restart_of_the_manager_a_running_task_is_asked_for_if_its_proplet_does_not_name_it() -> None:
    told = story("a").look().holds("a")
    after = story("a", status=told.status)
    after.look()
    assert after.starts == []
    after.sleep()
    assert [s.ext.attempt for _, s in after.starts if s.ext] == [1]
    assert after.holds("a").wake == after.mono + 900


def test_after_a_restart_of_the_manager_a_scheduled_task_is_sent_again() -> None:
    told = story("a").look()
    after = story("a", status=told.status).look()
    assert [s.ext.attempt for _, s in after.starts if s.ext] == [1]


def test_a_proplet_nobody_has_heard_of_is_lost_once_the_manager_has_listened_long_enough() -> None:
    told = story("b", status=TaskStatus(Phase.RUNNING, proplet_id="gone", attempt=3))
    told.fleet.settled = False
    assert told.look().status.phase is Phase.RUNNING
    told.fleet.settled = True
    assert (told.look().status.proplet_id, told.status.attempt) == ("b", 4)


# --- proplets that tell nothing --------------------------------------------------------------------------------------


def test_a_task_on_a_silent_proplet_is_lost_an_hour_and_a_margin_later() -> None:
    told = story("a", tells=False).look()
    told.after(3629)
    assert (told.status.phase, told.status.attempt) == (Phase.RUNNING, 1)
    told.sleep()
    assert told.mono == 100 + 3630
    assert told.status.attempt == 2
    assert [(p, s.id) for p, s in told.stops] == [("a", "uid-1")]


def test_a_deadline_that_is_given_fails_a_task_on_a_silent_proplet() -> None:
    told = story("a", tells=False, active_deadline_seconds=5.0).look().sleep()
    assert (told.status.phase, told.status.reason) == (Phase.FAILED, Reason.TIMEOUT)
    assert "5 s" in (told.status.error or "")


def test_a_daemon_on_a_silent_proplet_has_no_deadline() -> None:
    told = story("a", tells=False, daemon=True).look()
    assert told.after(10**6).status.phase is Phase.RUNNING


def test_a_broker_that_forgot_everything_has_the_start_repeated_to_silent_proplets() -> None:
    told = story("a", tells=False).look().session_lost()
    assert len(told.starts) == 2
    assert told.status.phase is Phase.RUNNING


@pytest.mark.parametrize("terms", [{"daemon": True}, {"restart_policy": RestartPolicy.NEVER}])
def test_what_must_not_run_twice_is_not_repeated_to_silent_proplets(terms: dict[str, Any]) -> None:
    assert len(story("a", tells=False, **terms).look().session_lost().starts) == 1


# --- stops -----------------------------------------------------------------------------------------------------------


def ask_to_stop(told: Story) -> Story:
    status = outcome.stop_asked(told.task, told.at.wall)
    assert status is not None
    told.task = replace(told.task, status=status)
    return told.look()


def test_a_pending_task_that_is_stopped_is_interrupted_at_once() -> None:
    told = ask_to_stop(story().look())
    assert (told.status.phase, told.status.reason) == (Phase.INTERRUPTED, Reason.STOPPED)


@pytest.mark.parametrize("status", [TaskStatus(phase) for phase in TERMINAL])
def test_a_task_that_is_over_cannot_be_stopped(status: TaskStatus) -> None:
    assert outcome.stop_asked(story(status=status).task, 0.0) is None


def test_a_task_that_was_never_started_cannot_be_stopped() -> None:
    assert outcome.stop_asked(story(held=True).task, 0.0) is None


def test_a_running_task_is_stopped_by_a_message_with_its_attempt() -> None:
    told = ask_to_stop(story("a").look().holds("a"))
    assert [(p, s.id, s.ext.attempt) for p, s in told.stops if s.ext] == [("a", "uid-1", 1)]
    told.result(results="", error="Task uid-1 was stopped before completion", reason=Reason.STOPPED)
    assert (told.status.phase, told.status.reason, told.status.stop_requested) == (
        Phase.INTERRUPTED,
        Reason.STOPPED,
        False,
    )


def test_a_stop_is_repeated_until_there_is_an_answer_and_not_for_ever() -> None:
    told = ask_to_stop(story("a").look().holds("a"))
    while told.status.phase not in TERMINAL:
        told.sleep()
    assert len(told.stops) == told.policy.max_stops
    assert told.status.phase is Phase.INTERRUPTED
    assert "did not confirm" in (told.status.error or "")


def test_a_stopped_task_that_its_proplet_no_longer_names_is_interrupted() -> None:
    told = ask_to_stop(story("a").look().holds("a")).lacks("a")
    told.sleep()
    assert (told.status.phase, told.mono) == (Phase.INTERRUPTED, 103.0)


def test_a_stopped_task_whose_proplet_is_lost_is_interrupted_and_not_placed_again() -> None:
    told = ask_to_stop(story("a", "b").look())
    told.peer(told.status.proplet_id or "", alive=False, lost=True)
    assert told.look().status.phase is Phase.INTERRUPTED


def test_a_task_that_completes_while_it_is_being_stopped_is_completed() -> None:
    assert ask_to_stop(story("a").look().holds("a")).result().status.phase is Phase.COMPLETED


def test_a_silent_proplet_has_half_a_minute_to_end_a_stopped_task() -> None:
    told = ask_to_stop(story("a", tells=False).look())
    assert len(told.stops) == 1
    told.sleep()
    assert (told.status.phase, told.mono) == (Phase.INTERRUPTED, 130.0)


def test_an_error_without_a_reason_after_a_stop_is_that_stop() -> None:
    told = ask_to_stop(story("a", tells=False).look()).result(attempt=None, error="Task was cancelled or panicked")
    assert told.status.phase is Phase.INTERRUPTED


# --- another run, and the end ----------------------------------------------------------------------------------------


def test_another_run_starts_clean_and_counts_attempts_on() -> None:
    told = story("a").look().result(exit_code=0, usage=USAGE)
    told.task = replace(told.task, status=outcome.restarted(told.status))
    assert told.status == TaskStatus(attempt=1, observed_generation=1)
    told.look()
    assert (told.status.phase, told.status.attempt) == (Phase.SCHEDULED, 2)
    assert told.result(attempt=1, results="old").status.phase is Phase.SCHEDULED
    assert told.result(results="new").status.results == "new"


def test_a_late_result_of_an_earlier_run_does_not_end_the_new_one_before_it_is_placed() -> None:
    told = story("a").look().result()
    told.peer("a", alive=False)
    told.task = replace(told.task, status=outcome.restarted(told.status))
    assert told.look().result(attempt=1).status.phase is Phase.PENDING


def test_a_finished_task_is_deleted_when_its_time_is_over() -> None:
    told = story("a", ttl_seconds_after_finished=60).look().result()
    assert not told.decision.delete
    assert told.wake == told.mono + 60
    assert told.sleep().decision.delete


def test_a_finished_task_without_a_time_to_live_is_kept() -> None:
    assert not story("a").look().result().after(10**8).decision.delete


# --- strays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "item", "unwanted"),
    [
        (TaskStatus(Phase.RUNNING, proplet_id="a", attempt=2), InventoryItem("u", 2), False),
        (TaskStatus(Phase.RUNNING, proplet_id="a", attempt=2), InventoryItem("u", 1), True),
        (TaskStatus(Phase.RUNNING, proplet_id="a", attempt=2), InventoryItem("u", 3), False),  # not ours to judge
        (TaskStatus(Phase.RUNNING, proplet_id="b", attempt=2), InventoryItem("u", 2), True),
        (TaskStatus(Phase.COMPLETED, proplet_id="a", attempt=2), InventoryItem("u", 2), True),
        (TaskStatus(Phase.PENDING, proplet_id="a", attempt=2), InventoryItem("u", 2), False),
        (TaskStatus(Phase.PENDING, proplet_id=None, attempt=2), InventoryItem("u", 2), True),
        (TaskStatus(Phase.RUNNING, proplet_id="a", attempt=2), InventoryItem("u", None), False),
    ],
)
def test_an_attempt_that_nobody_wants_is_known_by_the_tasks_state(
    status: TaskStatus, item: InventoryItem, unwanted: bool
) -> None:
    assert stray(replace(story().task, status=status), "a", item) is unwanted


def test_what_was_never_ours_is_left_alone() -> None:
    assert stray(None, "a", InventoryItem("another-managers", 1)) is False
