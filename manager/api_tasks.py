"""The reference's routes for tasks: same paths and shapes, right status codes, nothing lost.

Differences that are meant: an update keeps every field it does not name (the reference drops the schedule), `results`
always has a body, a missing task is 404 on every store, validation errors are 400 with a message.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from proplet.agent.codec import to_plain
from proplet.manager import rules
from proplet.manager.api_http import (
    ProblemError,
    check_version,
    etag,
    invalid,
    media_type,
    page,
    parse_json,
    read_body,
    read_object,
    rendered,
    reply,
    unsupported,
)
from proplet.manager.api_multipart import MultipartError, file_part
from proplet.manager.api_routes import PAGING, Context, Operation
from proplet.manager.model import Kind, Task
from proplet.manager.ports import AlreadyExistsError, ConflictError, NotFoundError
from proplet.manager.rest import RestError, apply_update, rest_path, task_from_rest, task_to_rest, with_file

_ATTEMPTS = 8
_WASM_MAGIC = b"\0asm"
_MULTIPART = "multipart/form-data"
_WASM = "application/wasm"
_Given = TypeVar("_Given")


async def list_tasks(context: Context, request: Request) -> Response:
    """Answer a page of tasks, in order of creation; `metadata` selects those that have every member of an object."""
    wanted = page(request)
    matches = _metadata_filter(request.query_params.get("metadata"))
    tasks = [item for item in (await context.store.list(Kind.TASK)).items if isinstance(item, Task) and matches(item)]
    shown = await rendered(wanted.of(tasks), task_to_rest)
    return reply(wanted.body("tasks", shown, len(tasks)))


def _metadata_filter(text: str | None) -> Callable[[Task], bool]:
    if not text:
        return lambda _task: True
    try:
        wanted = parse_json(text.encode("utf-8", "surrogatepass"))
    except ProblemError as problem:
        raise invalid(f"metadata: {problem.message}") from None
    if not isinstance(wanted, dict):
        raise invalid("metadata must be a JSON object")
    nothing = object()
    return lambda task: all(task.spec.metadata.get(key, nothing) == value for key, value in wanted.items())


async def create_task(context: Context, request: Request) -> Response:
    """Create a task; it waits for its start."""
    body = await read_object(request, context.body)
    for attempt in range(_ATTEMPTS):
        try:
            task = await context.store.create(await _with_names(context, _checked(task_from_rest, body)))
            break
        except AlreadyExistsError:
            # The record's name is made up by us, the client cannot choose another one.
            if attempt == _ATTEMPTS - 1:
                raise
    assert isinstance(task, Task)
    return reply(task_to_rest(task), 201, {"Location": f"/tasks/{task.id}", **etag(task.meta.version)})


async def get_task(context: Context, request: Request) -> Response:
    """Answer one task."""
    task = await _find(context, request)
    return reply(task_to_rest(task), headers=etag(task.meta.version))


async def update_task(context: Context, request: Request) -> Response:
    """Change the fields that the body names; every other one keeps its value."""
    body = await read_object(request, context.body)
    return await _update(context, request, lambda task: apply_update(task, body))


async def upload(context: Context, request: Request) -> Response:
    """Set a task's module: multipart/form-data with a part `file` named *.wasm, or the bytes as application/wasm."""
    kind = media_type(request)
    if kind not in {_MULTIPART, _WASM}:
        raise unsupported(request, _MULTIPART, _WASM)
    async with read_body(request, context.body) as body:
        module = body if kind == _WASM else _uploaded(request, body)
        if not module.startswith(_WASM_MAGIC):
            raise invalid("the file is not a WebAssembly module: it does not begin with the bytes 00 61 73 6d")
        return await _update(context, request, lambda task: with_file(task, module))


def _uploaded(request: Request, body: bytes) -> bytes:
    try:
        part = file_part(request.headers.get("content-type", ""), body, "file")
    except MultipartError as error:
        raise invalid(f"the upload cannot be read: {error}") from None
    if not part.filename.lower().endswith(".wasm"):
        raise invalid("the name of the uploaded file must end in .wasm")
    return part.content


async def _update(context: Context, request: Request, change: Callable[[Task], Task]) -> Response:
    for attempt in range(_ATTEMPTS):
        task = await _find(context, request)
        check_version(request, task.meta.version)
        wanted = await _with_names(context, _checked(change, task))
        if frozen := rules.frozen_changes(task, wanted, finished_too=False):
            fields = ", ".join(rest_path(path) for path in frozen)
            raise ProblemError(409, "frozen", f"the task is under way: {fields} cannot change until it has ended")
        try:
            changed = await context.store.put(wanted)
        except ConflictError:
            # Somebody else wrote in between; the update names fields, so it can be applied to what is there now.
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        break
    assert isinstance(changed, Task)
    return reply(task_to_rest(changed), headers=etag(changed.meta.version))


