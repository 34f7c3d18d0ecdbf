"""The one codec of the wire: bytes to messages and back, JSON or CBOR.

Reads tolerantly: unknown fields are ignored, null stands for a field's default, both eras' names are known, JSON and
CBOR are told apart by the first byte. Writes strictly: what the newest reference accepts. What cannot be read becomes
one `WireError` that names the field and, where it could be read, the task, so that the sender can be told.
"""

import base64
import json
import typing
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from types import NoneType
from typing import Any

from proplet.agent import wire
from proplet.agent.codec_reading import read, read_text
from proplet.agent.topics import SHARED, Route

_DETAIL_MAX = 500  # characters of what is said about a message; it may quote the message

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
    wire.TaskMetrics: frozenset(["ext"]),
    wire.InvokeResult: frozenset(["ext"]),
    wire.InventoryItem: frozenset(["message", "image_digest"]),
    wire.ModuleRequest: frozenset(["ext"]),
    wire.ModuleChunk: frozenset(["error", "ext"]),
    wire.ModuleRefusal: frozenset(["ext"]),
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
        wire.MeterTerms,
        wire.Usage,
        wire.ModuleTerms,
        wire.ModuleEntry,
        wire.ChunkTerms,
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
        message = read(kind, raw, "")
        check = getattr(message, "check", None)
        if check is not None:
            check()
    except (ValueError, RecursionError) as error:
        raise WireError(str(error), *_salvage(raw)) from error
    return message


def decode_as(kind: type, payload: bytes) -> Any:
    """Return a message of the class `kind`, for what travels outside the channel's topics. Raises WireError."""
    try:
        return read(kind, _parse(payload), "")
    except (ValueError, RecursionError) as error:
        raise WireError(str(error)) from error


def encode(message: Any, encoding: Encoding = Encoding.JSON) -> bytes:
    """Return `message` as bytes; byte strings are base64 in JSON and themselves in CBOR."""
    plain = _write(message, binary=encoding is Encoding.CBOR)
    if encoding is Encoding.CBOR:
        import cbor2

        return cbor2.dumps(plain)
    return _encoder.encode(plain).encode("utf-8", "replace")


def _parse(payload: bytes) -> dict[str, Any]:
    head = payload[:1]
    if not head:
        raise WireError("the message is empty")
    try:
        if 0xA0 <= head[0] <= 0xBF:
            raw = _parse_cbor(payload)
        else:
            raw = _decoder.decode(payload.decode(json.detect_encoding(payload), "surrogatepass"))
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


# Made once: the functions of `json` make one for every message that is not read or written with their defaults.
_decoder = json.JSONDecoder(parse_constant=_no_constant)
_encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_PLAIN = frozenset([NoneType, str, bool, int, float])


def _salvage(raw: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """The task id and attempt of a message that cannot be read as a whole."""
    task_id = raw.get("id", raw.get("task_id"))
    ext = raw.get("ext")
    attempt = ext.get("attempt") if isinstance(ext, dict) else None
    try:
        wire.check_id(read_text(task_id, "id"))
    except ValueError:
        task_id = None
    return task_id, attempt if type(attempt) is int and 0 <= attempt <= wire.ATTEMPT_MAX else None


# --- writing --------------------------------------------------------------------------------------------------------


def to_plain(message: Any) -> dict[str, Any]:
    """Return `message` as JSON-ready values, the way `encode` writes them."""
    return typing.cast("dict[str, Any]", _write(message, binary=False))


def _write(value: Any, *, binary: bool) -> Any:
    if type(value) in _PLAIN or isinstance(value, (str, bool, int, float)):
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
            out[name] = value if type(value) in _PLAIN else _write(value, binary=binary)
    return out


def rfc3339(seconds: float) -> str:
    """Return an epoch time as the reference's manager reads it: RFC 3339, UTC, microseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
