"""The effective configuration as a TOML file a person can read and keep: every setting, where it is from, no secret."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from proplet.agent.config_reader import Secret, key_of, settings_of
from proplet.agent.config_schema import NodeSettings

_UNITS = ((1024**4, "Ti"), (1024**3, "Gi"), (1024**2, "Mi"), (1024, "Ki"))
_TIMES = ((86400, "d"), (3600, "h"), (60, "m"))


def show(settings: NodeSettings, origins: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of a file that gives these settings; comments tell each value's origin. Secrets are redacted."""
    yield from _table("", settings, origins)


def _table(path: str, table: Any, origins: Mapping[str, str], header: str = "") -> Iterator[str]:
    below: list[tuple[str, Any, str]] = []
    rows = []
    for entry in settings_of(table):
        key = key_of(entry.name)
        full = f"{path}.{key}" if path else key
        value = getattr(table, entry.name)
        if is_dataclass(value):
            below.append((full, value, f"[{full}]"))
        elif isinstance(value, Mapping):
            below.extend((f'{full}."{name}"', item, f'[{full}."{name}"]') for name, item in value.items())
        elif isinstance(value, tuple) and any(map(is_dataclass, value)):
            below.extend((f"{full}[{number}]", item, f"[[{full}]]") for number, item in enumerate(value))
        elif value is None:
            # A value that was taken away ("none") has an origin; one that was never given has not.
            rows.append((f'{key} = "none"', origins[full]) if full in origins else (f"# {key} is not set", ""))
        else:
            rows.append((f"{key} = {toml_value(value, entry.name)}", origins.get(full, "default")))
    if header and rows:
        yield header
    width = min(48, max((len(text) for text, _ in rows), default=0))
    for text, origin in rows:
        yield f"{text:<{width}}  # {origin}" if origin else text
    if rows:
        yield ""
    for full, value, head in below:
        yield from _table(full, value, origins, head)


def toml_value(value: Any, name: str = "") -> str:
    """Return a setting as TOML text, with the unit that its field's `name` stands for."""
    if isinstance(value, Secret):
        return '"<redacted>"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum):
        return f'"{value.value}"'
    if isinstance(value, str | Path):
        # A JSON string is a TOML basic string, but for the character TOML wants escaped and JSON does not.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if name.endswith("_bytes"):
        return next((f'"{value // unit}{sign}"' for unit, sign in _UNITS if value and value % unit == 0), str(value))
    if name.endswith("_s"):
        number, sign = next(
            ((value / unit, sign) for unit, sign in _TIMES if value and value % unit == 0), (value, "s")
        )
        return f'"{number:.9f}'.rstrip("0").rstrip(".") + f'{sign}"'
    return str(value)
