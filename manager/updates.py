"""Update envelopes: what a client of federated learning answers, read from a Task's results, and written. Pure.

An envelope is ``{"task_id", "job_id", "round_id", "global_version", "proplet_id", "num_samples", "update_b64",
"format", "metrics"}``. The reference's peers put it at the top level, under ``update_envelope`` or under
``results.update_envelope``, as an object or as its JSON. Two more ways lead to one:

* a proplet wraps what the guest printed: its envelope's ``update_b64`` is the guest's text, which can be an envelope
  itself; the guest's word on what it trained counts, the proplet's on who and for what;
* the clients of the reference's demonstration send the parameters openly, as ``update``.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from proplet.manager.averaging import (
    Format,
    MalformedUpdateError,
    Parameters,
    TooLargeError,
    advance,
    average,
    check_samples,
    parse,
    render,
)

AGGREGATOR: Final = "aggregator"
_TEXT_MAX: Final = 2 * 1024 * 1024  # bytes of results that are looked into
_DEPTH_MAX: Final = 6  # wrappings around an envelope
_IDS: Final = ("task_id", "job_id", "proplet_id")
_METRICS_MAX: Final = 32  # numbers that an aggregate tells of its clients
_NAME_MAX: Final = 63


class EnvelopeError(MalformedUpdateError):
    """The results hold no update envelope, or one that cannot be read."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One update and where it comes from; "" is unstated. `round_id` is as it was sent, `round_number` reads it."""

    update: bytes
    format: str = ""
    num_samples: int = 1
    round_id: str = ""
    task_id: str = ""
    job_id: str = ""
    proplet_id: str = ""
    global_version: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self) -> Parameters:
        """Return what was trained. Raises UpdateError."""
        check_samples(self.num_samples)
        return parse(self.update, self.format)


def round_number(round_id: str) -> int | None:
    """Return the number of a round: of ``3``, ``"3"`` and ``"round-3"`` it is 3; a round called otherwise has none."""
    digits = round_id.removeprefix("round-")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 19 else None


def same_round(one: str, other: str) -> bool:
    """Whether two ids are of the same round."""
    number = round_number(one)
    return one == other if number is None else number == round_number(other)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_envelope(results: Any) -> Envelope:
    """Return the envelope in a task's results: text or a plain value.

    Raises:
        EnvelopeError: there is none, or it is broken; the message says what.
        TooLargeError: there is more than is looked into.
    """
    if results is None or results == "":
        raise EnvelopeError("the task ended without a result; the client must print its update envelope")
    found = _find(results, _DEPTH_MAX)
    if found is None:
        raise EnvelopeError("the results hold no update envelope: an object with update_b64, or update")
    return _read(found, _DEPTH_MAX)


def _find(value: Any, depth: int) -> Mapping[str, Any] | None:
    """The envelope at the top level, under update_envelope, or under results."""
    value = _plain(value, depth)
    if not isinstance(value, Mapping) or depth == 0:
        return None
    if "update_b64" in value:
        return value
    for name in ("update_envelope", "results"):
        found = _find(value.get(name), depth - 1)
        if found is not None:
            return found
    return value if isinstance(value.get("update"), (Mapping, list)) and value["update"] else None


def _plain(value: Any, depth: int) -> Any:
    """What JSON text stands for; JSON in JSON, too."""
    while isinstance(value, (str, bytes)) and depth:
        if len(value) > _TEXT_MAX:
            raise TooLargeError(f"the results have {len(value)} characters, the most is {_TEXT_MAX}; send less")
        try:
            value = json.loads(value if isinstance(value, str) else value.decode())
        except (ValueError, RecursionError):
            return None
        depth -= 1
    return value