async def delete_task(context: Context, request: Request) -> Response:
    """Delete a task; the controller stops it where it runs."""
    task = await _find(context, request)
    check_version(request, task.meta.version)
    version = task.meta.version if "if-match" in request.headers else None
    await context.store.delete(Kind.TASK, task.meta.key, version)
    return Response(status_code=204)


async def start_task(context: Context, request: Request) -> Response:
    """Ask for a run; of a task under way nothing changes."""
    await context.control.start(request.path_params["id"])
    return reply({"started": True})


async def stop_task(context: Context, request: Request) -> Response:
    """Ask for the end of the current run."""
    await context.control.stop(request.path_params["id"])
    return reply({"stopped": True})


async def results(context: Context, request: Request) -> Response:
    """Answer a task's results; null as long as there are none."""
    task = await _find(context, request)
    return reply({"results": task.status.results})


async def metrics(context: Context, request: Request) -> Response:
    """Answer a page of a task's last measurements, oldest first."""
    wanted = page(request)
    task = await _find(context, request)
    found = context.control.task_metrics(task.id)
    return reply(wanted.body("metrics", [to_plain(item) for item in wanted.of(found)], len(found)))


async def not_implemented(_context: Context, _request: Request) -> Response:
    """Refuse what a later version will do."""
    raise ProblemError(501, "not_implemented", "this version does not do that: there is no FL over HTTP yet")


async def _find(context: Context, request: Request) -> Task:
    found = await context.store.find(Kind.TASK, request.path_params["id"])
    assert isinstance(found, Task)
    return found


async def _with_names(context: Context, task: Task) -> Task:
    """The task with the names of those it depends on where a client gave their ids."""
    names = []
    for name in task.spec.depends_on:
        try:
            names.append((await context.store.find(Kind.TASK, name)).meta.name)
        except NotFoundError:
            names.append(name)
    if tuple(names) == task.spec.depends_on:
        return task
    return replace(task, spec=replace(task.spec, depends_on=tuple(names)))


def _checked(build: Callable[[_Given], Task], given: _Given) -> Task:
    try:
        return build(given)
    except RestError as error:
        raise invalid(str(error)) from None


def _later(method: str, path: str, tag: str) -> Operation:
    return Operation(method, path, not_implemented, "Not implemented in this version", status=501, tag=tag)


OPERATIONS = (
    Operation(
        "GET", "/tasks", list_tasks, "List tasks", answer="TaskList", parameters=(*PAGING, "metadata"), errors=(400,)
    ),
    Operation(
        "POST", "/tasks", create_task, "Create a task", 201, "Task", body="TaskInput", errors=(400, 408, 409, 413, 415)
    ),
    Operation("GET", "/tasks/{id}", get_task, "Get a task", answer="Task", errors=(404,)),
    Operation(
        "PUT",
        "/tasks/{id}",
        update_task,
        "Change the fields of a task that the body names",
        answer="Task",
        body="TaskUpdate",
        errors=(400, 404, 408, 409, 412, 413, 415),
    ),
    Operation("DELETE", "/tasks/{id}", delete_task, "Delete a task", 204, errors=(404, 409, 412)),
    Operation(
        "PUT",
        "/tasks/{id}/upload",
        upload,
        "Upload a task's module",
        answer="Task",
        body="Upload",
        body_types=(_MULTIPART, _WASM),
        errors=(400, 404, 408, 409, 412, 413, 415),
    ),
    Operation("POST", "/tasks/{id}/start", start_task, "Start a task", answer="Started", errors=(404,)),
    Operation("POST", "/tasks/{id}/stop", stop_task, "Stop a task", answer="Stopped", errors=(404, 409)),
    Operation("GET", "/tasks/{id}/results", results, "Get a task's results", answer="Results", errors=(404,)),
    Operation(
        "GET",
        "/tasks/{id}/metrics",
        metrics,
        "List a task's measurements",
        answer="TaskMetricsList",
        parameters=PAGING,
        errors=(400, 404),
    ),
    _later("POST", "/fl/experiments", "fl"),
    _later("GET", "/fl/task", "fl"),
    _later("POST", "/fl/update", "fl"),
    _later("POST", "/fl/update_cbor", "fl"),
    _later("GET", "/fl/rounds/{round_id}/complete", "fl"),
)
