"""WAVE text as values of component functions: one pass over the tokens, led by the type, everything checked.

Source: bytecodealliance/wasm-tools, crates/wasm-wave (README.md, wave_ebnf.md, src/lex.rs, src/parser.rs, src/ast.rs).
What the reference accepts is accepted, its forgiveness of a missing comma in records and flags included; but a field
that the record does not have is an error here, while the reference drops it. As deep as the type, never deeper.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, assert_never

from proplet.agent import host_values
from proplet.agent.wave_values import KEYWORDS, Case, Err, Ok, Some, Value, WaveError, shorten
from proplet.agent.wit import (
    INTEGERS,
    LABEL,
    EnumOf,
    FlagsOf,
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

LONGEST_TEXT: Final = 4 * 1024 * 1024  # characters
MOST_VALUES: Final = 2 * 1024 * 1024  # in one text; a field that was left out counts

# Possessive quantifiers throughout: no text makes the search go back. A string's escapes are checked later.
_TOKEN: Final = re.compile(
    rf"""(?:[ \t\n\r]++|//[^\n]*+)*+
    (?: (?P<mark>[][{{}}():,])
      | (?P<number>-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?|-inf)
      | (?P<label>%?{LABEL})
      | (?P<lines>\"\"\"(?s:.*?)\"\"\")
      | (?P<string>"(?!\"\")(?:[^\\"\n]++|\\.)*+")
      | (?P<char>'(?:[^\\'\n]|\\[^\n][^'\n]*+)')
      | (?P<wrong>[^ \t\n\r]) )""",
    re.VERBOSE,
)
_ESCAPE: Final = re.compile(r"\\(?:(['\"tnr\\])|u\{([0-9a-fA-F]{1,6})\}|(?:u\{?)?.?)", re.DOTALL)
_ESCAPES: Final = {"t": "\t", "n": "\n", "r": "\r"}
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_WHOLE: Final = re.compile("-?[0-9]+")
_NAMES_TOLD: Final = 20


def parse(text: str, kind: Type) -> Value:
    """Return the value of the type `kind` that `text` is in WAVE.

    Raises:
        WaveError: it is no such value; or longer than `LONGEST_TEXT`; or of more than `MOST_VALUES` values.
    """
    if len(text) > LONGEST_TEXT:
        raise WaveError(f"the text has {len(text)} characters; {LONGEST_TEXT} are allowed")
    if not text.isascii() and (half := _SURROGATE.search(text)):
        raise WaveError(f"half a surrogate pair at character {half.start() + 1}: the text is not Unicode")
    reader = _Reader(text)
    value = reader.value(kind)
    if not reader.at_end:
        raise reader.error(f"nothing more was expected after the {_brief(kind)}")
    return value


class _Reader:
    """The tokens of a text, one seen ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._next = self._start = self._values = 0
        self._kind = self._seen = ""
        self._advance()

    @property
    def at_end(self) -> bool:
        return self._kind == "end"

    def value(self, kind: Type) -> Value:
        """Read a value of the type `kind`."""
        self._count(1)
        match kind:
            case Primitive(name):
                return self._primitive(name)
            case ListOf(element):
                return self._list(kind, element)
            case TupleOf():
                return self._tuple(kind)
            case OptionOf(some):
                return self._option(kind, some)
            case ResultOf():
                return self._result(kind)
            case RecordOf():
                return self._record(kind)
            case VariantOf():
                return self._variant(kind)
            case EnumOf():
                return self._case(kind.places)
            case FlagsOf():
                return self._flags(kind)
            case Handle() | Unsupported():
                raise WaveError(f"a value of the type {_brief(kind)} cannot be given as text")
            case _:
                assert_never(kind)

    def error(self, expected: str) -> WaveError:
        """Return the error that says what was expected, and what the next token is instead."""
        found = "the end" if self.at_end else repr(shorten(self._seen))
        hint = _HINTS.get(self._seen, "") if self._kind == "wrong" else ""
        return WaveError(f"{expected}, found {found} at character {self._start + 1}{hint}")

    def _advance(self) -> str:
        """Return the next token and look at the one after it."""
        piece = self._seen
        if match := _TOKEN.match(self._text, self._next):
            self._kind = str(match.lastgroup)
            self._start, self._next = match.span(self._kind)
            self._seen = self._text[self._start : self._next]
        else:
            self._kind, self._seen, self._start = "end", "", len(self._text)
        return piece

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise WaveError(f"the text has more than {MOST_VALUES} values")

    def _expect(self, mark: str, where: str, kind: Type | None = None) -> None:
        if self._seen != mark:
            raise self.error(f"expected {mark!r} {where}{'' if kind is None else f' {_brief(kind)}'}")
        self._advance()

    def _primitive(self, name: str) -> Value:
        start, kind = self._start, self._kind
        if name in INTEGERS:
            return self._integer(name, *INTEGERS[name])
        if name == "bool" and self._seen in {"true", "false"}:
            return self._advance() == "true"
        if name in {"f32", "f64"} and (kind == "number" or self._seen in {"inf", "nan"}):
            return float(host_values.parse(self._advance(), name))
        if name == "char" and kind == "char":
            character = _unescape(self._advance()[1:-1], start)
            if len(character) != 1:
                raise WaveError(f"more than one character in the char at character {start + 1}")
            return character
        if name == "string" and kind == "string":
            return _unescape(self._advance()[1:-1], start)
        if name == "string" and kind == "lines":
            return _unescape(_dedent(self._advance()[3:-3], start), start)
        raise self.error(f"expected {_EXAMPLES[name]}")

    def _integer(self, name: str, low: int, high: int) -> int:
        digits = self._seen
        # Twenty digits are out of every range; Rust reads no sign into an unsigned number, not even that of -0.
        if self._kind == "number" and len(digits) <= 20 and _WHOLE.fullmatch(digits) and (low or digits[0] != "-"):
            number = int(digits)
            if low <= number <= high:
                self._advance()
                return number
        raise self.error(f"expected a {name}, a whole number from {low} to {high}")

    def _list(self, kind: ListOf, element: Type) -> Value:
        self._expect("[", "to begin a", kind)
        return [self.value(element) for _ in self._items("]", "in the list")]

    def _tuple(self, kind: TupleOf) -> Value:
        start = self._start
        self._expect("(", "to begin a", kind)
        parts, wanted = [], iter(kind.parts)
        for _ in self._items(")", "in the tuple"):
            if (part := next(wanted, None)) is None:
                raise self.error(f"expected no more than {len(kind.parts)} values in the tuple")
            parts.append(self.value(part))
        if len(parts) != len(kind.parts):
            raise WaveError(f"the tuple at character {start + 1} has {len(parts)} values, expected {len(kind.parts)}")
        return tuple(parts)

    def _items(self, closing: str, where: str, commas: bool = True) -> Iterator[None]:
        """Let the caller read an item each time until `closing`; a comma may follow the last."""
        while self._seen != closing:
            yield
            if self._seen == ",":
                self._advance()
            elif self._seen != closing and commas:
                raise self.error(f"expected ',' or {closing!r} {where}")
        self._advance()

    def _option(self, kind: OptionOf, some: Type) -> Value:
        if self._seen == "none":
            self._advance()
            return None
        if self._seen == "some":
            self._advance()
            return Some(self._payload(some, "some"))
        if isinstance(some, OptionOf | ResultOf):
            raise self.error(f"expected some(...) or none for an {_brief(kind)}")
        return Some(self.value(some))

    def _result(self, kind: ResultOf) -> Value:
        if self._seen in {"ok", "err"}:
            label = self._advance()
            payload = self._payload(kind.ok if label == "ok" else kind.err, label)
            return Ok(payload) if label == "ok" else Err(payload)
        if kind.ok is None or isinstance(kind.ok, OptionOf | ResultOf):
            raise self.error(f"expected ok or err for a {_brief(kind)}")
        return Ok(self.value(kind.ok))

    def _variant(self, kind: VariantOf) -> Value:
        name = self._case(kind.by_name)
        return Case(name, self._payload(kind.by_name[name], name))

    def _payload(self, kind: Type | None, label: str) -> Value:
        if kind is None:
            if self._seen == "(":
                raise self.error(f"{label} takes no value")
            return None
        self._expect("(", f"after {label}, which takes a", kind)
        value = self.value(kind)
        self._expect(")", f"after the value of {label}")
        return value

    def _record(self, kind: RecordOf) -> Value:
        start = self._start
        self._expect("{", "to begin a", kind)
        found: dict[str, Value] = {}
        if self._seen == ":":
            self._advance()
            self._expect("}", "after ':' in a record without fields")
        elif self._seen == "}":
            raise self.error("expected a field; a record without any is written {:}")
        else:
            for _ in self._items("}", "in the record", commas=False):
                name = self._name("field", kind.by_name, found)
                self._expect(":", f"after the field {name}")
                found[name] = self.value(kind.by_name[name])
        for name, part in kind.fields:
            if name not in found and not isinstance(part, OptionOf):
                raise WaveError(f"the record at character {start + 1} lacks the field {name}, a {_brief(part)}")
        self._count(len(kind.fields) - len(found))
        return {name: found.get(name) for name, _ in kind.fields}

    def _flags(self, kind: FlagsOf) -> Value:
        self._expect("{", "to begin", kind)
        found: dict[str, Value] = {}
        for _ in self._items("}", "in the flags", commas=False):
            found[self._name("flag", kind.places, found)] = None
        return frozenset(found)

    def _case(self, allowed: Iterable[str]) -> str:
        if self._seen in KEYWORDS and self._seen in allowed:
            raise self.error(f"the case {self._seen} is also a keyword, write %{self._seen}")
        return self._name("case", () if self._seen in KEYWORDS else allowed, (), allowed)

    def _name(self, what: str, allowed: Iterable[str], taken: Iterable[str], told: Iterable[str] = ()) -> str:
        name = self._seen.removeprefix("%")
        if self._kind != "label" or name not in allowed:
            raise self.error(f"expected a {what} of {_among(told or allowed)}")
        if name in taken:
            raise self.error(f"expected the {what} {name} only once")
        self._advance()
        return name


_EXAMPLES: Final = {
    "bool": "true or false",
    "f32": "an f32, such as 1.5, -2e10, nan, inf or -inf",
    "f64": "an f64, such as 1.5, -2e10, nan, inf or -inf",
    "char": "a char in single quotes, such as 'x' or '\\u{2603}'",
    "string": 'a string in double quotes, such as "text"',
}


_HINTS: Final = {
    '"': "; the string does not end, or a line break in it is not written \\n",
    "'": "; a char is one character in single quotes, with \\' \\\\ \\n for those three",
}


def _unescape(text: str, start: int) -> str:
    """Return `text` with its escapes replaced; `start` is where it begins, for the message."""
    return _ESCAPE.sub(lambda match: _unescaped(match, start), text) if "\\" in text else text


def _unescaped(match: re.Match[str], start: int) -> str:
    simple, code = match.groups()
    if simple:
        return _ESCAPES.get(simple, simple)
    if code and not 0xD800 <= (scalar := int(code, 16)) < 0xE000 and scalar <= 0x10FFFF:
        return chr(scalar)
    raise WaveError(
        f"{match.group()!r} in the text at character {start + 1} is no escape; "
        r"""there are \' \" \\ \t \n \r and \u{...}, a Unicode scalar value in hexadecimal"""
    )


def _dedent(text: str, start: int) -> str:
    r"""Return the lines between the line of the opening \"\"\" and that of the closing one, without its indent."""
    first, *lines = text.removeprefix("\r").split("\n")
    if first or not lines:
        raise WaveError(f'a line break must follow the opening """ at character {start + 1}')
    indent = lines.pop()
    if indent.strip(" "):
        raise WaveError(f'only blanks may precede the closing """ of the text at character {start + 1}')
    if any(not line.startswith(indent) for line in lines):
        raise WaveError(
            f'every line of the text at character {start + 1} must be indented as its closing """ is, '
            f"by {len(indent)} blanks"
        )
    return "\n".join(line.removeprefix(indent).removesuffix("\r") for line in lines)


def _brief(kind: Type) -> str:
    return shorten(str(kind))


def _among(names: Iterable[str]) -> str:
    every = list(names)
    told = ", ".join(every[:_NAMES_TOLD])
    return told if len(every) <= _NAMES_TOLD else f"{told} and {len(every) - _NAMES_TOLD} more"
