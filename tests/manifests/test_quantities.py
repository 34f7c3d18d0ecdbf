"""Quantities and durations mean what Kubernetes and Go mean by them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.manager import quantity as q


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("128974848", 128974848),
        ("129e6", 129000000),
        ("129M", 129000000),
        ("123Mi", 128974848),
        ("1.5Gi", 1610612736),
        ("0.5k", 500),
        ("1m", 1),  # a thousandth of a byte, rounded up
        ("+2Ki", 2048),
        (".5Ki", 512),
        ("5.", 5),
        ("1E", 10**18),
        ("1E2", 100),
        ("7Ei", 7 * 2**60),
    ],
)
def test_bytes(text: str, count: int) -> None:
    assert q.parse_bytes(text) == count


@pytest.mark.parametrize(("text", "cores"), [("500m", 0.5), ("2", 2.0), ("0.1", 0.1), ("100u", 0.0001), ("1k", 1000.0)])
def test_cpus(text: str, cores: float) -> None:
    assert q.parse_cpu(text) == cores


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("1h0m0.5s", 3600.5),
        ("250ms", 0.25),
        ("1.5h", 5400.0),
        ("10us", 1e-5),
        ("10µs", 1e-5),
        (".5s", 0.5),
        ("1s1s", 2.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert q.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1 Mi", "64MB", "64mi", "-1", "1e", "1e999", "Mi", "0x10", "1_000", "٣", "9Ei", "1" * 30, "inf", "nan"],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"quantity|negative|64 bits"):
        q.parse_bytes(text)


@pytest.mark.parametrize("text", ["", "5", "5 s", "s", "-5s", "5d", "5S", "1h-5m", "1e3s", "٣s", "9999999h", "1s\n"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|negative|292 years"):
        q.parse_duration(text)


@given(st.integers(0, 2**63 - 1))
def test_sizes_survive_being_written(count: int) -> None:
    assert q.parse_bytes(q.format_bytes(count)) == count


@given(st.floats(0, 1e6) | st.integers(0, 10**6).map(lambda milli: milli / 1000))
def test_cpus_survive_being_written(cores: float) -> None:
    if cores == 0 or cores >= 1e-9:  # a nanocore is Kubernetes' smallest
        assert q.parse_cpu(q.format_cpu(cores)) == cores


@given(st.floats(0, 1e8).filter(lambda value: value == 0 or value > 1e-9) | st.integers(0, 10**9).map(float))
def test_durations_survive_being_written(seconds: float) -> None:
    assert q.parse_duration(q.format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (30.0, "30s"), (90.0, "1m30s"), (3600.0, "1h"), (0.25, "0.25s")]
)
def test_durations_are_written_as_people_do(seconds: float, text: str) -> None:
    assert q.format_duration(seconds) == text


@given(st.text(max_size=20))
def test_any_text_is_a_quantity_or_refused(text: str) -> None:
    for parse in (q.parse_bytes, q.parse_cpu, q.parse_duration):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0
