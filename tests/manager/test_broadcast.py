"""Tasks that run everywhere at once."""

from proplet.agent.wire import Reason
from proplet.manager.manifest import to_manifest
from proplet.manager.model import PropletSelector, TaskStatus
from proplet.manager.phases import TERMINAL, Phase
from tests.manager.test_task_core import ask_to_stop
from tests.manager.worlds import USAGE, Story, story


def entries(told: Story) -> dict[str, str]:
    return {e["proplet_id"]: e["phase"] for e in told.status.broadcast_results}


def test_a_broadcast_is_one_message_to_everybody() -> None:
    told = story("a", "b", broadcast=True).look()
    assert [(p, s.broadcast, s.proplet_id) for p, s in told.starts] == [(None, True, None)]
    assert entries(told) == {"a": "scheduled", "b": "scheduled"}
    assert told.status.proplet_id is None


def test_a_broadcast_that_leaves_some_out_is_addressed_to_each_of_the_others() -> None:
    told = story("c", broadcast=True, selector=PropletSelector(match_labels={"site": "roof"}))
    told.peer("a", labels={"site": "roof"})
    told.peer("b", labels={"site": "roof"})
    told.look()
    assert sorted((p, s.broadcast) for p, s in told.starts) == [("a", False), ("b", False)]
    assert entries(told) == {"a": "scheduled", "b": "scheduled"}


def test_a_broadcast_without_anybody_waits_and_says_why() -> None:
    told = story(broadcast=True).look()
    assert (told.status.phase, told.decision.awaiting) == (Phase.PENDING, True)
    assert "no proplet is known" in told.status.message


def test_a_broadcast_is_complete_when_all_have_answered() -> None:
    told = story("a", "b", broadcast=True).look().holds("a")
    assert told.status.phase is Phase.RUNNING
    told.result("a", "1")
    assert told.status.phase is Phase.RUNNING
    told.result("b", "2")
    assert told.status.phase is Phase.COMPLETED
    assert [(e["proplet_id"], e["results"]) for e in told.status.broadcast_results] == [("a", "1"), ("b", "2")]
    assert told.status.results == "1"


def test_what_a_broadcast_cost_is_told_for_each_proplet() -> None:
    told = story("a", "b", broadcast=True).look().result("a", "1", usage=USAGE).result("b", "2")
    first, second = told.status.broadcast_results
    assert first["usage"] == {"cpu_seconds": 0.01, "peak_memory_bytes": 65536, "wall_seconds": {"run": 0.02}}
    assert "usage" not in second
    written = to_manifest(told.task)["status"]["broadcastResults"][0]["usage"]
    assert written == {"cpuSeconds": 0.01, "peakMemoryBytes": 65536, "wallSeconds": {"run": 0.02}}


def test_only_the_first_result_of_a_proplet_counts() -> None:
    told = story("a", "b", broadcast=True).look().result("a", "1").result("a", "9").result("a", error="no")
    assert [e.get("results") for e in told.status.broadcast_results if e["proplet_id"] == "a"] == ["1"]
    assert told.status.phase is Phase.RUNNING


def test_an_answer_of_somebody_who_came_later_is_kept() -> None:
    told = story("a", broadcast=True).look()
    told.peer("late")
    told.result("late", "7").result("stranger", "8")
    assert entries(told) == {"a": "scheduled", "late": "completed"}


def test_one_failure_fails_the_broadcast_when_all_have_answered_and_says_whose_it_was() -> None:
    told = story("a", "b", broadcast=True).look()
    told.result("a", results="", error="it trapped", reason=Reason.TRAP).result("b")
    assert (told.status.phase, told.status.reason) == (Phase.FAILED, Reason.TRAP)
    assert told.status.error == "1 of 2 proplets failed: a: it trapped"


def test_a_lost_proplet_does_not_keep_a_broadcast_from_ending() -> None:
    told = story("a", "b", broadcast=True).look().result("a")
    told.peer("b", alive=False, lost=True)
    told.look()
    assert told.status.phase is Phase.FAILED
    assert entries(told) == {"a": "completed", "b": "failed"}
    assert told.status.reason is Reason.LOST


def test_those_that_tell_and_did_not_confirm_are_asked_one_by_one() -> None:
    told = story("a", "b", broadcast=True).look().holds("a").sleep()
    assert [p for p, _ in told.starts] == [None, "b"]
    assert told.starts[1][1].proplet_id == "b"


def test_somebody_who_never_confirms_fails_his_part() -> None:
    told = story("a", "b", broadcast=True).look().result("a")
    while told.status.phase not in TERMINAL:
        told.sleep()
    assert entries(told) == {"a": "completed", "b": "failed"}


def test_silent_proplets_have_until_the_deadline() -> None:
    told = story("a", "b", tells=False, broadcast=True, active_deadline_seconds=10.0).look()
    assert told.status.phase is Phase.RUNNING
    told.result("a", attempt=None).sleep()
    assert told.mono == 140.0
    assert (told.status.phase, told.status.reason) == (Phase.FAILED, Reason.TIMEOUT)


def test_a_stopped_broadcast_is_stopped_everywhere_and_ends() -> None:
    told = ask_to_stop(story("a", "b", broadcast=True).look().holds("a").holds("b"))
    assert sorted(p or "" for p, _ in told.stops) == ["a", "b"]
    told.result("a", results="", error="stopped", reason=Reason.STOPPED)
    while told.status.phase not in TERMINAL:
        told.sleep()
    assert told.status.phase is Phase.INTERRUPTED
    assert told.status.error == "stopped on 2 of 2 proplets"


def test_results_of_an_earlier_attempt_are_not_taken() -> None:
    told = story("a", broadcast=True).look().result("a", attempt=0)
    assert entries(told) == {"a": "scheduled"}


def test_a_task_that_becomes_a_broadcast_behind_our_back_is_placed_again() -> None:
    told = story("a", broadcast=True, status=TaskStatus(Phase.RUNNING, proplet_id="a", attempt=1)).look()
    assert told.status.attempt == 2
    assert entries(told) == {"a": "scheduled"}
