"""The shapes of composite values, read from plain JSON values and written back, in manifests' and in REST's spelling.

A `Record` is the shape of a dataclass: the list of its fields. Reading never stops at the first mistake: each is noted
with its path, and what to do about it.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any

from proplet.manager import model
from proplet.manager.reading import Reading, Shape, Style, camel, kind_of, unknown_field
from proplet.manager.scalars import BYTES, CPU, QUANTITY_TEXT


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list of values of one shape."""

    item: Shape

    def read(self, value: Any, where: str, reading: Reading) -> tuple[Any, ...]:
        """Return a tuple."""
        if not isinstance(value, (list, tuple)):
            reading.bad(where, f"must be a list, not {kind_of(value)}")
            return ()
        return tuple(self.item.read(item, f"{where}[{index}]", reading) for index, item in enumerate(value))

    def write(self, value: Any, style: Style) -> list[Any]:
        """Return a list."""
        return [self.item.write(item, style) for item in value]


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object whose keys are free and whose values have one shape."""

    item: Shape

    def read(self, value: Any, where: str, reading: Reading) -> dict[str, Any]:
        """Return a dictionary."""
        if not isinstance(value, Mapping):
            reading.bad(where, f"must be an object, not {kind_of(value)}")
            return {}
        out = {}
        for key, item in value.items():
            if not isinstance(key, str):
                reading.bad(f"{where}.{key}", "the name must be a string; put it in quotes")
                continue
            out[key] = self.item.read(item, f"{where}.{key}", reading)
        return out

    def write(self, value: Any, style: Style) -> dict[str, Any]:
        """Return a dictionary."""
        return {key: self.item.write(item, style) for key, item in value.items()}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: the attribute of the model, its shape, and its names where they are not the attribute's own.

    `names` are the manifest's, the first is written (with `both`, all are); `rest` is REST's, "" where it has none. One
    that is `shown` is written in manifests also at its default: others read it.
    """

    attribute: str
    shape: Shape
    names: tuple[str, ...] = ()
    rest: str | None = None
    both: bool = False
    shown: bool = False

    def spellings(self, style: Style) -> tuple[str, ...]:
        """The names a reader accepts; the first is the one written."""
        if style is Style.MANIFEST:
            return self.names or (camel(self.attribute),)
        rest = self.attribute if self.rest is None else self.rest
        return (rest,) if rest else ()


@dataclass(frozen=True, eq=False)
class Record:
    """The shape of a dataclass. Fields at their default are not written, in REST only if not `whole_in_rest`."""

    kind: type
    fields: tuple[Field, ...]
    whole_in_rest: bool = False

    def read(self, value: Any, where: str, reading: Reading) -> Any:
        """Return an instance."""
        values = self.read_values(value, where, reading)
        if any(f.name not in values for f in fields(self.kind) if f.default is f.default_factory is MISSING and f.init):
            if not reading.problems:
                reading.bad(where, "lacks a required field")
            return None
        return self.kind(**values)

    def read_values(self, value: Any, where: str, reading: Reading) -> dict[str, Any]:
        """Return the attributes that `value` gives; null stands for not given."""
        if not isinstance(value, Mapping):
            reading.bad(where, f"must be an object, not {kind_of(value)}")
            return {}
        known = self.spellings(reading.style)
        out: dict[str, Any] = {}
        for name, item in value.items():
            path = f"{where}.{name}" if where else str(name)
            entry = known.get(name)
            if entry is None:
                if not reading.lenient:
                    reading.bad(path, unknown_field(str(name), known))
            elif item is not None:
                out[entry.attribute] = entry.shape.read(item, path, reading)
        self._require(out, where, reading)
        return out

    def _require(self, out: Mapping[str, Any], where: str, reading: Reading) -> None:
        for f in fields(self.kind):
            if f.init and f.default is MISSING and f.default_factory is MISSING and f.name not in out:
                names = [n for n, entry in self.spellings(reading.style).items() if entry.attribute == f.name]
                if names:
                    reading.bad(f"{where}.{names[0]}" if where else names[0], "is required")

    def spellings(self, style: Style) -> dict[str, Field]:
        """The fields by every name a reader accepts."""
        return _spellings(self, style)

    def write(self, value: Any, style: Style) -> dict[str, Any]:
        """Return the fields that are not at their default."""
        out: dict[str, Any] = {}
        defaults = {} if self.whole_in_rest and style is Style.REST else _defaults(self.kind)
        for entry in self.fields:
            item = getattr(value, entry.attribute)
            names = entry.spellings(style)
            shown = entry.shown and style is Style.MANIFEST
            if names and (shown or not (entry.attribute in defaults and item == defaults[entry.attribute])):
                for name in names if entry.both else names[:1]:
                    out[name] = entry.shape.write(item, style) if item is not None else None
        return out


