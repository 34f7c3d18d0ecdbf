"""The values of component functions in plain Python, and the error of their text form.

====================  =====================================================================
WIT                   Python
====================  =====================================================================
bool, integers        bool, int
f32, f64              float
char, string          str; no lone surrogates
list, tuple           list, tuple
option                None or `Some`, so that an option of an option keeps its levels
result                `Ok` or `Err`; their value is None where the type has none
variant               `Case`; its payload is None where the case has none
enum                  str
flags                 frozenset of str
record                dict by field name, in the type's order
====================  =====================================================================
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

KEYWORDS: Final = frozenset({"true", "false", "inf", "nan", "some", "none", "ok", "err"})

Value: TypeAlias = (
    "bool | int | float | str | list[Value] | tuple[Value, ...] | Some | Ok | Err | Case | frozenset[str]"
    " | dict[str, Value] | None"
)


class WaveError(ValueError):
    """A text is no value of the type, or a value has no text; the message is meant for the task's author."""


@dataclass(frozen=True, slots=True)
class Some:
    """An option that is there."""

    value: Value


@dataclass(frozen=True, slots=True)
class Ok:
    """A result that succeeded."""

    value: Value = None


@dataclass(frozen=True, slots=True)
class Err:
    """A result that failed."""

    value: Value = None


@dataclass(frozen=True, slots=True)
class Case:
    """A variant's case."""

    name: str
    payload: Value = None


def shorten(text: str) -> str:
    """Return `text`, cut where a message would get too long."""
    return text if len(text) <= 60 else f"{text[:57]}..."
