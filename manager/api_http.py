"""HTTP as the API speaks it: problems with a body, JSON in and out, bounded bodies, paging and preconditions.

Nothing here knows a resource. Every error the API answers is a `ProblemError` in the end; `problem_of` is the one place
where other layers' exceptions get their status.
"""

import json
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

import anyio
import anyio.lowlevel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from proplet.manager.ports import (
    AlreadyExistsError,
    BusError,
    ConflictError,
    GoneError,
    NotFoundError,
    NotRunningError,
    StoreUnavailableError,
)

log = logging.getLogger(__name__)

JSON: Final = "application/json"
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
MAX_VALUES: Final = 250_000
_MAX_OFFSET: Final = 2**53
_RETRY_AFTER_S: Final = 5
_DISCARD_S: Final = 10.0
_DISCARD_IDLE_S: Final = 0.5
_DISCARDED_BODIES: Final = 4
_TURN_S: Final = 0.01
_PIECE_BYTES: Final = 64 * 1024
_Item = TypeVar("_Item")


class ProblemError(Exception):
    """A request that gets an error: `status`, a machine-readable `reason` and a message that says what to do."""

    def __init__(self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """Return the answer: ``{"error": message, "reason": reason}``."""
        return reply({"error": self.message, "reason": self.reason}, self.status, self.headers)


def invalid(message: str) -> ProblemError:
    """Return the 400 of a request whose content is wrong."""
    return ProblemError(400, "invalid", message)


def unavailable(reason: str, message: str) -> ProblemError:
    """Return the 503 of a request that may be repeated later, unchanged."""
    return ProblemError(503, reason, message, {"Retry-After": str(_RETRY_AFTER_S)})


_STATUS: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    (NotFoundError, 404, "not_found"),
    (AlreadyExistsError, 409, "already_exists"),
    (ConflictError, 409, "conflict"),
    (NotRunningError, 409, "not_running"),
    (GoneError, 410, "gone"),
)


def problem_of(error: Exception) -> ProblemError:
    """Return what a client is told of `error`; one that nobody foresaw is logged and becomes a bare 500."""
    if isinstance(error, ProblemError):
        return error
    for kind, status, reason in _STATUS:
        if isinstance(error, kind):
            return ProblemError(status, reason, str(error) or reason.replace("_", " "))
    if isinstance(error, StoreUnavailableError):
        return unavailable("store_unavailable", f"nothing was changed, try again later: {error}")
    if isinstance(error, BusError):
        return unavailable("broker_unavailable", f"the broker did not take the command, try again later: {error}")
    log.error("a request failed for a reason nobody foresaw", exc_info=error)
    return ProblemError(500, "internal", "the node failed to answer; its log says why")


def reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None, media_type: str = JSON) -> Response:
    """Return `value` as a JSON response."""
    return Response(_encoded(value), status, headers, media_type)


def _encoded(value: Any) -> bytes:
    """JSON. Escapes what is not ASCII, so that any string Python holds can be sent."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        # A measurement that is not a number must not take the whole list with it; JSON has no spelling for it.
        text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value


# --- bodies ------------------------------------------------------------------------------------------------------


class BodyBudget:
    """What all request bodies in memory may hold together, so that many big uploads cannot exhaust a small device."""

    def __init__(self, total_bytes: int) -> None:
        self._free = total_bytes

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Hold `size` bytes of the budget.

        Raises:
            ProblemError: 503, others hold it.
        """
        if size > self._free:
            raise unavailable("busy", "too many large requests at once; try again later")
        self._free -= size
        try:
            yield
        finally:
            self._free += size


@dataclass(frozen=True, slots=True)
class BodyRules:
    """How large a body may be, and how long it may take to arrive."""

    max_bytes: int
    timeout_s: float
    budget: BodyBudget


@asynccontextmanager
async def read_body(request: Request, rules: BodyRules) -> AsyncIterator[bytes]:
    """Yield the request's body; its memory counts until the context is left.

    Raises:
        ProblemError: 413 too large, 408 too slow, 503 too many at once.
    """
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isascii() and declared.isdigit() else rules.max_bytes
    if size > rules.max_bytes:
        await _discard(request, rules)
        raise _too_large(rules)
    with rules.budget.reserve(size):
        yield await _receive(request, rules)


