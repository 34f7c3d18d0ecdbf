"""WAVE text of component values: the examples of its specification, and what the reference answers to them.

The tables are from bytecodealliance/wasm-tools (crates/wasm-wave: README.md, tests/ui), or were measured with `wasmtime
run --invoke` of wasmtime 49 on a component that returns its argument.
"""

import math

import pytest

from proplet.agent.wave import Case, Err, Ok, Some, Value, WaveError, parse, parse_all, show
from proplet.agent.wit import (
    EnumOf,
    FlagsOf,
    Function,
    Handle,
    ListOf,
    OptionOf,
    Primitive,
    RecordOf,
    ResultOf,
    TupleOf,
    Type,
    Unsupported,
    VariantOf,
)

BOOL, U8, S8, U64, S64, F32, F64, CHAR, STRING = map(
    Primitive, ["bool", "u8", "s8", "u64", "s64", "f32", "f64", "char", "string"]
)
KEYWORDS = ("true", "false", "some", "none", "ok", "err", "inf", "nan")
BASIC = RecordOf((("required", U8), ("optional", OptionOf(U8))))
OPTIONAL = RecordOf((("a", OptionOf(U8)), ("b", OptionOf(U8))))
HAND, KEYWORD_ENUM, PERMISSIONS = EnumOf(("left", "right")), EnumOf(KEYWORDS), FlagsOf(("read", "write"))
VARIANT = VariantOf((("ok", U8), ("plain", None), ("none", None)))
KEYWORD_RECORD = RecordOf((("true", BOOL), ("ok", ResultOf(None, None))))
BLANKS = "\x7f\u00a0\u00ad\u200d\ufeff\u2028"  # would not be seen
MARKS = "e\u0301 \ufe0f \u09be \u3164 \ue000"  # would merge with what stands before them, or not be seen

