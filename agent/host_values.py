"""Core WebAssembly's numbers as text, both ways, by the reference's rules.

Arguments are decimal text: integers signed and range-checked, floats as Rust's ``str::parse`` reads them; no blanks, no
hexadecimal. Results are printed as Rust's ``Display`` prints them: the shortest digits that give the same number back,
never with an exponent. Source: protocol of absmach/propeller, workers of its newer era. Knows nothing of wasmtime.
"""

import ctypes
import math
import re
from collections.abc import Sequence
from typing import Final

_INTEGER: Final = re.compile(r"[+-]?[0-9]+", re.ASCII)
_FLOAT: Final = re.compile(
    r"[+-]?(?:inf|infinity|nan|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)", re.ASCII | re.IGNORECASE
)
_BITS: Final = {"i32": 32, "i64": 64}
_LONGEST_INTEGER: Final = 100  # characters; leading zeros are allowed, a megabyte of them is not


class ArgumentError(ValueError):
    """A task's input does not fit the function's parameter; the message is meant for the task's author."""


def parse(text: str, kind: str) -> int | float:
    """Return `text` as a value of the core type `kind` (``i32``, ``i64``, ``f32``, ``f64``).

    Raises:
        ArgumentError: it is no such number, or out of range; or the type takes no arguments from outside.
    """
    if kind in _BITS:
        return _parse_integer(text, kind)
    if kind in {"f32", "f64"}:
        if not _FLOAT.fullmatch(text):
            raise ArgumentError(f"Failed to parse '{_short(text)}' as {kind}: not a decimal number")
        return float(text) if kind == "f64" else _single(text)
    raise ArgumentError(f"Unsupported Wasm value type for arg '{_short(text)}': {kind} cannot be written as text")


def parse_all(function: str, inputs: Sequence[str], kinds: Sequence[str]) -> list[int | float]:
    """Return `inputs` as the parameters `kinds` of `function`.

    Raises:
        ArgumentError: their number or one of them does not fit.
    """
    if len(inputs) != len(kinds):
        raise ArgumentError(
            f"Argument count mismatch for function '{function}': expected {len(kinds)} arguments but got {len(inputs)}"
        )
    return [parse(text, kind) for text, kind in zip(inputs, kinds, strict=True)]


def show(value: float, kind: str) -> str:
    """Return `value` of the core type `kind` as Rust's ``Display`` prints it."""
    if kind in _BITS:
        return str(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    sign = "-" if value < 0 else ""
    digits, exponent = _split(repr(abs(value)) if kind == "f64" else _shortest_single(abs(value)))
    if _is_half_above(abs(value), digits, exponent):
        digits = str(int(digits) + 1)  # Python rounded to the even digit, Rust rounds up
    return sign + _positional(digits, exponent)


def single(value: float) -> float:
    """Return the 32-bit float nearest to the 64-bit `value`; beyond its range that is an infinity."""
    return float(ctypes.c_float(value).value)


def _parse_integer(text: str, kind: str) -> int:
    half = 1 << (_BITS[kind] - 1)
    if _INTEGER.fullmatch(text) and len(text) <= _LONGEST_INTEGER and -half <= (value := int(text)) < half:
        return value
    raise ArgumentError(
        f"Failed to parse '{_short(text)}' as {kind}: must be a whole decimal number from {-half} to {half - 1}"
    )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _single(text: str) -> float:
    """Round decimal text to 32 bits once. Over 64 bits it would be rounded twice, and sometimes to the wrong neighbour.

    The detour is safe with the middle step rounded to odd: an inexact 64-bit value whose last bit is 0 moves one step
    towards the text's value.
    """
    from decimal import Decimal

    value = float(text)
    if value == 0 or not math.isfinite(value):
        return value
    exact, nearest = Decimal(text), Decimal(value)
    if exact != nearest and not _last_bit(value):
        value = math.nextafter(value, math.inf if exact > nearest else -math.inf)
    return single(value)


def _last_bit(value: float) -> int:
    return ctypes.c_uint64.from_buffer_copy(ctypes.c_double(value)).value & 1


def _split(text: str) -> tuple[str, int]:
    """Return the significant digits of a positive repr and the exponent of ``0.digits * 10**exponent``."""
    mantissa, _, power = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = whole + fraction
    exponent = len(whole) + int(power or 0)
    stripped = digits.lstrip("0")
    exponent -= len(digits) - len(stripped)
    return stripped.rstrip("0"), exponent


def _is_half_above(value: float, digits: str, exponent: int) -> bool:
    """Say whether `value` lies exactly in the middle between `digits` and the next number of as many digits."""
    numerator, denominator = value.as_integer_ratio()
    middle, power = 2 * int(digits) + 1, exponent - len(digits)
    return numerator * 2 * int(10 ** max(-power, 0)) == middle * denominator * int(10 ** max(power, 0))


def _positional(digits: str, exponent: int) -> str:
    if exponent <= 0:
        return "0." + "0" * -exponent + digits
    if exponent >= len(digits):
        return digits + "0" * (exponent - len(digits))
    return f"{digits[:exponent]}.{digits[exponent:]}"


def _shortest_single(value: float) -> str:
    """Return the shortest decimal text that reads back as the positive 32-bit `value`, the nearest if there are more.

    Nine digits always suffice. At a power of two the gap below is half the gap above, so that with a given number of
    digits the nearest text may fail while its neighbour, a little farther above, succeeds.
    """
    for precision in range(1, 9):
        text = f"{value:.{precision - 1}e}"
        if _single(text) == value:
            return text
        mantissa, _, power = text.partition("e")
        above = int(mantissa.replace(".", "")) + 1
        text = f"{above}e{int(power) - precision + 1}"
        if _single(text) == value:
            return text
    return f"{value:.8e}"
