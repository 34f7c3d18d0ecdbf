"""What a peer may say and the manager must survive: hostile payloads on the wire."""

import json
import math
from datetime import UTC, datetime

import cbor2
import pytest

from proplet.agent.codec import WireError, decode, to_plain
from proplet.agent.topics import Route
from proplet.manager.outcome import result_text

RESULT = {"task_id": "t", "proplet_id": "pi-1", "results": "42"}


@pytest.mark.parametrize("key", [b"x", (1, 2), cbor2.CBORSimpleValue(99)])
def test_cbor_results_that_json_cannot_tell_are_refused_and_not_raised_through(key: object) -> None:
    with pytest.raises(WireError, match="results"):
        decode(Route.RESULTS, cbor2.dumps({**RESULT, "results": {key: 1}}))


def test_cbor_results_that_json_can_tell_are_its_text() -> None:
    assert decode(Route.RESULTS, cbor2.dumps({**RESULT, "results": {1: [2.5]}})).results == '{"1": [2.5]}'


CYCLE: list[object] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "odd",
    [datetime(2026, 1, 1, tzinfo=UTC), {1, 2}, cbor2.undefined, cbor2.CBORTag(999, 1), math.nan, {1: 2}, CYCLE],
    ids=repr,
)
def test_of_a_federated_update_that_json_cannot_tell_only_the_text_is_kept(odd: object) -> None:
    """Not even that of what goes on for ever."""
    update = {"round_id": "r", "task_id": "t", "update_b64": "AA==", "metrics": {"m": [odd]}}
    payload = cbor2.dumps({**RESULT, "results": update}, value_sharing=odd is CYCLE)
    if odd is CYCLE:
        with pytest.raises(WireError):
            decode(Route.RESULTS, payload)
        return
    results = decode(Route.RESULTS, payload).results
    assert isinstance(results, str)
    assert json.loads(results)["round_id"] == "r"


def test_a_federated_update_is_kept_as_its_json() -> None:
    metrics = {"loss": 0.5, "rounds": [1, None, True, "x", {"raw": b"\0"}]}
    update = {"round_id": "r", "task_id": "t", "update_b64": "AA==", "metrics": metrics}
    text = result_text(decode(Route.RESULTS, cbor2.dumps({**RESULT, "results": update})))
    assert json.loads(text or "")["metrics"] == {"loss": 0.5, "rounds": [1, None, True, "x", {"raw": "AA=="}]}


@pytest.mark.parametrize(
    "timestamp",
    [1e300, -1e300, 2**62, {"secs_since_epoch": 2**63, "nanos_since_epoch": 0}, "0001-01-01T00:00:00+23:59"],
)
def test_a_time_that_no_calendar_has_is_refused(timestamp: object) -> None:
    metrics = {"task_id": "t", "proplet_id": "pi-1", "timestamp": timestamp}
    with pytest.raises(WireError, match="timestamp"):
        decode(Route.TASK_METRICS, cbor2.dumps(metrics))


def test_times_within_the_calendar_are_told_as_they_came() -> None:
    metrics = {"task_id": "t", "proplet_id": "pi-1", "timestamp": "2026-01-02T03:04:05Z"}
    said = to_plain(decode(Route.TASK_METRICS, cbor2.dumps(metrics)))
    assert said["timestamp"] == "2026-01-02T03:04:05.000000Z"
