"""JSON Schemas (2020-12) of what the API takes and answers, most of them derived from the vocabulary's own tables.

Schemas of answers leave room for further members: a client must ignore what it does not know.
"""

from collections.abc import Mapping
from typing import Any, Final

from proplet.manager import scalars
from proplet.manager.model import Kind
from proplet.manager.phases import Phase
from proplet.manager.reading import Style
from proplet.manager.shapes import Keyed, MapOf, Record, Sequence
from proplet.manager.vocabulary import (
    MONITORING,
    PROPLET_METADATA,
    PROPLET_SPEC,
    PROPLET_STATUS,
    TASK_SPEC,
    TASK_STATUS,
)
from proplet.manager.vocabulary_work import (
    FEDERATED_SPEC,
    FEDERATED_STATUS,
    JOB_SPEC,
    JOB_STATUS,
    ROUND_SPEC,
    ROUND_STATUS,
)

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_MOMENT: Final[Schema] = {"type": "string", "format": "date-time"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_NUMBER: Final[Schema] = {"type": "number"}
_FLAG: Final[Schema] = {"type": "boolean"}

_SCALARS: Final[tuple[tuple[Any, Schema], ...]] = (
    (scalars.TEXT, _TEXT),
    (scalars.FLAG, _FLAG),
    (scalars.WHOLE, {"type": "integer"}),
    (scalars.NUMBER, _NUMBER),
    (scalars.SCALAR, {"type": ["string", "number", "boolean"]}),
    (scalars.BASE64, {"type": "string", "contentEncoding": "base64"}),
    (scalars.MOMENT, _MOMENT),
    (scalars.BYTES, {"type": ["string", "integer"]}),
    (scalars.CPU, {"type": ["string", "number"]}),
    (scalars.SECONDS, {"type": ["string", "number"]}),
    (scalars.QUANTITY_TEXT, {"type": ["string", "number"]}),
    (scalars.OBJECT, {"type": "object"}),
    (scalars.ANY, {}),
)


def schema_of(shape: Any, style: Style) -> Schema:
    """Return the schema of a value of `shape` in the spelling of `style`."""
    for known, schema in _SCALARS:
        if shape is known:
            return schema
    if isinstance(shape, Sequence):
        return {"type": "array", "items": schema_of(shape.item, style)}
    if isinstance(shape, MapOf):
        return {"type": "object", "additionalProperties": schema_of(shape.item, style)}
    if isinstance(shape, Record):
        names = shape.spellings(style)
        return _object({name: schema_of(entry.shape, style) for name, entry in names.items()})
    if isinstance(shape, Keyed):
        return _object({name: schema_of(item, style) for name, item in shape.shapes.items()})
    if isinstance(shape, scalars.IntervalShape):
        return {"type": ["integer", "number", "string"]}
    if isinstance(shape, scalars.ConditionShape):
        return _FLAG if style is Style.REST else _TEXT
    if isinstance(shape, scalars.Plain):  # a choice: its words
        return _TEXT
    return {"type": "object"}


def _object(properties: Mapping[str, Schema], *required: str) -> Schema:
    return {"type": "object", "properties": dict(properties), **({"required": list(required)} if required else {})}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _page(name: str, item: Schema) -> Schema:
    properties = {"offset": _COUNT, "limit": _COUNT, "total": _COUNT, name: _list(item)}
    return _object(properties, "offset", "limit", "total", name)


def _rest_task() -> dict[str, Schema]:
    """The members of a task in REST's spelling: what can be given, and what only the manager writes."""
    given = schema_of(TASK_SPEC, Style.REST)["properties"]
    known = schema_of(TASK_STATUS, Style.REST)["properties"]
    own: dict[str, Schema] = {
        "id": {"type": "string", "format": "uuid"},
        "state": {"type": "integer", "minimum": 0, "maximum": len(Phase) - 1},
        "proplet_id": {"type": ["string", "null"]},
        "results": {},
        "error": {"type": ["string", "null"]},
        "start_time": _MOMENT,
        "finish_time": _MOMENT,
        "created_at": _MOMENT,
        "updated_at": _MOMENT,
        "next_run": _MOMENT,
        "inputs": {"type": ["array", "null"], "items": schema_of(scalars.SCALAR, Style.REST)},
        "cli_args": {"type": ["array", "null"], "items": _TEXT},
        "file": {"type": "string", "description": "base64; redacted in answers"},
    }
    return {**known, **given, **own}


def _manifest(kind: Kind, spec: Any, status: Any) -> Schema:
    properties = {
        "apiVersion": _TEXT,
        "kind": {"const": kind.value},
        "metadata": _object(
            {
                "name": _TEXT,
                "namespace": _TEXT,
                "uid": _TEXT,
                "labels": {"type": "object", "additionalProperties": _TEXT},
                "annotations": {"type": "object", "additionalProperties": _TEXT},
                "creationTimestamp": _MOMENT,
                "generation": _COUNT,
                "resourceVersion": _TEXT,
            },
            "name",
        ),
        "spec": schema_of(spec, Style.MANIFEST),
        "status": schema_of(status, Style.MANIFEST),
    }
    return _object(properties, "apiVersion", "kind", "metadata", "spec")


def _wire_metrics() -> dict[str, Schema]:
    numbers = {"type": "object", "additionalProperties": _NUMBER}
    return {
        "TaskMetrics": _object(
            {
                "task_id": _TEXT,
                "proplet_id": _TEXT,
                "metrics": numbers,
                "aggregated": {"type": ["object", "null"], "additionalProperties": _NUMBER},
                "timestamp": _MOMENT,
            },
            "task_id",
            "proplet_id",
            "metrics",
        ),
        "PropletMetrics": _object(
            {
                "proplet_id": _TEXT,
                "namespace": _TEXT,
                "timestamp": _MOMENT,
                "cpu_metrics": numbers,
                "memory_metrics": numbers,
            },
            "proplet_id",
            "cpu_metrics",
            "memory_metrics",
        ),
    }


def _top() -> Schema:
    measured = {"cpu_percent": _NUMBER, "cpu_seconds": _NUMBER, "memory_bytes": _COUNT, "measured_at": _MOMENT}
    task = {
        **dict.fromkeys(("namespace", "name", "uid", "phase", "state", "proplet"), _TEXT),
        **dict.fromkeys(("attempt", "uptime_seconds", "restarts", "invocations"), _COUNT),
        "started_at": _MOMENT,
        **measured,
    }
    proplet = {
        **dict.fromkeys(("namespace", "name"), _TEXT),
        **dict.fromkeys(("tasks", "total_memory_bytes"), _COUNT),
        "alive": _FLAG,
        "machine_cpu_percent": _NUMBER,
        **measured,
    }
    tasks = _list(_object(task, "namespace", "name", "uid", "phase", "attempt"))
    return _object(
        {"tasks": tasks, "proplets": _list(_object(proplet, "namespace", "name", "alive", "tasks"))},
        "tasks",
        "proplets",
    )


def schemas() -> dict[str, Schema]:
    """Return every schema of the document's `components`, by name."""
    task = _rest_task()
    proplet = {
        "id": _TEXT,
        "name": _TEXT,
        "task_count": _COUNT,
        "alive": _FLAG,
        "last_alive_at": _MOMENT,
        "metadata": schema_of(PROPLET_METADATA, Style.REST),
    }
    job = {
        "job_id": _TEXT,
        "name": _TEXT,
        "execution_mode": _TEXT,
        "state": {"enum": [0, 2, 3, 4]},
        "tasks": _list(_ref("Task")),
        "start_time": _MOMENT,
        "finish_time": _MOMENT,
        "created_at": _MOMENT,
        **schema_of(JOB_STATUS, Style.REST)["properties"],
    }
    event_types = {"enum": ["ADDED", "MODIFIED", "DELETED", "SYNCED"]}
    applied = {
        "kind": _TEXT,
        "namespace": _TEXT,
        "name": _TEXT,
        "uid": _TEXT,
        "version": _COUNT,
        "action": {"enum": ["created", "configured", "unchanged"]},
        "warning": _TEXT,
    }
    lines = {
        "proplet_id": _TEXT,
        "attempt": {"type": ["integer", "null"]},
        "stream": {"enum": ["stdout", "stderr"]},
        "lines": _list(_TEXT),
        "at": _MOMENT,
    }
    logs = {
        "items": _list(_object(lines, "proplet_id", "attempt", "stream", "lines", "at")),
        "next": _COUNT,
        "ended": _FLAG,
    }
    broker = _object({"address": {"type": ["string", "null"]}, "connected": _FLAG}, "address", "connected")
    nullable_text: Schema = {"type": ["string", "null"]}
    return {
        "Error": _object({"error": _TEXT, "reason": _TEXT}, "error", "reason"),
        "Task": _object({**task, "monitoring_profile": schema_of(MONITORING, Style.REST)}, "id", "name", "state"),
        "TaskInput": _object(task, "name"),
        "TaskUpdate": _object(task),
        "TaskList": _page("tasks", _ref("Task")),
        "Job": _object(job, "job_id", "tasks"),
        "JobInput": _object(
            {"name": _TEXT, "execution_mode": _TEXT, "tasks": _list(_ref("TaskInput"))}, "name", "tasks"
        ),
        "JobList": _page("jobs", _ref("Job")),
        "JobMessage": _object({"message": _TEXT, "job_id": _TEXT}, "message", "job_id"),
        "Workflow": _object({"tasks": _list(_ref("Task"))}, "tasks"),
        "WorkflowInput": _object({"tasks": _list(_ref("TaskInput"))}, "tasks"),
        "Upload": _object({"file": {"type": "string", "contentMediaType": "application/wasm"}}, "file"),
        "Started": _object({"started": {"const": True}}, "started"),
        "Stopped": _object({"stopped": {"const": True}}, "stopped"),
        "Results": _object({"results": {}}, "results"),
        "Invocation": _object(
            {
                "inputs": {"type": "array", "items": schema_of(scalars.SCALAR, Style.REST)},
                "env": {"type": "object", "additionalProperties": _TEXT},
                "timeout_seconds": {"type": "number", "exclusiveMinimum": 0, "maximum": 30},
            }
        ),
        "Invoked": _object({"invoked": {"const": True}, "results": _TEXT}, "invoked", "results"),
        "InvocationAnswer": _object(
            {
                "invoked": _FLAG,
                "proplet_id": _TEXT,
                "results": _TEXT,
                "error": nullable_text,
                "reason": _TEXT,
                "exit_code": {"type": "integer"},
                "usage": {"type": "object"},
            },
            "invoked",
            "results",
        ),
        **_wire_metrics(),
        "TaskMetricsList": _page("metrics", _ref("TaskMetrics")),
        "PropletMetricsList": _page("metrics", _ref("PropletMetrics")),
        "Top": _top(),
        "AliveHistory": _page("history", _MOMENT),
        "Proplet": _object(proplet, "id", "name", "task_count", "alive"),
        "PropletList": _page("proplets", _ref("Proplet")),
        "Sdf": _object({"info": {"type": "object"}, "sdfThing": {"type": "object"}}, "info", "sdfThing"),
        "TaskManifest": _manifest(Kind.TASK, TASK_SPEC, TASK_STATUS),
        "PropletManifest": _manifest(Kind.PROPLET, PROPLET_SPEC, PROPLET_STATUS),
        "JobManifest": _manifest(Kind.JOB, JOB_SPEC, JOB_STATUS),
        "FederatedJobManifest": _manifest(Kind.FEDERATED_JOB, FEDERATED_SPEC, FEDERATED_STATUS),
        "RoundManifest": _manifest(Kind.ROUND, ROUND_SPEC, ROUND_STATUS),
        "Manifest": {
            "oneOf": [_ref(f"{kind}Manifest") for kind in ("Task", "Proplet", "Job", "FederatedJob", "Round")]
        },
        "ManifestList": _object({"items": _list(_ref("Manifest")), "version": _COUNT}, "items", "version"),
        "Manifests": {
            "description": "One manifest, or a List of them; as YAML also several documents",
            "type": "object",
        },
        "Applied": _object(
            {"items": _list(_object(applied, "kind", "namespace", "name", "action")), "dryRun": _FLAG}, "items"
        ),
        "Logs": _object(logs, "items", "next", "ended"),
        "Event": _object({"type": event_types, "version": _COUNT, "object": _ref("Manifest")}, "type", "version"),
        "Health": _object({"status": {"enum": ["pass", "warn", "fail"]}, "checks": {"type": "object"}}, "status"),
        "Node": _object(
            {
                "version": _TEXT,
                "services": _list(_TEXT),
                "proplet_id": nullable_text,
                "manager_id": nullable_text,
                "broker": broker,
                "started_at": _MOMENT,
                "engine": nullable_text,
                "pid": _COUNT,
            },
            "version",
            "services",
            "broker",
        ),
        "Text": _TEXT,
        "Document": {"type": "object"},
    }
