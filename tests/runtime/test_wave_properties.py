"""WAVE text holds for every type and value; any other text is an error, quickly."""

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.wave import Case, Err, Ok, Some, WaveError, parse, show
from proplet.agent.wave_reading import LONGEST_TEXT, MOST_VALUES
from proplet.agent.wit import DEEPEST, EnumOf, ListOf, OptionOf, Primitive, RecordOf, TupleOf, Type
from tests.runtime.wave_strategies import types, values

# Hypothesis describes the strategies of a large type at length, and says so; nothing is wrong with it.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

_PIECES = [
    *"{}()[],:%'\"\\ \n\r\t-0123456789.eE",
    *(
        "true",
        "false",
        "some",
        "none",
        "ok",
        "err",
        "inf",
        "nan",
        "-inf",
        "some(",
        "ok(",
        '"""',
        "//",
        "\\u{",
        "a",
        "\ud800",
    ),
]


def _same(one: object, other: object) -> bool:
    """Compare as == does, but any NaN equals itself, and -0.0 differs from 0.0."""
    if isinstance(one, float) or type(one) is not type(other):
        return repr(one) == repr(other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, Some | Ok | Err):
        return _same(one.value, other.value)
    if isinstance(one, Case):
        return one.name == other.name and _same(one.payload, other.payload)
    return one == other


@given(st.data(), types())
def test_what_is_written_reads_back_as_the_same_value(data: st.DataObject, kind: Type) -> None:
    value = data.draw(values(kind))
    text = show(value, kind)
    again = parse(text, kind)
    assert _same(again, value)
    assert show(again, kind) == text


@given(st.data(), types())
def test_blanks_and_comments_between_tokens_change_nothing(data: st.DataObject, kind: Type) -> None:
    value = data.draw(values(kind))
    text = show(value, kind)
    assert show(parse(f" \t\r\n// {{\n{text} // [", kind), kind) == text


def _refusal(text: str, kind: Type) -> str | None:
    """Return why `text` is refused; if it is not, see that its value can be written, and read, and written alike."""
    try:
        value = parse(text, kind)
    except WaveError as error:
        return str(error)
    shown = show(value, kind)
    assert show(parse(shown, kind), kind) == shown
    return None


@given(types(), st.text() | st.lists(st.sampled_from(_PIECES)).map("".join))
def test_any_text_is_a_value_or_an_error(kind: Type, text: str) -> None:
    refusal = _refusal(text, kind)
    assert refusal is None or 0 < len(refusal) < 2000


@given(st.data(), types())
def test_a_text_with_a_fault_is_a_value_or_an_error(data: st.DataObject, kind: Type) -> None:
    text = show(data.draw(values(kind)), kind)
    place = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(place, min(len(text), place + 3)))
    _refusal(text[:place] + data.draw(st.sampled_from(["", *_PIECES])) + text[cut:], kind)


@given(types(), types(), st.data())
def test_a_value_of_another_type_is_written_or_refused(kind: Type, other: Type, data: st.DataObject) -> None:
    with suppress(WaveError):
        show(data.draw(values(other)), kind)


@pytest.mark.parametrize(
    ("opening", "closing"), [("[", "]"), ("(", ")"), ("some(", ")"), ("{a:", "}"), ("{%a: ", ",}")]
)
def test_the_deepest_type_is_read_and_written(opening: str, closing: str) -> None:
    kind: Type = Primitive("u8")
    for _ in range(DEEPEST):
        if opening == "[":
            kind = ListOf(kind)
        elif opening == "(":
            kind = TupleOf((kind,))
        else:
            kind = OptionOf(kind) if opening == "some(" else RecordOf((("a", kind),))
    value = parse(opening * DEEPEST + "1" + closing * DEEPEST, kind)
    assert parse(show(value, kind), kind) == value
    with pytest.raises(WaveError):
        parse(opening * 100_000, kind)


_STRING, _FLOAT = Primitive("string"), Primitive("f32")


@pytest.mark.parametrize(
    ("unit", "end", "kind"),
    [
        (" ", "x", _STRING),
        ("//\n", "/", _STRING),
        ('"', "", ListOf(_STRING)),
        ('"a', "", _STRING),
        ('\\"', "", _STRING),
        ('"\\x', "", _STRING),
        ('"""\n', "", _STRING),
        ("'", "", Primitive("char")),
        ("1", "", _FLOAT),
        ("0.1e", "", _FLOAT),
        ("a-", "", EnumOf(("a",))),
        ("a1", "B", EnumOf(("a",))),
        ("%", "", EnumOf(("a",))),
        ("-", "", _FLOAT),
    ],
)
def test_no_long_text_takes_long(unit: str, end: str, kind: Type) -> None:
    size = 1024 * 1024
    began = time.process_time()
    for text in (unit * (size // len(unit)) + end, '"' + unit * (size // len(unit)) + end):
        refusal = _refusal(text, kind)
        assert refusal is None or len(refusal) < 500
    assert time.process_time() - began < 5  # measured: 0.2 s at most; what goes back and forth takes hours


def test_a_text_beyond_the_limit_is_refused_unread() -> None:
    with pytest.raises(WaveError, match=r"has \d+ characters; \d+ are allowed"):
        parse('"' + "a" * LONGEST_TEXT + '"', _STRING)


def test_fields_left_out_count_so_that_a_short_text_cannot_fill_the_memory() -> None:
    wide = ListOf(RecordOf(tuple((f"f{number}", OptionOf(_FLOAT)) for number in range(3000))))
    with pytest.raises(WaveError, match=f"more than {MOST_VALUES} values"):
        parse("[" + "{:}," * 10_000 + "]", wide)
