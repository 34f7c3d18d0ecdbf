"""What is kept in memory stays within its bounds."""

from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.wire import LogLines
from proplet.manager.observed import Logs, Rings


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
    sizes = {task: sum(250 + len(line) for entry in entries for line in entry.lines) for task, entries in kept.items()}
    assert all(size <= 2000 for size in sizes.values())
    assert sum(sizes.values()) <= 5000
    for task in "abcd":
        logs.forget(task)
    assert logs._size == 0


def test_the_last_lines_are_those_that_are_kept() -> None:
    logs = Logs(per_task=1000, in_all=5000)
    for n in range(10):
        logs.add(LogLines("pi", "t", lines=(f"line {n}",)))
    assert [entry.lines[0] for entry in logs.of("t")] == ["line 7", "line 8", "line 9"]