VALUES: list[tuple[Type, str, Value, str]] = [
    (BOOL, "true", True, "true"),
    (BOOL, "false", False, "false"),
    (U8, "255", 255, "255"),
    (S8, "-0", 0, "0"),
    (S64, "-9223372036854775808", -(2**63), "-9223372036854775808"),
    (U64, "18446744073709551615", 2**64 - 1, "18446744073709551615"),
    (F32, "0.000e100", 0.0, "0"),
    (F32, "-0.0e-0", -0.0, "-0"),
    (F32, "-3.1415", -3.1414999961853027, "-3.1415"),
    (F32, "-100000", -100000.0, "-100000"),
    (F32, "3.4028234664123e38", 3.4028234663852886e38, "340282350000000000000000000000000000000"),
    (F32, "3.4028234664e39", math.inf, "inf"),
    (F32, "1.4012984643e-45", 2**-149, "0.000000000000000000000000000000000000000000001"),
    (F32, "1.4012984643e-46", 0.0, "0"),
    (F32, "16777217", 16777216.0, "16777216"),
    (F64, "-inf", -math.inf, "-inf"),
    (F64, "6.022e+23", 6.022e23, "602200000000000000000000"),
    (F64, "1e-7", 1e-7, "0.0000001"),
    (CHAR, "'x'", "x", "'x'"),
    (CHAR, r"'\''", "'", r"'\''"),
    (CHAR, "'\"'", '"', r"'\"'"),
    (CHAR, r"'\u{0}'", "\0", r"'\u{0}'"),
    (CHAR, r"'\u{000078}'", "x", "'x'"),
    (CHAR, r"'\u{1F44B}'", "👋", "'👋'"),
    (CHAR, "'\t'", "\t", r"'\t'"),
    (STRING, '""', "", '""'),
    (STRING, '"WAVE🌊"', "WAVE🌊", '"WAVE🌊"'),
    (STRING, r'"\\\'\"\t\n\r"', "\\'\"\t\n\r", r'"\\\'\"\t\n\r"'),
    (STRING, r'"☃\u{2603}\u{002603}"', "☃☃☃", '"☃☃☃"'),
    (STRING, '"é // no comment"', "é // no comment", '"é // no comment"'),
    (STRING, f'"{BLANKS}"', BLANKS, r'"\u{7f}\u{a0}\u{ad}\u{200d}\u{feff}\u{2028}"'),
    (STRING, f'"{MARKS}"', MARKS, r'"e\u{301} \u{fe0f} \u{9be} \u{3164} \u{e000}"'),
    (STRING, '"""\n"""', "", '""'),
    (STRING, '"""\nA single line\n"""', "A single line", '"A single line"'),
    (STRING, '"""\r\na\r\nb\\r\r\n"""', "a\nb\r", r'"a\nb\r"'),
    (STRING, '"""\n    Indentation\n      by\n  """', "  Indentation\n    by", r'"  Indentation\n    by"'),
    (STRING, '"""\n  Break up: ""\\""\n  """', 'Break up: """"', r'"Break up: \"\"\"\""'),
    (STRING, '"""\n\nkept\n\n"""', "\nkept\n", r'"\nkept\n"'),
    (TupleOf((STRING, U8)), '("abc", 123,)', ("abc", 123), '("abc", 123)'),
    (ListOf(U8), "[1, 2, 3]", [1, 2, 3], "[1, 2, 3]"),
    (ListOf(U8), " [ ] ", [], "[]"),
    (ListOf(CHAR), "['a','b',]", ["a", "b"], "['a', 'b']"),
    (BASIC, "{ required: 1 }", {"required": 1, "optional": None}, "{required: 1}"),
    (BASIC, "{optional: none, required: 1,}", {"required": 1, "optional": None}, "{required: 1}"),
    (BASIC, "{optional: 2, %required: 1}", {"required": 1, "optional": Some(2)}, "{required: 1, optional: some(2)}"),
    (BASIC, "{ // x\n required: 1 // }\n }", {"required": 1, "optional": None}, "{required: 1}"),
    (BASIC, "{required: 1 optional: 2}", {"required": 1, "optional": Some(2)}, "{required: 1, optional: some(2)}"),
    (OPTIONAL, "{:}", {"a": None, "b": None}, "{:}"),
    (OPTIONAL, "{ : }", {"a": None, "b": None}, "{:}"),
    (OPTIONAL, "{b: some(2)}", {"a": None, "b": Some(2)}, "{b: some(2)}"),
    (KEYWORD_RECORD, "{true: true, ok: ok}", {"true": True, "ok": Ok()}, "{true: true, ok: ok}"),
    (VARIANT, "plain", Case("plain"), "plain"),
    (VARIANT, "%plain", Case("plain"), "plain"),
    (VARIANT, "%ok(1)", Case("ok", 1), "%ok(1)"),
    (VARIANT, "%none", Case("none"), "%none"),
    (HAND, "left", "left", "left"),
    (HAND, "%left", "left", "left"),
    *((KEYWORD_ENUM, f"%{name}", name, f"%{name}") for name in KEYWORDS),
    (OptionOf(U8), "123", Some(123), "some(123)"),
    (OptionOf(U8), "some(123)", Some(123), "some(123)"),
    (OptionOf(U8), "none", None, "none"),
    (OptionOf(OptionOf(U8)), "none", None, "none"),
    (OptionOf(OptionOf(U8)), "some(none)", Some(None), "some(none)"),
    (OptionOf(OptionOf(U8)), "some(some(1))", Some(Some(1)), "some(some(1))"),
    (OptionOf(KEYWORD_ENUM), "%none", Some("none"), "some(%none)"),
    (ResultOf(U8, STRING), "123", Ok(123), "ok(123)"),
    (ResultOf(U8, STRING), 'err("oops")', Err("oops"), 'err("oops")'),
    (ResultOf(None, STRING), "ok", Ok(), "ok"),
    (ResultOf(None, None), "err", Err(), "err"),
    (PERMISSIONS, "{}", frozenset(), "{}"),
    (PERMISSIONS, "{ write, read, }", frozenset({"read", "write"}), "{read, write}"),
    (PERMISSIONS, "{%write read}", frozenset({"read", "write"}), "{read, write}"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "value", "shown"), VALUES)
