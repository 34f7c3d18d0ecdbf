"""Text made of resources: ages, sizes, tables, descriptions; and the display of progress."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent import render
from proplet.agent.cli_tasks import chosen_lines
from proplet.agent.ports import Stage
from proplet.agent.progress import progress

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (599, "9m59s"), (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"), (12_345, "3h25m"), (28_800, "8h"), (172_799, "47h"), (172_800, "2d"), (180_000, "2d2h"),
        (691_200, "8d"), (63_072_000, "2y"), (63_200_000, "2y1d"), (400_000_000, "12y"),
    ],
)  # fmt: skip
def test_ages_are_written_like_kubectl_does(seconds: float, text: str) -> None:
    assert render.age(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (2.5e-6, "2 µs"), (0.0125, "12.5 ms"), (1.5, "1.5 s"), (3600, "60m")]
)
def test_durations_have_the_unit_that_suits_them(seconds: float | None, text: str) -> None:
    assert render.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0 B"), (1023, "1023 B"), (65536, "64 KiB"), (1.5 * 2**30, "1.5 GiB")]
)
def test_sizes_have_the_unit_that_suits_them(count: float | None, text: str) -> None:
    assert render.size(count) == text


def test_the_references_zero_time_and_rubbish_are_no_moments() -> None:
    assert render.moment("0001-01-01T00:00:00Z") is None
    assert render.moment("soon") is None
    assert render.moment("2023-11-14T22:13:20Z") == NOW


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)


@given(body=st.fixed_dictionaries({}, optional={"metadata": JSON, "spec": JSON, "status": JSON, "kind": JSON}))
def test_any_resource_can_be_shown(body: dict[str, Any]) -> None:
    for kind in ("Task", "Proplet"):
        for wide in (False, True):
            cells = render.rows(kind, [body], NOW, wide=wide)
            assert len({len(row) for row in cells}) == 1
            assert len(list(render.aligned(cells))) == 2
    mappings = {key: value for key, value in body.items() if isinstance(value, dict)}
    assert all(line.isprintable() for line in render.describe(mappings, NOW))


def test_a_description_of_a_task_reads_well() -> None:
    task = {
        "kind": "Task",
        "metadata": {"name": "add", "namespace": "default", "labels": {"a": "b"}},
        "spec": {"functionName": "main", "inputs": ["10", "32"], "file": "AAAA" * 16, "env": {}},
        "status": {
            "phase": "completed",
            "startedAt": "2023-11-14T22:13:15Z",
            "usage": {"cpuSeconds": 0.0125, "peakMemoryBytes": 65536, "share": 0.5, "wallSeconds": {"run": 1.5}},
            "conditions": [{"type": "Started", "status": "True"}],
        },
    }
    assert list(render.describe(task, NOW)) == [
        "Name:       add",
        "Namespace:  default",
        "Kind:       Task",
        "Labels:",
        "  a:  b",
        "Spec:",
        "  Function Name:  main",
        "  Inputs:         10, 32",
        "  File:           <48 B of WebAssembly>",
        "Status:",
        "  Phase:       completed",
        "  Started At:  2023-11-14T22:13:15Z (5s ago)",
        "  Usage:",
        "    CPU Seconds:        12.5 ms",
        "    Peak Memory Bytes:  64 KiB",
        "    Share:              0.5",
        "    Wall Seconds:",
        "      Run:  1.5 s",
        "  Conditions:",
        "    - Type:    Started",
        "      Status:  True",
    ]


def test_a_description_shows_no_secret_and_leaves_names_of_variables_alone() -> None:
    proplet = {
        "spec": {"connectionConfig": {"clientId": "pi", "clientKey": "s3cret", "apiKey": "s3cret", "mqttQos": 1}}
    }
    assert list(render.describe(proplet, NOW))[1:] == [
        "  Connection Config:",
        "    Client ID:   pi",
        "    Client Key:  <redacted>",
        "    API Key:     <redacted>",
        "    MQTT QOS:    1",
    ]
    named = {"env": {"logLevel": "x", "DB_PASSWORD": "s3cret"}, "apiKeySecretRef": {"name": "a", "key": "b"}}
    assert list(render.describe({"spec": named}, NOW))[1:] == [
        "  Env:",
        "    logLevel:     x",
        "    DB_PASSWORD:  <redacted>",
        "  API Key Secret Ref:",
        "    Name:  a",
        "    Key:   b",
    ]


@given(entries=st.lists(st.lists(st.integers(), max_size=4), max_size=4), tail=st.integers(0, 20))
def test_the_tail_of_what_was_printed_is_its_last_lines(entries: list[list[int]], tail: int) -> None:
    items = [{"lines": lines, "at": f"2026-01-01T00:00:0{index}Z"} for index, lines in enumerate(entries)]
    chosen = chosen_lines(items, tail=tail, after=0.0)
    lines = [line for item in items for line in item["lines"]]
    assert [line for item in chosen for line in item["lines"]] == (lines[-tail:] if tail else [])
    assert chosen_lines(items, tail=None, after=1767225602.0) == items[2:]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


STAGES = [
    Stage("fetching", 0, 2_000_000),
    Stage("fetching", 2_000_000, 2_000_000),
    Stage("verifying", 0, 2_000_000),
    Stage("compiling", 0, 2_000_000),
]


def test_progress_is_plain_lines_where_nobody_watches() -> None:
    stream = io.StringIO()
    with progress(quiet=False, stream=stream) as told:
        for stage in STAGES:
            told(stage)
    assert stream.getvalue() == "fetching 1.91 MiB\ncompiling 1.91 MiB\n"


def test_progress_is_a_bar_on_a_terminal_and_leaves_nothing() -> None:
    stream = Terminal()
    with progress(quiet=False, stream=stream, delay_s=0) as told:
        for stage in STAGES:
            told(stage)
    assert "fetching" in stream.getvalue() or "compiling" in stream.getvalue()
    # Nobody knows how far a compilation is: none of its bytes are counted.
    last = stream.getvalue().rpartition("compiling")[2]
    assert "0.0" not in last
    assert " of " not in last


def test_progress_that_is_over_at_once_is_not_shown() -> None:
    for stream, quiet in ((Terminal(), False), (io.StringIO(), True)):
        with progress(quiet=quiet, stream=stream) as told:
            told(Stage("fetching", 1, 2))
        assert stream.getvalue() == ""
