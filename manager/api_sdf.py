"""A proplet described in the Semantic Definition Format (draft-ietf-asdf-sdf): what can be read, done and heard."""

from typing import Any


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


_TEXT: dict[str, Any] = {"type": "string"}
_TEXTS: dict[str, Any] = {"type": "array", "items": _TEXT}
_FLAG: dict[str, Any] = {"type": "boolean"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}


def _ref(name: str) -> dict[str, str]:
    return {"sdfRef": f"#/sdfThing/Proplet/sdfData/{name}"}


_DATA = {
    "PropletMetadata": _object(
        {
            "description": _TEXT,
            "tags": _TEXTS,
            "location": _TEXT,
            "ip": _TEXT,
            "environment": _TEXT,
            "os": _TEXT,
            "hostname": _TEXT,
            "cpu_arch": _TEXT,
            "total_memory_bytes": _COUNT,
            "proplet_version": _TEXT,
            "wasm_runtime": _TEXT,
        }
    ),
    "TaskDispatch": _object(
        {
            "id": _TEXT,
            "name": _TEXT,
            "state": _COUNT,
            "image_url": _TEXT,
            "file": {**_TEXT, "contentEncoding": "base64"},
            "inputs": _TEXTS,
            "cli_args": _TEXTS,
            "env": {"type": "object", "additionalProperties": _TEXT},
            "daemon": _FLAG,
            "latent": _FLAG,
            "broadcast": _FLAG,
            "encrypted": _FLAG,
            "proplet_id": _TEXT,
            "ext": {"type": "object"},
        },
        "id",
        "name",
    ),
    "TaskStop": _object({"id": _TEXT, "broadcast": _FLAG, "proplet_id": _TEXT}, "id"),
    "HeartbeatPayload": _object({"proplet_id": _TEXT, "status": _TEXT, "namespace": _TEXT}, "proplet_id"),
    "TaskResult": _object(
        {"task_id": _TEXT, "proplet_id": _TEXT, "results": _TEXT, "error": _TEXT, "ext": {"type": "object"}}, "task_id"
    ),
}


def description(proplet_id: str) -> dict[str, Any]:
    """Return the SDF document of a proplet, with the reference's members."""
    return {
        "info": {"title": f"Proplet {proplet_id}", "version": "1.0", "license": "Apache-2.0"},
        "sdfThing": {
            "Proplet": {
                "label": "Proplet",
                "description": "A device that runs WebAssembly tasks",
                "sdfProperty": {
                    "id": {"description": "Its id on the wire", **_TEXT, "writable": False, "const": proplet_id},
                    "name": {"description": "Its record's name", **_TEXT, "writable": False},
                    "alive": {"description": "Whether it is heard", **_FLAG, "writable": False, "observable": True},
                    "task_count": {
                        "description": "Tasks under way on it",
                        **_COUNT,
                        "writable": False,
                        "observable": True,
                    },
                    "metadata": {"description": "How it describes itself", **_ref("PropletMetadata")},
                },
                "sdfAction": {
                    "start_task": {"description": "Run a task", "sdfInputData": _ref("TaskDispatch")},
                    "stop_task": {"description": "End a task", "sdfInputData": _ref("TaskStop")},
                },
                "sdfEvent": {
                    "heartbeat": {"description": "It is alive", "sdfOutputData": _ref("HeartbeatPayload")},
                    "task_result": {"description": "A task ended", "sdfOutputData": _ref("TaskResult")},
                },
                "sdfData": _DATA,
            }
        },
    }
