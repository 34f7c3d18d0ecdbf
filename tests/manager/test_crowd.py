"""Who gets a place when there are not enough: the most urgent, then who came first."""

import random
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.manager.crowd import Crowd
from proplet.manager.model import Meta, PropletSelector, Resources, Task, TaskSpec
from proplet.manager.placement import Fleet, Peer
from tests.manager.worlds import proplet


def fleet(*names: str, window: int = 1) -> Fleet:
    made = Fleet(window=window, connected=True, settled=True)
    for name in names:
        made.show(Peer(proplet(name), alive=True, tells=True))
    return made


def task(name: str, priority: int = 50, on: str | None = None, **spec: Any) -> Task:
    return Task(Meta(name, uid=name), TaskSpec(name=name, priority=priority, selector=PropletSelector(on), **spec))


def in_zone(wanting: Task) -> Task:
    selector = replace(wanting.spec.selector, match_labels={"zone": "x"})
    return replace(wanting, spec=replace(wanting.spec, selector=selector))


def called(crowd: Crowd) -> list[str]:
    return list(crowd.call(0.0))


def test_the_most_urgent_is_called_first_then_who_came_first() -> None:
    made = fleet("a")
    crowd = Crowd(made)
    made.assign("running", "a")
    for one in (task("low", 10), task("first"), task("second"), task("high", 90)):
        crowd.join(one)
    assert called(crowd) == []
    order = []
    for last in ("running", "high", "first", "second"):
        made.assign(last, None)
        (following,) = called(crowd)
        assert called(crowd) == [], "there is one place"
        crowd.leave(following)
        made.assign(following, "a")
        order.append(following)
    assert order == ["high", "first", "second", "low"]
    assert len(crowd) == 0


def test_a_newcomer_waits_behind_who_was_called_unless_it_is_more_urgent() -> None:
    made = fleet("a")
    crowd = Crowd(made)
    waiting = task("waiting")
    crowd.join(waiting)
    assert called(crowd) == ["waiting"]
    assert crowd.outranks(task("newcomer"))
    assert not crowd.outranks(task("urgent", 51))
    assert not crowd.outranks(waiting)


def test_who_found_no_room_after_all_keeps_its_place() -> None:
    made = fleet("a")
    crowd = Crowd(made)
    first, second = task("first"), task("second")
    crowd.join(first)
    crowd.join(second)
    assert called(crowd) == ["first"]
    made.assign("other", "a")
    crowd.join(first)
    made.assign("other", None)
    assert called(crowd) == ["first"]


def test_who_waits_for_another_proplet_is_not_waited_for() -> None:
    made = fleet("a", "b")
    crowd = Crowd(made)
    made.assign("running", "a")
    crowd.join(task("for-a", 90, on="a"))
    assert not crowd.outranks(task("for-b", on="b"))
    assert crowd.outranks(task("for-any"))
    crowd.join(task("for-any"))
    assert called(crowd) == ["for-any"], "there is room on b, which for-a cannot have"


def test_priority_holds_between_tasks_that_want_different_things_of_one_proplet() -> None:
    made = fleet("a")
    crowd = Crowd(made)
    crowd.join(task("any", 10))
    crowd.join(task("pinned", 20, on="a"))
    assert called(crowd) == ["pinned"]


def test_who_fits_nowhere_any_more_is_called_to_hear_that() -> None:
    made = fleet("a")
    crowd = Crowd(made)
    made.assign("running", "a")
    crowd.join(task("one"))
    crowd.join(task("two"))
    made.hide("a")
    assert sorted(called(crowd)) == ["one", "two"]


def test_who_rests_takes_nobody() -> None:
    made = fleet("a")
    crowd = Crowd(made)
    made.resting["a"] = 5.0
    crowd.join(task("one"))
    assert called(crowd) == []
    assert list(crowd.call(5.0)) == ["one"]


