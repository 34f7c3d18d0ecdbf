"""Update envelopes, in every form in which the peers of both eras send them."""

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent import codec, wire
from proplet.agent.events import Outcome, Spent
from proplet.agent.results import result_of
from proplet.agent.topics import Route
from proplet.agent.wire import Reason, Start
from proplet.manager.averaging import (
    MAX_UPDATE_BYTES,
    Format,
    MismatchError,
    NoSamplesError,
    TooLargeError,
    UpdateError,
)
from proplet.manager.outcome import result_text
from proplet.manager.updates import (
    Envelope,
    EnvelopeError,
    combine,
    read_envelope,
    round_number,
    same_round,
    write_envelope,
)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


VECTOR = b"[1.5,2.5]"
PLAIN = {
    "task_id": "t",
    "job_id": "j",
    "round_id": 3,
    "proplet_id": "p",
    "num_samples": 20,
    "update_b64": b64(VECTOR),
    "format": "json-f64",
    "metrics": {"loss": 0.5},
}
READ = Envelope(VECTOR, "json-f64", 20, "3", "t", "j", "p", 0, {"loss": 0.5})


@pytest.mark.parametrize("wrap", [lambda e: e, json.dumps, lambda e: json.dumps(json.dumps(e))])
@pytest.mark.parametrize(
    "place",
    [
        lambda e: e,
        lambda e: {"update_envelope": e},
        lambda e: {"update_envelope": json.dumps(e)},
        lambda e: {"results": {"update_envelope": e}},
        lambda e: {"results": json.dumps({"update_envelope": e})},
        lambda e: {"task_id": "t", "results": e},
    ],
)
def test_the_envelope_is_found_wherever_peers_put_it(place, wrap) -> None:
    assert read_envelope(wrap(place(PLAIN))) == READ


@pytest.mark.parametrize("round_id", [3, "3", "round-3", 3.0])
def test_a_round_is_a_number_its_decimals_or_a_name_with_it(round_id) -> None:
    found = read_envelope({**PLAIN, "round_id": round_id}).round_id
    assert round_number(found) == 3
    assert same_round(found, "round-3")
    assert same_round("3", found)
    assert not same_round(found, "round-4")
    assert not same_round(found, "warm-up")


def test_a_round_with_a_name_of_its_own_is_only_itself() -> None:
    assert same_round("warm-up", "warm-up")
    assert not same_round("warm-up", "3")
    assert round_number("round-") is None
    assert round_number("round-+3") is None


@pytest.mark.parametrize(
    "left_out", ["job_id", "task_id", "proplet_id", "round_id", "metrics", "format", "num_samples"]
)
def test_all_but_the_update_may_be_missing(left_out) -> None:
    envelope = read_envelope({name: value for name, value in PLAIN.items() if name != left_out})
    assert envelope.parameters().values == (1.5, 2.5)


def told(env: dict[str, str], printed: str) -> str:
    """A task's results, after the agent and the manager have had them in their hands."""
    start = Start("uid", "fl-round-2", env={"ROUND_ID": "round-2", "PROPLET_ID": "device-1", **env})
    result = result_of(
        start,
        Outcome(Reason.OK, printed),
        Spent(),
        proplet_id="device-1",
        stages={},
        image_digest=None,
        restarts=0,
        start_kind=None,
    )
    assert isinstance(result.results, wire.FederatedUpdate)
    text = result_text(result)
    assert text is not None
    return text


def test_what_a_guest_prints_as_an_envelope_counts_over_what_its_proplet_assumed() -> None:
    printed = json.dumps({"num_samples": 7, "update_b64": b64(VECTOR), "format": "json-f64", "metrics": {"loss": 1}})
    envelope = read_envelope(told({}, printed))
    assert (envelope.update, envelope.format, envelope.num_samples) == (VECTOR, "json-f64", 7)
    assert (envelope.round_id, envelope.proplet_id, envelope.task_id) == ("round-2", "device-1", "uid")
    assert envelope.metrics == {"loss": 1}


def test_a_guest_may_print_just_its_parameters() -> None:
    envelope = read_envelope(told({"FL_NUM_SAMPLES": "12"}, "[1.5, 2.5]\n"))
    assert envelope.parameters().layout.format is Format.JSON_F64
    assert (envelope.parameters().values, envelope.num_samples) == ((1.5, 2.5), 12)


def test_the_client_of_the_references_demonstration_is_understood() -> None:
    printed = json.dumps(
        {"round_id": "round-2", "base_model_uri": "m", "num_samples": 9, "update": {"w": [1, 2, 3], "b": 4}}
    )
    for results in (printed, told({}, printed)):
        envelope = read_envelope(results)
        assert (envelope.parameters().values, envelope.num_samples) == ((4, 1, 2, 3), 9)


@pytest.mark.parametrize(
    "results",
    [
        PLAIN,
        {**PLAIN, "round_id": "round-3", "num_samples": "20"},
        {name: value for name, value in PLAIN.items() if name not in ("task_id", "job_id")},
        {"update_envelope": PLAIN},
        json.dumps(PLAIN),
        {"round_id": "3", "num_samples": 20, "update": [1.5, 2.5]},
    ],
)
def test_an_envelope_of_any_wording_arrives_over_the_wire(results) -> None:
    message = {"task_id": "t", "proplet_id": "p", "results": results, "error": None}
    result = codec.decode(Route.RESULTS, json.dumps(message).encode())
    assert isinstance(result, wire.Result)
    envelope = read_envelope(result_text(result))
    assert (envelope.parameters().values, envelope.num_samples) == ((1.5, 2.5), 20)
    assert same_round(envelope.round_id, "3")


