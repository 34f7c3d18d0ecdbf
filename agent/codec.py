"""The one codec of the wire: bytes to messages and back, JSON or CBOR.

Reads tolerantly: unknown fields are ignored, null stands for a field's default, both eras' names are known, JSON and
CBOR are told apart by the first byte. Writes strictly: what the newest reference accepts. What cannot be read becomes
one `WireError` that names the field and, where it could be read, the task, so that the sender can be told.
"""

import base64
import binascii
import json
import math
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from typing import Any

from proplet.agent import wire
from proplet.agent.topics import SHARED, Route

_INT64 = range(-(2**63), 2**64)
_GO_NANOSECONDS = 1e9
_DETAIL_MAX = 500  # characters of what is said about a message; it may quote the message
# What `rfc3339` can write: the years 1 to 9998, a time zone's width away from the ends.
_EARLIEST = datetime(1, 1, 2, tzinfo=UTC).timestamp()
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()

MESSAGES: dict[Route, type] = {
    Route.CREATE: wire.Discovery,
    Route.ALIVE: wire.Alive,
    Route.METRICS: wire.PropletMetrics,
    Route.TASK_METRICS: wire.TaskMetrics,
    Route.RESULTS: wire.Result,
    Route.INVOKE_RESULTS: wire.InvokeResult,
    Route.START: wire.Start,
    Route.STOP: wire.Stop,
    Route.INVOKE: wire.Invoke,
    Route.MODULE_REQUEST: wire.ModuleRequest,
    Route.MODULE_CHUNK: wire.ModuleChunk,
    Route.ROUND_START: wire.RoundStart,
    Route.HELLO: wire.Hello,
    Route.INVENTORY: wire.Inventory,
    Route.LOGS: wire.LogLines,
    Route.PROGRESS: wire.Progress,
}

# The reference omits these when they are empty, always writes everything else.
_OMIT_IF_DEFAULT: dict[type, frozenset[str]] = {
    wire.Start: frozenset(
        "file image_url inputs env kbs_resource_path monitoring_profile mode proplet_id hal_storage_path ext".split()
    ),
    wire.Stop: frozenset(["proplet_id", "ext"]),
    wire.Invoke: frozenset(["env", "proplet_id"]),
    wire.Discovery: frozenset(["metadata", "ext"]),
    wire.Alive: frozenset(["metadata"]),
    wire.Result: frozenset(["ext"]),
    wire.InvokeResult: frozenset(["ext"]),
    wire.ModuleChunk: frozenset(["error"]),
    wire.Metadata: frozenset(["description", "tags", "location", "ip", "hostname"]),
    wire.MemoryMetrics: frozenset(["container_usage_bytes", "container_limit_bytes"]),
}

# Our own extension objects say only what is not the default: they ride on every message.
_TERSE = frozenset(
    [
        wire.StartTerms,
        wire.StopTerms,
        wire.Limits,
        wire.Permissions,
        wire.ResultTerms,
        wire.Usage,
        wire.LogLines,
        wire.Progress,
    ]
)


class Encoding(Enum):
    """How a message is written; CBOR only to peers that announced it."""

    JSON = "json"
    CBOR = "cbor"


class WireError(ValueError):
    """A message cannot be read. `task_id` is its task's id where that much could be read, else None."""

    def __init__(self, detail: str, task_id: str | None = None, attempt: int | None = None) -> None:
        detail = detail if len(detail) <= _DETAIL_MAX else f"{detail[:_DETAIL_MAX]}..."
        super().__init__(detail)
        self.detail = detail
        self.task_id = task_id
        self.attempt = attempt


def decode(route: Route, payload: bytes) -> Any:
    """Return the message that `payload` holds on `route`, one of the classes of `wire`.

    Raises:
        WireError: it is no JSON or CBOR object, a field has the wrong type, or the command cannot be carried out.
    """
    raw = _parse(payload)
    kind = MESSAGES[SHARED.get(route, route)]
    try:
        message = _read(kind, raw, "")
        check = getattr(message, "check", None)
        if check is not None:
            check()
    except (ValueError, RecursionError) as error:
        raise WireError(str(error), *_salvage(raw)) from error
    return message


def decode_as(kind: type, payload: bytes) -> Any:
    """Return a message of the class `kind`, for what travels outside the channel's topics. Raises WireError."""
    try:
        return _read(kind, _parse(payload), "")
    except (ValueError, RecursionError) as error:
        raise WireError(str(error)) from error


