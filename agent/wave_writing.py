"""Values of component functions as WAVE text, written exactly as the reference writes them.

Source: bytecodealliance/wasm-tools, crates/wasm-wave/src/writer.rs. It takes numbers from Rust's ``Display`` (but
``nan`` for a NaN), and characters from ``char::escape_debug``: what would not print, and what would merge with the
character before it, is escaped. Which characters those are follows Python's edition of Unicode; one that is newer than
this edition is escaped here, and reads back as the same.
"""

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import repeat
from typing import Final
from unicodedata import category

from proplet.agent import host_values
from proplet.agent.wave_values import KEYWORDS, Case, Err, Ok, Some, Value, WaveError, shorten
from proplet.agent.wit import (
    INTEGERS,
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

_PLAIN: Final = re.compile(r"[ !#-&(-\[\]-~]*+")
_ESCAPED: Final = {"\t": "\\t", "\r": "\\r", "\n": "\\n", "'": "\\'", '"': '\\"', "\\": "\\\\"}


def _ranges(text: str) -> frozenset[str]:
    bounds = (part.partition("-") for part in text.split())
    return frozenset(chr(code) for low, _, high in bounds for code in range(int(low, 16), int(high or low, 16) + 1))


# Unicode's Grapheme_Extend but the marks (Mn, Me) and what is not printed anyway: PropList.txt, Other_Grapheme_Extend;
# and the four Hangul fillers, which show nothing (measured: wasmtime 49)
_UNSEEN: Final = _ranges(
    "9be 9d7 b3e b57 bbe bd7 cc0 cc2 cc7-cc8 cca-ccb cd5-cd6 d3e d57 dcf ddf 1715 1734 1b35 1b3b 1b3d 1b43-1b44 1baa "
    "1bf2-1bf3 302e-302f a953 a9c0 ff9e-ff9f 111c0 11235 1133e 1134d 11357 113b8 113c2 113c5 113c7-113c9 113cf 114b0 "
    "114bd 115af 116b6 11930 1193d 11f41 16ff0-16ff1 1d165-1d166 1d16d-1d172 "
    "115f-1160 3164 ffa0"
)


def show(value: Value, kind: Type) -> str:
    """Return `value` of the type `kind` as WAVE text.

    Raises:
        WaveError: it is no such value, or values of this type have no text.
    """
    pieces: list[str] = []
    _write(value, kind, pieces)
    return "".join(pieces)


def _write(value: Value, kind: Type, out: list[str]) -> None:
    match kind:
        case Primitive():
            out.append(_primitive(value, kind))
        case ListOf(element) if isinstance(value, list):
            _sequence("[", value, repeat(element), "]", out)
        case TupleOf(parts) if isinstance(value, tuple) and len(value) == len(parts):
            _sequence("(", value, parts, ")", out)
        case OptionOf() if value is None:
            out.append("none")
        case OptionOf(some) if isinstance(value, Some):
            _with_payload("some", value.value, some, out)
        case ResultOf(ok, _) if isinstance(value, Ok):
            _with_payload("ok", value.value, ok, out)
        case ResultOf(_, err) if isinstance(value, Err):
            _with_payload("err", value.value, err, out)
        case RecordOf() if isinstance(value, dict) and value.keys() == kind.by_name.keys():
            _record(value, kind, out)
        case VariantOf() if isinstance(value, Case) and value.name in kind.by_name:
            _with_payload(_label(value.name), value.payload, kind.by_name[value.name], out)
        case EnumOf() if isinstance(value, str) and value in kind.places:
            out.append(_label(value))
        case FlagsOf() if isinstance(value, frozenset) and value <= kind.places.keys():
            out.append(f"{{{', '.join(sorted(value, key=kind.places.__getitem__))}}}")
        case Handle() | Unsupported():
            raise WaveError(f"a value of the type {shorten(str(kind))} cannot be written as text")
        case _:
            raise _misfit(value, kind)


def _primitive(value: Value, kind: Primitive) -> str:
    name = kind.name
    if name in INTEGERS:
        low, high = INTEGERS[name]
        if type(value) is int and low <= value <= high:
            return str(value)
    elif name == "bool":
        if isinstance(value, bool):
            return "true" if value else "false"
    elif name in {"f32", "f64"}:
        if isinstance(value, float):
            number = host_values.single(value) if name == "f32" else value
            return "nan" if math.isnan(number) else host_values.show(number, name)
    elif isinstance(value, str):
        if name == "string":
            return f'"{_escape(value)}"'
        if len(value) == 1:
            return f"'{_escape(value)}'"
    raise _misfit(value, kind)


def _sequence(opening: str, items: Iterable[Value], kinds: Iterable[Type], closing: str, out: list[str]) -> None:
    out.append(opening)
    for place, (item, kind) in enumerate(zip(items, kinds, strict=False)):
        if place:
            out.append(", ")
        _write(item, kind, out)
    out.append(closing)


def _record(value: Mapping[str, Value], kind: RecordOf, out: list[str]) -> None:
    """Write the fields in their order, but no option that is none; a record without any field is ``{:}``."""
    opening = "{"
    for name, part in kind.fields:
        if value[name] is None and isinstance(part, OptionOf):
            continue
        out.append(f"{opening}{name}: ")
        _write(value[name], part, out)
        opening = ", "
    out.append("{:}" if opening == "{" else "}")


def _with_payload(label: str, payload: Value, kind: Type | None, out: list[str]) -> None:
    out.append(label)
    if kind is not None:
        out.append("(")
        _write(payload, kind, out)
        out.append(")")
    elif payload is not None:
        raise WaveError(f"{label} has no value, but was given {_told(payload)}")


def _label(name: str) -> str:
    return f"%{name}" if name in KEYWORDS else name


def _escape(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else "".join(map(_escape_character, text))


@lru_cache(maxsize=1024)
def _escape_character(character: str) -> str:
    if escaped := _ESCAPED.get(character):
        return escaped
    kind = category(character)
    if kind == "Cs":
        raise WaveError("a text with half a surrogate pair is not Unicode")
    if kind in {"Mn", "Me"} or character in _UNSEEN or not character.isprintable():
        return f"\\u{{{ord(character):x}}}"
    return character


def _misfit(value: Value, kind: Type) -> WaveError:
    return WaveError(f"{_told(value)} is not of the type {shorten(str(kind))}")


def _told(value: Value) -> str:
    """Return a few words about any value, even one whose repr would be endless."""
    if isinstance(value, str):
        return repr(shorten(value))
    if isinstance(value, float) or (isinstance(value, int) and value.bit_length() <= 128):
        return repr(value)
    return f"a Python {type(value).__name__}"
