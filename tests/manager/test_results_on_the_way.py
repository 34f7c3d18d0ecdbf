"""A result that a proplet says is on the way, and that passed while the broker had forgotten this manager."""

import pytest

from proplet.manager.exchange import Holds
from proplet.manager.phases import Phase
from tests.manager.worlds import story


def test_a_result_said_to_be_on_the_way_is_asked_for_when_it_does_not_come() -> None:
    told = story("a").look().holds("a")
    told.look(Holds("a", 1, ended=True))
    assert len(told.starts) == 1
    told.sleep()
    assert told.mono == pytest.approx(100.0 + 2 * told.policy.confirm_s)
    assert [s.ext.attempt for _, s in told.starts if s.ext] == [1, 1]
    assert told.result().status.phase is Phase.COMPLETED


def test_a_task_that_runs_is_not_asked_for_so_soon() -> None:
    told = story("a").look().holds("a")
    told.after(60)
    assert len(told.starts) == 1


def test_a_result_that_is_promised_again_and_again_and_never_comes_is_given_up() -> None:
    told = story("a", "b").look()
    first = told.status.proplet_id or ""
    told.holds(first)
    while told.status.attempt == 1:
        told.look(Holds(first, 1, ended=True))
        if told.status.attempt == 1:
            told.sleep()
    assert told.status.proplet_id not in (first, None)
    assert told.mono < 100 + 600
