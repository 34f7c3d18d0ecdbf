"""Federated averaging: models' parameters in the formats of the reference's updates, and their weighted mean. Pure.

Formats, as bytes (an envelope carries them in base64, see `updates`):

* ``json-f64``: JSON, a list of numbers, or an object of named numbers and lists of numbers (``{"w": [1, 2], "b": 3}``).
  Whole parameters; the mean of a round replaces what was before.
* ``f32-delta``: IEEE 754 single precision, little endian. What the parameters changed by in the round; the mean is
  added to what was before, so that a global update always says how far the model is from the one the job began with.

Proplets of the reference write ``f32-delta`` over whatever a guest printed when nobody set ``FL_FORMAT``. So bytes that
are JSON are taken as ``json-f64``, whatever they are called.
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NoReturn

MAX_UPDATE_BYTES: Final = 384 * 1024
"""The most one update may have. A Task carries one in base64 in its environment and one twice in base64 in its result,
a TrainingRound carries two; etcd keeps no object of more than 1.5 MiB."""

_SAMPLES_MAX: Final = 2**63 - 1


class UpdateError(ValueError):
    """An update cannot be used; the message says why."""


class UnknownFormatError(UpdateError):
    """Nobody here knows how such an update is averaged."""


class MalformedUpdateError(UpdateError):
    """The bytes are not what the format says."""


class MismatchError(UpdateError):
    """Updates are of different models: their parameters differ in number, names or format."""


class NotFiniteError(UpdateError):
    """A parameter is NaN or infinite: the training diverged."""


class NoSamplesError(UpdateError):
    """The update was trained on nothing, or on a number of samples that there cannot be."""


class TooLargeError(UpdateError):
    """The update has more bytes than every store can keep."""


class Format(Enum):
    """How parameters are written; the value is its name in an envelope."""

    JSON_F64 = "json-f64"
    F32_DELTA = "f32-delta"


@dataclass(frozen=True, slots=True)
class Layout:
    """What must be the same for two updates to be averaged.

    `parts` names the parameters in order, each a list of so many numbers or (None) one number; a plain list has none.
    """

    format: Format
    count: int
    parts: tuple[tuple[str, int | None], ...] = ()

    def __str__(self) -> str:
        names = ", ".join(ascii(name[:20]) for name, _ in self.parts[:6])
        return f"{self.count} parameters{f' ({names})' if names else ''} as {self.format.value}"


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a model, or what they changed by, in the order of the layout."""

    layout: Layout
    values: tuple[float, ...]


# --- reading and writing ----------------------------------------------------------------------------------------------


def parse(data: bytes, name: str) -> Parameters:
    """Return the parameters in `data`, written in the format called `name` ("" is json-f64).

    Raises:
        UpdateError: by its subclasses, if they cannot be read, are none, too many, or not finite.
    """
    _check_size(len(data))
    form = _format(name)
    if form is Format.F32_DELTA and not _is_json(data):
        return _parse_f32(data)
    return _parse_json(data)


def render(parameters: Parameters) -> bytes:
    """Return the bytes of the parameters, in their format.

    Raises:
        TooLargeError: there are more than an update may have.
        NotFiniteError: one does not fit in the format.
    """
    layout, values = parameters.layout, parameters.values
    if layout.format is Format.F32_DELTA:
        try:
            data = struct.pack(f"<{len(values)}f", *values)
        except OverflowError:
            raise NotFiniteError("a parameter is beyond single precision: the training diverges") from None
    else:
        data = json.dumps(_shaped(layout, values), separators=(",", ":"), allow_nan=False).encode()
    _check_size(len(data))
    return data


def _check_size(size: int) -> None:
    if size > MAX_UPDATE_BYTES:
        raise TooLargeError(
            f"the update has {size} bytes, the most is {MAX_UPDATE_BYTES} (a round must fit in etcd's 1.5 MiB); "
            f"train fewer parameters, or send them as {Format.F32_DELTA.value}, 4 bytes each"
        )


def _format(name: str) -> Format:
    try:
        return Format(name or Format.JSON_F64.value)
    except ValueError:
        known = " and ".join(form.value for form in Format)
        raise UnknownFormatError(f"the update's format is {name[:40]!r}; {known} can be averaged") from None


def _is_json(data: bytes) -> bool:
    text = data.strip()
    if not (text.startswith((b"[", b"{")) and text.endswith((b"]", b"}"))):
        return False
    try:
        return isinstance(_load(data), (list, dict))
    except MalformedUpdateError:
        return False