def test_a_text_is_read_and_written_as_the_reference_does(kind: Type, text: str, value: Value, shown: str) -> None:
    read = parse(text, kind)
    assert read == value
    assert show(read, kind) == show(value, kind) == shown


def test_a_nan_has_no_sign() -> None:
    assert show(parse("nan", F32), F32) == show(-math.nan, F64) == "nan"


FAULTS: list[tuple[Type, str, str]] = [
    (BOOL, "%true", "expected true or false"),
    (BOOL, "1", "expected true or false, found '1' at character 1"),
    (U8, "256", "a whole number from 0 to 255"),
    (U8, "-1", "a whole number from 0 to 255"),
    (U8, "-0", "a whole number"),
    (U8, "1.0", "a whole number"),
    (U8, "1e1", "a whole number"),
    (U8, "01", "nothing more was expected"),
    (U8, "+1", "a whole number"),
    (U8, "0x1", "nothing more"),
    (U8, "9" * 5000, "a whole number"),
    (U8, "", "found the end"),
    (U8, "1 2", "nothing more was expected after the u8, found '2' at character 3"),
    (U8, "\xa01", "whole number"),
    (S8, "-129", "from -128 to 127"),
    *((F32, text, "") for text in ("-nan", "NaN", "infinity", "-Infinity", "Inf", "INF", "1.", ".5", "+1", '"1"')),
    *((CHAR, text, "")
        for text in ("''", "'ab'", "'☃☃'", r"'\n\n'", r"'\z'", r"'\x1f'", r"'\u1f'", r"'\u{1f'", "'e\u0301'")),
    *((CHAR, text, "")
        for text in (r"'\u{}'", r"'\u{x}'", r"'\u{12345678}'", r"'\u{110000}'", r"'\u{D800}'", "x", "'", "'x")),
    *((CHAR, text, "") for text in ("'\\'", "'''", "'\n'", '"x"')),
    (STRING, "hello", """a string in double quotes, such as "text", found 'hello'"""),
    (STRING, '"hello', "the string does not end"),
    (STRING, '"a\nb"', "a line break in it is not written"),
    (STRING, '"\\z"', "is no escape"),
    *((STRING, text, "")
        for text in (r'"\u{d800}"', r'"\u{d83d}\u{de00}"', r'"\u{ffffffff}"', r'"\u{-1}"', '"""', '"\\"')),
    *((STRING, text, "a line break must follow")
        for text in ('""""""', '""" """', '""""\n"""', '"""extra\n"""', '"""\r"""')),
    *((STRING, text, "only blanks may precede") for text in ('"""\nextra"""', '"""\n\t"""')),
    (STRING, '"""\n"""\n"""', "nothing more"),
    (STRING, '"""\n  a\n b\n  """', "must be indented"),
    (STRING, '"""\n  a\n\n  """', "must be indented"),
    (STRING, '"""\n\\\n"""', "is no escape"),
    (STRING, '"\ud800"', "half a surrogate pair at character 2"),
    *((TupleOf((U8, BOOL)), text, "")
        for text in ("()", "(1)", "(1, true, 2)", "(1 true)", "(1,,true)", "[1, true]", "(1, true")),
    *((ListOf(U8), text, "") for text in ("[", "[,]", "[1 2]", "[1,,2]", "[1", "1", "[256]", "[1)")),
    (BASIC, "{ optional: none }", "lacks the field required, a u8"),
    (BASIC, "{ required: 0, required: 0 }", "only once"),
    (BASIC, "{ required: 0, %required: 0 }", "only once"),
    (BASIC, "{ required: 0, other: 0 }", "expected a field of required, optional, found 'other'"),
    *((BASIC, text, "")
        for text in ("{ required: 0,, }", "{ , required: 0, }", "{ required 0 }", "{:}", "{required: 0", "{")),
    (OPTIONAL, "{}", "a record without any is written {:}"),
    (OPTIONAL, "{:,}", "expected '}'"),
    (VARIANT, "ok(1)", "is also a keyword, write %ok"),
    (VARIANT, "%ok", "expected '(' after ok, which takes a u8"),
    (VARIANT, "plain(1)", "plain takes no value"),
    (VARIANT, "plain()", "plain takes no value"),
    (VARIANT, "other", "expected a case of ok, plain, none, found 'other'"),
    *((KEYWORD_ENUM, name, f"write %{name}") for name in KEYWORDS),
    (HAND, "LEFT", "expected a case of left, right"),
    (HAND, "none", "expected a case of left, right"),
    (HAND, "left(1)", "nothing more"),
    *((OptionOf(U8), text, "")
        for text in ("some", "some()", "some(1,)", "none()", "some(none)", "ok(1)", "%some(1)", "256")),
    (OptionOf(OptionOf(U8)), "some(1)x", "nothing more"),
    (OptionOf(OptionOf(U8)), "1", "expected some(...) or none"),
    (ResultOf(U8, None), "ok", ""),
    (ResultOf(U8, None), "err(0)", "err takes no value"),
    (ResultOf(None, U8), "0", "expected ok or err"),
    (ResultOf(OptionOf(U8), U8), "1", "expected ok or err"),
    (ResultOf(None, None), "ok()", "ok takes no value"),
    (PERMISSIONS, "{ read, read }", "only once"),
    (PERMISSIONS, "{ read, execute }", "expected a flag of read, write, found 'execute'"),
    (PERMISSIONS, "{:}", "expected a flag"),
    (Handle(own=True, name="file"), "1", "cannot be given as text"),
    (ListOf(Unsupported("stream")), "[1]", "a value of the type stream cannot be given as text"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "words"), FAULTS)
