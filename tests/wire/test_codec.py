"""Messages of both eras are read, ours are written as the newest reference accepts them, and nothing else gets in."""

import contextlib
import json
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.agent import codec, wire
from proplet.agent.codec import Encoding, WireError
from proplet.agent.topics import Route

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))
ADDITION = bytes.fromhex("0061736d0100000001070160027f7f017f03020100070801046d61696e00000a09010700200020016a0b")
# The Rust worker's view of a message in its second era: fields it needs, and the types it accepts.
SECOND_ERA_START = {
    "id": str, "name": str, "state": int, "file": str, "image_url": str, "inputs": list, "cli_args": list, "env": dict,
    "daemon": bool, "monitoring_profile": dict, "encrypted": bool, "proplet_id": str, "broadcast": bool, "latent": bool,
}  # fmt: skip


def golden(path: Path) -> tuple[Route, str, dict[str, Any]]:
    content = json.loads(path.read_text())
    return Route(content["route"]), content["era"], content["message"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_every_golden_message_is_read_and_survives_being_written_again(path: Path) -> None:
    route, _, raw = golden(path)
    message = codec.decode(route, json.dumps(raw).encode())
    assert isinstance(message, codec.MESSAGES[route])
    for encoding in Encoding:
        assert codec.decode(route, codec.encode(message, encoding)) == message


@pytest.mark.parametrize("path", [p for p in GOLDEN if golden(p)[1] == "ours"], ids=lambda p: p.stem)
def test_our_own_messages_are_written_exactly_so(path: Path) -> None:
    route, _, raw = golden(path)
    assert codec.to_plain(codec.decode(route, json.dumps(raw).encode())) == raw


def test_the_two_eras_of_a_start_mean_the_same() -> None:
    first, second = (
        codec.decode(Route.START, json.dumps(golden(p)[2]).encode())
        for p in GOLDEN
        if p.stem in ("start_first_era", "start_second_era")
    )
    assert (first.id, first.inputs, first.file, first.proplet_id) == ("t", ("10", "32"), ADDITION, "p1")
    assert (second.id, second.inputs, second.file, second.proplet_id) == ("t", ("10", "32"), ADDITION, "p1")
    assert second.monitoring_profile.interval == 10.0


def test_a_monitoring_profile_is_found_under_both_its_names() -> None:
    for name in ("monitoring_profile", "monitoringProfile"):
        raw = {"id": "t", "name": "main", "image_url": "x", name: {"interval": 7}}
        assert codec.decode(Route.START, json.dumps(raw).encode()).monitoring_profile.interval == 7.0


def test_a_start_is_written_with_the_types_that_the_references_worker_demands() -> None:
    start = wire.Start(
        "t",
        "main",
        file=ADDITION,
        inputs=("1",),
        env={"A": "b"},
        proplet_id="p",
        monitoring_profile=wire.MonitoringProfile(),
    )
    raw = codec.to_plain(start)
    assert {k: type(v) for k, v in raw.items()} == {k: t for k, t in SECOND_ERA_START.items() if k in raw}
    assert {"id", "name", "cli_args", "broadcast", "daemon", "latent", "encrypted", "state"} <= raw.keys()
    profile = raw["monitoring_profile"]
    assert len(profile) == 10, "the worker drops a start whose profile lacks a field"
    assert type(profile["interval"]) is int


def test_a_result_always_has_text_and_an_error_key() -> None:
    assert codec.to_plain(wire.Result("t", "p")) == {"task_id": "t", "proplet_id": "p", "results": "", "error": None}


def test_a_timestamp_is_read_in_every_shape_and_written_as_rfc3339() -> None:
    shapes: list[Any] = [
        {"secs_since_epoch": 1767225600, "nanos_since_epoch": 500_000_000},
        "2026-01-01T00:00:00.5Z",
        "2026-01-01T01:00:00.500+01:00",
        1767225600.5,
    ]
    for shape in shapes:
        raw = {"proplet_id": "p", "timestamp": shape}
        message = codec.decode(Route.METRICS, json.dumps(raw).encode())
        assert message.timestamp == 1767225600.5
        assert codec.to_plain(message)["timestamp"] == "2026-01-01T00:00:00.500000Z"


@pytest.mark.parametrize(
    ("value", "text"),
    [(10, "10"), (-1, "-1"), (1.5, "1.5"), ("x", "x"), (True, "true"), (2**64, str(2**64)), ("", "")],
)
def test_an_input_of_any_scalar_type_is_taken_as_its_text(value: Any, text: str) -> None:
    raw = {"id": "t", "name": "main", "image_url": "x", "inputs": [value]}
    assert codec.decode(Route.START, json.dumps(raw).encode()).inputs == (text,)


@pytest.mark.parametrize(
    ("payload", "detail"),
    [
        (b"", "empty"),
        (b"not json", "not JSON"),
        (b"[]", "a JSON list, not an object"),
        (b'"x"', "not an object"),
        (b"\xff\xfe{}", "not"),
        (b'{"id": "t", "name": "main", "state": NaN, "image_url": "x"}', "NaN is not JSON"),
        (b"{" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"\xa1", "not CBOR"),
        (cbor2.dumps({"id": "t"}) + b"\0", "bytes after"),
    ],
    ids=range(10),
)
def test_what_is_no_object_is_refused(payload: bytes, detail: str) -> None:
    with pytest.raises(WireError, match=detail) as caught:
        codec.decode(Route.START, payload)
    assert caught.value.task_id is None


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"name": 3}, "name must be a string, not a number"),
        ({"name": None}, "name is required"),
        ({"name": ""}, "name is required"),
        ({"file": "%%%"}, "file is not standard base64"),
        ({"file": "AGFzbQE"}, "file is not standard base64"),
        ({"inputs": {"a": 1}}, "inputs must be a list, not an object"),
        ({"inputs": [[1]]}, r"inputs\[0\] must be a number or a string, not a list"),
        ({"inputs": [None]}, r"inputs\[0\] must be"),
        ({"env": {"A": 1}}, "env.A must be a string, not a number"),
        ({"env": ["A"]}, "env must be an object"),
        ({"daemon": "yes"}, "daemon must be true or false, not a string"),
        ({"state": 1.5}, "state must be a whole number"),
        ({"state": 2**70}, "state must be a whole number"),
        ({"image_url": None, "file": None}, "either file or image_url must be provided"),
        ({"encrypted": True, "file": "AGFzbQ=="}, "should only use image_url"),
        ({"ext": {"attempt": "one"}}, "ext.attempt must be a whole number"),
        ({"ext": {"restart_policy": "Sometimes"}}, "ext.restart_policy is 'Sometimes'; it must be one of Never"),
        ({"ext": {"deadline_s": 10**400}}, "ext.deadline_s must be a finite number"),
        ({"monitoring_profile": {"interval": "soon"}}, "monitoring_profile.interval must be a number"),
    ],
    ids=lambda x: str(x)[:40] if isinstance(x, dict) else "",
)
def test_a_bad_start_is_refused_by_field_and_its_task_is_named(change: dict[str, Any], detail: str) -> None:
    raw = {"id": "t7", "name": "main", "image_url": "x", **change}
    with pytest.raises(WireError, match=detail) as caught:
        codec.decode(Route.START, json.dumps(raw).encode())
    assert caught.value.task_id == "t7"


