"""Resources as text: tables with the columns of the reference's custom resources, ages, sizes, JSON, YAML.

Everything here takes resources as manifests (``apiVersion``, ``kind``, ``metadata``, ``spec``, ``status``) and the time
as a number, and returns text. Source of the columns: the printer columns of absmach/propeller's CRDs.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Manifest = Mapping[str, Any]
Cell = Callable[[Manifest, float], str]


def printable(text: str) -> str:
    """Return text of a guest or a device without control and direction characters: it must not steer a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def one_line(value: Any) -> str:
    """Return any value as one printable line; an absent one as nothing."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(" ".join(text.split()))


def without_user(name: str) -> str:
    """The name of an image or module for people: what stands before the host of a URL may be a password."""
    return re.sub(r"^(\w+://)[^/?#]*@", r"\1", name)


def at(manifest: Any, path: str) -> Any:
    """Return the value at a dotted path, None where there is none."""
    for key in path.split("."):
        manifest = manifest.get(key) if isinstance(manifest, Mapping) else None
    return manifest


def moment(value: Any) -> float | None:
    """Return the epoch time of an RFC 3339 text; None for anything else and for the reference's zero time."""
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    seconds = parsed.timestamp()
    return seconds if seconds > 0 else None


_DAY, _YEAR = 86400, 365 * 86400