def encode(message: Any, encoding: Encoding = Encoding.JSON) -> bytes:
    """Return `message` as bytes; byte strings are base64 in JSON and themselves in CBOR."""
    plain = _write(message, binary=encoding is Encoding.CBOR)
    if encoding is Encoding.CBOR:
        import cbor2

        return cbor2.dumps(plain)
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _parse(payload: bytes) -> dict[str, Any]:
    head = payload[:1]
    if not head:
        raise WireError("the message is empty")
    try:
        if 0xA0 <= head[0] <= 0xBF:
            raw = _parse_cbor(payload)
        else:
            raw = json.loads(payload, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise WireError("the message is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise WireError(f"the message is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise WireError(f"the message is a JSON {type(raw).__name__}, not an object")
    return raw


def _parse_cbor(payload: bytes) -> Any:
    import io

    import cbor2

    stream = io.BytesIO(payload)
    try:
        value = cbor2.load(stream)
    except (cbor2.CBORDecodeError, OverflowError, MemoryError) as error:
        raise WireError(f"the message is not CBOR: {error}") from error
    if stream.tell() != len(payload):
        raise WireError("the message has bytes after its CBOR value")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _salvage(raw: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """The task id and attempt of a message that cannot be read as a whole."""
    task_id = raw.get("id", raw.get("task_id"))
    ext = raw.get("ext")
    attempt = ext.get("attempt") if isinstance(ext, dict) else None
    try:
        wire.check_id(_read_str(task_id, "id"))
    except ValueError:
        task_id = None
    return task_id, attempt if type(attempt) is int and 0 <= attempt <= wire.ATTEMPT_MAX else None


# --- reading --------------------------------------------------------------------------------------------------------

Reader = Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    names: tuple[str, ...]
    read: Reader
    required: bool


@cache
def _plan(kind: type) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(kind)
    return tuple(
        _Field(
            name=f.name,
            names=f.metadata.get("names", (f.name,)),
            read=_SPECIAL[f.metadata["kind"]] if "kind" in f.metadata else _reader(hints[f.name]),
            required=f.default is MISSING and f.default_factory is MISSING,
        )
        for f in fields(kind)
    )


def _read(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise ValueError(f"{where or 'the message'} must be an object, not {_kind_of(raw)}")
    values = {}
    for f in _plan(kind):
        for name in f.names:
            value = raw.get(name)
            if value is not None:
                values[f.name] = f.read(value, f"{where}.{name}" if where else name)
                break
        else:
            if f.required:
                raise ValueError(f"{where + '.' if where else ''}{f.names[0]} is required")
    return kind(**values)


def _kind_of(value: Any) -> str:
    return {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }.get(type(value), type(value).__name__)


def _read_str(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a string, not {_kind_of(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON's escapes can spell what no UTF-8 can hold; nothing behind us could keep it
            raise ValueError(f"{where} is no Unicode text: half of a surrogate pair stands alone") from None
    return value


def _read_bool(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where} must be true or false, not {_kind_of(value)}")
    return value


def _read_int(value: Any, where: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or value not in _INT64:
        raise ValueError(f"{where} must be a whole number of at most 64 bits, not {_kind_of(value)}")
    return value


def _read_float(value: Any, where: str) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{where} must be a number, not {_kind_of(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where} must be a finite number")
    return number


def _read_bytes(value: Any, where: str) -> bytes:
    if isinstance(value, bytes):  # CBOR
        return value
    try:
        return base64.b64decode(_read_str(value, where), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{where} is not standard base64: {error}") from error


def _read_any(value: Any, where: str) -> Any:
    """Whatever JSON can tell, and bytes; CBOR has dates, sets, tags and cycles besides."""
    if isinstance(value, list):
        return [_read_any(v, where) for v in value]
    if isinstance(value, dict):
        return {_read_str(k, f"a key in {where}"): _read_any(v, where) for k, v in value.items()}
    if isinstance(value, float):
        return _read_float(value, where)
    if value is None or isinstance(value, (str, bool, int, bytes)):
        return value
    raise ValueError(f"{where} has a value that JSON does not have, {_kind_of(value)}")


def _reader(hint: Any) -> Reader:
    """The reader of a type, built once per field."""
    simple: dict[Any, Reader] = {
        str: _read_str,
        bool: _read_bool,
        int: _read_int,
        float: _read_float,
        bytes: _read_bytes,
        Any: _read_any,
    }
    if hint in simple:
        return simple[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (a for a in args if a is not types.NoneType)
        return _reader(inner)
    if origin is tuple:
        return _sequence(_reader(args[0]))
    if origin is Mapping:
        return _string_mapping(_reader(args[1]))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _member(hint)
    if is_dataclass(hint):
        return lambda value, where: _read(typing.cast("type", hint), value, where)
    raise TypeError(f"no reader for {hint}")  # a mistake in wire.py, found by the first test that imports it


def _sequence(item: Reader) -> Reader:
    def read(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, not {_kind_of(value)}")
        return tuple(item(v, f"{where}[{i}]") for i, v in enumerate(value))

    return read


def _string_mapping(item: Reader) -> Reader:
    def read(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, not {_kind_of(value)}")
        return {_read_str(k, where): item(v, f"{where}.{k}") for k, v in value.items()}

    return read


def _member(kind: type[Enum]) -> Reader:
    def read(value: Any, where: str) -> Enum:
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(str(m.value) for m in kind)
            raise ValueError(f"{where} is {value!r}; it must be one of {known}") from None

    return read


def _read_attempt(value: Any, where: str) -> int:
    number = _read_int(value, where)
    if not 0 <= number <= wire.ATTEMPT_MAX:
        raise ValueError(f"{where} is {number}, it must be from 0 to {wire.ATTEMPT_MAX}")
    return number


def _read_reason(value: Any, where: str) -> wire.Reason:
    """A newer peer's reason is not an error: what happened stands in the text as well."""
    text = _read_str(value, where)
    return next((r for r in wire.Reason if r.value == text), wire.Reason.INTERNAL)


def _read_scalars(value: Any, where: str) -> tuple[str, ...]:
    """`inputs`: strings since the reference's second era, numbers in its first; any scalar is taken as its text."""
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list, not {_kind_of(value)}")
    return tuple(scalar_text(v, f"{where}[{i}]") for i, v in enumerate(value))


def scalar_text(value: Any, where: str) -> str:
    """Return an input as its text: numbers in decimal, booleans as true and false.

    Raises:
        ValueError: it is a list, an object or null.
    """
    if isinstance(value, str):
        return _read_str(value, where)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    raise ValueError(f"{where} must be a number or a string, not {_kind_of(value)}")


def _read_timestamp(value: Any, where: str) -> float:
    seconds = _seconds(value, where)
    if not _EARLIEST <= seconds < _LATEST:
        raise ValueError(f"{where} is a time that no calendar has")
    return seconds


def _seconds(value: Any, where: str) -> float:
    if isinstance(value, dict):  # Rust's SystemTime
        seconds = _read_int(value.get("secs_since_epoch"), f"{where}.secs_since_epoch")
        return seconds + _read_int(value.get("nanos_since_epoch", 0), f"{where}.nanos_since_epoch") / 1e9
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"{where} is no RFC 3339 time: {value!r}") from error
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return _read_float(value, where)


def _read_interval(value: Any, where: str) -> float:
    number = _read_float(value, where)
    return number / _GO_NANOSECONDS if number >= _GO_NANOSECONDS else number


def _read_results(value: Any, where: str) -> str | wire.FederatedUpdate:
    if isinstance(value, dict) and "round_id" in value:
        return typing.cast("wire.FederatedUpdate", _read(wire.FederatedUpdate, value, where))
    return _read_text(value, where)


def _read_text(value: Any, where: str) -> str:
    """Results are text; a peer that sends another JSON value is taken at its JSON."""
    try:
        return value.encode(errors="replace").decode() if isinstance(value, str) else json.dumps(value, default=str)
    except TypeError as error:  # CBOR's keys can be anything
        raise ValueError(f"{where} has no JSON form: {error}") from None


_SPECIAL: dict[str, Reader] = {
    "scalars": _read_scalars,
    "timestamp": _read_timestamp,
    "interval": _read_interval,
    "results": _read_results,
    "text": _read_text,
    "reason": _read_reason,
    "attempt": _read_attempt,
}


# --- writing --------------------------------------------------------------------------------------------------------


def to_plain(message: Any) -> dict[str, Any]:
    """Return `message` as JSON-ready values, the way `encode` writes them."""
    return typing.cast("dict[str, Any]", _write(message, binary=False))


def from_plain(kind: type, raw: Mapping[str, Any]) -> Any:
    """Return a value of the class `kind` from JSON-ready values; raises WireError."""
    try:
        return _read(kind, dict(raw), "")
    except (ValueError, RecursionError) as error:
        raise WireError(str(error)) from error


def _write(value: Any, *, binary: bool) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, bytes):
        return value if binary else base64.b64encode(value).decode("ascii")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [_write(v, binary=binary) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _write(v, binary=binary) for k, v in value.items()}
    return _write_message(value, binary=binary)


@cache
def _layout(kind: Any) -> tuple[tuple[str, str, str | None, bool, Any], ...]:
    """Per field: attribute, name on the wire, special kind, whether it is left out at its default, that default."""
    ours = kind in _TERSE
    omit = _OMIT_IF_DEFAULT.get(kind, frozenset())
    rows = []
    for f in fields(kind):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        rows.append(
            (f.name, f.metadata.get("names", (f.name,))[0], f.metadata.get("kind"), ours or f.name in omit, default)
        )
    return tuple(rows)


def _write_message(message: Any, *, binary: bool) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for attribute, name, kind, omit, default in _layout(typing.cast("Hashable", type(message))):
        value = getattr(message, attribute)
        if omit and value == default:
            continue
        if kind == "timestamp":
            out[name] = rfc3339(value)
        elif kind == "interval":
            out[name] = int(value) if float(value).is_integer() else value
        else:
            out[name] = _write(value, binary=binary)
    return out


def rfc3339(seconds: float) -> str:
    """Return an epoch time as the reference's manager reads it: RFC 3339, UTC, microseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
