"""Pieces of a module: put together in any order, and nothing that is said about them is believed."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proplet.agent.module_parts import MAX_TOTAL, ConflictError, Parts, PartsError

LIMIT = 4096
SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


@SETTINGS
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=20),
    order=st.randoms(use_true_random=False),
    twice=st.lists(st.integers(0, 19), max_size=10),
)
def test_any_order_and_duplicates_make_the_same_file(
    tmp_path: Path, pieces: list[bytes], order: object, twice: list[int]
) -> None:
    sent = [*range(len(pieces)), *(index % len(pieces) for index in twice)]
    order.shuffle(sent)  # type: ignore[attr-defined]
    parts = Parts(tmp_path, LIMIT)
    seen: set[int] = set()
    for index in sent:
        assert parts.add(index, len(pieces), pieces[index]) is (index not in seen)
        seen.add(index)
        assert parts.complete is (len(seen) == len(pieces))
        first, count = parts.gap(4)
        assert set(range(first, first + count)).isdisjoint(seen)
        assert count <= 4
        assert (count == 0) is parts.complete
    assert b"".join(parts.read()) == b"".join(pieces)
    assert not list(tmp_path.iterdir()), "the file has no name"
    parts.close()


@SETTINGS
@given(
    claims=st.lists(
        st.tuples(st.integers(-2, 6), st.integers(-2, 6) | st.just(MAX_TOTAL + 1), st.binary(max_size=1500)),
        max_size=30,
    )
)
def test_lies_about_indices_totals_and_sizes_change_nothing(
    tmp_path: Path, claims: list[tuple[int, int, bytes]]
) -> None:
    parts, kept = Parts(tmp_path, LIMIT), dict[int, bytes]()
    for index, total, data in claims:
        try:
            if parts.add(index, total, data):
                kept[index] = data
        except PartsError:
            pass
        assert parts.size == sum(map(len, kept.values())) <= LIMIT
        assert parts.count == len(kept) <= max(parts.total, 0)
    assert b"".join(parts.read()) == b"".join(kept[index] for index in sorted(kept))
    parts.close()


def test_two_files_are_told_apart(tmp_path: Path) -> None:
    parts = Parts(tmp_path, LIMIT)
    parts.add(0, 2, b"one")
    with pytest.raises(ConflictError, match="3 pieces were announced, and 2 before"):
        parts.add(1, 3, b"two")
    with pytest.raises(ConflictError, match="piece 0 came twice and was not the same"):
        parts.add(0, 2, b"two")
    with pytest.raises(PartsError, match=r"raise \[modules\] max_module_size"):
        parts.add(1, 2, bytes(LIMIT))
    parts.close()
    parts.add(2, 3, b"anew")
    assert parts.gap(8) == (0, 2)
    parts.close()