def age(seconds: float) -> str:
    """Return a span of time the way kubectl writes it: two units while it is short, one when it is long."""
    whole = int(max(0.0, seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // _DAY
    if whole < 120:
        return f"{whole}s"
    if minutes < 10:
        return _two(minutes, "m", whole % 60, "s")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 2 * 365:
        return f"{days}d"
    if days < 8 * 365:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}{small}{small_unit}" if small else f"{large}{large_unit}"


def duration(seconds: float | None) -> str:
    """Return a measured time with three digits and the unit that suits it; ``-`` when it was not measured."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 600 else age(seconds)


def size(count: float | None) -> str:
    """Return bytes with three digits and a binary unit; ``-`` when they were not measured."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.3g} TiB"


def _text(path: str, default: str = "") -> Cell:
    return lambda manifest, _: one_line(at(manifest, path)) or default


def _since(path: str) -> Cell:
    def cell(manifest: Manifest, now: float) -> str:
        then = moment(at(manifest, path))
        return "" if then is None else age(now - then)

    return cell


def _ready(manifest: Manifest, _: float) -> str:
    for condition in at(manifest, "status.conditions") or ():
        if isinstance(condition, Mapping) and condition.get("type") == "Ready":
            return one_line(condition.get("status")).capitalize()
    return str(at(manifest, "status.phase") == "Running")


def condition_message(manifest: Manifest) -> str:
    """Return what the last of a work's conditions says; of a job that has failed, why."""
    said = [item for item in at(manifest, "status.conditions") or () if isinstance(item, Mapping)]
    return one_line(said[-1].get("message")) if said else ""


def _clip(cell: Cell, width: int) -> Cell:
    def clipped(manifest: Manifest, now: float) -> str:
        text = cell(manifest, now)
        return text if len(text) <= width else text[: width - 1] + "…"

    return clipped


def _source(manifest: Manifest, _: float) -> str:
    image = at(manifest, "spec.imageUrl")
    return one_line(image) if image else "<inline>" if at(manifest, "spec.file") else ""


_NAME = ("NAME", _text("metadata.name"))
_AGE = ("AGE", _since("metadata.creationTimestamp"))
_WHY = ("MESSAGE", _clip(lambda manifest, _: condition_message(manifest), 60))
_TABLES: Mapping[str, tuple[Sequence[tuple[str, Cell]], Sequence[tuple[str, Cell]]]] = {
    "Task": (
        (
            _NAME,
            ("PHASE", _text("status.phase")),
            ("MODE", _text("spec.mode")),
            ("PROPLET", _text("status.assignedProplet")),
            ("START TIME", _since("status.startedAt")),
            ("FINISH TIME", _since("status.finishedAt")),
            ("PREFERRED TYPE", _text("spec.preferredPropletType", "any")),
            _AGE,
        ),
        (
            ("ATTEMPTS", _text("status.attempts")),
            ("RESULTS", _clip(_text("status.results"), 40)),
            ("SOURCE", _source),
            ("MESSAGE", _clip(lambda m, _: one_line(at(m, "status.error") or at(m, "status.message")), 60)),
        ),
    ),
    "Proplet": (
        (
            _NAME,
            ("TYPE", _text("spec.type", "external")),
            ("PHASE", _text("status.phase")),
            ("READY", _ready),
            ("TASKS", _text("status.taskCount", "0")),
            ("REPLICAS", _text("status.k8sStatus.readyReplicas")),
            ("LAST SEEN", _since("status.lastSeen")),
            _AGE,
        ),
        (
            ("LOCATION", _text("status.metadata.location")),
            ("OS", _text("status.metadata.os")),
            ("ARCH", _text("status.metadata.cpuArch")),
            ("VERSION", _text("status.metadata.propletVersion")),
        ),
    ),
    "PropellerJob": (
        (
            _NAME,
            ("PHASE", _text("status.phase", "Pending")),
            ("MODE", _text("spec.executionMode", "configurable")),
            ("TASKS", _text("status.taskCount", "0")),
            ("COMPLETED", _text("status.completedCount", "0")),
            ("FAILED", _text("status.failedCount", "0")),
            _AGE,
        ),
        (
            ("SKIPPED", _text("status.skippedCount", "0")),
            ("INTERRUPTED", _text("status.interruptedCount", "0")),
            _WHY,
        ),
    ),
    "FederatedJob": (
        (
            _NAME,
            ("PHASE", _text("status.phase", "Pending")),
            ("CURRENT ROUND", _text("status.currentRound", "0")),
            ("COMPLETED ROUNDS", _text("status.completedRounds", "0")),
            _AGE,
        ),
        (("ROUNDS", _text("spec.rounds.total", "1")), _WHY),
    ),
    "TrainingRound": (
        (
            _NAME,
            ("PHASE", _text("status.phase", "Pending")),
            ("JOB", _text("spec.federatedJobRef.name")),
            ("UPDATES", _text("status.updatesReceived", "0")),
            ("REQUIRED", _text("status.updatesRequired", "0")),
            _AGE,
        ),
        (("ROUND", _text("spec.roundId")), _WHY),
    ),
}


def rows(kind: str, manifests: Iterable[Manifest], now: float, *, wide: bool = False) -> list[list[str]]:
    """Return the cells of a table, its head first."""
    narrow, more = _TABLES[kind]
    columns = (*narrow, *more) if wide else narrow
    return [[head for head, _ in columns], *([cell(item, now) for _, cell in columns] for item in manifests)]


def aligned(cells: Sequence[Sequence[str]], widths: Sequence[int] = ()) -> Iterator[str]:
    """Yield a table's lines, columns three spaces apart; `widths` are the least they may have."""
    least = list(widths) or [0] * (len(cells[0]) if cells else 0)
    final = [max([least[n], *(len(row[n]) for row in cells)]) for n in range(len(least))]
    for row in cells:
        yield "   ".join(text.ljust(width) for text, width in zip(row, final, strict=True)).rstrip()


def camel(key: str) -> str:
    """Return the name that a manifest would have for a key with underscores."""
    first, *others = key.split("_")
    return first + "".join(word.capitalize() for word in others)


def as_yaml(value: Any) -> str:
    """Return a value as a YAML document, keys in their order."""
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False)