async def _receive(request: Request, rules: BodyRules) -> bytes:
    body = bytearray()
    try:
        with anyio.fail_after(rules.timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > rules.max_bytes:
                    body.clear()
                    await _discard(request, rules)
                    raise _too_large(rules)
    except TimeoutError:
        raise ProblemError(408, "timeout", f"the body did not arrive within {rules.timeout_s:g} s", _CLOSE) from None
    except ClientDisconnect:
        raise ProblemError(400, "disconnected", "the connection ended before the body did", _CLOSE) from None
    return bytes(body)


async def _discard(request: Request, rules: BodyRules) -> None:
    """Read on for a while: a TCP connection closed with bytes unread takes the answer with it (RFC 9112, 9.6)."""
    if "expect" in request.headers:
        return  # it waits for our word before it sends
    left = rules.max_bytes * _DISCARDED_BODIES
    deadline = anyio.current_time() + _DISCARD_S
    while left > 0 and anyio.current_time() < deadline:
        message: Mapping[str, Any] = {}
        with anyio.move_on_after(_DISCARD_IDLE_S):
            message = await request.receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return


# What is left of a refused body is not waited for.
_CLOSE: Final = {"Connection": "close"}


def _too_large(rules: BodyRules) -> ProblemError:
    return ProblemError(413, "too_large", f"the body is larger than the {rules.max_bytes} bytes allowed here", _CLOSE)


def media_type(request: Request) -> str:
    """Return the body's media type without parameters, in lower case; empty when none is given."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported(request: Request, *accepted: str) -> ProblemError:
    """Return the 415 of a body in a format that is not `accepted`."""
    given = media_type(request) or "no Content-Type"
    return ProblemError(415, "unsupported_media_type", f"send {' or '.join(accepted)}, not {given}")


async def read_object(request: Request, rules: BodyRules) -> dict[str, Any]:
    """Return the body, a JSON object.

    Raises:
        ProblemError: 415 not JSON by its type, 400 not JSON or not an object, and those of `read_body`.
    """
    # A web page can send JSON as text/plain to anybody without asking; so the type is required.
    if media_type(request) != JSON:
        raise unsupported(request, JSON)
    async with read_body(request, rules) as body:
        value = parse_json(body)
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object")
    return value


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text (RFC 8259): no NaN, no infinity, no half of a surrogate pair.

    Raises:
        ProblemError: 400; 413 where it has so many values that everything else would wait for it for long.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:  # in strings, too: telling costs more
        raise ProblemError(
            413, "too_large", f"the body has more than {MAX_VALUES} values (commas and brackets, in texts, too)"
        )
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_no_constant, parse_float=_parse_float)
        if "\\ud" in text or "\\uD" in text:
            # json lets halves of surrogate pairs pass; no database and no other encoder does.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}") from None
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is out of range")
    return value


# --- queries -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted."""

    offset: int
    limit: int

    def of(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return that part."""
        return items[self.offset : self.offset + self.limit]

    def body(self, name: str, shown: Sequence[Any], total: int) -> dict[str, Any]:
        """Return the reference's list body: ``{offset, limit, total, <name>: [...]}``."""
        return {"offset": self.offset, "limit": self.limit, "total": total, name: list(shown)}


def page(request: Request) -> Page:
    """Return the page asked for: `offset` from 0, `limit` 1 to 1000, 100 unless told.

    Raises:
        ProblemError: 400.
    """
    offset = whole(request, "offset", 0)
    limit = whole(request, "limit", DEFAULT_PAGE)
    if offset is None or offset > _MAX_OFFSET:
        raise invalid(f"offset must be a whole number from 0 to {_MAX_OFFSET}")
    if limit is None or not 1 <= limit <= MAX_PAGE:
        raise invalid(f"limit must be a whole number from 1 to {MAX_PAGE}")
    return Page(offset, limit)


def whole(request: Request, name: str, default: int) -> int | None:
    """Return a parameter that is a whole number from 0; None when it is something else."""
    text = request.query_params.get(name)
    if text is None:
        return default
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def flag(request: Request, name: str) -> bool:
    """Return a parameter that is true or false, false unless given.

    Raises:
        ProblemError: 400.
    """
    text = request.query_params.get(name, "false").lower()
    if text not in {"true", "false", "1", "0", ""}:
        raise invalid(f"{name} must be true or false")
    return text in {"true", "1", ""}


async def rendered(items: Iterable[_Item], render: Callable[[_Item], Any]) -> list[Any]:
    """Return what `render` makes of each item, letting others run in between: a long list takes its time."""
    out = []
    turn = time.monotonic()
    for item in items:
        out.append(render(item))
        if time.monotonic() - turn > _TURN_S:
            await anyio.lowlevel.checkpoint()
            turn = time.monotonic()
    return out


def streamed(items: Iterable[_Item], render: Callable[[_Item], Any], version: int) -> Response:
    """Return ``{"items": [...], "version": n}`` as a response made piece by piece: items may carry modules."""

    async def pieces() -> AsyncIterator[bytes]:
        piece, separator, turn = b'{"items":[', b"", time.monotonic()
        for item in items:
            piece += separator + _encoded(render(item))
            separator = b","
            if len(piece) > _PIECE_BYTES or time.monotonic() - turn > _TURN_S:
                yield piece
                piece = b""
                await anyio.lowlevel.checkpoint()
                turn = time.monotonic()
        yield piece + b'],"version":%d}' % version

    return StreamingResponse(pieces(), media_type=JSON)


# --- versions ----------------------------------------------------------------------------------------------------


def etag(version: int) -> dict[str, str]:
    """Return the header that names a resource's version (RFC 9110, 8.8.3)."""
    return {"ETag": f'"{version}"'}


def check_version(request: Request, version: int) -> None:
    """Hold a write to the version its ``If-Match`` names, if it has one (RFC 9110, 13.1.1).

    Raises:
        ProblemError: 412, the resource was changed since.
    """
    expected = request.headers.get("if-match")
    if expected is None or expected.strip() == "*":
        return
    if f'"{version}"' not in [part.strip() for part in expected.split(",")]:
        raise ProblemError(412, "changed", f"the resource is at version {version} now: read it again and decide again")
