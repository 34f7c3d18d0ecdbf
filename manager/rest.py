"""The reference's REST shapes of tasks and proplets, ours in snake case beside them, as Tasks and Proplets and back.

Source: the reference manager's HTTP API (propeller). Its defects that are not copied: a PUT changes only the fields it
gives, and what the server alone decides (id, state, results, times) cannot be set from outside.
"""

import base64
import re
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from proplet.agent import codec
from proplet.manager import rules
from proplet.manager.model import Meta, PropellerJob, Proplet, Task, TaskSpec
from proplet.manager.ports import Liveness
from proplet.manager.reading import Problem, Reading, Style, kind_of, unknown_field
from proplet.manager.scalars import TEXT
from proplet.manager.shapes import MapOf
from proplet.manager.vocabulary import TASK_SPEC, TASK_STATUS

ZERO_TIME: Final = "0001-01-01T00:00:00Z"  # how Go writes a time that is not set

_LABELS: Final = MapOf(TEXT)
# Written by the server; a client that sends back what it read may send them, and they are read over.
_READ_ONLY: Final = frozenset(
    "id uid namespace resource_name generation version state phase results error start_time finish_time created_at "
    "updated_at next_run attempts failures stop_requested dispatched_at not_before reason message exit_code "
    "resolved_image usage broadcast_results conditions observed_generation assigned_proplet_id held "
    "parent_results".split()
)
# The fields that the reference always writes, with what they are when they are not set.
_ALWAYS: Final = {
    "name": "",
    "kind": "standard",
    "cli_args": [],
    "inputs": [],
    "env": {},
    "image_url": "",
    "daemon": False,
    "latent": False,
    "broadcast": False,
    "encrypted": False,
    "priority": 50,
}
_SHOWN: Final = 10


class RestError(ValueError):
    """A request's body cannot be taken. `problems` lists every mistake, each naming its field."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(str(problem) for problem in problems))


def task_from_rest(body: Any, *, namespace: str = "default") -> Task:
    """Return a new Task, held until somebody starts it; one that depends on others waits for those instead.

    Its uid is a fresh UUIDv4, whatever `id` the body has.

    Raises:
        RestError: with every mistake.
    """
    spec, labels = spec_from_rest(body)
    uid = str(uuid.uuid4())
    meta = Meta(resource_name(spec.name, uid), namespace, uid=uid, labels=labels)
    task = Task(meta, replace(spec, held=not spec.depends_on))
    check(task)
    return task


def spec_from_rest(body: Any) -> tuple[TaskSpec, Mapping[str, str]]:
    """Return what a task's body says, and its labels; whether it keeps to the rules is not looked at.

    Raises:
        RestError: with every mistake.
    """
    reading = Reading(Style.REST)
    given, labels = _read(_fields(body), reading)
    if reading.problems:
        raise RestError(reading.problems)
    return _with_pin(TaskSpec(), given), labels or {}


def apply_update(task: Task, body: Any) -> Task:
    """Return `task` with the fields that `body` gives changed, and nothing else.

    A field sent back as it was read is no change (also the redacted `file`), null is not given, and in the body of one
    of the reference's Go clients, which always send every field, neither is a field at Go's zero value.

    Raises:
        RestError: with every mistake.
    """
    shown = task_to_rest(task)
    reading = Reading(Style.REST)
    changed = {name: value for name, value in _fields(body).items() if name not in shown or shown[name] != value}
    given, labels = _read(changed, reading)
    if reading.problems:
        raise RestError(reading.problems)
    spec = _with_pin(task.spec, given)
    if "file" in given and given["file"] and "image_url" not in given:
        spec = replace(spec, image_url="")  # a new source of the module replaces the other
    elif given.get("image_url") and "file" not in given:
        spec = replace(spec, file=b"")
    meta = task.meta if labels is None else replace(task.meta, labels=labels)
    updated = replace(task, meta=meta, spec=spec)
    check(updated)
    return updated


def with_file(task: Task, module: bytes) -> Task:
    """Return `task` with an uploaded module in place of the one it had. Raises RestError."""
    updated = replace(task, spec=replace(task.spec, file=module, image_url=""))
    check(updated)
    return updated


def _fields(body: Any) -> dict[str, Any]:
    """The fields that a body gives."""
    if not isinstance(body, Mapping):
        raise RestError([Problem("", f"the body must be a JSON object, not {kind_of(body)}")])
    from_go = body.get("created_at") == ZERO_TIME
    return {
        name: value for name, value in body.items() if value is not None and not (from_go and value in (0, "", [], {}))
    }


def _read(fields: Mapping[str, Any], reading: Reading) -> tuple[dict[str, Any], dict[str, str] | None]:
    """The attributes of the spec that `fields` give, and the labels, None where not given."""
    own = dict(fields)
    labels = own.pop("labels", None)
    pin = own.pop("proplet_id", None)
    known = TASK_SPEC.spellings(Style.REST)
    for name in list(own):
        if name in _READ_ONLY:
            del own[name]
        elif name not in known:
            reading.bad(name, unknown_field(name, {**known, "proplet_id": None, "labels": None}))
            del own[name]
    values = TASK_SPEC.read_values(own, "", reading)
    if pin is not None:
        values["pin"] = TEXT.read(pin, "proplet_id", reading)
    return values, None if labels is None else _LABELS.read(labels, "labels", reading)


def _with_pin(spec: TaskSpec, given: Mapping[str, Any]) -> TaskSpec:
    values = dict(given)
    pin = values.pop("pin", None)
    spec = replace(spec, **values)
    if pin is None:
        return spec
    return replace(spec, selector=replace(spec.selector, proplet_id=pin or None))


def check(resource: Task | PropellerJob) -> None:
    """Hold a resource to the rules, whose paths are the manifest's. Raises RestError."""
    # A task may be created first and given its module by an upload; `rules.unsupported` holds it until then.
    problems = rules.check(resource, ignoring=rules.MODULE_GIVEN)
    if problems:
        raise RestError([Problem(rest_path(problem.path), _snake_words(problem.text)) for problem in problems])


