"""A reader that takes dataclasses as the schema of a configuration: from layers of raw values to checked, frozen ones.

Conventions of a schema, so that it needs no second description: a field ``x_s`` is a duration and is written ``x``
("10s", "1h30m", or a number of seconds); ``x_bytes`` is a size and is written ``x`` ("64Mi", "10M", or a number);
``T | None`` of a dataclass is a table that may be absent; `Secret` never shows its text. Bounds are in a field's
metadata (`setting`).
"""

import math
import tomllib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from proplet.agent.config_values import parse_bool, parse_duration, parse_size


class Secret:
    """Text that must not be seen: it prints as ``<redacted>`` everywhere; `reveal` gives it to who needs it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself. Never log or store what this returns."""
        return self._text

    def __repr__(self) -> str:
        return "<redacted>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def setting(default: Any, *, least: float | None = None, most: float | None = None) -> Any:
    """Return a dataclass field with bounds, both included."""
    return field(default=default, metadata={"least": least, "most": most})


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration: where it stands, which setting, what is wrong and what to do."""

    where: str
    setting: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.setting, self.message) if part)


@dataclass(frozen=True, slots=True)
class Given:
    """A raw value and where it was given; `text` marks what can only be text (variables, flags)."""

    raw: Any
    origin: str
    text: bool = False
    base: Path = Path()


Tree = dict[str, Any]  # of Tree or Given


class _Table(Tree):
    """A table of a file, with where it begins: it may be empty and have no value that tells."""

    origin = ""


def overlay(below: Tree, above: Tree) -> Tree:
    """Return `below` with `above` laid over it; tables are merged, values and lists replaced."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = overlay(under, value) if isinstance(value, dict) and isinstance(under, dict) else value
    return merged


def key_of(name: str) -> str:
    """Return how a field is written in a file: without the unit at its end."""
    return name.removesuffix("_s").removesuffix("_bytes")


def settings_of(schema: Any) -> Iterator[Field[Any]]:
    """Yield the fields of a table that can be set; the others are filled in by `proplet.agent.config`."""
    return (entry for entry in fields(schema) if entry.metadata.get("told", True))


def table_of(hint: Any) -> type | None:
    """Return the dataclass a type hint names, directly or as ``T | None``; None for other types, such as lists."""
    return next((part for part in _parts(hint) if isinstance(part, type) and is_dataclass(part)), None)


@dataclass(slots=True)
class Reading:
    """One pass over a tree: collects every problem, and the origin of every value by its dotted path."""

    problems: list[Problem] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)

    def table(self, schema: type, tree: Tree, path: str = "") -> Any:
        """Return an instance of `schema`; a value with a problem is replaced by its default."""
        hints = get_type_hints(schema)
        known: dict[str, Field[Any]] = {key_of(entry.name): entry for entry in settings_of(schema)}
        values: dict[str, Any] = {}
        for key, node in tree.items():
            full = f"{path}.{key}" if path else key
            entry = known.get(key)
            if entry is None:
                self._unknown(key, node, path, known)
                continue
            try:
                values[entry.name] = self._value(hints[entry.name], entry, node, full)
            except _WrongError as wrong:
                self.problems.append(Problem(_origin(node), full, str(wrong)))
        for key, entry in known.items():
            if entry.name not in values and entry.default is MISSING and entry.default_factory is MISSING:
                raise AssertionError(f"the schema gives no default for {path}.{key}")
        return schema(**values)

    def _unknown(self, key: str, node: Any, path: str, known: Iterable[str]) -> None:
        what = "table" if isinstance(node, dict) else "key"
        where = f"in [{path}]" if path else "at the top level"
        self.problems.append(Problem(_origin(node), "", f"unknown {what} `{key}` {where}{did_you_mean(key, known)}"))

    def _value(self, hint: Any, entry: Field[Any], node: Any, path: str) -> Any:
        kinds = [part for part in _parts(hint) if part is not types.NoneType]
        optional = len(kinds) < len(_parts(hint))
        kind = kinds[0]
        if isinstance(kind, type) and is_dataclass(kind):
            if not isinstance(node, dict):
                raise _WrongError(f"expected a table, not {_shown(node)}")
            return self.table(kind, node, path)
        if get_origin(kind) in (Mapping, dict) or (isinstance(kind, type) and issubclass(kind, Mapping)):
            return self._mapping(get_args(kind)[1], entry, node, path)
        if isinstance(node, dict):
            raise _WrongError(f"expected {_expected(kind, entry)}, not a table")
        if get_origin(kind) is tuple and (table := table_of(get_args(kind)[0])) is not None:
            return self._tables(table, node, path)
        self.origins[path] = node.origin
        # TOML has no null: "none" takes a default limit away.
        if optional and entry.default is not None and kind in (int, float) and node.raw == "none":
            return None
        value = _convert(kind, entry, node)
        _bounded(value, entry)
        return value

    def _mapping(self, kind: Any, entry: Field[Any], node: Any, path: str) -> dict[str, Any]:
        if isinstance(node, Given) and node.text:
            node = _inline(node)
        if not isinstance(node, dict):
            raise _WrongError(f"expected a table, not {_shown(node)}")
        return {key: self._value(kind, entry, below, f'{path}."{key}"') for key, below in node.items()}

    def _tables(self, table: type, node: Given, path: str) -> tuple[Any, ...]:
        """Return the tables of a list; those of one are ``path[0]`` and so on."""
        self.origins[path] = node.origin
        items = _inline_list(node) if node.text else node.raw
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise _WrongError(f"expected a list of tables ([[{path}]]), not {_shown(node)}")
        return tuple(self.table(table, item, f"{path}[{number}]") for number, item in enumerate(items))


