"""What is kept in memory stays within its bounds."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.wire import LogLines
from proplet.manager.observed import Logs, Rings, States


def test_only_the_last_values_of_a_subject_are_kept() -> None:
    rings: Rings[int] = Rings(3, 2)
    for value in range(5):
        rings.add("a", value)
    assert rings.of("a") == (2, 3, 4)
    assert rings.of("b") == ()


def test_the_subject_heard_of_longest_ago_makes_room() -> None:
    rings: Rings[int] = Rings(3, 2)
    for subject in ("a", "b", "a", "c"):
        rings.add(subject, 1)
    assert (rings.of("a"), rings.of("b"), rings.of("c")) == ((1, 1), (), (1,))


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 900))))
def test_logs_stay_within_their_bytes(written: list[tuple[str, int]]) -> None:
    logs = Logs(per_task=2000, in_all=5000)
    for task, size in written:
        logs.add(LogLines("pi", task, lines=("x" * size,)))
    kept = {task: logs.of(task) for task in "abcd"}
    sizes = {task: sum(250 + len(line) for e in entries for line in e.lines.lines) for task, entries in kept.items()}
    assert all(size <= 2000 for size in sizes.values())
    assert sum(sizes.values()) <= 5000
    for task in "abcd":
        logs.forget(task)
    assert logs._size == 0


def test_the_last_lines_are_those_that_are_kept() -> None:
    logs = Logs(per_task=1000, in_all=5000)
    for n in range(10):
        logs.add(LogLines("pi", "t", lines=(f"line {n}",)))
    assert _texts(logs) == ["line 7", "line 8", "line 9"]


def _texts(logs: Logs, since: int = 0, task: str = "t") -> list[str]:
    return [line for entry in logs.of(task, since) for line in entry.lines.lines]


def test_a_reader_goes_on_where_it_was_and_gets_all_where_its_number_is_not_ours() -> None:
    logs = Logs(wall=lambda: 1.7e9)
    for n in range(4):
        logs.add(LogLines("pi", "t", lines=(f"line {n}",), at=1.8e9 if n else 0.0))
    first, second, *_, last = logs.of("t")
    assert (first.at, second.at) == (1.7e9, 1.8e9)
    assert _texts(logs, second.number) == ["line 2", "line 3"]
    assert _texts(logs, last.number) == []
    assert _texts(logs, last.number + 1) == [f"line {n}" for n in range(4)]
    later = Logs(wall=lambda: 1.7e9 + 1)
    later.add(LogLines("pi", "t", lines=("after a restart",)))
    assert _texts(later, last.number) == ["after a restart"]


def test_tasks_that_have_ended_make_room_first_the_one_ended_longest_ago_before_others() -> None:
    logs = Logs(per_task=1000, in_all=1200)
    for task in "abcd":
        logs.add(LogLines("pi", task, 1, lines=("x" * 50,)))
    for task in "cba":
        logs.ended(task)
    logs.add(LogLines("pi", "b", 2, lines=("again",)))
    logs.add(LogLines("pi", "d", 1, lines=("y" * 50,)))
    assert {task: len(logs.of(task)) for task in "abcd"} == {"a": 0, "b": 2, "c": 0, "d": 2}


@pytest.mark.anyio
async def test_who_waits_for_more_is_woken_by_it_and_by_the_end_of_all() -> None:
    logs = Logs()
    for happens in (lambda: logs.add(LogLines("pi", "t", lines=("x",))), lambda: logs.forget("t")):
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(logs.grown, "t")
                await anyio.wait_all_tasks_blocked()
                happens()


def test_where_a_task_stands_is_known_by_proplet_and_of_so_many_tasks() -> None:
    states = States(most=2)
    for proplet, state in (("a", "waiting"), ("b", "running"), ("a", "crash_loop")):
        states.add("t", proplet, 1, state)
    assert states.of("t") == {"a": (1, "crash_loop"), "b": (1, "running")}
    states.forget("t", "a")
    assert states.of("t") == {"b": (1, "running")}
    for task in ("u", "v"):
        states.add(task, "a", None, "deployed")
    assert states.of("t") == {}
    states.forget("u")
    assert (states.of("u"), states.of("v")) == ({}, {"a": (None, "deployed")})
