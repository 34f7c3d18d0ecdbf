"""FedAvg: what is averaged, how, and what is refused."""

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.manager.averaging import (
    MAX_UPDATE_BYTES,
    Format,
    Layout,
    MalformedUpdateError,
    MismatchError,
    NoSamplesError,
    NotFiniteError,
    Parameters,
    TooLargeError,
    UnknownFormatError,
    UpdateError,
    advance,
    average,
    common_layout,
    parse,
    render,
)

finite = st.floats(-1e300, 1e300)
singles = st.floats(width=32, allow_nan=False, allow_infinity=False)
samples = st.integers(1, 2**63 - 1)


def vector(*values: float, form: Format = Format.JSON_F64) -> Parameters:
    return Parameters(Layout(form, len(values)), values)


def same_length(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[tuple[Parameters, int]]]:
    def of(length: int) -> st.SearchStrategy[list[tuple[Parameters, int]]]:
        one = st.lists(values, min_size=length, max_size=length).map(lambda items: vector(*items))
        return st.lists(st.tuples(one, samples), min_size=1, max_size=6)

    return st.integers(1, 5).flatmap(of)


def test_the_mean_is_weighted_by_the_number_of_samples() -> None:
    assert average([(vector(1.0, 10.0), 1), (vector(5.0, 30.0), 3)]) == vector(4.0, 25.0)


@given(same_length(finite), st.randoms())
def test_the_mean_does_not_depend_on_the_order_and_lies_between_the_updates(updates, random) -> None:
    mean = average(updates)
    shuffled = list(updates)
    random.shuffle(shuffled)
    assert average(shuffled) == mean
    for at, value in enumerate(mean.values):
        column = [parameters.values[at] for parameters, _ in updates]
        slack = 1e-9 * max(map(abs, column)) + 1e-300
        assert min(column) - slack <= value <= max(column) + slack


@given(st.lists(finite, min_size=1, max_size=5), st.lists(samples, min_size=1, max_size=5))
def test_the_mean_of_equal_updates_is_that_update(values, weights) -> None:
    mean = average([(vector(*values), weight) for weight in weights])
    assert all(math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-300) for a, b in zip(mean.values, values, strict=True))


@given(st.lists(finite, min_size=1, max_size=20))
def test_a_list_of_numbers_survives_writing_and_reading(values) -> None:
    assert parse(render(vector(*values)), "json-f64") == vector(*values)


@given(st.lists(singles, min_size=1, max_size=20))
def test_single_precision_survives_writing_and_reading(values) -> None:
    change = vector(*values, form=Format.F32_DELTA)
    assert parse(render(change), "f32-delta") == change


@given(st.dictionaries(st.text(max_size=5), finite | st.lists(finite, max_size=3), min_size=1))
def test_named_parameters_keep_their_names(named) -> None:
    data = json.dumps(named).encode()
    if not any(not isinstance(v, list) or v for v in named.values()):
        with pytest.raises(MalformedUpdateError):
            parse(data, "")
        return
    assert json.loads(render(parse(data, ""))) == named


def test_the_order_of_names_is_of_no_account() -> None:
    one, other = parse(b'{"w": [1, 2], "b": 3}', ""), parse(b'{"b": 5, "w": [3, 4]}', "")
    assert json.loads(render(average([(one, 1), (other, 1)]))) == {"w": [2, 3], "b": 4}


def test_json_that_a_proplet_calls_f32_delta_is_json() -> None:
    assert parse(b" [1.5, 2]\n", "f32-delta") == vector(1.5, 2.0)


@given(st.binary(max_size=200), st.sampled_from(["", "json-f64", "f32-delta", "else"]))
def test_whatever_arrives_is_read_or_refused(data, name) -> None:
    try:
        parsed = parse(data, name)
    except UpdateError:
        return
    assert parsed.values
    assert all(map(math.isfinite, parsed.values))


