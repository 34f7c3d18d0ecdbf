"""What a pass over a document is: whose spelling it reads, the mistakes it found, and what a rule is."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any, Protocol

from proplet.manager.model import Kind


class Style(Enum):
    """Whose spelling: manifests are in camel case, the REST API is in snake case."""

    MANIFEST = "manifest"
    REST = "rest"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is, and what is wrong and what to do. `subject` names the document it is in."""

    path: str
    text: str
    subject: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.subject, self.path, self.text) if part)


@dataclass(slots=True)
class Reading:
    """One pass over a document. `lenient` ignores unknown fields: for what a server or a newer version wrote."""

    style: Style = Style.MANIFEST
    lenient: bool = False
    problems: list[Problem] = field(default_factory=list)

    def bad(self, where: str, text: str) -> None:
        """Note a mistake."""
        self.problems.append(Problem(where, text))


class Shape(Protocol):
    """Reads and writes one kind of value. What `read` returns after noting a problem is never used."""

    def read(self, value: Any, where: str, reading: Reading) -> Any:
        """Return the value, or note a problem."""
        ...

    def write(self, value: Any, style: Style) -> Any:
        """Return the value as a plain one."""
        ...


def kind_of(value: Any) -> str:
    """What a person calls the type of a plain value."""
    return {
        type(None): "nothing",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }.get(type(value), type(value).__name__)


@cache
def camel(name: str) -> str:
    """The manifest's spelling of a name: image_url is imageUrl."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def unknown_field(name: str, known: Mapping[str, Any]) -> str:
    """What to say of a field that nobody knows."""
    folded = {key.replace("_", "").lower(): key for key in known}
    near = difflib.get_close_matches(name.replace("_", "").lower(), list(folded), n=1, cutoff=0.7)
    return f"unknown field; did you mean {folded[near[0]]}?" if near else "unknown field"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: `broken` says whether a resource of `kind` breaks it; the user is told `path` and `message`."""

    name: str
    kind: Kind
    path: str
    broken: Callable[[Any], bool]
    message: str
