"""What a Task's conditions say while it lives, and that nothing moves which has not changed."""

import pytest

from proplet.agent.wire import Reason
from proplet.manager.model import Condition, TaskStatus
from proplet.manager.phases import Phase
from tests.manager.worlds import EPOCH, Story, story

COMPLETED = ("Completed", True, "Completed", "Task completed successfully")
STARTED = ("Started", True, "Running", "External task is running")


def shown(told: Story) -> list[tuple[str, bool, str, str]]:
    return [(c.type, c.status, c.reason, c.message) for c in told.status.conditions]


def since(told: Story, kind: str) -> float:
    return next(c.last_transition_time for c in told.status.conditions if c.type == kind) - EPOCH


def test_a_completed_task_says_that_it_was_started_and_that_it_completed() -> None:
    told = story("a").look()
    assert shown(told) == [("Scheduled", True, "Assigned", "assigned to a")]
    told.after(1).holds("a")
    assert shown(told) == [("Scheduled", True, "Assigned", "assigned to a"), STARTED]
    told.after(5).result("a")
    assert shown(told) == [("Scheduled", True, "Assigned", "assigned to a"), STARTED, COMPLETED]
    assert [since(told, kind) for kind in ("Scheduled", "Started", "Completed")] == [100.0, 101.0, 106.0]


def test_a_task_that_is_over_before_it_was_recorded_as_running_says_the_same() -> None:
    told = story("a").look().after(0.01).result("a")
    assert shown(told)[1:] == [STARTED, COMPLETED]
    assert told.status.assigned_proplet == "a"


def test_the_assigned_proplet_is_named_as_its_resource_and_identified_as_on_the_wire() -> None:
    told = story()
    told.peer("camera", connection={"clientId": "4711"})
    told.look()
    assert (told.status.assigned_proplet, told.status.proplet_id) == ("camera", "4711")
    assert shown(told) == [("Scheduled", True, "Assigned", "assigned to camera")]


def test_on_a_proplet_of_type_k8s_the_task_is_not_called_external() -> None:
    told = story()
    told.peer("pod", type="k8s")
    told.look().holds("pod")
    assert shown(told)[1] == ("Started", True, "Running", "Task is running")


@pytest.mark.parametrize(
    ("reason", "phase", "word"),
    [(Reason.TRAP, Phase.FAILED, "Failed"), (Reason.STOPPED, Phase.INTERRUPTED, "Interrupted")],
)
def test_a_task_that_does_not_complete_says_why(reason: Reason, phase: Phase, word: str) -> None:
    told = story("a").look().holds("a").result("a", "", error="wasm trap: unreachable", reason=reason)
    assert told.status.phase is phase
    assert shown(told)[2] == ("Completed", False, word, "wasm trap: unreachable")


def test_why_a_task_waits_is_written_once_for_as_long_as_it_stays_so() -> None:
    told = story().look()
    first = told.status.conditions
    assert shown(told) == [("Scheduled", False, "NoProplet", "no proplet is known yet: none has announced itself")]
    for _ in range(10):
        told.after(60)
        assert told.decision.status is None
    told.peer("a", alive=False)
    told.after(60)
    assert shown(told) == [
        ("Scheduled", False, "NoProplet", "no proplet is alive: a fits but is offline: last heard of at noon")
    ]
    assert told.status.conditions[0].last_transition_time == first[0].last_transition_time, "it is still not scheduled"
    told.peer("a")
    told.after(60)
    assert since(told, "Scheduled") == told.mono, "now it is"


def test_a_lost_task_says_that_it_is_placed_again() -> None:
    told = story("a", status=TaskStatus(failures=1)).look().holds("a")
    told.peer("a", alive=False, lost=True)
    told.look()
    assert told.condition("Scheduled") == (
        False,
        "PlacedAgain",
        "attempt 1 ended without a result: proplet a was lost: last heard of at noon; it is placed again",
    )
    assert told.condition("Started") is None


def test_a_task_that_was_never_placed_says_so_when_it_is_over() -> None:
    told = story("a", image_url="r.test/x:1")
    told.task = told.task.__class__(told.task.meta, told.task.spec.__class__(depends_on=("add",), workflow_id="w"))
    told.look()
    assert [(c.type, c.status) for c in told.status.conditions] == [("Scheduled", False), ("Completed", False)]


def test_a_message_of_any_length_makes_a_condition_of_bounded_length() -> None:
    told = story("a").look().result("a", "", error="x" * 100_000, reason=Reason.TRAP)
    assert len(told.status.conditions[-1].message) == 1024
    assert len(told.status.error or "") == 100_000


def test_conditions_of_an_earlier_version_are_replaced_with_the_next_change() -> None:
    told = story("a").look()
    old = (Condition("Started", True, "Old", "old", 5.0),)
    told.task = told.task.__class__(
        told.task.meta,
        told.task.spec,
        told.status.__class__(
            phase=Phase.SCHEDULED, attempt=1, proplet_id="a", dispatched_at=told.at.wall, conditions=old
        ),
    )
    assert told.look().decision.status is None
    told.result("a")
    assert shown(told)[1:] == [STARTED, COMPLETED]
    assert told.status.conditions[1].last_transition_time == 5.0, "it was started all the time"
