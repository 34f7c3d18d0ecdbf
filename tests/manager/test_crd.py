"""The custom resource definitions are those that the vocabulary gives; what they say in patterns is what ours reads."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from proplet.manager import crd, crd_bounds, crd_rules, crd_rules_task, manifest, quantity, schedule
from proplet.manager.manifest import GROUPS
from proplet.manager.model import Kind, TaskSpec
from proplet.manager.rules_task import EDITABLE

CRDS = Path(manifest.__file__).parent.parent / "crds"
FILES = crd.files()


def properties(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property in a schema, by its path."""
    for name, item in schema.get("properties", {}).items():
        yield f"{path}.{name}", item
        yield from properties(item, f"{path}.{name}")
    for below in ("items", "additionalProperties"):
        if isinstance(schema.get(below), dict):
            yield from properties(schema[below], path)


def schemas(kind: Kind, group: str = GROUPS[0]) -> list[dict[str, Any]]:
    versions = crd.definition(kind, group)["spec"]["versions"]
    return [version["schema"]["openAPIV3Schema"] for version in versions]


def test_the_files_are_what_the_vocabulary_gives() -> None:
    on_disk = {str(path.relative_to(CRDS)): path.read_text() for path in CRDS.glob("*/*.yaml")}
    on_disk = {name: text for name, text in on_disk.items() if not name.startswith("samples/")}
    assert on_disk == FILES, "run: python -m proplet.manager.crd"


def test_both_groups_are_the_same_but_for_their_name() -> None:
    for kind in Kind:
        older, newer = (FILES[f"{group[20:]}/{kind.value.lower()}s.yaml"] for group in GROUPS)
        assert older.replace(GROUPS[0], GROUPS[1]) == newer
        assert newer != older


@pytest.mark.parametrize("text", FILES.values(), ids=FILES.keys())
def test_a_file_is_small_enough_for_kubectl_to_note_what_it_has_applied(text: str) -> None:
    assert len(text) < 256 * 1024 / 2
    assert yaml.safe_load(text)["kind"] == "CustomResourceDefinition"


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.value)
def test_every_field_is_explained(kind: Kind) -> None:
    for schema in schemas(kind):
        for path, item in properties(schema, kind.value):
            if path != f"{kind.value}.metadata":
                assert item.get("description", "").endswith("."), path


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.value)
def test_every_bound_and_rule_is_of_a_field_that_there_is(kind: Kind) -> None:
    known = {path for path, _ in properties(schemas(kind)[0], kind.value)} | {kind.value}
    tables = {**crd_bounds.BOUNDS, **crd_bounds.REQUIRED, **crd_rules.RULES}
    named = {re.sub(r"\[\]|\{\}", "", path) for path in tables if path.split(".")[0] == kind.value}
    assert named <= known


def test_what_only_a_standalone_node_knows_is_not_in_them() -> None:
    known = {path for kind in Kind for path, _ in properties(schemas(kind)[0], kind.value)}
    assert {"Task.spec.suspend", "PropellerJob.spec.tasks.suspend", "Proplet.spec.type"} <= known
    assert not {path for path in known if path.endswith((".held", ".declared"))}


def test_every_field_of_a_task_that_is_not_editable_is_frozen_after_dispatch() -> None:
    rule = next(rule for rule in crd_rules.RULES["Task"] if rule.told)
    frozen = set(re.findall(r"' spec\.(\w+)'", rule.told))
    known = set(schemas(Kind.TASK)[0]["properties"]["spec"]["properties"])
    editable = {name for name in known if re.sub("([A-Z])", r"_\1", name).lower() in EDITABLE}
    assert frozen == known - editable
    assert len(frozen) == len(fields(TaskSpec)) - len(EDITABLE)


# --- patterns ---------------------------------------------------------------------------------------------------------


def read(reader: Any, text: str) -> float | None:
    try:
        return float(reader(text))
    except ValueError:
        return None


amounts = st.from_regex(r"\A\+?([0-9]{0,3}\.?[0-9]{0,3})([KMGTPE]i?|[numk]|[eE][+-]?[0-9]{1,2}|x|-1)?\Z")


@given(amounts)
def test_a_quantity_is_one_to_the_api_server_when_it_is_one_to_us(text: str) -> None:
    small = len(text) < 10 and not re.search("[PEe]", text)  # far from our limits, which a pattern cannot say
    value = read(quantity.parse_cpu if text.endswith("m") else quantity.parse_bytes, text) if small else None
    if small:
        assert (re.search(crd_bounds.QUANTITY, text) is not None) == (value is not None)
        if value is not None:
            assert (re.search(crd_bounds.SOME_QUANTITY, text) is not None) == (value > 0)


spans = st.from_regex(r"\A(([0-9]{0,3}(\.[0-9]{0,3})?)(ns|us|µs|ms|s|m|h|d| s)?){0,3}\Z")


@given(spans)
def test_a_duration_is_one_to_the_api_server_when_it_is_one_to_us(text: str) -> None:
    assume(not re.search("[0-9]{6}", text))  # far from our limit of 292 years, which a pattern cannot say
    value = read(quantity.parse_duration, text)
    assert (re.search(crd_bounds.DURATION, text) is not None) == (value is not None)
    if value is not None:
        assert (re.search(crd_bounds.SOME_TIME, text) is not None) == (value > 0)


def cron_field(low: int, high: int, *words: str) -> st.SearchStrategy[str]:
    value = st.integers(low, high).map(str) | st.integers(low, high).map(lambda n: f"0{n}")
    if words:
        value |= st.sampled_from(words)
    entry = st.just("*") | st.just("?") | value | st.tuples(value, value).map("-".join)
    entry |= st.tuples(entry, st.integers(0, 70).map(str)).map("/".join)
    return st.lists(entry, min_size=1, max_size=3).map(",".join)


zones = st.sampled_from(["", "", "TZ=Europe/Paris ", "CRON_TZ=UTC "])
crons = st.tuples(
    cron_field(0, 61),
    cron_field(0, 25),
    cron_field(0, 33, "L", "LW"),
    cron_field(0, 13, "JAN", "dec", "Sept"),
    cron_field(0, 8, "SUN", "fri", "5L", "1#2", "2#6"),
).map(" ".join)


@given(zones, crons)
def test_no_schedule_is_refused_by_the_api_server_that_we_understand(zone: str, fields: str) -> None:
    if schedule.bad_fields(zone + fields) in (None, schedule.NEVER):
        assert re.search(crd_rules_task.CRON, zone + fields)


@pytest.mark.parametrize(
    "text",
    ["", "@daily", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *",
     "* * * * 8", "* * * * MOON", "x * * * *", "-1 * * * *", "TZ=UTC * * * *"],
)  # fmt: skip
def test_what_is_no_schedule_is_refused_by_both(text: str) -> None:
    assert schedule.bad_fields(text) == schedule.NO_CRON
    assert not re.search(crd_rules_task.CRON, text)