def test_a_text_that_is_no_value_of_the_type_is_refused(kind: Type, text: str, words: str) -> None:
    with pytest.raises(WaveError) as failure:
        parse(text, kind)
    assert words in str(failure.value)


def test_a_long_list_of_names_is_not_told_whole() -> None:
    many = EnumOf(tuple(f"e{number}" for number in range(500)))
    with pytest.raises(WaveError, match=r"e18, e19 and 480 more, found 'x'"):
        parse("x", many)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (256, U8), (True, U8), (1.0, U8), (1, F32), ("ab", CHAR), ("\ud800", STRING), ("\ud800", CHAR), (1, BOOL),
        ((1,), ListOf(U8)), ([1], TupleOf((U8,))), ((1, 2), TupleOf((U8,))), (1, OptionOf(U8)), (1, ResultOf(U8, U8)),
        (Ok(1), ResultOf(None, U8)), (Ok(), ResultOf(U8, U8)), ({"required": 1}, BASIC), ("up", HAND), (10**999, U8),
        (frozenset({"x"}), PERMISSIONS), (Case("x"), VARIANT), (Case("plain", 1), VARIANT), (1, Handle(True, "file")),
    ],
)  # fmt: skip
def test_a_value_that_is_not_of_the_type_is_not_written(value: Value, kind: Type) -> None:
    with pytest.raises(WaveError):
        show(value, kind)


GREET = Function((("name", STRING), ("times", U8)), STRING)


def test_arguments_are_read_one_by_one() -> None:
    assert parse_all("greet", ['"Ada"', "3"], GREET) == ["Ada", 3]
    assert parse_all("tick", [], Function((), None)) == []


def test_a_wrong_number_of_arguments_is_told_as_the_reference_tells_it() -> None:
    with pytest.raises(WaveError, match=r"^Argument count mismatch for 'greet': expected 2 but got 1$"):
        parse_all("greet", ['"Ada"'], GREET)


def test_a_wrong_argument_names_the_export_the_text_and_the_parameter() -> None:
    with pytest.raises(WaveError) as failure:
        parse_all("a:b/c#greet", ['"Ada"', "many"], GREET)
    assert str(failure.value) == (
        "Failed to parse WAVE argument 'many' for export 'a:b/c#greet': "
        "expected a u8, a whole number from 0 to 255, found 'many' at character 1 (parameter times)"
    )