@cache
def _spellings(record: Record, style: Style) -> dict[str, Field]:
    return {name: entry for entry in record.fields for name in entry.spellings(style)}


@cache
def _defaults(kind: type) -> dict[str, Any]:
    return {
        f.name: f.default_factory() if f.default_factory is not MISSING else f.default
        for f in fields(kind)
        if f.default is not MISSING or f.default_factory is not MISSING
    }


@dataclass(frozen=True, eq=False)
class Keyed:
    """An object with named fields that is kept as a dictionary, in the manifest's spelling."""

    shapes: Mapping[str, Shape]

    def read(self, value: Any, where: str, reading: Reading) -> dict[str, Any]:
        """Return the given fields."""
        if not isinstance(value, Mapping):
            reading.bad(where, f"must be an object, not {kind_of(value)}")
            return {}
        out = {}
        for name, item in value.items():
            path = f"{where}.{name}" if where else str(name)
            if name in self.shapes:
                if item is not None:
                    out[name] = self.shapes[name].read(item, path, reading)
            elif not reading.lenient:
                reading.bad(path, unknown_field(str(name), self.shapes))
        return out

    def write(self, value: Mapping[str, Any], style: Style) -> dict[str, Any]:
        """Return the fields."""
        return {name: self.shapes[name].write(item, style) for name, item in value.items() if name in self.shapes}


@dataclass(frozen=True, eq=False)
class Spelled:
    """An object with named fields that is kept as a dictionary by the names of REST; the manifest's are camel case."""

    shapes: Mapping[str, Shape]

    def read(self, value: Any, where: str, reading: Reading) -> dict[str, Any]:
        """Return the given fields."""
        known = Keyed({_spelled(name, reading.style): shape for name, shape in self.shapes.items()})
        given = known.read(value, where, reading)
        return {name: given[spelled] for name in self.shapes if (spelled := _spelled(name, reading.style)) in given}

    def write(self, value: Mapping[str, Any], style: Style) -> dict[str, Any]:
        """Return the fields."""
        known = {name: shape for name, shape in self.shapes.items() if name in value}
        return {_spelled(name, style): shape.write(value[name], style) for name, shape in known.items()}


def _spelled(name: str, style: Style) -> str:
    return camel(name) if style is Style.MANIFEST else name


@dataclass(frozen=True, slots=True)
class ResourceList:
    """Kubernetes' ResourceList of a Proplet: `cpu` and `memory`, any other name is a custom resource."""

    def read(self, value: Any, where: str, reading: Reading) -> model.Resources:
        """Return the resources."""
        if not isinstance(value, Mapping):
            reading.bad(where, f"must be an object, not {kind_of(value)}")
            return model.Resources()
        given = {str(name): item for name, item in value.items() if item is not None}
        cpu, memory = given.pop("cpu", None), given.pop("memory", None)
        return model.Resources(
            cpu=None if cpu is None else CPU.read(cpu, f"{where}.cpu", reading),
            memory_bytes=None if memory is None else BYTES.read(memory, f"{where}.memory", reading),
            custom=MapOf(QUANTITY_TEXT).read(given, where, reading),
        )

    def write(self, value: model.Resources, style: Style) -> dict[str, Any]:
        """Return the list."""
        out: dict[str, Any] = {}
        if value.cpu is not None:
            out["cpu"] = CPU.write(value.cpu, style)
        if value.memory_bytes is not None:
            out["memory"] = BYTES.write(value.memory_bytes, style)
        return {**out, **value.custom}