@pytest.mark.parametrize(
    ("data", "name", "error", "text"),
    [
        (b"[1]", "cbor", UnknownFormatError, "json-f64 and f32-delta"),
        (b"abc", "f32-delta", MalformedUpdateError, "4 for each"),
        (b"", "f32-delta", MalformedUpdateError, "0 bytes"),
        (b"abc", "json-f64", MalformedUpdateError, "no JSON"),
        (b"\xff[1]", "json-f64", MalformedUpdateError, "no JSON"),
        (b"[" * 100_000, "json-f64", MalformedUpdateError, "no JSON"),
        (b"3", "json-f64", MalformedUpdateError, "neither"),
        (b"[]", "json-f64", MalformedUpdateError, "no parameters"),
        (b"{}", "", MalformedUpdateError, "no parameters"),
        (b"[true]", "", MalformedUpdateError, "no number"),
        (b'{"w": [[1]]}', "", MalformedUpdateError, "'w'"),
        (b"[NaN]", "", NotFiniteError, "diverges"),
        (b"[1, -Infinity]", "", NotFiniteError, "parameter 1 of 2"),
        (b"[1e999]", "", NotFiniteError, "diverges"),
        (b"[1" + b"0" * 400 + b"]", "", NotFiniteError, "double precision"),
        (struct.pack("<2f", 1.0, math.nan), "f32-delta", NotFiniteError, "nan"),
        (bytes(MAX_UPDATE_BYTES + 4), "f32-delta", TooLargeError, "1.5 MiB"),
    ],
)
def test_what_cannot_be_averaged_is_refused_with_the_reason(data, name, error, text) -> None:
    with pytest.raises(error, match=text.replace(".", r"\.")):
        parse(data, name)


def test_the_largest_update_is_read() -> None:
    assert parse(bytes(MAX_UPDATE_BYTES), "f32-delta").layout.count == MAX_UPDATE_BYTES // 4


def test_updates_of_different_models_are_not_mixed() -> None:
    for other in (vector(1.0, 2.0, 3.0), vector(1.0, 2.0, form=Format.F32_DELTA), parse(b'{"w": [1, 2]}', "")):
        with pytest.raises(MismatchError, match="not of the same model"):
            average([(vector(1.0, 2.0), 1), (other, 1)])


@pytest.mark.parametrize("count", [0, -1, 2**63])
def test_an_update_from_an_impossible_number_of_samples_is_refused(count) -> None:
    with pytest.raises(NoSamplesError, match="num_samples"):
        average([(vector(1.0), 5), (vector(1.0), count)])


def test_nothing_has_no_mean() -> None:
    with pytest.raises(NoSamplesError):
        average([])


def test_changes_add_up_and_whole_parameters_replace() -> None:
    change = vector(0.5, -1.0, form=Format.F32_DELTA)
    assert advance(None, change) == change
    assert advance(change, change) == vector(1.0, -2.0, form=Format.F32_DELTA)
    assert advance(vector(10.0, 10.0), change) == vector(10.5, 9.0)
    assert advance(vector(10.0, 10.0), vector(1.0, 2.0)) == vector(1.0, 2.0)


def test_changes_of_another_model_are_not_added() -> None:
    with pytest.raises(MismatchError):
        advance(vector(1.0), vector(1.0, 2.0, form=Format.F32_DELTA))


def test_a_global_update_that_grows_beyond_its_format_is_refused() -> None:
    most = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
    change = vector(most, form=Format.F32_DELTA)
    with pytest.raises(NotFiniteError, match="single precision"):
        render(advance(change, change))


def test_a_mean_that_is_longer_than_allowed_when_written_is_refused() -> None:
    ones, twos = vector(*[1.0] * 30_000), vector(*[2.0] * 30_000)
    with pytest.raises(TooLargeError, match="f32-delta"):
        render(average([(ones, 1), (twos, 2)]))


def test_most_updates_say_what_the_model_is_and_of_equals_the_first() -> None:
    odd, usual = vector(1.0), vector(1.0, 2.0)
    assert common_layout([odd, usual, usual], None) == usual.layout
    assert common_layout([odd, usual], None) == odd.layout
    assert common_layout([odd, odd, usual], vector(3.0, 4.0)) == usual.layout
    assert common_layout([odd], usual) is None
    assert common_layout([], None) is None