def test_a_broken_envelope_costs_the_update_and_not_the_result() -> None:
    message = {"task_id": "t", "results": {**PLAIN, "update_b64": "!"}, "error": None}
    result = codec.decode(Route.RESULTS, json.dumps(message).encode())
    assert isinstance(result, wire.Result)
    with pytest.raises(EnvelopeError, match="base64"):
        read_envelope(result_text(result))


def test_single_precision_from_a_guest_that_prints_an_envelope() -> None:
    data = struct.pack("<2f", 0.25, -0.5)
    envelope = read_envelope(told({}, json.dumps({"update_b64": b64(data), "format": "f32-delta"})))
    assert envelope.parameters().values == (0.25, -0.5)


def test_the_largest_update_fits_through_every_wrapping() -> None:
    data = struct.pack("<f", 0.5) * (MAX_UPDATE_BYTES // 4)
    results = told({}, json.dumps({"update_b64": b64(data), "format": "f32-delta"}))
    assert len(results) + len(b64(data)) < 1.4 * 1024 * 1024  # with the Task's own environment, in etcd
    assert read_envelope(results).update == data


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ("", "without a result"),
        (None, "without a result"),
        ("42", "no update envelope"),
        ("no JSON", "no update envelope"),
        ({"update": {}}, "no update envelope"),
        ({**PLAIN, "update_b64": 5}, "must be base64"),
        ({**PLAIN, "update_b64": "a"}, "not standard base64"),
        ({**PLAIN, "round_id": 0}, "counted from 1"),
        ({**PLAIN, "round_id": True}, "round_id is no whole number"),
        ({**PLAIN, "num_samples": "many"}, "num_samples is no whole number"),
        ({**PLAIN, "num_samples": 1.5}, "num_samples is no whole number"),
        ({**PLAIN, "format": 5}, "format is no text"),
    ],
)
def test_what_is_no_envelope_is_refused_with_the_reason(results, text) -> None:
    with pytest.raises(EnvelopeError, match=text):
        read_envelope(results)


def test_results_too_large_to_look_into_are_refused() -> None:
    with pytest.raises(TooLargeError, match="send less"):
        read_envelope("x" * (2 * 1024 * 1024 + 1))


def test_an_update_from_no_samples_is_refused() -> None:
    with pytest.raises(NoSamplesError):
        read_envelope({**PLAIN, "num_samples": 0}).parameters()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=12).map(b64),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*PLAIN, "update", "update_envelope", "results", "w"]),
            inner | inner.map(json.dumps) | inner.map(lambda v: b64(json.dumps(v).encode())),
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(
    json_values
    | st.text()
    | st.builds(lambda v: {**PLAIN, **v}, st.dictionaries(st.sampled_from([*PLAIN]), json_values))
)
def test_whatever_a_proplet_sends_is_an_envelope_or_refused(results) -> None:
    for form in (results, json.dumps(results)):
        try:
            envelope = read_envelope(form)
            envelope.parameters()
        except UpdateError:
            continue
        assert combine([envelope], None, round_id="1", job_id="j").parameters() == envelope.parameters()


ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
envelopes = st.builds(
    Envelope,
    update=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=4).map(lambda v: json.dumps(v).encode()),
    format=st.sampled_from(["", "json-f64"]),
    num_samples=st.integers(1, 2**63 - 1),
    round_id=ids,
    task_id=ids,
    job_id=ids,
    proplet_id=ids,
    global_version=st.integers(0, 2**31),
    metrics=st.dictionaries(ids, st.floats(-1e9, 1e9), max_size=3),
)


@given(envelopes)
def test_an_envelope_survives_writing_and_reading(envelope) -> None:
    plain = write_envelope(envelope)
    assert read_envelope(plain) == envelope
    assert read_envelope(json.dumps(plain)) == envelope
    assert read_envelope({"results": {"update_envelope": plain}}) == envelope


def test_updates_are_combined_with_their_metrics() -> None:
    one = Envelope(b"[1,10]", num_samples=1, metrics={"loss": 1.0, "only": 5, "text": "x", "odd": 1})
    other = Envelope(b"[5,30]", num_samples=3, metrics={"loss": 2.0, "text": "y", "odd": float("nan")})
    after = combine([one, other], None, round_id="round-1", job_id="j")
    assert after.parameters().values == (4.0, 25.0)
    assert (after.round_id, after.job_id, after.proplet_id, after.global_version) == ("round-1", "j", "aggregator", 1)
    assert after.metrics == {"loss": 1.75, "num_clients": 2, "total_samples": 4, "algorithm": "fedavg"}


def test_the_next_round_stands_on_the_one_before() -> None:
    change = Envelope(struct.pack("<f", 0.5), "f32-delta")
    first = combine([change], None, round_id="round-1", job_id="j")
    second = combine([change], first, round_id="round-2", job_id="j")
    assert (second.parameters().values, second.global_version, second.format) == ((1.0,), 2, "f32-delta")


def test_updates_of_different_models_are_not_combined() -> None:
    with pytest.raises(MismatchError):
        combine([Envelope(b"[1]"), Envelope(b"[1,2]")], None, round_id="1", job_id="")
