"""Arguments and results as text, by the reference's rules."""

import math
import struct
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proplet.agent.host_values import ArgumentError, parse, parse_all, show, single


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("10", "i32", 10),
        ("+10", "i32", 10),
        ("-0", "i32", 0),
        ("007", "i32", 7),
        ("2147483647", "i32", 2**31 - 1),
        ("-2147483648", "i32", -(2**31)),
        ("9223372036854775807", "i64", 2**63 - 1),
        ("-9223372036854775808", "i64", -(2**63)),
        ("1e3", "f64", 1000.0),
        ("1E+3", "f32", 1000.0),
        (".5", "f64", 0.5),
        ("5.", "f64", 5.0),
        ("-inf", "f32", -math.inf),
        ("Infinity", "f64", math.inf),
        ("1e39", "f32", math.inf),
        ("1e400", "f64", math.inf),
        ("0.1", "f32", single(0.1)),
    ],
)
def test_a_number_within_the_range_is_read(text: str, kind: str, value: float) -> None:
    assert parse(text, kind) == value


@pytest.mark.parametrize(
    "text", ["", "+", "-", " 1", "1 ", "0x10", "1_000", "1.0", "1e3", "١", "--1", "+-1", "1\n", "nan", "0" * 101]
)
def test_what_is_no_whole_decimal_number_is_refused(text: str) -> None:
    for kind in ("i32", "i64"):
        with pytest.raises(ArgumentError, match="Failed to parse"):
            parse(text, kind)


@pytest.mark.parametrize("text", ["", ".", "e5", "+", " 1", "1 ", "0x1p3", "1_0", "1e", "1.5.2", "infinit", "١", "1\n"])
def test_what_is_no_decimal_float_is_refused(text: str) -> None:
    for kind in ("f32", "f64"):
        with pytest.raises(ArgumentError, match="Failed to parse"):
            parse(text, kind)


def test_a_number_out_of_range_is_refused_and_the_range_named() -> None:
    with pytest.raises(ArgumentError, match=r"'4294967295' as i32: .* from -2147483648 to 2147483647"):
        parse("4294967295", "i32")
    with pytest.raises(ArgumentError, match="9223372036854775807"):
        parse("9223372036854775808", "i64")


def test_types_without_a_text_form_are_refused() -> None:
    with pytest.raises(ArgumentError, match="Unsupported Wasm value type for arg '5'"):
        parse("5", "v128")


def test_a_wrong_number_of_arguments_is_refused_in_the_words_of_the_reference() -> None:
    text = "Argument count mismatch for function 'main': expected 2 arguments but got 1"
    with pytest.raises(ArgumentError, match=text):
        parse_all("main", ["1"], ["i32", "i32"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.0, "2"),
        (0.1, "0.1"),
        (-0.0, "-0"),
        (0.0, "0"),
        (1e22, "1" + "0" * 22),
        (1.5e-7, "0.00000015"),
        (123456.789, "123456.789"),
        (math.nan, "NaN"),
        (-math.nan, "NaN"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (5e-324, "0." + "0" * 323 + "5"),
    ],
)
def test_a_float_is_shown_as_rust_shows_it(value: float, text: str) -> None:
    assert show(value, "f64") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (16777216.0, "16777216"),
        (3.4028234663852886e38, "340282350000000" + "0" * 24),
        (1e-45, "0." + "0" * 44 + "1"),
    ],
)
def test_a_single_float_is_shown_with_the_digits_that_single_precision_needs(value: float, text: str) -> None:
    assert show(single(value), "f32") == text


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (1125899906842624.25, "f64", "1125899906842624.3"),
        (-1125899906842624.75, "f64", "-1125899906842624.8"),
        (3061734.25, "f32", "3061734.3"),
        (2097152.25, "f32", "2097152.3"),
    ],
)
def test_a_float_halfway_between_two_texts_is_shown_as_the_larger_one(value: float, kind: str, text: str) -> None:
    assert show(value, kind) == text


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_integer_survives_the_way_to_text_and_back(value: int) -> None:
    assert parse(show(value, "i64"), "i64") == value


@given(st.floats(allow_nan=False))
def test_a_float_survives_the_way_to_text_and_back(value: float) -> None:
    text = show(value, "f64")
    assert "e" not in text.lower()
    assert struct.pack("d", parse(text, "f64")) == struct.pack("d", value)


@given(st.floats(width=32, allow_nan=False))
@example(9.671406556917033e24)  # powers of two, where the gap below is half the gap above
@example(2.0**-126)
@example(2.0**-149)
def test_a_single_float_survives_the_way_to_text_and_back_and_no_shorter_text_would_do(value: float) -> None:
    text = show(value, "f32")
    assert struct.pack("f", parse(text, "f32")) == struct.pack("f", value)
    digits = text.replace(".", "").replace("-", "").strip("0")
    if math.isfinite(value) and len(digits) > 1:
        shorter = f"{abs(value):.{len(digits) - 2}e}"
        assert parse(shorter, "f32") != abs(value)


@given(st.integers(1, 10**25), st.integers(-60, 30))
@example(10000000596046447753906250000000000000000000000001, -49)
def test_single_precision_is_rounded_once_from_the_text(digits: int, exponent: int) -> None:
    exact = Fraction(digits) * Fraction(10) ** exponent
    value = parse(f"{digits}e{exponent}", "f32")
    if not math.isfinite(value):
        assert exact >= Fraction(2) ** 128 - Fraction(2) ** 103
        return
    bits = struct.unpack("I", struct.pack("f", value))[0]
    below = struct.unpack("f", struct.pack("I", max(bits - 1, 0)))[0]
    above = struct.unpack("f", struct.pack("I", bits + 1))[0]
    error = abs(exact - Fraction(value))
    assert error <= abs(exact - Fraction(below))
    if math.isfinite(above):
        assert error <= abs(exact - Fraction(above))


@given(st.text(max_size=30), st.sampled_from(["i32", "i64", "f32", "f64"]))
def test_any_text_is_either_a_value_or_an_argument_error(text: str, kind: str) -> None:
    try:
        value = parse(text, kind)
    except ArgumentError:
        return
    assert isinstance(value, float if kind.startswith("f") else int)
    if math.isfinite(value):
        assert parse(show(value, kind), kind) == value
