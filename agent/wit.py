"""The types of component functions, in the terms of WIT: frozen values, their JSON form, WIT's syntax as their text.

Source: WebAssembly/component-model, design/mvp/WIT.md. What is built here is sound: names are labels and differ, and a
type is neither deeper nor larger than the bounds below, so that whoever walks through one needs no guard of its own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, assert_never

DEEPEST: Final = 100  # levels of types inside types; the reference's text form allows as many
LARGEST: Final = 10_000  # types and names in one type

LABEL: Final = (  # WIT's identifiers; a later word may begin with a digit, as the reference's lexer has it
    "(?:[a-z][a-z0-9]*|[A-Z][A-Z0-9]*)(?:-(?:[0-9]*[A-Z][A-Z0-9]*|[a-z0-9]+))*"
)
INTEGERS: Final[Mapping[str, tuple[int, int]]] = {
    **{f"s{bits}": (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) for bits in (8, 16, 32, 64)},
    **{f"u{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32, 64)},
}
PRIMITIVES: Final = frozenset({"bool", *INTEGERS, "f32", "f64", "char", "string"})

_LABEL: Final = re.compile(LABEL)

Json: TypeAlias = "str | list[Json] | dict[str, Json] | None"


class WitError(ValueError):
    """A type that cannot be: a bad name, too deep, too large; or a document that describes none."""


@dataclass(frozen=True, slots=True)
class Primitive:
    """One of `PRIMITIVES`."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in PRIMITIVES:
            raise WitError(f"{self.name!r} is no primitive type; there are {', '.join(sorted(PRIMITIVES))}")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Handle:
    """A resource, owned or borrowed; it has no text form."""

    own: bool
    name: str

    def __str__(self) -> str:
        return f"{'own' if self.own else 'borrow'}<{self.name}>"


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A type that is known to be there and not supported, such as ``stream``, ``future`` or ``error-context``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class _Composite:
    """What is made of names and other types; `depth` in levels, `size` in types and names."""

    depth: int = field(init=False, repr=False, compare=False)
    size: int = field(init=False, repr=False, compare=False)

    def _settle(self, parts: Iterable["Type | None"], names: Sequence[str] = ()) -> None:
        depth, size = 1, 1 + len(names)
        for part in parts:
            below, weight = (part.depth, part.size) if isinstance(part, _Composite) else (0, 1)
            depth = max(depth, 1 + below)
            size += weight
        if depth > DEEPEST:
            raise WitError(f"types are nested deeper than {DEEPEST} levels")
        if size > LARGEST:
            raise WitError(f"the type has more than {LARGEST} parts")
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "size", size)

    def _name(self, names: Sequence[str], what: str) -> dict[str, int]:
        """Return the position of each name.

        Raises:
            WitError: there is none, one is no label, or two are equal.
        """
        if not names:
            raise WitError(f"a type needs at least one {what}")
        for name in names:
            if not _LABEL.fullmatch(name):
                raise WitError(f"{name[:60]!r} does not name a {what}: words of letters and digits, joined by hyphens")
        places = {name: place for place, name in enumerate(names)}
        if len(places) < len(names):
            raise WitError(f"two {what}s have the same name")
        return places


@dataclass(frozen=True, slots=True)
class ListOf(_Composite):
    """``list<element>``."""

    element: "Type"

    def __post_init__(self) -> None:
        self._settle([self.element])

    def __str__(self) -> str:
        return f"list<{self.element}>"


@dataclass(frozen=True, slots=True)
class OptionOf(_Composite):
    """``option<some>``."""

    some: "Type"

    def __post_init__(self) -> None:
        self._settle([self.some])

    def __str__(self) -> str:
        return f"option<{self.some}>"


@dataclass(frozen=True, slots=True)
class ResultOf(_Composite):
    """``result<ok, err>``; either may be absent."""

    ok: "Type | None"
    err: "Type | None"

    def __post_init__(self) -> None:
        self._settle([self.ok, self.err])

    def __str__(self) -> str:
        if self.err is not None:
            return f"result<{'_' if self.ok is None else self.ok}, {self.err}>"
        return "result" if self.ok is None else f"result<{self.ok}>"


