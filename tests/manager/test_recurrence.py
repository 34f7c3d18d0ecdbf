"""Scheduled tasks: when they run first and again, what is made up for, and what a clock that is set does to them."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.wire import Reason
from proplet.manager import outcome
from proplet.manager.phases import Phase
from tests.manager.worlds import EPOCH, Story, story

MINUTE = 60.0
START = EPOCH + 100  # 08:01:40; the next full minute is 20 s away


def scheduled(schedule: str = "* * * * *", **spec: Any) -> Story:
    return story("a", schedule=schedule, **{"is_recurring": True, **spec}).look()


def time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%H:%M:%S")


def finish(told: Story) -> Story:
    return told.holds("a").result("a")


def test_the_first_run_waits_for_its_time() -> None:
    told = scheduled("30 * * * *")
    assert (told.status.phase, told.starts) == (Phase.PENDING, [])
    assert time(told.status.next_run) == "08:30:00"
    assert told.condition("Scheduled") == (
        False,
        "WaitingForSchedule",
        "its next run is due at 2027-01-15T08:30:00Z",
    )
    assert told.wake == pytest.approx(told.mono + told.status.next_run - START)
    told.after(20 * MINUTE)
    assert told.decision.status is None
    assert told.starts == []
    told.sleep()
    assert told.status.phase is Phase.SCHEDULED
    assert time(told.status.dispatched_at) == "08:30:00"
    assert time(told.status.next_run) == "09:30:00"
    assert len(told.starts) == 1


def test_a_task_that_does_not_recur_runs_once() -> None:
    told = scheduled("30 * * * *", is_recurring=False).sleep()
    assert told.status.next_run == 0.0
    finish(told)
    assert told.status.phase is Phase.COMPLETED
    told.after(10_000)
    assert (told.status.phase, len(told.starts)) == (Phase.COMPLETED, 1)


def test_a_recurring_task_runs_at_every_time_and_its_attempts_count_on() -> None:
    told = scheduled()
    for run in range(1, 5):
        told.sleep()
        assert (told.status.phase, told.status.attempt, told.status.results) == (Phase.SCHEDULED, run, None)
        assert time(told.status.dispatched_at) == f"08:0{run + 1}:00"
        finish(told)
        assert (told.status.phase, told.status.results) == (Phase.COMPLETED, "42")
        assert time(told.status.next_run) == f"08:0{run + 2}:00"


def test_a_run_that_is_due_when_it_is_over_is_one_record() -> None:
    told = finish(scheduled().sleep())
    told.mono = told.wake
    told.look()
    assert told.decision.status is not None
    assert (told.decision.status.phase, told.decision.status.attempt) == (Phase.SCHEDULED, 2)


def test_time_to_live_is_not_for_recurring_tasks() -> None:
    told = finish(scheduled(ttl_seconds_after_finished=0).sleep())
    assert not told.after(5).decision.delete


def test_times_that_passed_unseen_are_made_up_for_by_one_run() -> None:
    told = finish(scheduled().sleep())
    told.after(100 * MINUTE)
    assert (told.status.phase, told.status.attempt) == (Phase.SCHEDULED, 2)
    assert told.status.next_run - told.at.wall <= MINUTE
    finish(told)
    told.after(1)
    assert told.status.attempt == 2


def test_a_start_that_was_missed_by_more_than_its_deadline_is_left_out() -> None:
    told = scheduled("0 * * * *", starting_deadline_seconds=10.0)
    told.ahead += 2 * 3600
    told.look()
    assert (told.status.phase, told.status.attempt) == (Phase.PENDING, 0)
    assert told.status.message == (
        "its start at 2027-01-15T10:00:00Z was missed by more than 10 s; its next run is due at 2027-01-15T11:00:00Z"
    )
    told.sleep()
    assert time(told.status.dispatched_at) == "11:00:00"
    finish(told)
    told.ahead += 3 * 3600 + 60
    told.look()
    assert (told.status.phase, time(told.status.next_run)) == (Phase.COMPLETED, "15:00:00")


def test_a_start_within_its_deadline_is_made_up_for() -> None:
    told = scheduled("0 * * * *", starting_deadline_seconds=600.0)
    told.ahead += 3600
    told.look()
    assert told.status.phase is Phase.SCHEDULED


def test_a_single_run_that_misses_its_deadline_is_skipped() -> None:
    told = scheduled("0 * * * *", is_recurring=False, starting_deadline_seconds=10.0)
    told.fleet.hide("a")
    told.sleep()
    assert (told.status.phase, told.condition("Scheduled")) == (
        Phase.PENDING,
        (False, "NoProplet", "no proplet is known yet: none has announced itself"),
    )
    told.sleep()
    assert told.status.phase is Phase.SKIPPED
    assert told.status.error == "its start at 2027-01-15T09:00:00Z was missed by more than 10 s"
    assert told.condition("Completed") == (False, "Skipped", told.status.error)


def test_a_suspended_task_does_not_run_and_makes_up_for_one_run_when_it_goes_on() -> None:
    told = scheduled("0 * * * *", suspend=True)
    assert told.condition("Scheduled") == (False, "Suspended", "it is suspended until spec.suspend is false")
    told.respec(suspend=False).look()
    assert time(told.status.next_run) == "09:00:00"
    told.respec(suspend=True).after(3 * 3600)
    assert told.starts == []
    assert told.after(60).decision.status is None
    told.respec(suspend=False).look()
    assert told.status.phase is Phase.SCHEDULED
    finish(told)
    told.respec(suspend=True).after(5 * 3600)
    assert (told.status.phase, told.status.attempt) == (Phase.COMPLETED, 1)


def test_suspending_leaves_a_run_that_is_under_way_alone() -> None:
    told = scheduled().sleep().holds("a")
    told.respec(suspend=True).after(200)
    assert (told.status.phase, told.stops) == (Phase.RUNNING, [])


def test_a_suspended_task_without_a_schedule_is_held_back() -> None:
    told = story("a", suspend=True).look()
    assert (told.status.phase, told.starts) == (Phase.PENDING, [])
    told.respec(suspend=False).look()
    assert told.status.phase is Phase.SCHEDULED


@pytest.mark.parametrize("policy", [None, "Forbid", "Allow"])
def test_a_time_that_comes_while_the_last_run_is_under_way_is_left_out(policy: str | None) -> None:
    told = scheduled(concurrency_policy=policy).sleep().holds("a")
    told.after(3.5 * MINUTE)
    assert (told.status.phase, told.status.attempt, told.stops) == (Phase.RUNNING, 1, [])
    assert time(told.status.next_run) == "08:06:00"
    told.result("a")
    assert told.status.phase is Phase.COMPLETED
    told.sleep()
    assert (told.status.attempt, time(told.status.dispatched_at)) == (2, "08:06:00")


def test_replace_stops_the_last_run_and_starts_the_next_when_it_has_ended() -> None:
    told = scheduled(concurrency_policy="Replace").sleep().holds("a")
    told.mono = told.wake
    told.look()
    assert (told.status.stop_requested, len(told.stops), told.status.attempt) == (True, 1, 1)
    told.after(0.5).result("a", "", error="stopped", reason=Reason.STOPPED)
    assert (told.status.phase, told.status.attempt) == (Phase.SCHEDULED, 2)
    assert time(told.status.next_run) == "08:04:00"


def test_a_lost_attempt_is_tried_again_at_once_and_not_at_the_next_time() -> None:
    told = scheduled("0 0 * * *").sleep().holds("a")
    told.peer("a", alive=False, lost=True)
    told.peer("b")
    told.look()
    assert (told.status.phase, told.status.proplet_id, told.status.attempt) == (Phase.SCHEDULED, "b", 2)


def test_a_run_that_somebody_asks_for_begins_at_once_and_leaves_the_plan_as_it_is() -> None:
    told = finish(scheduled("0 0 * * *").sleep())
    planned = told.status.next_run
    told.task = told.task.__class__(told.task.meta, told.task.spec, outcome.restarted(told.status))
    told.look()
    assert (told.status.phase, told.status.attempt) == (Phase.SCHEDULED, 2)
    finish(told)
    assert told.status.next_run == planned


def test_a_new_schedule_makes_a_new_plan() -> None:
    told = scheduled("0 12 * * *")
    told.respec(schedule="0 9 * * *").look()
    assert time(told.status.next_run) == "09:00:00"
    finish(told.sleep())
    told.respec(timezone="Asia/Tokyo").look()
    assert time(told.status.next_run) == "00:00:00"


def test_a_task_that_becomes_recurring_after_its_run_runs_again() -> None:
    told = finish(story("a").look())
    told.respec(schedule="* * * * *", is_recurring=True).look()
    assert (told.status.phase, time(told.status.next_run)) == (Phase.COMPLETED, "08:02:00")
    assert told.sleep().status.attempt == 2


def test_a_schedule_that_cannot_be_understood_is_waited_over_until_it_is_changed() -> None:
    told = scheduled("61 * * * *")
    condition = told.condition("Scheduled")
    assert condition is not None
    assert condition[1] == "InvalidSchedule"
    assert condition[2].startswith("spec.schedule, with spec.timezone, must have cron's five fields")
    assert told.look().decision.status is None
    told.respec(schedule="* * * * *").look()
    assert time(told.status.next_run) == "08:02:00"


def test_a_clock_set_forward_makes_no_burst() -> None:
    told = finish(scheduled().sleep())
    told.ahead += 86_400
    finish(told.look())
    for _ in range(30):
        told.after(1)
    assert told.status.attempt == 2


def test_a_clock_set_back_makes_no_silence() -> None:
    told = finish(scheduled().sleep())
    told.ahead -= 86_400
    told.look()
    assert told.status.next_run - told.at.wall <= 2 * MINUTE
    told.sleep()
    assert told.status.attempt == 2


def test_a_clock_set_back_by_a_moment_runs_no_time_twice() -> None:
    told = finish(scheduled().sleep())
    told.ahead -= 5
    told.look()
    assert time(told.status.next_run) == "08:03:00"
    told.after(10)
    assert told.status.attempt == 1


@given(
    st.sampled_from(["* * * * *", "*/7 * * * *", "0 * * * *"]),
    st.lists(
        st.tuples(st.sampled_from([0.5, 20.0, 61.0, 500.0, 4000.0]), st.sampled_from([0, 0, 0, -7200, -3, 90_000])),
        min_size=1,
        max_size=40,
    ),
)
def test_whatever_the_clock_does_runs_come_neither_in_bursts_nor_not_at_all(
    schedule: str, steps: list[tuple[float, int]]
) -> None:
    told = scheduled(schedule)
    period = {"* * * * *": 60.0, "*/7 * * * *": 420.0, "0 * * * *": 3600.0}[schedule]
    set_anew = 0
    for seconds, jump in steps:
        before = told.status.attempt
        told.ahead += jump
        set_anew += abs(jump) > 3
        told.after(seconds)
        if told.status.phase is Phase.SCHEDULED:
            finish(told)
        assert told.status.attempt - before <= 1
        assert told.status.next_run > told.at.wall
        assert told.status.next_run - told.at.wall <= 2 * period
    runs, passed = told.status.attempt, told.mono - 100.0
    assert runs <= passed / period + set_anew + 1
    told.mono += 2 * period
    told.look()
    assert told.status.attempt == runs + 1
