"""The API's description as an OpenAPI 3.1 document, made from the table of operations."""

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from proplet.manager.api_schema import schemas

if TYPE_CHECKING:
    from proplet.manager.api_routes import Operation

_JSON: Final = "application/json"
_EVERYWHERE: Final = (401, 403, 421, 500, 503)

_PARAMETERS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "offset": ({"type": "integer", "minimum": 0, "default": 0}, "How many items to leave out at the beginning."),
    "limit": ({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "The most items to answer."),
    "metadata": ({"type": "string"}, "A JSON object; only tasks whose metadata has each of its members."),
    "status": ({"enum": ["active", "inactive"]}, "Only proplets that are alive, or that are not."),
    "status:job": ({"enum": ["pending", "running", "completed", "failed"]}, "Only jobs that are so."),
    "namespace": ({"type": "string"}, "Only this namespace."),
    "name": ({"type": "string"}, "Only the resource of this name."),
    "kind": (
        {"enum": ["tasks", "proplets", "propellerjobs", "federatedjobs", "trainingrounds"]},
        "What to watch. Required.",
    ),
    "since": ({"type": "integer", "minimum": 0}, "The version to go on from; without it, all there is comes first."),
    "since:logs": ({"type": "integer", "minimum": 0}, "The `next` of an earlier answer: only what came after it."),
    "wait": ({"type": "integer", "minimum": 0}, "How many seconds to wait for lines, at most 25."),
    "dryRun": ({"type": "boolean", "default": False}, "Check and answer what would be done, do nothing."),
    "Last-Event-ID": ({"type": "integer"}, "The id of the last event that was seen; wins over `since`."),
}

_DESCRIPTION: Final = """The manager of a node. On its Unix socket no token is asked for.
On TCP send `Authorization: Bearer TOKEN`; clients that know nothing but a base URL use `http://HOST:7070/t/TOKEN`, or
the token as the password in the URL. Every error has a body: `{"error": message, "reason": word}`.
A resource's `ETag` names its version; a write with `If-Match` is refused with 412 when the resource was changed."""


def document(operations: "tuple[Operation, ...]", version: str) -> dict[str, Any]:
    """Return the document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "proplet manager",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _operation(operation: "Operation") -> dict[str, Any]:
    answers = {str(operation.status): _answer(operation)}
    for status in sorted({*operation.errors, *_EVERYWHERE} - {operation.status}):
        answers[str(status)] = _error(status)
    plain: dict[str, Any] = {
        "operationId": operation_id(operation),
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [*_path_parameters(operation.path), *map(_parameter, operation.parameters)],
        "responses": answers,
    }
    if operation.body is not None:
        schema = {"$ref": f"#/components/schemas/{operation.body}"}
        plain["requestBody"] = {
            "required": True,
            "content": {kind: {"schema": schema} for kind in operation.body_types},
        }
    return plain


def operation_id(operation: "Operation") -> str:
    """Return the operation's unique name: its method and path as words."""
    words = re.findall(r"[A-Za-z0-9]+", operation.path)
    return "_".join([operation.method.lower(), *words])


def _answer(operation: "Operation") -> dict[str, Any]:
    if operation.status >= HTTPStatus.BAD_REQUEST:
        return _error(operation.status)
    described: dict[str, Any] = {"description": HTTPStatus(operation.status).phrase}
    if operation.answer is not None:
        schema = {"$ref": f"#/components/schemas/{operation.answer}"}
        described["content"] = {operation.answer_type: {"schema": schema}}
    return described


def _error(status: int) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": HTTPStatus(status).phrase, "content": {_JSON: {"schema": schema}}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _parameter(name: str) -> dict[str, Any]:
    schema, description = _PARAMETERS[name]
    place = "header" if name == "Last-Event-ID" else "query"
    return {
        "name": name.partition(":")[0],
        "in": place,
        "required": name == "kind",
        "schema": schema,
        "description": description,
    }
