"""Whatever happens, in whatever order: a task never gets stuck, and no result counts twice."""

import math
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.agent.wire import Reason, RestartPolicy
from proplet.manager import outcome
from proplet.manager.exchange import Contacts
from proplet.manager.model import TaskStatus
from proplet.manager.phases import TERMINAL, Phase
from tests.manager.worlds import Story, story

NAMES = st.sampled_from(["a", "b", "c"])
ATTEMPTS = st.one_of(st.none(), st.integers(-2, 1))  # none, or relative to the current one
ENDINGS = st.sampled_from(
    [
        (None, Reason.OK),
        ("trap", Reason.TRAP),
        ("restarted", Reason.INTERRUPTED),
        ("full", Reason.OVERLOADED),
        ("stopped", Reason.STOPPED),
        ("newer", Reason.SUPERSEDED),
        ("who knows", None),
    ]
)

EVENTS = st.one_of(
    st.tuples(st.just("holds"), NAMES, ATTEMPTS),
    st.tuples(st.just("lacks"), NAMES),
    st.tuples(st.just("result"), NAMES, ATTEMPTS, ENDINGS),
    st.tuples(st.just("peer"), NAMES, st.sampled_from(["alive", "away", "lost", "forgotten"])),
    st.tuples(st.just("after"), st.sampled_from([0.0, 0.5, 3.0, 5.0, 31.0, 400.0, 4000.0])),
    st.tuples(st.just("broker"), st.sampled_from(["up", "down", "new", "refuses", "takes"])),
    st.tuples(st.just("stop")),
    st.tuples(st.just("start")),
    st.tuples(st.just("manager restarts")),
    st.tuples(st.just("too large")),
    st.tuples(st.just("wake")),
)

SPECS = st.fixed_dictionaries(
    {
        "broadcast": st.booleans(),
        "restart_policy": st.sampled_from([None, *RestartPolicy]),
        "backoff_limit": st.sampled_from([None, 0, 2]),
        "active_deadline_seconds": st.sampled_from([None, 5.0]),
    }
)


class Observer:
    """Looks at every status and remembers what must not happen twice."""

    def __init__(self, told: Story) -> None:
        self.told = told
        self.before = told.status

    def check(self, *, restarted: bool = False) -> None:
        told, before, now = self.told, self.before, self.told.status
        assert now.attempt >= before.attempt, "attempts only grow"
        if before.phase in TERMINAL and not restarted:
            assert now == before, "what is over stays as it is"
        if now.phase in TERMINAL:
            assert now.finished_at
            assert not now.stop_requested
            assert not (now.phase is Phase.COMPLETED and now.error)
        if now.phase in (Phase.SCHEDULED, Phase.RUNNING) and not told.task.spec.broadcast:
            assert now.proplet_id
        names = [e["proplet_id"] for e in now.broadcast_results]
        assert len(names) == len(set(names)), "one entry per proplet"
        for _, start in told.starts:
            assert start.ext is not None
            assert start.ext.attempt is not None
            assert start.ext.attempt <= now.attempt, "the intent is recorded first"
        self.before = now


def _relative(told: Story, attempt: int | None) -> int | None:
    return None if attempt is None else told.status.attempt + attempt


def play(told: Story, event: tuple[Any, ...], tells: dict[str, bool]) -> None:
    match event:
        case ("holds", name, attempt):
            told.holds(name, _relative(told, attempt))
        case ("lacks", name):
            told.lacks(name)
        case ("result", name, attempt, (error, reason)):
            told.result(name, "" if error else "42", error=error, reason=reason, attempt=_relative(told, attempt))
        case ("peer", name, "forgotten"):
            told.fleet.hide(name)
            told.look()
        case ("peer", name, how):
            told.peer(name, alive=how == "alive", lost=how == "lost", tells=tells[name])
            told.look()
        case ("after", seconds):
            told.after(seconds)
        case ("broker", how):
            told.fleet.connected = how != "down"
            told.fleet.settled = how != "down"
            told.broker = how != "refuses"
            told.contacts.reconnected(told.mono, told.policy, unsent=told.status.phase is Phase.SCHEDULED)
            told.session_lost() if how == "new" else told.look()
        case ("stop",):
            asked = outcome.stop_asked(told.task, told.at.wall)
            told.task = replace(told.task, status=asked or told.status)
            told.look()
        case ("manager restarts",):
            told.contacts = Contacts()
            told.look()
        case ("too large",):
            if told.status.phase in (Phase.SCHEDULED, Phase.RUNNING):
                told.too_large()
        case ("wake",):
            if told.wake < math.inf:
                told.sleep()