@dataclass(frozen=True, slots=True)
class TupleOf(_Composite):
    """``tuple<parts>``, at least one."""

    parts: tuple["Type", ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise WitError("a tuple needs at least one part")
        self._settle(self.parts)

    def __str__(self) -> str:
        return f"tuple<{', '.join(map(str, self.parts))}>"


@dataclass(frozen=True, slots=True)
class RecordOf(_Composite):
    """``record { name: type }``, the fields in their order."""

    fields: tuple[tuple[str, "Type"], ...]
    by_name: Mapping[str, "Type"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [name for name, _ in self.fields]
        self._name(names, "field")
        self._settle([part for _, part in self.fields], names)
        object.__setattr__(self, "by_name", dict(self.fields))

    def __str__(self) -> str:
        return f"record {{ {', '.join(f'{name}: {part}' for name, part in self.fields)} }}"


@dataclass(frozen=True, slots=True)
class VariantOf(_Composite):
    """``variant { name(payload), name }``; a case without a payload has None."""

    cases: tuple[tuple[str, "Type | None"], ...]
    by_name: Mapping[str, "Type | None"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [name for name, _ in self.cases]
        self._name(names, "case")
        self._settle([part for _, part in self.cases], names)
        object.__setattr__(self, "by_name", dict(self.cases))

    def __str__(self) -> str:
        cases = (name if part is None else f"{name}({part})" for name, part in self.cases)
        return f"variant {{ {', '.join(cases)} }}"


@dataclass(frozen=True, slots=True)
class EnumOf(_Composite):
    """``enum { names }``."""

    names: tuple[str, ...]
    places: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._settle((), self.names)
        object.__setattr__(self, "places", self._name(self.names, "case"))

    def __str__(self) -> str:
        return f"enum {{ {', '.join(self.names)} }}"


@dataclass(frozen=True, slots=True)
class FlagsOf(_Composite):
    """``flags { names }``."""

    names: tuple[str, ...]
    places: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._settle((), self.names)
        object.__setattr__(self, "places", self._name(self.names, "flag"))

    def __str__(self) -> str:
        return f"flags {{ {', '.join(self.names)} }}"


Type: TypeAlias = (
    Primitive | ListOf | OptionOf | ResultOf | TupleOf | RecordOf | VariantOf | EnumOf | FlagsOf | Handle | Unsupported
)


@dataclass(frozen=True, slots=True)
class Function:
    """``func(name: type) -> result``; a function that returns nothing has the result None."""

    parameters: tuple[tuple[str, Type], ...]
    result: Type | None

    def __str__(self) -> str:
        text = f"func({', '.join(f'{name}: {part}' for name, part in self.parameters)})"
        return text if self.result is None else f"{text} -> {self.result}"


def to_json(part: Type) -> Json:
    """Return `part` as what JSON can carry: a primitive's name, or an object with one key.

    Fields and cases are lists of pairs, since their order matters and a writer may sort an object's keys.
    """
    match part:
        case Primitive(name):
            return name
        case ListOf(element):
            return {"list": to_json(element)}
        case OptionOf(some):
            return {"option": to_json(some)}
        case ResultOf(ok, err):
            return {"result": [_optional_to_json(ok), _optional_to_json(err)]}
        case TupleOf(parts):
            return {"tuple": [to_json(each) for each in parts]}
        case RecordOf(fields):
            return {"record": [[name, to_json(each)] for name, each in fields]}
        case VariantOf(cases):
            return {"variant": [[name, _optional_to_json(each)] for name, each in cases]}
        case EnumOf(names):
            return {"enum": list(names)}
        case FlagsOf(names):
            return {"flags": list(names)}
        case Handle(own, name):
            return {"own" if own else "borrow": name}
        case Unsupported(name):
            return {"unsupported": name}
        case _:
            assert_never(part)


def function_to_json(function: Function) -> Json:
    """Return `function` as what JSON can carry; see `to_json`."""
    return {
        "parameters": [[name, to_json(part)] for name, part in function.parameters],
        "result": _optional_to_json(function.result),
    }


def from_json(document: object) -> Type:
    """Return the type that `to_json` wrote.

    Raises:
        WitError: it did not write this; or the type cannot be.
    """
    return _from_json(document, DEEPEST)


def function_from_json(document: object) -> Function:
    """Return the function that `function_to_json` wrote.

    Raises:
        WitError: it did not write this.
    """
    if not isinstance(document, dict) or document.keys() != {"parameters", "result"}:
        raise WitError("a function is an object with parameters and result")
    parameters = tuple((name, from_json(part)) for name, part in _pairs(document["parameters"]))
    return Function(parameters, _optional_from_json(document["result"], DEEPEST))


def _from_json(document: object, levels: int) -> Type:
    if isinstance(document, str):
        return Primitive(document)
    if not isinstance(document, dict) or len(document) != 1:
        raise WitError("a type is a primitive's name or an object with one key")
    if not levels:
        raise WitError(f"types are nested deeper than {DEEPEST} levels")
    [(kind, content)] = document.items()
    match kind:
        case "list":
            return ListOf(_from_json(content, levels - 1))
        case "option":
            return OptionOf(_from_json(content, levels - 1))
        case "result":
            ok, err = _items(content, 2)
            return ResultOf(_optional_from_json(ok, levels - 1), _optional_from_json(err, levels - 1))
        case "tuple":
            return TupleOf(tuple(_from_json(each, levels - 1) for each in _items(content)))
        case "record":
            return RecordOf(tuple((name, _from_json(each, levels - 1)) for name, each in _pairs(content)))
        case "variant":
            return VariantOf(tuple((name, _optional_from_json(each, levels - 1)) for name, each in _pairs(content)))
        case "enum":
            return EnumOf(tuple(map(_text, _items(content))))
        case "flags":
            return FlagsOf(tuple(map(_text, _items(content))))
        case "own" | "borrow":
            return Handle(kind == "own", _text(content))
        case "unsupported":
            return Unsupported(_text(content))
        case _:
            raise WitError(f"there is no kind of type {str(kind)[:60]!r}")


def _optional_to_json(part: Type | None) -> Json:
    return None if part is None else to_json(part)


def _optional_from_json(document: object, levels: int) -> Type | None:
    return None if document is None else _from_json(document, levels)


def _items(document: object, count: int | None = None) -> list[object]:
    if not isinstance(document, list) or (count is not None and len(document) != count):
        raise WitError("a list was expected" if count is None else f"a list of {count} was expected")
    return document


def _pairs(document: object) -> Iterable[tuple[str, object]]:
    for item in _items(document):
        name, part = _items(item, 2)
        yield _text(name), part


def _text(document: object) -> str:
    if not isinstance(document, str):
        raise WitError("a name was expected")
    return document