@pytest.mark.parametrize("missing", [{}, {"id": None}, {"id": ""}, {"id": 7}])
def test_a_start_without_an_id_has_no_task_to_name(missing: dict[str, Any]) -> None:
    with pytest.raises(WireError) as caught:
        codec.decode(Route.START, json.dumps({"name": "main", "image_url": "x", **missing}).encode())
    assert caught.value.task_id is None


def test_null_stands_for_the_default_everywhere() -> None:
    raw = {f.name: None for f in fields(wire.Start)} | {"id": "t", "name": "n", "image_url": "x"}
    assert codec.decode(Route.START, json.dumps(raw).encode()) == wire.Start("t", "n", image_url="x")


def test_unknown_fields_are_ignored() -> None:
    raw = {"id": "t", "name": "n", "image_url": "x", "parent_results": {"a": [1]}, "new": None}
    assert codec.decode(Route.START, json.dumps(raw).encode()).id == "t"


def test_a_newer_peers_reason_is_no_error() -> None:
    raw = {"task_id": "t", "error": "x", "ext": {"reason": "melted"}}
    assert codec.decode(Route.RESULTS, json.dumps(raw).encode()).ext.reason is wire.Reason.INTERNAL


def test_results_of_another_json_type_are_kept_as_json_text() -> None:
    assert codec.decode(Route.RESULTS, b'{"task_id":"t","results":{"a":1}}').results == '{"a": 1}'
    assert codec.decode(Route.RESULTS, b'{"task_id":"t","results":42}').results == "42"


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, so that every message class is tried with everything it can hold."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=5), values(args[1]), max_size=3)
    if args:
        return st.one_of([values(a) for a in args])
    if hint is Any:
        return st.one_of(st.text(max_size=5), st.integers(-5, 5), st.booleans())
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    if is_dataclass(hint):
        return messages(typing.cast("type", hint))
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        bool: st.booleans(),
        int: st.integers(0, 2**63 - 1),
        float: st.floats(0, 1e8, allow_subnormal=False),
        bytes: st.binary(max_size=16),
        type(None): st.none(),
    }
    return simple[hint]


def messages(kind: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    parts = {f.name: values(hints[f.name]) for f in fields(kind) if f.metadata.get("kind") != "timestamp"}
    return st.builds(kind, **parts)


KINDS = sorted({*codec.MESSAGES.values(), wire.FederatedUpdate}, key=lambda k: k.__name__)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@settings(max_examples=40)
@given(st.data())
def test_every_message_survives_both_encodings(kind: type, data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    for encoding in Encoding:
        payload = codec.encode(message, encoding)
        assert codec.decode_as(kind, payload) == message


@pytest.mark.parametrize("route", Route, ids=lambda r: r.name)
@settings(max_examples=40)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=10), x, max_size=4),
            max_leaves=10,
        ).map(lambda x: json.dumps(x).encode()),
        st.dictionaries(
            st.sampled_from(sorted({f.name for k in KINDS for f in fields(k)})),
            st.none()
            | st.integers()
            | st.text(max_size=5)
            | st.lists(st.integers(), max_size=2)
            | st.just({"attempt": -1}),
        ).map(lambda x: json.dumps(x).encode()),
    )
)
def test_no_input_leads_to_anything_but_a_message_or_a_wire_error(route: Route, payload: bytes) -> None:
    with contextlib.suppress(WireError):
        codec.decode(route, payload)