@settings(max_examples=400)
@given(SPECS, st.fixed_dictionaries({n: st.booleans() for n in "abc"}), st.lists(EVENTS, max_size=40))
def test_no_sequence_of_events_leaves_a_task_stuck_or_counts_a_result_twice(
    spec: dict[str, Any], tells: dict[str, bool], events: list[tuple[Any, ...]]
) -> None:
    told = story(**spec)
    for name, tell in tells.items():
        told.peer(name, tells=tell)
    observer = Observer(told)
    told.look()
    observer.check()
    for event in events:
        if event == ("start",):
            if told.status.phase in TERMINAL:
                told.task = replace(told.task, status=outcome.restarted(told.status))
                observer.check(restarted=True)
                told.contacts = Contacts()
                told.look()
        else:
            play(told, event, tells)
        observer.check()
    _everybody_falls_silent(told, tells, observer)


def _everybody_falls_silent(told: Story, tells: dict[str, bool], observer: Observer) -> None:
    """Proplets are there and never say anything again: with time alone, the task must come to an end."""
    told.fleet.connected = told.fleet.settled = told.broker = True
    for name, tell in tells.items():
        told.peer(name, tells=tell)
    told.contacts.reconnected(told.mono, told.policy, unsent=True)
    told.look()
    for _ in range(400):
        observer.check()
        if told.status.phase in TERMINAL:
            return
        assert told.wake < math.inf or told.decision.crowded, f"stuck: {told.status}"
        told.sleep() if told.wake < math.inf else told.after(told.policy.overload_rest_s)
    raise AssertionError(f"no end: {told.status}")


@settings(max_examples=300)
@given(SPECS, st.booleans(), st.booleans(), st.lists(EVENTS, max_size=15), st.lists(EVENTS, max_size=15), st.booleans())
def test_a_deleted_task_is_let_go_whatever_happens_and_never_sent_anew(
    spec: dict[str, Any],
    daemon: bool,
    tell: bool,
    before: list[tuple[Any, ...]],
    after: list[tuple[Any, ...]],
    silent: bool,
) -> None:
    tells = {"a": tell, "b": True, "c": False}
    told = story(daemon=daemon, **spec)
    told.world = replace(told.world, policy=replace(told.policy, finalizers=True))
    for name, tell in tells.items():
        told.peer(name, tells=tell)
    told.look()
    for event in [e for e in before if e != ("start",)]:
        play(told, event, tells)
    if not told.task.meta.finalizers:
        return  # it is gone at once
    told.task = replace(told.task, meta=replace(told.task.meta, deleted_at=told.at.wall))
    attempt = told.status.attempt
    told.look()
    for event in [e for e in after if e != ("start",)]:
        if not told.task.meta.finalizers:
            return
        play(told, event, tells)
    told.fleet.connected = told.fleet.settled = told.broker = True
    for name, tell in tells.items():
        told.peer(name, tells=tell, alive=not silent, lost=silent)
    told.contacts.reconnected(told.mono, told.policy, unsent=True)
    told.look()
    for _ in range(400):
        if not told.task.meta.finalizers:
            break
        assert told.wake < math.inf, f"stuck: {told.status}"
        told.sleep()
    assert (told.task.meta.finalizers, told.status.attempt) == ((), attempt)


@given(SPECS, st.lists(EVENTS, max_size=25))
def test_a_condition_s_time_moves_only_with_its_status(spec: dict[str, Any], events: list[Any]) -> None:
    tells = {"a": True, "b": False, "c": True}
    told = story(**spec)
    told.look()
    for event in [e for e in events if e != ("start",)]:
        attempt, before = told.status.attempt, {c.type: c for c in told.status.conditions}
        play(told, event, tells)
        names = [c.type for c in told.status.conditions]
        assert names == [name for name in ("Scheduled", "Started", "Completed") if name in names]
        for condition in told.status.conditions:
            assert condition.reason
            assert condition.last_transition_time > 0
            was = before.get(condition.type)
            # One event can end an attempt and begin the next: what is true again then has not been true all the time.
            if was is not None and was.status == condition.status and told.status.attempt == attempt:
                assert condition.last_transition_time == was.last_transition_time
        if told.status.phase in TERMINAL:
            assert told.condition("Completed") is not None
        elif told.status.phase is Phase.RUNNING:
            assert told.condition("Started") is not None


@given(SPECS, st.lists(EVENTS, max_size=25))
def test_deciding_twice_on_the_same_state_decides_nothing_more(spec: dict[str, Any], events: list[Any]) -> None:
    tells = {"a": True, "b": False, "c": True}
    told = story(**spec)
    for name, tell in tells.items():
        told.peer(name, tells=tell)
    for event in [e for e in events if e != ("start",)]:
        play(told, event, tells)
        told.look()
        sent = len(told.starts) + len(told.stops)
        status: TaskStatus = told.status
        told.look()
        if told.broker:
            assert (told.status, len(told.starts) + len(told.stops)) == (status, sent)
