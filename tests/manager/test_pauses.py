"""How long what has failed is left alone."""

from proplet.manager.pauses import Pauses


def lengths(pauses: Pauses, count: int, version: int = 1, mono: float = 100.0) -> list[float]:
    return [pauses.failed("a", version, mono) - mono for _ in range(count)]


def test_each_pause_is_twice_the_one_before_up_to_a_longest() -> None:
    assert lengths(Pauses(spread=lambda: 1.0), 9) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_what_succeeds_or_changes_begins_anew() -> None:
    pauses = Pauses(spread=lambda: 1.0)
    assert lengths(pauses, 3) == [1.0, 2.0, 4.0]
    assert pauses.left("a", 1, 101.0) == 3.0
    assert pauses.left("a", 2, 101.0) == 0.0, "it has changed"
    assert lengths(pauses, 2, version=2) == [1.0, 2.0]
    pauses.over("a")
    assert pauses.left("a", 2, 100.0) == 0.0
    assert lengths(pauses, 2, version=2) == [1.0, 2.0]


def test_a_pause_is_shortened_where_it_must_be_and_stays_so() -> None:
    pauses = Pauses(spread=lambda: 1.0)
    lengths(pauses, 7)
    assert pauses.left("a", 1, 110.0, most_s=8.0) == 8.0
    assert pauses.left("a", 1, 115.0, most_s=8.0) == 3.0
    assert pauses.left("a", 1, 120.0) == 0.0
    assert pauses.failed("a", 1, 120.0, most_s=5.0) == 125.0


def test_many_that_fail_at_once_are_tried_again_over_half_of_their_pause() -> None:
    pauses = Pauses()
    due = sorted(pauses.failed(f"t{number}", 1, 0.0) for number in range(1000))
    assert 0.5 <= due[0] < 0.55
    assert 0.95 < due[-1] <= 1.0
    assert len(set(due)) > 990
