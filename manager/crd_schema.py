"""The vocabulary's shapes as OpenAPI v3 schemas, for the custom resource definitions.

What a shape cannot say (bounds, defaults, rules, descriptions) is looked up by the field's path: `Task.spec.inputs`,
`Task.spec.inputs[]` for the items of a list, `Task.spec.env{}` for the values of a map.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Final

from proplet.manager.crd_bounds import BOUNDS, DURATION, QUANTITY, REQUIRED
from proplet.manager.crd_rules import RULES
from proplet.manager.crd_texts import TEXTS
from proplet.manager.reading import Shape, Style, camel
from proplet.manager.scalars import (
    ANY,
    BASE64,
    BYTES,
    CPU,
    FLAG,
    MOMENT,
    NUMBER,
    OBJECT,
    QUANTITY_TEXT,
    SCALAR,
    SECONDS,
    TEXT,
    WHOLE,
    ConditionShape,
    IntervalShape,
    Plain,
)
from proplet.manager.shapes import Keyed, MapOf, Record, ResourceList, Sequence, Spelled

Schema = dict[str, Any]

_FREE: Final = {"x-kubernetes-preserve-unknown-fields": True}
# A structural schema cannot say "a string or a number" (only "or an integer"), but it may leave the type open and
# forbid the others: these bounds of lists and objects contradict themselves, and say nothing of other types.
_NO_OBJECT: Final = {"minProperties": 1, "maxProperties": 0, "minItems": 1, "maxItems": 0}
_SCALAR: Final = {**_FREE, **_NO_OBJECT}
_STRING_OR_NUMBER: Final = {**_SCALAR, "not": {"enum": [True, False]}}

_PLAIN: Final[Mapping[Plain, Schema]] = {
    TEXT: {"type": "string"},
    FLAG: {"type": "boolean"},
    WHOLE: {"type": "integer", "format": "int64"},
    NUMBER: {"type": "number"},
    # Beside `type`, the format would make CEL read it as URL-safe base64, which it is not.
    BASE64: {"type": "string", "anyOf": [{"format": "byte"}, {"maxLength": 0}]},
    MOMENT: {"type": "string", "format": "date-time"},
    # What a 64-bit integer cannot hold, the API server would round. It makes a bound a double and that an integer,
    # so this one is the last double below 2**63; of the integers beyond that, only the last of all can be let in.
    # Both are written with as many digits as it shows, lest every `kubectl apply` finds a change.
    SCALAR: {
        **_SCALAR,
        "anyOf": [{"minimum": -9223372036854776000, "maximum": 9223372036854775000}, {"enum": [2**63 - 1]}],
    },
    BYTES: {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "x-kubernetes-int-or-string": True,
        "pattern": QUANTITY,
        "minimum": 0,
    },
    CPU: {**_STRING_OR_NUMBER, "pattern": QUANTITY, "minimum": 0},
    QUANTITY_TEXT: {**_STRING_OR_NUMBER, "pattern": QUANTITY, "minimum": 0},
    SECONDS: {**_STRING_OR_NUMBER, "pattern": DURATION, "minimum": 0},
    OBJECT: {"type": "object", **_FREE},
    ANY: dict(_FREE),
}


def schema_of(shape: Shape, path: str) -> Schema:
    """Return the schema of one field, with its bounds, rules and description."""
    return described(_bare(shape, path), path)


def described(schema: Schema, path: str) -> Schema:
    """Return `schema` with what is known of the field at `path`."""
    text = TEXTS.get(path) or TEXTS.get(path.rsplit(".", 1)[-1])
    out = {"description": text, **schema} if text else dict(schema)
    for keyword, value in BOUNDS.get(path, {}).items():
        out.pop(keyword, None)
        if value is not None:
            out[keyword] = value
    if path in RULES:
        out["x-kubernetes-validations"] = [rule.plain() for rule in RULES[path]]
    return out


def _bare(shape: Shape, path: str) -> Schema:
    match shape:
        case Plain() if shape.values:
            return {"type": "string", "enum": list(shape.values)}
        case Plain():
            return dict(_PLAIN[shape])
        case IntervalShape():
            return dict(_PLAIN[SECONDS])
        case ConditionShape():
            return {"type": "string", "enum": ["True", "False", "Unknown"]}
        case ResourceList():
            return {"type": "object", "additionalProperties": dict(_PLAIN[QUANTITY_TEXT])}
        case Sequence():
            return {"type": "array", "items": schema_of(shape.item, f"{path}[]")}
        case MapOf():
            return {"type": "object", "additionalProperties": schema_of(shape.item, f"{path}{{}}")}
        case Record():
            return _object(_record(shape), path, _needed(shape))
        case Keyed():
            return _object(shape.shapes, path)
        case Spelled():
            return _object({camel(name): item for name, item in shape.shapes.items()}, path)
    raise TypeError(f"{path}: no schema is known for {shape!r}")


# Only on a standalone node.
_STANDALONE: Final = frozenset({"Task.spec.held", "Proplet.spec.declared"})
# What a field of one kind has in common with another kind.
_SAME: Final = {"PropellerJob.spec.tasks[]": "Task.spec"}


def _object(shapes: Mapping[str, Shape], path: str, needed: tuple[str, ...] = ()) -> Schema:
    listed = path in _SAME
    path = _SAME.get(path, path)
    properties = {
        name: schema_of(shape, f"{path}.{name}")
        for name, shape in shapes.items()
        if f"{path}.{name}" not in _STANDALONE
    }
    if listed:  # kubectl compares a list as a whole: with a default in it, every `kubectl apply` would find a change
        properties = {name: {k: v for k, v in item.items() if k != "default"} for name, item in properties.items()}
    required = [name for name in properties if name in needed or name in REQUIRED.get(path, ())]
    out: Schema = {"type": "object", "properties": properties}
    return {**out, "required": required} if required else out


def _record(record: Record) -> dict[str, Shape]:
    return {name: entry.shape for entry in record.fields for name in entry.spellings(Style.MANIFEST)}


def _needed(record: Record) -> tuple[str, ...]:
    without = {f.name for f in fields(record.kind) if f.init and f.default is f.default_factory is MISSING}
    return tuple(entry.spellings(Style.MANIFEST)[0] for entry in record.fields if entry.attribute in without)