def rest_path(path: str) -> str:
    """Return a manifest's path in REST's spelling: spec.imageUrl is image_url."""
    names = [part for part in path.split(".") if part not in ("spec", "metadata")]
    if path == "spec.metadata":
        return "metadata"
    return _snake(".".join(names)).replace("proplet_selector.proplet_id", "proplet_id")


def _snake(text: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "_" + match[1].lower(), text)


def _snake_words(text: str) -> str:
    """Field names within a sentence; words such as TaskSpec or a base64 text are none."""
    return re.sub(r"\b[a-z]+(?:[A-Z][a-z]+)+\b", lambda match: _snake(match[0]), text).replace(
        "proplet_selector.proplet_id", "proplet_id"
    )


def resource_name(name: str, uid: str) -> str:
    """Return the name of a resource that a client calls `name`: one of its own, readable."""
    stem = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:200].strip("-")
    return f"{stem or 'task'}-{uid[:8]}"


# --- writing --------------------------------------------------------------------------------------------------------


def task_to_rest(task: Task, *, redact_file: bool = True) -> dict[str, Any]:
    """Return a task as the API shows it; its `file` as the reference redacts it, or whole."""
    meta, status = task.meta, task.status
    out: dict[str, Any] = {"id": meta.uid, **_ALWAYS, **TASK_SPEC.write(task.spec, Style.REST)}
    if task.spec.file:
        out["file"] = redacted(task.spec.file) if redact_file else base64.b64encode(task.spec.file).decode("ascii")
    if task.spec.selector.proplet_id or status.proplet_id:
        out["proplet_id"] = task.spec.selector.proplet_id or status.proplet_id
    if status.proplet_id:
        out["assigned_proplet_id"] = status.proplet_id
    if meta.labels:
        out["labels"] = dict(meta.labels)
    out |= {
        "namespace": meta.namespace,
        "resource_name": meta.name,
        "generation": meta.generation,
        "version": meta.version,
        "state": status.phase.number,
        "phase": status.phase.value,
        "start_time": go_time(status.started_at),
        "finish_time": go_time(status.finished_at),
        "created_at": go_time(meta.created_at),
        "updated_at": go_time(meta.updated_at),
        "next_run": go_time(status.next_run),
    }
    return out | {"attempts": status.attempt} | TASK_STATUS.write(status, Style.REST)


def redacted(module: bytes) -> str:
    """Return a module as the reference shows it: the first and last ten characters of its base64."""
    if len(module) > 6 * _SHOWN:  # only its ends: three bytes make four characters, wherever a three begins
        end = (len(module) - 1) // 3 * 3 + 3 - 3 * _SHOWN
        first, last = (base64.b64encode(part).decode("ascii") for part in (module[: 3 * _SHOWN], module[end:]))
        return f"{first[:_SHOWN]}<REDACTED>{last[-_SHOWN:]}"
    text = base64.b64encode(module).decode("ascii")
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}<REDACTED>{text[-_SHOWN:]}"


def go_time(seconds: float) -> str:
    """Return an epoch time as RFC 3339 in UTC; never is Go's zero time."""
    return codec.rfc3339(seconds) if seconds else ZERO_TIME


def proplet_to_rest(proplet: Proplet, liveness: Liveness) -> dict[str, Any]:
    """Return a proplet as the API shows it: the reference's PropletView, ours beside it."""
    meta, spec, status = proplet.meta, proplet.spec, proplet.status
    last_seen = liveness.last_seen or status.last_seen
    out: dict[str, Any] = {
        "id": proplet.id,
        "name": meta.name,
        "task_count": liveness.task_count,
        "alive": liveness.alive,
        "metadata": codec.to_plain(status.metadata) if status.metadata else {},
        "namespace": meta.namespace,
        "uid": meta.uid,
        "phase": status.phase.value,
        "type": spec.type,
        "declared": spec.declared,
        "created_at": go_time(meta.created_at),
        "updated_at": go_time(meta.updated_at),
    }
    if last_seen:
        out["last_alive_at"] = go_time(last_seen)
    for name, value in (
        ("labels", dict(meta.labels)),
        ("device_type", spec.device_type),
        ("capabilities", list(spec.capabilities)),
        ("extensions", list(status.extensions)),
        ("encodings", list(status.encodings)),
        ("reason", liveness.reason),
    ):
        if value:
            out[name] = value  # noqa: PERF403
    return out
