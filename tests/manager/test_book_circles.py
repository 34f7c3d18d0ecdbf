"""Circles of Tasks that wait for each other, as the book knows them: right after any change, without long searches."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proplet.manager.book import Book
from proplet.manager.circles import Circles
from proplet.manager.model import Key, Meta, Task, TaskSpec, TaskStatus
from proplet.manager.phases import Phase
from proplet.manager.placement import Fleet
from proplet.manager.workflow import circle_of

NAMES = ("a", "b", "c", "d", "e", "f")
MANY = 3000


def task(name: str, *needs: str, uid: str = "", version: int = 1, phase: Phase = Phase.PENDING) -> Task:
    meta = Meta(name, uid=uid or f"uid-{name}", version=version)
    return Task(meta, TaskSpec(name=name, depends_on=needs), TaskStatus(phase=phase))


def check(book: Book) -> None:
    """What the book says of every pending Task is what a search without any memory says."""
    for one in book.all():
        if one.status.phase is not Phase.PENDING or book.find(one.meta.key) is not one:
            continue
        named = book.circle(one)
        assert bool(named) == bool(circle_of(one, book.find)), one
        if not named:
            continue
        assert (named[0], named[-1]) == (one.meta.name, one.meta.name)
        for name, following in itertools.pairwise(named):
            member = book.find(Key(name))
            assert member is not None
            assert member.status.phase is Phase.PENDING
            assert following in member.spec.depends_on


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["needs", "needs", "phase", "delete", "replace"]),
        st.sampled_from(NAMES),
        st.lists(st.sampled_from(NAMES), max_size=3),
        st.sampled_from([Phase.PENDING, Phase.PENDING, Phase.RUNNING, Phase.COMPLETED, Phase.FAILED]),
    ),
    max_size=40,
)


REPLACED = [
    ("needs", "b", list[str](), Phase.PENDING),
    ("needs", "a", ["a"], Phase.PENDING),
    ("replace", "a", ["b"], Phase.PENDING),
]


@example(changes=REPLACED, looked_in_between=False)
@given(changes=CHANGES, looked_in_between=st.booleans())
def test_circles_are_known_whatever_is_made_edited_ended_started_again_or_deleted(
    changes: list[tuple[str, str, list[str], Phase]], looked_in_between: bool
) -> None:
    book = Book(Fleet())
    for version, (what, name, needs, phase) in enumerate(changes, start=2):
        known = book.find(Key(name))
        if known is None or what == "replace":  # a new one of its name may be told of before the end of the old one
            book.learn(task(name, *needs, uid=f"uid-{version}", version=version, phase=phase))
            if known is not None and phase is not Phase.PENDING:
                book.forget(known)
        elif what == "delete":
            book.forget(known)
        elif what == "phase":
            book.learn(
                replace(known, meta=replace(known.meta, version=version), status=replace(known.status, phase=phase))
            )
        else:
            spec = replace(known.spec, depends_on=tuple(needs))
            book.learn(replace(known, meta=replace(known.meta, version=version), spec=spec))
        if looked_in_between:
            check(book)
    check(book)
    for one in list(book.all()):
        book.forget(one)
    assert not book._circles._dependents
    assert not book._circles._closers


class Looks:
    """The tasks of a chain, of which each depends on the one before; counts how often any is looked at."""

    def __init__(self) -> None:
        self.times = 0
        self._tasks: dict[Key, Task] = {}
        self._by_uid: dict[str, Task] = {}
        self.circles = Circles(self.find, self.get)

    def find(self, key: Key) -> Task | None:
        self.times += 1
        return self._tasks.get(key)

    def get(self, uid: str) -> Task | None:
        self.times += 1
        return self._by_uid.get(uid)

    def add(self, number: int, *, first_needs: Sequence[str] = ()) -> Task:
        made = task(f"t{number}", *([f"t{number - 1}"] if number else first_needs))
        self._tasks[made.meta.key] = self._by_uid[made.id] = made
        self.circles.change(None, made)
        return made


ORDERS = {
    "from what is needed to who needs it": (list(range(MANY)), 8),
    "from who needs it to what is needed": (list(range(MANY))[::-1], 8),
    "from the middle outwards": (sorted(range(MANY), key=lambda n: abs(n - MANY / 2)), 8),
    "in any order": (random.Random(7).sample(range(MANY), MANY), 80),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("first_needs", [(), ("not-there-yet",)])
@pytest.mark.parametrize("asked", ["at once", "when all are there"])
def test_a_chain_of_thousands_costs_a_few_looks_for_each(order: str, first_needs: Sequence[str], asked: str) -> None:
    looks = Looks()
    numbers, most = ORDERS[order]
    made = list[Task]()
    for number in numbers:
        made.append(looks.add(number, first_needs=first_needs))
        if asked == "at once":
            assert not looks.circles.of(made[-1])
    for one in made if asked != "at once" else ():
        assert not looks.circles.of(one)
    assert looks.times <= most * MANY


def test_a_long_circle_is_found_when_it_is_closed_and_costs_nothing_once_it_is_open_again() -> None:
    looks = Looks()
    for number in range(1, MANY):
        looks.add(number)
    last = looks.add(0, first_needs=[f"t{MANY - 1}"])
    found = looks.circles.of(last)
    assert (len(found), found[:2], found[-2:]) == (MANY + 1, ("t0", f"t{MANY - 1}"), ("t1", "t0"))
    looks.circles.change(last, replace(last, status=replace(last.status, phase=Phase.FAILED)))
    looks.times = 0
    assert not looks.circles.of(task("t5", "t4"))
    assert looks.times == 0


def test_a_late_word_of_a_task_that_was_replaced_does_not_take_its_name_back() -> None:
    book = Book(Fleet())
    old = task("a", uid="old", version=1)
    book.learn(old)
    book.learn(task("a", uid="new", version=5))
    book.learn(replace(old, meta=replace(old.meta, version=3)))
    book.forget(old)
    found = book.find(Key("a"))
    assert found is not None
    assert found.id == "new"
