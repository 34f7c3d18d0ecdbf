"""Kubernetes quantities (`64Mi`, `500m`) and Go durations (`1m30s`) as numbers, and back.

Sources: the Kubernetes API's `resource.Quantity` and Go's `time.ParseDuration`. Everything is computed in decimals, so
that `parse(format(x)) == x` for every value these functions return.
"""

import re
from decimal import ROUND_CEILING, Decimal
from typing import Final

_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_QUANTITY: Final = re.compile(
    r"\+?(?P<number>[0-9]{1,24}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})"
    r"(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]{1,2}))?"
)
_UNITS: Final = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "μs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_PART: Final = re.compile(r"([0-9]{1,19}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(ns|us|µs|μs|ms|s|m|h)")

MAX_BYTES: Final = 2**63 - 1
MAX_SECONDS: Final = Decimal(2**63 - 1) / 10**9


def _parse(text: str) -> Decimal:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        if text.startswith("-"):
            raise ValueError(f"{text!r} is negative")
        raise ValueError(f"{text[:40]!r} is no quantity; write a number with a unit, such as 64Mi, 1.5G, 500m or 2")
    number = Decimal(match["number"])
    if match["exponent"]:
        return number.scaleb(int(match["exponent"]))
    suffix = match["suffix"] or ""
    return number * 2 ** _BINARY[suffix] if suffix in _BINARY else number.scaleb(_DECIMAL[suffix])


def parse_bytes(text: str) -> int:
    """Return a quantity of memory as bytes, a fraction of a byte rounded up as Kubernetes does.

    Raises:
        ValueError: it is no quantity, negative, or more than 2**63 - 1 bytes.
    """
    value = _parse(text)
    if value > MAX_BYTES:
        raise ValueError(f"{text!r} is more than fits in 64 bits")
    return int(value.to_integral_value(ROUND_CEILING))


def format_bytes(count: int) -> str:
    """Return bytes in the largest binary unit that divides them: 67108864 is 64Mi."""
    for suffix, power in reversed(_BINARY.items()):
        if count and count % 2**power == 0:
            return f"{count >> power}{suffix}"
    return str(count)


def parse_cpu(text: str) -> float:
    """Return a quantity of CPU as cores: 500m is 0.5.

    Raises:
        ValueError: it is no quantity, negative, or more than a million cores.
    """
    value = _parse(text)
    if value > 1_000_000:
        raise ValueError(f"{text!r} is more than a million cores")
    return float(value)


def format_cpu(cores: float) -> str:
    """Return cores as Kubernetes writes them: 0.5 is 500m, 2.0 is 2."""
    value = Decimal(repr(float(cores)))
    milli = value * 1000
    if value == value.to_integral_value():
        return f"{int(value)}"
    if milli == milli.to_integral_value():
        return f"{int(milli)}m"
    return f"{value:f}"


def parse_duration(text: str) -> float:
    """Return a Go duration as seconds: 1m30s is 90.0.

    Raises:
        ValueError: it is no duration, negative, or longer than Go's 64 bits of nanoseconds (292 years).
    """
    if text == "0":
        return 0.0
    total, end = Decimal(0), 0
    for part in _PART.finditer(text):
        if part.start() != end:
            break
        total += Decimal(part[1]) * _UNITS[part[2]]
        end = part.end()
    if not text or end != len(text):
        if text.startswith("-"):
            raise ValueError(f"{text!r} is negative")
        raise ValueError(f"{text[:40]!r} is no duration; write a number with a unit, such as 30s, 1m30s or 250ms")
    if total > MAX_SECONDS:
        raise ValueError(f"{text!r} is longer than 292 years")
    return float(total)


def format_duration(seconds: float) -> str:
    """Return seconds as a Go duration: 90.0 is 1m30s, 0.25 is 0.25s."""
    value = Decimal(repr(float(seconds)))
    if value < 60 or value != value.to_integral_value():
        return f"{value.to_integral_value() if value == value.to_integral_value() else value:f}s"
    hours, rest = divmod(int(value), 3600)
    minutes, left = divmod(rest, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "") + (f"{left}s" if left else "")
