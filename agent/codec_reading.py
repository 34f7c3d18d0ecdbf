"""How the codec reads: one reader per type, put together once per message class from its fields.

Tolerant: unknown fields are ignored, null stands for the default, a field is found under any of its names. What has the
wrong type is a ValueError that names the field.
"""

import base64
import binascii
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from typing import Any

from proplet.agent import wire

_INT64 = range(-(2**63), 2**64)
_GO_NANOSECONDS = 1e9
# What RFC 3339 can write: the years 1 to 9998, a time zone's width away from the ends.
_EARLIEST = datetime(1, 1, 2, tzinfo=UTC).timestamp()
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()

Reader = Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    names: tuple[str, ...]
    read: Reader
    required: bool


@cache
def _plan(kind: type) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(kind)
    return tuple(
        _Field(
            name=f.name,
            names=f.metadata.get("names", (f.name,)),
            read=_SPECIAL[f.metadata["kind"]] if "kind" in f.metadata else _reader(hints[f.name]),
            required=f.default is MISSING and f.default_factory is MISSING,
        )
        for f in fields(kind)
    )


def read(kind: type, raw: Any, where: str = "") -> Any:
    """Return a value of the class `kind` from parsed JSON or CBOR; `where` names it in errors.

    Raises:
        ValueError: a field is missing or has the wrong type; the text names it.
        RecursionError: it is nested too deeply.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{where or 'the message'} must be an object, not {_kind_of(raw)}")
    values = {}
    for f in _plan(kind):
        for name in f.names:
            value = raw.get(name)
            if value is not None:
                values[f.name] = f.read(value, f"{where}.{name}" if where else name)
                break
        else:
            if f.required:
                raise ValueError(f"{where + '.' if where else ''}{f.names[0]} is required")
    return kind(**values)


def _kind_of(value: Any) -> str:
    return {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }.get(type(value), type(value).__name__)


def read_text(value: Any, where: str) -> str:
    """Return a string that UTF-8 can hold. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a string, not {_kind_of(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON's escapes can spell what no UTF-8 can hold; nothing behind us could keep it
            raise ValueError(f"{where} is no Unicode text: half of a surrogate pair stands alone") from None
    return value


def _read_bool(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where} must be true or false, not {_kind_of(value)}")
    return value


def _read_int(value: Any, where: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or value not in _INT64:
        raise ValueError(f"{where} must be a whole number of at most 64 bits, not {_kind_of(value)}")
    return value


def _read_float(value: Any, where: str) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{where} must be a number, not {_kind_of(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where} must be a finite number")
    return number


def _read_bytes(value: Any, where: str) -> bytes:
    if isinstance(value, bytes):  # CBOR
        return value
    try:
        return base64.b64decode(read_text(value, where), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{where} is not standard base64: {error}") from error


def _read_any(value: Any, where: str) -> Any:
    """Whatever JSON can tell, and bytes; CBOR has dates, sets, tags and cycles besides."""
    if isinstance(value, list):
        return [_read_any(v, where) for v in value]
    if isinstance(value, dict):
        return {read_text(k, f"a key in {where}"): _read_any(v, where) for k, v in value.items()}
    if isinstance(value, float):
        return _read_float(value, where)
    if value is None or isinstance(value, (str, bool, int, bytes)):
        return value
    raise ValueError(f"{where} has a value that JSON does not have, {_kind_of(value)}")


def _reader(hint: Any) -> Reader:
    """The reader of a type, built once per field."""
    simple: dict[Any, Reader] = {
        str: read_text,
        bool: _read_bool,
        int: _read_int,
        float: _read_float,
        bytes: _read_bytes,
        Any: _read_any,
    }
    if hint in simple:
        return simple[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (a for a in args if a is not types.NoneType)
        return _reader(inner)
    if origin is tuple:
        return _sequence(_reader(args[0]))
    if origin is Mapping:
        return _string_mapping(_reader(args[1]))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _member(hint)
    if is_dataclass(hint):
        return lambda value, where: read(typing.cast("type", hint), value, where)
    raise TypeError(f"no reader for {hint}")  # a mistake in wire.py, found by the first test that imports it


def _sequence(item: Reader) -> Reader:
    def read(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, not {_kind_of(value)}")
        return tuple(item(v, f"{where}[{i}]") for i, v in enumerate(value))

    return read


def _string_mapping(item: Reader) -> Reader:
    def read(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, not {_kind_of(value)}")
        return {read_text(k, where): item(v, f"{where}.{k}") for k, v in value.items()}

    return read


def _member(kind: type[Enum]) -> Reader:
    def read(value: Any, where: str) -> Enum:
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(str(m.value) for m in kind)
            raise ValueError(f"{where} is {value!r}; it must be one of {known}") from None

    return read


def _read_attempt(value: Any, where: str) -> int:
    number = _read_int(value, where)
    if not 0 <= number <= wire.ATTEMPT_MAX:
        raise ValueError(f"{where} is {number}, it must be from 0 to {wire.ATTEMPT_MAX}")
    return number


def _read_reason(value: Any, where: str) -> wire.Reason:
    """A newer peer's reason is not an error: what happened stands in the text as well."""
    text = read_text(value, where)
    return next((r for r in wire.Reason if r.value == text), wire.Reason.INTERNAL)


def _read_scalars(value: Any, where: str) -> tuple[str, ...]:
    """`inputs`: strings since the reference's second era, numbers in its first; any scalar is taken as its text."""
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list, not {_kind_of(value)}")
    return tuple(scalar_text(v, f"{where}[{i}]") for i, v in enumerate(value))


def scalar_text(value: Any, where: str) -> str:
    """Return an input as its text: numbers in decimal, booleans as true and false.

    Raises:
        ValueError: it is a list, an object or null.
    """
    if isinstance(value, str):
        return read_text(value, where)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    raise ValueError(f"{where} must be a number or a string, not {_kind_of(value)}")


def _read_timestamp(value: Any, where: str) -> float:
    seconds = _seconds(value, where)
    if not _EARLIEST <= seconds < _LATEST:
        raise ValueError(f"{where} is a time that no calendar has")
    return seconds


def _seconds(value: Any, where: str) -> float:
    if isinstance(value, dict):  # Rust's SystemTime
        seconds = _read_int(value.get("secs_since_epoch"), f"{where}.secs_since_epoch")
        return seconds + _read_int(value.get("nanos_since_epoch", 0), f"{where}.nanos_since_epoch") / 1e9
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"{where} is no RFC 3339 time: {value!r}") from error
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return _read_float(value, where)


def _read_interval(value: Any, where: str) -> float:
    number = _read_float(value, where)
    return number / _GO_NANOSECONDS if number >= _GO_NANOSECONDS else number


def _read_results(value: Any, where: str) -> str | wire.FederatedUpdate:
    """A federated update as proplets of the reference word it; every other form stays text, for who looks into it."""
    if isinstance(value, dict) and {"task_id", "round_id", "update_b64"} <= value.keys():
        try:
            return typing.cast("wire.FederatedUpdate", read(wire.FederatedUpdate, value, where))
        except ValueError:
            pass  # it is wrong, or another client's wording; the result as such is none the worse
    return _read_result_text(value, where)


def _read_result_text(value: Any, where: str) -> str:
    """Results are text; a peer that sends another JSON value is taken at its JSON."""
    try:
        return value.encode(errors="replace").decode() if isinstance(value, str) else json.dumps(value, default=str)
    except TypeError as error:  # CBOR's keys can be anything
        raise ValueError(f"{where} has no JSON form: {error}") from None


_SPECIAL: dict[str, Reader] = {
    "scalars": _read_scalars,
    "timestamp": _read_timestamp,
    "interval": _read_interval,
    "results": _read_results,
    "text": _read_result_text,
    "reason": _read_reason,
    "attempt": _read_attempt,
}
