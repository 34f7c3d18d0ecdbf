"""The shapes of single values: text, numbers, sizes, times, inputs. Readers raise ValueError with what is wrong."""

import base64
import binascii
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from proplet.agent.codec import rfc3339
from proplet.manager import quantity
from proplet.manager.reading import Reading, Style, kind_of

_INT64: Final = range(-(2**63), 2**63)
_NANOSECONDS: Final = 1e9  # in a second
# A bare number in REST from here on counts nanoseconds, below it seconds: nobody means an interval of 11 days.
_MILLISECOND: Final = 1e6


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Plain:
    """A value that one function reads; it raises ValueError with what is wrong. `values`: all there are, if few."""

    convert: Callable[[Any], Any]
    render: Callable[[Any], Any] = _same
    values: tuple[str, ...] = ()

    def read(self, value: Any, where: str, reading: Reading) -> Any:
        """Return the converted value."""
        try:
            return self.convert(value)
        except ValueError as error:
            reading.bad(where, str(error))
            return None

    def write(self, value: Any, style: Style) -> Any:  # noqa: ARG002
        """Return the rendered value."""
        return self.render(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        hint = "; put it in quotes" if isinstance(value, (bool, int, float)) else ""
        raise ValueError(f"must be a string, not {kind_of(value)}{hint}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {kind_of(value)}")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise ValueError(f"must be a whole number, not {kind_of(value)}")
    if value not in _INT64:
        raise ValueError("does not fit in 64 bits")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"must be a number, not {kind_of(value)}")
    if not abs(value) < 1e300 or math.isnan(value):
        raise ValueError("must be a finite number")
    return float(value)


def _scalar(value: Any) -> str:
    """An input: any scalar, kept as its text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if value not in _INT64:
            raise ValueError("is a whole number beyond 64 bits: put it in quotes, or others on its way will round it")
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("is not a finite number: put it in quotes")
        return repr(value)
    raise ValueError(f"must be a number, a string, true or false, not {kind_of(value)}")


def _base64(value: Any) -> bytes:
    try:
        return base64.b64decode("".join(_text(value).split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"is not standard base64: {error}") from error


def _moment(value: Any) -> float:
    try:
        moment = datetime.fromisoformat(_text(value))
    except ValueError:
        raise ValueError("must be an RFC 3339 time, such as 2026-01-31T12:00:00Z") from None
    if moment.year == 1:  # Go's zero time
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _bytes(value: Any) -> int:
    count = value if type(value) is int else quantity.parse_bytes(_text(value))
    if not 0 <= count <= quantity.MAX_BYTES:
        raise ValueError("must be a size from 0 to 2**63 - 1 bytes")
    return count


def _cpu(value: Any) -> float:
    return quantity.parse_cpu(str(value) if type(value) in (int, float) else _text(value))


def _seconds(value: Any) -> float:
    if type(value) in (int, float):
        return _number(value)
    return quantity.parse_duration(_text(value))


def _quantity_text(value: Any) -> str:
    text = str(value) if type(value) in (int, float) else _text(value)
    quantity.parse_cpu(text) if text.endswith("m") else quantity.parse_bytes(text)
    return text


def _json(value: Any) -> Any:
    """A free JSON value."""
    if isinstance(value, dict):
        return {_text(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, float):
        return _number(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ValueError(f"must be a JSON value, not {kind_of(value)}")


def _json_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, not {kind_of(value)}")
    result: dict[str, Any] = _json(value)
    return result


TEXT = Plain(_text)
FLAG = Plain(_flag)
WHOLE = Plain(_whole)
NUMBER = Plain(_number, lambda value: int(value) if float(value).is_integer() else value)
SCALAR = Plain(_scalar)
BASE64 = Plain(_base64, lambda value: base64.b64encode(value).decode("ascii"))
MOMENT = Plain(_moment, rfc3339)
BYTES = Plain(_bytes, quantity.format_bytes)
CPU = Plain(_cpu, quantity.format_cpu)
SECONDS = Plain(_seconds, quantity.format_duration)
QUANTITY_TEXT = Plain(_quantity_text)
OBJECT = Plain(_json_object, _json)
ANY = Plain(_json, _json)


def choice(kind: type[Enum]) -> Plain:
    """The shape of an enumeration: its values."""

    def convert(value: Any) -> Enum:
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(str(member.value) for member in kind)
            raise ValueError(f"is {value!r}; it must be one of {known}") from None

    return Plain(convert, lambda member: member.value, tuple(str(member.value) for member in kind))


@dataclass(frozen=True, slots=True)
class IntervalShape:
    """A monitoring interval: a duration in manifests; in REST, nanoseconds (Go's) or a duration."""

    def read(self, value: Any, where: str, reading: Reading) -> Any:
        """Return seconds."""
        if type(value) in (int, float) and reading.style is Style.REST and value >= _MILLISECOND:
            value = value / _NANOSECONDS
        return SECONDS.read(value, where, reading)

    def write(self, value: float, style: Style) -> Any:
        """Return a duration, or nanoseconds."""
        return round(value * _NANOSECONDS) if style is Style.REST else SECONDS.write(value, style)


@dataclass(frozen=True, slots=True)
class ConditionShape:
    """The status of a condition: "True" or "False" in manifests as Kubernetes has it, a boolean in REST."""

    def read(self, value: Any, where: str, reading: Reading) -> bool:
        """Return the boolean; "Unknown" is false."""
        if isinstance(value, bool):
            return value
        if value not in ("True", "False", "Unknown"):
            reading.bad(where, f"is {value!r}; it must be one of True, False, Unknown")
        return bool(value == "True")

    def write(self, value: bool, style: Style) -> Any:
        """Return the word."""
        return value if style is Style.REST else str(value)