def as_json(value: Any) -> str:
    """Return a value as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def documents(manifests: Sequence[Manifest], form: str, *, single: bool) -> str:
    """Return manifests as ``json`` or ``yaml``: a single one as itself, several as a List."""
    value: Any = manifests[0] if single else {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    return as_json(value) if form == "json" else as_yaml(value)


def describe(manifest: Manifest, now: float) -> Iterator[str]:
    """Yield a resource for a person: everything known, indented, with times as moments and as ages."""
    for key in ("metadata", "spec", "status"):
        if key == "metadata":
            yield from _described(_named(manifest), now, 0)
        elif manifest.get(key):
            yield f"{_title(key)}:"
            yield from _described(manifest[key], now, 1)


def _named(manifest: Manifest) -> Mapping[str, Any]:
    meta = manifest.get("metadata") or {}
    first = {"name": meta.get("name"), "namespace": meta.get("namespace"), "kind": manifest.get("kind")}
    return {**first, **{key: value for key, value in meta.items() if key not in first}}


def _described(value: Mapping[str, Any], now: float, depth: int, above: str = "") -> Iterator[str]:
    pad = "  " * depth
    # What a person has named is written as they did.
    titled = one_line if above in _NAMED_BY_PEOPLE else _title
    unit = above if above.endswith(_UNITS) else ""
    plain = [key for key, item in value.items() if not _nested(item)]
    width = max((len(titled(key)) + 1 for key in plain), default=0)
    for key, item in value.items():
        title = titled(key) + ":"
        if isinstance(item, str) and item and _SECRET.search(key):
            yield f"{pad}{title:<{width}}  <redacted>"
        elif key == "file" and isinstance(item, str):
            yield f"{pad}{title:<{width}}  <{size(len(item) * 3 // 4)} of WebAssembly>"
        elif isinstance(item, Mapping) and item:
            yield f"{pad}{title}"
            # The times of stages are in ``wallSeconds: {run: 0.1}``.
            yield from _described(item, now, depth + 1, key)
        elif _nested(item):
            yield f"{pad}{title}"
            yield from _list(item, now, depth + 1)
        elif item is not None and item not in ({}, []):
            yield f"{pad}{title:<{width}}  {_measured(unit or key, item) or _plain(item, now)}"


_UNITS = ("Bytes", "Seconds")
_NAMED_BY_PEOPLE = frozenset({"env", "envSecrets", "labels", "annotations", "matchLabels", "custom"})
# The connections of the reference (clientKey, apiKey), and variables whose name says what they hold.
_SECRET = re.compile(
    r"((client|api|private|access|secret)[-_]?keys?|passw(or)?d|passphrase|secret|token|credentials?)$", re.IGNORECASE
)


def _measured(unit: str, item: Any) -> str:
    """Return a number for a person where a key tells its unit, nothing elsewhere."""
    if isinstance(item, bool) or not isinstance(item, int | float):
        return ""
    if not unit.endswith(_UNITS):
        return ""
    return size(item) if unit.endswith(_UNITS[0]) else duration(item)


def _nested(item: Any) -> bool:
    if isinstance(item, Mapping):
        return bool(item)
    return isinstance(item, list) and any(isinstance(part, Mapping | list) for part in item)


def _list(items: Sequence[Any], now: float, depth: int) -> Iterator[str]:
    for item in items:
        if isinstance(item, Mapping):
            lines = list(_described(item, now, depth + 1))
            if lines:
                yield "  " * depth + "- " + lines[0].lstrip()
                yield from lines[1:]
        else:
            yield "  " * depth + "- " + _plain(item, now)


def _plain(item: Any, now: float) -> str:
    then = moment(item) if isinstance(item, str) and re.match(r"\d{4}-\d\d-\d\dT", item) else None
    if then is not None:
        return f"{item} ({age(now - then)} ago)" if then <= now else f"{item} (in {age(then - now)})"
    if isinstance(item, list):
        return ", ".join(one_line(part) for part in item)
    return one_line(item)


_INITIALS = frozenset({"api", "id", "uid", "ip", "os", "cpu", "url", "mqtt", "qos"})


def _title(key: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_-]", " ", one_line(key)).split()
    return " ".join(word.upper() if word.lower() in _INITIALS else word[:1].upper() + word[1:] for word in words)