@pytest.mark.parametrize("window", [1, 3])
@given(st.lists(st.tuples(st.sampled_from(["join", "end", "gone"]), st.integers(0, 9), st.integers(0, 3)), max_size=60))
def test_nobody_is_forgotten_and_no_place_given_twice(window: int, events: list[tuple[str, int, int]]) -> None:
    made = fleet("a", "b", window=window)
    crowd = Crowd(made)
    waiting: dict[str, Task] = {}
    running: list[str] = []
    for number, (event, which, priority) in enumerate(events):
        if event == "join":
            one = task(f"t{number}", priority, on=[None, "a", "b"][which % 3])
            waiting[one.id] = one
            crowd.join(one)
        elif event == "gone" and waiting:
            crowd.leave(gone := sorted(waiting)[which % len(waiting)])
            del waiting[gone]
        elif event == "end" and running:
            made.assign(running.pop(which % len(running)), None)
        for uid in called(crowd):
            placement = made.place(waiting[uid], 0.0)
            assert placement.proplet_id is not None
            made.assign(uid, placement.proplet_id)
            crowd.leave(uid)
            running.append(uid)
            del waiting[uid]
        assert all(made.place(one, 0.0).crowded for one in waiting.values()), "nobody waits where there is room"
        assert all(len(held) <= window for held in made.held.values())
    assert len(crowd) == len(waiting)


class CountedLabels(dict[str, str]):
    """Labels of a proplet that count how often they are looked at: once for each task that is compared with it."""

    asked = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.asked += 1
        return super().get(key, default)


def test_however_many_want_different_things_the_fleet_is_asked_once_about_each() -> None:
    made, labels = fleet(), CountedLabels(zone="x")
    somebody = proplet("a")
    somebody = replace(somebody, meta=replace(somebody.meta, labels=labels))
    made.show(Peer(somebody, alive=True, tells=True))
    crowd = Crowd(made)
    made.assign("running", "a")
    for number in range(400):
        crowd.join(in_zone(task(f"t{number}", resources=Resources(cpu=number / 1000))))
        assert called(crowd) == []
        assert crowd.outranks(in_zone(task("last", 10)))
    assert 400 <= labels.asked <= 2 * 400
    shown = made.peers["a"]
    told = replace(shown.proplet, status=replace(shown.proplet.status, task_count=7))
    assert made.show(replace(shown, proplet=told)), "its record has changed, but nothing that matters for a place"
    labels.asked = 0
    assert called(crowd) == []
    assert labels.asked == 0


class Compared(int):
    """A priority that counts how often any is compared."""

    times = 0

    def __neg__(self) -> "Compared":
        return Compared(-int(self))

    def __lt__(self, other: object) -> bool:
        Compared.times += 1
        return int(self) < int(cast("int", other))

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return int(self) == other

    __hash__ = int.__hash__


@pytest.mark.parametrize("order", ["first", "last", "any"])
def test_who_leaves_a_long_line_is_not_looked_for_in_it(order: str) -> None:
    made = fleet("a")
    crowd = Crowd(made)
    made.assign("running", "a")
    many = [task(f"t{number}", Compared(50)) for number in range(2000)]
    for one in many:
        crowd.join(one)
    if order == "last":
        many.reverse()
    elif order == "any":
        random.Random(4).shuffle(many)
    Compared.times = 0
    for one in many:
        crowd.leave(one.id)
    assert Compared.times < 30 * len(many)
    assert len(crowd) == 0
    assert called(crowd) == []


def test_who_is_looked_at_again_and_again_makes_its_line_no_longer() -> None:
    made = fleet("a")
    crowd = Crowd(made)
    made.assign("running", "a")
    many = [task(f"t{number}") for number in range(10)]
    for number in range(1000):
        for one in many:
            crowd.join(replace(one, spec=replace(one.spec, priority=number % 3)))
    (line,) = crowd._lines.values()
    assert len(line) <= 4 * len(many)
    made.assign("running", None)
    assert called(crowd) == ["t0"]


def test_who_was_called_and_cannot_come_now_makes_room() -> None:
    made = fleet("a")
    crowd = Crowd(made)
    first, second = task("first"), task("second")
    crowd.join(first)
    crowd.join(second)
    assert called(crowd) == ["first"]
    crowd.decline("second")
    assert called(crowd) == [], "it only waits"
    crowd.decline("first")
    assert called(crowd) == ["second"]