class _WrongError(Exception):
    pass


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _origin(node: Any) -> str:
    while isinstance(node, dict):
        if not node:
            return str(getattr(node, "origin", ""))
        node = next(iter(node.values()))
    return str(node.origin)


def _shown(node: Any) -> str:
    if isinstance(node, dict):
        return "a table"
    raw = node.raw
    if isinstance(raw, str):
        return f'"{raw[:40]}"'
    if isinstance(raw, bool):
        return "true" if raw else "false"
    return "a list" if isinstance(raw, list) else str(raw)[:40] if not isinstance(raw, int) else _number(raw)


def _number(value: int) -> str:
    return str(value) if abs(value) < 10**40 else "a huge number"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean `x`?`` for the nearest of `known`, or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean `{near[0]}`?" if near else ""


def tree_of(document: Mapping[str, Any], base: Path, origin: Callable[[tuple[str, ...]], str]) -> Tree:
    """Return a parsed TOML document as a tree; `origin` says where the value at a path stands."""

    def walk(node: Mapping[str, Any], path: tuple[str, ...]) -> Tree:
        table = _Table()
        table.origin = origin(path) if path else ""
        for key, value in node.items():
            below = (*path, key)
            if isinstance(value, dict):
                table[key] = walk(value, below)
                continue
            raw = value
            if isinstance(value, list) and all(isinstance(item, dict) for item in value):
                raw = [walk(item, (*below, str(number))) for number, item in enumerate(value)]
            table[key] = Given(raw, origin(below), base=base)
        return table

    return walk(document, ())


def _inline(node: Given) -> Tree:
    try:
        document = tomllib.loads(f"x = {node.raw}")
    except (ValueError, RecursionError):
        document = {}
    if not isinstance(document.get("x"), dict) or len(document) != 1:
        raise _WrongError("expected a TOML inline table such as {name = { key = 1 }}")
    return tree_of(document["x"], node.base, lambda _: node.origin)


def _inline_list(node: Given) -> Any:
    try:
        document = tomllib.loads(f"x = {node.raw}")
    except (ValueError, RecursionError):
        document = {}
    if len(document) != 1 or not isinstance(document.get("x"), list):
        raise _WrongError('expected a list of TOML tables such as [{ host = "/srv" }]')
    return tree_of(document, node.base, lambda _: node.origin)["x"].raw


def _expected(kind: Any, entry: Field[Any]) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        words = [f'"{member.value}"' for member in kind]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    if get_origin(kind) is tuple:
        return "a list of texts" if table_of(get_args(kind)[0]) is None else "a list of tables"
    if kind is float and entry.name.endswith("_s"):
        return 'a duration such as "10s" or a number of seconds'
    if kind is int and entry.name.endswith("_bytes"):
        return 'a size such as "64Mi" or a number of bytes'
    names = {str: "text in quotes", bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(kind, "a path in quotes" if kind is Path else "text in quotes")


def _convert(kind: Any, entry: Field[Any], node: Given) -> Any:
    raw = node.raw
    wrong = _WrongError(f"expected {_expected(kind, entry)}, not {_shown(node) if kind is not Secret else 'this'}")
    try:
        if get_origin(kind) is tuple:
            items = [part.strip() for part in raw.split(",") if part.strip()] if node.text else raw
            if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
                raise wrong
            return tuple(items)
        if kind is bool:
            return raw if isinstance(raw, bool) else parse_bool(raw) if node.text else _fail(wrong)
        if kind in (int, float):
            return _numeric(kind, entry, node, wrong)
        if not isinstance(raw, str) or "\0" in raw:
            raise wrong
        if isinstance(kind, type) and issubclass(kind, Enum):
            word = raw.strip().lower()
            return next((member for member in kind if str(member.value).lower() == word), None) or kind(word)
        if kind is Path:
            return node.base / Path(raw).expanduser() if raw else _fail(wrong)
        return kind(raw)
    except (ValueError, RuntimeError, OverflowError):
        raise wrong from None


def _numeric(kind: Any, entry: Field[Any], node: Given, wrong: _WrongError) -> float:
    raw = node.raw
    if isinstance(raw, str):
        if kind is float and entry.name.endswith("_s"):
            return parse_duration(raw)
        if kind is int and entry.name.endswith("_bytes"):
            return parse_size(raw)
        if not node.text:
            raise wrong
        return int(raw) if kind is int else _finite(float(raw), wrong)
    if isinstance(raw, bool) or not isinstance(raw, int | float) or (kind is int and isinstance(raw, float)):
        raise wrong
    return int(raw) if kind is int else _finite(float(raw), wrong)


def _finite(value: float, wrong: _WrongError) -> float:
    if not math.isfinite(value):
        raise wrong
    return value


def _fail(wrong: _WrongError) -> Any:
    raise wrong


def _bounded(value: Any, entry: Field[Any]) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    least, most = entry.metadata.get("least"), entry.metadata.get("most")
    if least is None and entry.name.endswith(("_s", "_bytes")):
        least = 0
    if least is not None and value < least:
        raise _WrongError(f"must be at least {least:g}")
    if most is not None and value > most:
        raise _WrongError(f"must be at most {most:g}")
