"""Resources as the compact JSON that the SQLite store keeps: only what is not the default, and no Task's module.

Reading costs by what is there and not by what could be, and what is at its default is one shared object: a node reads
some thousand Tasks when it starts, and keeps them.
"""

import base64
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from typing import Any

from proplet.manager.model import RESOURCES, Kind, TaskSpec


def _part(name: str) -> Mapping[Kind, type]:
    return {kind: typing.get_type_hints(resource)[name] for kind, resource in RESOURCES.items()}


SPECS: Mapping[Kind, type] = _part("spec")
STATUSES: Mapping[Kind, type] = _part("status")

Reader = Callable[[Any], Any]


@cache
def _defaults(kind: type) -> tuple[tuple[str, Any], ...]:
    return tuple((f.name, f.default_factory() if f.default_factory is not MISSING else f.default) for f in fields(kind))


def _terse(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (tuple, list)):
        return [_terse(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _terse(item) for key, item in value.items()}
    if is_dataclass(value):
        out = {}
        for name, default in _defaults(type(value)):  # type: ignore[arg-type]
            item = getattr(value, name)
            if item != default:
                out[name] = _terse(item)
        return out
    return value


def dump(value: Any) -> str:
    """Return a spec or a status as JSON; a Task's `file` is left out, it is kept by its digest."""
    if isinstance(value, TaskSpec) and value.file:
        value = replace(value, file=b"")
    return json.dumps(_terse(value), separators=(",", ":"))


def load(kind: type, text: str, **given: Any) -> Any:
    """Return the value of the class `kind` that `text` holds, with the fields `given` beside.

    Raises:
        ValueError: it is not what `dump` writes.
    """
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise ValueError(f"{kind.__name__} is {raw!r}")
    return _build(kind, raw, given)


def _build(kind: type, raw: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    shared, readers = _plan(kind)
    values = dict(shared)
    for name, value in raw.items():
        reader = readers.get(name)
        if reader is None:
            raise ValueError(f"{kind.__name__} has no field {name}")
        try:
            values[name] = reader(value)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{kind.__name__}.{name} is {value!r}") from error
    return kind(**{**values, **given} if given else values)


@cache
def _plan(kind: type) -> tuple[dict[str, Any], dict[str, Reader]]:
    """The defaults that would be made anew for every instance, and the reader of every field."""
    hints = typing.get_type_hints(kind)
    shared = {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING and f.init}
    return shared, {f.name: _reader(hints[f.name]) for f in fields(kind) if f.init}


def _reader(hint: Any) -> Reader:
    """How a type is read; a type that is not known here is a mistake in `model` that the first test finds."""
    if hint is Any:
        return lambda value: value
    if hint in (str, bool, int):
        return _exactly(hint)
    if hint is bytes:
        return base64.b64decode
    if hint is float:
        return float
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (_reader(a) for a in args if a is not types.NoneType)
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        item = _reader(args[0])
        return lambda value: tuple([item(v) for v in value])
    if origin is Mapping:
        entry = _reader(args[1])
        return lambda value: {key: entry(v) for key, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint
    if is_dataclass(hint):
        return lambda value: _build(typing.cast("type", hint), value, {})
    raise NotImplementedError(f"no reader for {hint}")


def _exactly(kind: type) -> Reader:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError
        return value

    return read
