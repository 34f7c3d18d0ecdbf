"""What no journal, log or engine could hold does not get past the codec, and its sender is told where it can be."""

import base64
import json
from typing import Any

import cbor2
import pytest

from proplet.agent import codec, wire
from proplet.agent.codec import WireError
from proplet.agent.topics import Route

MODULE = base64.b64encode(b"\0asm").decode()


def start(**change: Any) -> bytes:
    return json.dumps({"id": "t", "name": "main", "file": MODULE, **change}).encode()


def refusal(payload: bytes, route: Route = Route.START) -> WireError:
    with pytest.raises(WireError) as caught:
        codec.decode(route, payload)
    return caught.value


@pytest.mark.parametrize("attempt", [-1, 2**63, 2**64 - 1, 10**30])
def test_an_attempt_that_no_journal_can_hold_is_refused_and_its_sender_told(attempt: int) -> None:
    error = refusal(start(ext={"attempt": attempt}))
    assert (error.task_id, error.attempt) == ("t", None)
    assert "ext.attempt" in error.detail


@pytest.mark.parametrize("route", [Route.RESULTS, Route.STOP])
def test_such_an_attempt_is_refused_wherever_one_is_named(route: Route) -> None:
    assert "ext.attempt" in refusal(b'{"id":"t","task_id":"t","ext":{"attempt":-1}}', route).detail


def test_the_largest_attempt_survives_being_written_again() -> None:
    read = codec.decode(Route.START, start(ext={"attempt": wire.ATTEMPT_MAX}))
    assert codec.decode_as(wire.Start, codec.encode(read)) == read


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"env": {"A": "\udfff"}}, "env.A"),
        ({"env": {"\ud800": "a"}}, "env"),
        ({"inputs": ["\ud800"]}, "inputs[0]"),
        ({"name": "\ud800"}, "name"),
        ({"image_url": "localhost/\ud800"}, "image_url"),
    ],
)
def test_half_a_surrogate_pair_is_refused_and_its_sender_told(change: dict[str, Any], named: str) -> None:
    error = refusal(start(**change))
    assert error.task_id == "t"
    assert error.detail.startswith(named)
    error.detail.encode()


@pytest.mark.parametrize("payload", [start(id="\ud800"), b'{"id":"\xed\xa0\x80","name":"main"}', start(id="x" * 1025)])
def test_an_id_that_cannot_be_repeated_names_nobody(payload: bytes) -> None:
    assert refusal(payload).task_id is None


def test_text_beyond_the_first_plane_is_read() -> None:
    assert codec.decode(Route.START, start(id="\U0001f99c é")).id == "\U0001f99c é"


def test_a_result_with_half_a_surrogate_pair_is_read_all_the_same() -> None:
    assert codec.decode(Route.RESULTS, b'{"task_id":"t","results":"a\\ud800b"}').results == "a?b"


@pytest.mark.parametrize(
    "ext",
    [
        {"limits": {"memory_bytes": -1}},
        {"limits": {"output_bytes": -1}},
        {"limits": {"stack_bytes": -1}},
        {"limits": {"fuel": -1}},
        {"limits": {"cpu_s": -0.5}},
        {"deadline_s": -1},
        {"backoff_limit": -1},
    ],
)
def test_a_limit_below_zero_is_refused_because_an_engine_takes_it_for_none(ext: dict[str, Any]) -> None:
    error = refusal(start(ext={"attempt": 3, **ext}))
    assert (error.task_id, error.attempt) == ("t", 3)
    assert "cannot be negative" in error.detail


def test_what_is_said_about_a_message_does_not_repeat_all_of_it() -> None:
    assert len(refusal(start(ext={"restart_policy": "x" * 100_000})).detail) < 1000
    assert len(refusal(start(ext={"limits": []}, env={"x" * 100_000: 1})).detail) < 1000


def test_a_cbor_command_is_held_to_the_same_rules() -> None:
    error = refusal(cbor2.dumps({"id": "t", "name": "main", "file": b"x", "ext": {"attempt": 2**70}}))
    assert error.task_id == "t"
