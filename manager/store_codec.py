"""Resources as the compact JSON that the SQLite store keeps: only what is not the default, and no module bytes."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

from proplet.agent.codec import from_plain
from proplet.manager.model import Kind, PropletSpec, PropletStatus, TaskSpec, TaskStatus

SPECS: Mapping[Kind, type] = {Kind.TASK: TaskSpec, Kind.PROPLET: PropletSpec}
STATUSES: Mapping[Kind, type] = {Kind.TASK: TaskStatus, Kind.PROPLET: PropletStatus}


@cache
def _layout(kind: type) -> tuple[tuple[str, Any], ...]:
    return tuple((f.name, f.default_factory() if f.default_factory is not MISSING else f.default) for f in fields(kind))


def _terse(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [_terse(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _terse(item) for key, item in value.items()}
    if is_dataclass(value):
        out = {}
        for name, default in _layout(type(value)):  # type: ignore[arg-type]
            item = getattr(value, name)
            if item != default and not isinstance(item, bytes):
                out[name] = _terse(item)
        return out
    return value


def dump(value: Any) -> str:
    """Return a spec or a status as JSON; `file` is left out, it is kept by its digest."""
    return json.dumps(_terse(value), separators=(",", ":"))


def load(kind: type, text: str) -> Any:
    """Return the value of the class `kind` that `text` holds. Raises ValueError."""
    return from_plain(kind, json.loads(text))
