"""Whatever is in a file or the environment: settings or a list of problems, never another error."""

import contextlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.agent.config import ConfigError, read
from proplet.agent.config_env import OTHER, REFERENCE, setting_paths, variable_of
from proplet.agent.config_show import show, toml_value
from proplet.agent.config_values import parse_bool, parse_duration, parse_size

PATHS = tuple(setting_paths())
KEYS = tuple({part for path in PATHS for part in path.split(".")} | {"registries", "x", "tenant_id", "proplet"})
SCALARS = (
    st.integers() | st.floats() | st.booleans() | st.text(max_size=8) | st.dates() | st.times() | st.datetimes()
    | st.sampled_from(["10s", "64Mi", "none", "auto", "tcp://b:1883", "127.0.0.1", "~nobody-here/x", "/x"])
)  # fmt: skip
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
DOCUMENTS = st.recursive(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    lambda inner: st.dictionaries(st.sampled_from(KEYS), VALUES | inner | st.lists(inner, max_size=2), max_size=4),
    max_leaves=8,
)


def toml(document: dict[str, Any]) -> str:
    """Write a document as TOML, tables inline."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f"{key} = {value(inner)}" for key, inner in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(value(inner) for inner in item) + "]"
        if isinstance(item, bool):
            return str(item).lower()
        if isinstance(item, str):
            return json.dumps(item, ensure_ascii=True).replace("\x7f", "\\u007f")
        return str(item) if isinstance(item, int | float) else item.isoformat()

    return "".join(f"{key} = {value(item)}\n" for key, item in document.items())


def attempt(path: Path | None, environ: dict[str, str]) -> None:
    loaded = None
    with contextlib.suppress(ConfigError):
        loaded = read(path, environ)
    if loaded is None:
        return
    shown = "\n".join(show(loaded.settings, loaded.origins))
    tomllib.loads(shown)


@settings(max_examples=300)
@given(document=DOCUMENTS)
def test_no_document_causes_another_error_than_a_list_of_problems(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    text = toml(document)
    with contextlib.suppress(UnicodeEncodeError):
        path.write_text(text, encoding="utf-8")
        attempt(path, {"HOME": str(tmp_path)})


@settings(max_examples=200)
@given(data=st.binary(max_size=200) | st.text(alphabet="[]{}='\"#.,\n\\ ax1", max_size=100).map(str.encode))
def test_no_bytes_cause_another_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes(data)
    attempt(path, {"HOME": str(tmp_path)})


VARIABLES = st.sampled_from([variable_of(path) for path in PATHS] + [*REFERENCE, *OTHER, "PROPLET_BROKER", "PROPLET_X"])


@settings(max_examples=200)
@given(environ=st.dictionaries(VARIABLES, st.text(max_size=12).filter(lambda text: "\0" not in text), max_size=6))
def test_no_environment_causes_another_error(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    attempt(None, {**environ, "HOME": str(tmp_path_factory.getbasetemp())})


@given(number=st.integers(min_value=0, max_value=10**7))
def test_durations_and_sizes_that_are_shown_are_read_back(number: int) -> None:
    assert parse_duration(json.loads(toml_value(float(number), "x_s"))) == number
    shown = toml_value(number, "x_bytes")
    assert parse_size(shown.strip('"')) == number


@given(text=st.text(max_size=12))
def test_any_text_is_a_value_or_a_mistake(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_bool):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10), ("2.5", 2.5), ("250ms", 0.25), ("1h30m", 5400), ("7d", 604800), ("1m 5s", 65)]
)
def test_durations_are_written_the_usual_ways(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "10x", "-1s", "1e3", "ten", "10 s 5"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "count"), [("512", 512), ("64Mi", 64 << 20), ("10M", 10_000_000), ("1.5Gi", 3 << 29), ("4kB", 4000)]
)
def test_sizes_are_written_the_usual_ways(text: str, count: int) -> None:
    assert parse_size(text) == count