def _load(data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise MalformedUpdateError(f"the update is no JSON: {str(error)[:80]}") from None


def _parse_f32(data: bytes) -> Parameters:
    count, rest = divmod(len(data), 4)
    if rest or not count:
        raise MalformedUpdateError(f"the update has {len(data)} bytes; single precision takes 4 for each parameter")
    return _finite(Layout(Format.F32_DELTA, count), struct.unpack(f"<{count}f", data))


def _parse_json(data: bytes) -> Parameters:
    value = _load(data)
    if isinstance(value, list):
        values = tuple(_number(item, "the list") for item in value)
        return _finite(Layout(Format.JSON_F64, len(values)), values)
    if not isinstance(value, dict):
        raise MalformedUpdateError("the update is JSON, but neither a list of numbers nor an object of such")
    parts, numbers = list[tuple[str, int | None]](), list[float]()
    for name in sorted(value):  # encoders order an object's names as they like
        item = value[name]
        if isinstance(item, list):
            parts.append((name, len(item)))
            numbers += [_number(each, ascii(name[:40])) for each in item]
        else:
            parts.append((name, None))
            numbers.append(_number(item, ascii(name[:40])))
    return _finite(Layout(Format.JSON_F64, len(numbers), tuple(parts)), tuple(numbers))


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float):
        raise MalformedUpdateError(f"{where} holds something that is no number")
    try:
        return float(value)
    except OverflowError:
        raise NotFiniteError(f"{where} holds a number beyond double precision") from None


def _finite(layout: Layout, values: tuple[float, ...]) -> Parameters:
    if not values:
        raise MalformedUpdateError("the update has no parameters")
    for at, value in enumerate(values):
        if not math.isfinite(value):
            raise NotFiniteError(
                f"parameter {at} of {len(values)} is {value}: the training diverges, learn more slowly"
            )
    return Parameters(layout, values)


def _shaped(layout: Layout, values: Sequence[float]) -> Any:
    if not layout.parts:
        return list(values)
    shaped, at = dict[str, Any](), 0
    for name, length in layout.parts:
        shaped[name] = values[at] if length is None else list(values[at : at + length])
        at += 1 if length is None else length
    return shaped


# --- averaging --------------------------------------------------------------------------------------------------------


def average(updates: Iterable[tuple[Parameters, int]]) -> Parameters:
    """Return FedAvg's mean of updates, each weighted by its number of samples; their order does not matter.

    Raises:
        MismatchError: they are not all of one layout.
        NoSamplesError: there are none, or one was trained on no samples.
    """
    given = list(updates)
    if not given:
        raise NoSamplesError("there is no update to average")
    layout = given[0][0].layout
    for parameters, samples in given:
        check_samples(samples)
        if parameters.layout != layout:
            _differ(parameters.layout, layout)
    total = sum(samples for _, samples in given)
    weighted = [[value * (samples / total) for value in parameters.values] for parameters, samples in given]
    return Parameters(layout, tuple(map(math.fsum, zip(*weighted, strict=True))))


def advance(before: Parameters | None, mean: Parameters) -> Parameters:
    """Return the global update after a round: its mean, added to what was `before` where the mean is of changes.

    Raises:
        MismatchError: the two are of different models.
        NotFiniteError: the sum is too large.
    """
    if before is None or mean.layout.format is not Format.F32_DELTA:
        return mean
    if before.layout.count != mean.layout.count:
        _differ(mean.layout, before.layout)
    moved = tuple(old + new for old, new in zip(before.values, mean.values, strict=True))
    return _finite(before.layout, moved)


def common_layout(updates: Iterable[Parameters], before: Parameters | None) -> Layout | None:
    """Return the layout that most updates have, of those as long as the global update `before`; of equals the first.

    None: there is no such update. So one participant that trains another model spoils its own update, not the round.
    """
    counted = Counter(
        parameters.layout for parameters in updates if before is None or parameters.layout.count == before.layout.count
    )
    return max(counted, key=lambda layout: counted[layout], default=None)


def check_samples(samples: int) -> None:
    """Raise NoSamplesError where an update cannot have been trained on so many samples."""
    if not 0 < samples <= _SAMPLES_MAX:
        raise NoSamplesError(f"the update says num_samples {str(samples)[:20]}; it must be from 1 to 2**63 - 1")


def _differ(layout: Layout, expected: Layout) -> NoReturn:
    raise MismatchError(f"the update has {layout}, others have {expected}: they are not of the same model")
