"""The table of a task's life, walked completely."""

import itertools

import pytest

from proplet.agent.lifecycle import TERMINAL, TRANSITIONS, Event, IllegalTransitionError, State, advance


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)), ids=str)
def test_every_pair_of_state_and_event_is_in_the_table_or_refused(state: State, event: Event) -> None:
    if event in TRANSITIONS[state]:
        assert advance(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(
            IllegalTransitionError, match=f"{event.value} cannot happen to a task that is {state.value}"
        ):
            advance(state, event)


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(State)


def test_exactly_the_terminal_states_have_no_way_out() -> None:
    assert {state for state, events in TRANSITIONS.items() if not events} == TERMINAL


def test_every_state_can_reach_an_end() -> None:
    reachable = set(TERMINAL)
    for _ in State:
        reachable |= {s for s, events in TRANSITIONS.items() if reachable.intersection(events.values())}
    assert reachable == set(State)


def test_every_unfinished_state_survives_a_restart_of_the_node() -> None:
    assert all(Event.RESTARTED_NODE in TRANSITIONS[s] for s in State if s not in TERMINAL)