def _read(outer: Mapping[str, Any], depth: int) -> Envelope:
    update, form = _update(outer)
    envelope = Envelope(
        update=update,
        format=form,
        num_samples=_whole(outer, "num_samples", 1),
        round_id=_round_id(outer),
        **{name: _text(outer, name) for name in _IDS},
        global_version=_whole(outer, "global_version", 0),
        metrics=_metrics(outer),
    )
    inner = _find(update, depth - 1) if depth and "update_b64" in outer else None
    if inner is None:
        return envelope
    guest = _read(inner, depth - 1)
    return Envelope(
        update=guest.update,
        format=guest.format,
        num_samples=guest.num_samples if "num_samples" in inner else envelope.num_samples,
        round_id=guest.round_id or envelope.round_id,
        task_id=envelope.task_id or guest.task_id,
        job_id=envelope.job_id or guest.job_id,
        proplet_id=envelope.proplet_id or guest.proplet_id,
        global_version=guest.global_version or envelope.global_version,
        metrics={**envelope.metrics, **guest.metrics},
    )


def _update(value: Mapping[str, Any]) -> tuple[bytes, str]:
    if "update_b64" not in value:
        return json.dumps(value["update"]).encode(), Format.JSON_F64.value
    text = value["update_b64"]
    if not isinstance(text, str):
        raise EnvelopeError("update_b64 is no text; it must be base64")
    try:
        return base64.b64decode("".join(text.split()), validate=True), _text(value, "format")
    except ValueError as error:
        raise EnvelopeError(f"update_b64 is not standard base64: {error}") from None


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise EnvelopeError(f"{name} is no text")
    return found


def _whole(value: Mapping[str, Any], name: str, default: int) -> int:
    found = value.get(name)
    if found is None or found == "":
        return default
    if isinstance(found, str) and found.isascii() and found.isdecimal() and len(found) < 20:
        return int(found)
    if isinstance(found, float) and found.is_integer():
        return int(found)
    if type(found) is not int:
        raise EnvelopeError(f"{name} is no whole number")
    return found


def _round_id(value: Mapping[str, Any]) -> str:
    found = value.get("round_id")
    if found is None:
        return ""
    if isinstance(found, str):
        return found
    number = _whole(value, "round_id", 0)
    if number <= 0:
        raise EnvelopeError(f"round_id is {number}; rounds are counted from 1")
    return str(number)


def _metrics(value: Mapping[str, Any]) -> Mapping[str, Any]:
    found = value.get("metrics")
    return found if isinstance(found, Mapping) else {}


# --- writing ----------------------------------------------------------------------------------------------------------


def write_envelope(envelope: Envelope) -> dict[str, Any]:
    """Return the envelope as a plain JSON object; what is unstated is left out."""
    ids = {name: getattr(envelope, name) for name in ("task_id", "job_id", "round_id", "proplet_id")}
    return {
        **{name: value for name, value in ids.items() if value},
        "global_version": envelope.global_version,
        "num_samples": envelope.num_samples,
        "update_b64": base64.b64encode(envelope.update).decode("ascii"),
        "format": envelope.format,
        "metrics": dict(envelope.metrics),
    }


def combine(updates: Sequence[Envelope], before: Envelope | None, *, round_id: str, job_id: str) -> Envelope:
    """Return the global update after a round: FedAvg of its updates, all of one layout, on top of what was `before`.

    Its metrics are the reference's (how many clients, how many samples, the algorithm) and, weighted by samples, the
    mean of every number that all clients tell.

    Raises:
        UpdateError: by its subclasses, if they cannot be averaged, or what comes out is too large.
    """
    mean = average((update.parameters(), update.num_samples) for update in updates)
    after = advance(before.parameters() if before else None, mean)
    total = sum(update.num_samples for update in updates)
    return Envelope(
        update=render(after),
        format=after.layout.format.value,
        num_samples=total,
        round_id=round_id,
        job_id=job_id,
        proplet_id=AGGREGATOR,
        global_version=(before.global_version if before else 0) + 1,
        metrics={
            **_mean_metrics(updates, total),
            "num_clients": len(updates),
            "total_samples": total,
            "algorithm": "fedavg",
        },
    )


def _mean_metrics(updates: Sequence[Envelope], total: int) -> dict[str, float]:
    means = dict[str, float]()
    for name in list(updates[0].metrics)[:_METRICS_MAX]:
        told = [(_metric(update.metrics.get(name)), update.num_samples / total) for update in updates]
        numbers = [number * weight for number, weight in told if number is not None]
        if name.isascii() and len(name) <= _NAME_MAX and len(numbers) == len(updates):
            means[name] = math.fsum(numbers)
    return means


def _metric(value: Any) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
