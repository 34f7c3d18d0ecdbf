"""Our own routes: resources as manifests, applied, read, deleted, started and stopped by kind, namespace and name."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from proplet.manager import rules
from proplet.manager.api_http import (
    JSON,
    ProblemError,
    check_version,
    etag,
    flag,
    invalid,
    media_type,
    parse_json,
    problem_of,
    read_body,
    reply,
    streamed,
    unsupported,
    whole,
)
from proplet.manager.api_routes import Context, Operation
from proplet.manager.manifest import ManifestError, parse_documents, to_manifest
from proplet.manager.model import Key, Kind, Meta, PropellerJob, Proplet, Resource, Task
from proplet.manager.phases import TERMINAL
from proplet.manager.ports import AlreadyExistsError, ConflictError, NotFoundError, Printed, Store, StoreError
from proplet.manager.runs import have_job_end, let_job_go, merged

_ATTEMPTS: Final = 8
_LONGEST_WAIT_S: Final = 25.0  # below what proxies wait for an answer
_LOOK_S: Final = 0.5  # how often it is looked whether a task has ended, by who waits for its lines
_STRAGGLERS_S: Final = 0.5
_YAML: Final = ("application/yaml", "application/x-yaml", "text/yaml")
_MAX_OBJECTS: Final = 1000

_NAMES: Final = {
    Kind.TASK: ("tasks", "task"),
    Kind.PROPLET: ("proplets", "proplet"),
    Kind.JOB: ("propellerjobs", "propellerjob", "pjob", "jobs", "job"),
    Kind.FEDERATED_JOB: ("federatedjobs", "federatedjob"),
    Kind.ROUND: ("trainingrounds", "traininground"),
}
KINDS: Final = {name: kind for kind, names in _NAMES.items() for name in names}
PLURALS: Final = tuple(names[0] for names in _NAMES.values())


def kind_of(text: str) -> Kind:
    """Return the kind that a path or a query names.

    Raises:
        ProblemError: 404.
    """
    kind = KINDS.get(text.lower())
    if kind is None:
        raise ProblemError(404, "no_such_kind", f"there is no kind {text[:50]!r}; there are {', '.join(PLURALS)}")
    return kind


async def list_resources(context: Context, request: Request) -> Response:
    """Answer every resource of a kind as a manifest, with the version a watch can go on from."""
    listing = await context.store.list(kind_of(request.path_params["kind"]))
    namespace = request.query_params.get("namespace")
    wanted = [item for item in listing.items if namespace in {None, item.meta.namespace}]
    return streamed(wanted, context.manifest, listing.version)


async def get_resource(context: Context, request: Request) -> Response:
    """Answer one resource as a manifest."""
    found = await context.store.get(kind_of(request.path_params["kind"]), _key(request))
    return reply(context.manifest(found), headers=etag(found.meta.version))


async def delete_resource(context: Context, request: Request) -> Response:
    """Delete one resource and answer its last state."""
    kind = kind_of(request.path_params["kind"])
    found = await context.store.get(kind, _key(request))
    check_version(request, found.meta.version)
    if isinstance(found, Proplet) and (count := context.control.liveness(found.id).task_count) > 0:
        raise ProblemError(409, "has_tasks", f"{count} tasks are under way on {found.id}: stop them first")
    version = found.meta.version if "if-match" in request.headers else None
    return reply(to_manifest(await context.store.delete(kind, found.meta.key, version)))


async def start_task(context: Context, request: Request) -> Response:
    """Ask for a run of a task; of one under way nothing changes."""
    task = await _task(context, request)
    return reply(to_manifest(await context.control.start(task.id)))


async def stop_task(context: Context, request: Request) -> Response:
    """Ask for the end of a task's current run."""
    task = await _task(context, request)
    return reply(to_manifest(await context.control.stop(task.id)))


async def start_job(context: Context, request: Request) -> Response:
    """Let a job go that waits for its start; of one under way nothing changes."""
    found = await context.store.get(Kind.JOB, _key(request))
    return reply(to_manifest(await let_job_go(context.store, found.meta.uid)))


async def stop_job(context: Context, request: Request) -> Response:
    """Have a job end: what runs is stopped, nothing more is started."""
    found = await context.store.get(Kind.JOB, _key(request))
    return reply(to_manifest(await have_job_end(context.store, found.meta.uid)))


async def task_logs(context: Context, request: Request) -> Response:
    """Answer a task's last output lines, as its proplets sent them, oldest first.

    With `since` those after it; with `wait` it waits so long for them, or for the end of the task.
    """
    since, wait_s = whole(request, "since", 0), whole(request, "wait", 0)
    if since is None or wait_s is None:
        raise invalid("since must be the `next` of an earlier answer, and wait a whole number of seconds")
    until = time.monotonic() + min(wait_s, _LONGEST_WAIT_S)
    task = await _task(context, request)
    while True:
        found = context.control.task_logs(task.id, since)
        ended, left_s = _has_ended(task), until - time.monotonic()
        if found or ended or left_s <= 0 or context.closing.is_set():
            break
        with anyio.move_on_after(min(left_s, _LOOK_S)):
            await context.control.task_printed(task.id)
        task = await _task(context, request)
    following = found[-1].number if found else since
    return reply({"items": [_logged(printed) for printed in found], "next": following, "ended": ended})


def _has_ended(task: Task) -> bool:
    """Whether nothing more is to be expected: lines may arrive after the result, but not long after."""
    return task.status.phase in TERMINAL and time.time() - task.status.finished_at > _STRAGGLERS_S


def _logged(printed: Printed) -> dict[str, Any]:
    lines = printed.lines
    return {
        "proplet_id": lines.proplet_id,
        "attempt": lines.attempt,
        "stream": lines.stream,
        "lines": list(lines.lines),
        "at": _moment(printed.at),
    }


def _moment(at: float) -> str:
    try:
        moment = datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):  # a device may say anything
        moment = datetime.fromtimestamp(0, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _key(request: Request) -> Key:
    return Key(request.path_params["name"], request.path_params["namespace"])


async def _task(context: Context, request: Request) -> Task:
    found = await context.store.get(Kind.TASK, _key(request))
    assert isinstance(found, Task)
    return found


# --- apply -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Applied:
    """What became of one manifest: created, configured or unchanged."""

    resource: Resource
    action: str

    def plain(self) -> dict[str, Any]:
        meta = self.resource.meta
        warning = _unsupported(self.resource)
        return {
            "kind": self.resource.kind.value,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
            "version": meta.version,
            "action": self.action,
            **({"warning": warning} if warning else {}),
        }


def _unsupported(resource: Resource) -> str | None:
    """What of it, or of a Task it will make, this version cannot run."""
    if isinstance(resource, Task):
        return rules.unsupported(resource)
    specs = resource.spec.tasks if isinstance(resource, PropellerJob) else ()
    return next(filter(None, (rules.unsupported(Task(Meta(""), spec)) for spec in specs)), None)


async def apply(context: Context, request: Request) -> Response:
    """Create or update what the manifests say. All are checked before the first is written.

    They are written one by one: when a write fails, the answer is that error, with `items` saying what was done before.
    Applying the same again finishes the work.
    """
    dry = flag(request, "dryRun")
    kind = media_type(request)
    if kind not in {JSON, *_YAML}:
        raise unsupported(request, JSON, _YAML[0])
    async with read_body(request, context.body) as body:
        wanted = await _parse(context, body, is_json=kind == JSON)
    planned = [await _try_to_apply(context.store, resource, dry=True) for resource in wanted]
    done: list[_Applied] = []
    try:
        for resource in wanted if not dry else ():
            done.append(await _apply_one(context.store, resource))  # noqa: PERF401 what was done counts when one fails
    except (ProblemError, StoreError) as error:
        problem = problem_of(error)
        items = [applied.plain() for applied in done]
        body_of_error = {"error": problem.message, "reason": problem.reason, "items": items}
        return reply(body_of_error, problem.status, problem.headers)
    return reply({"items": [applied.plain() for applied in (planned if dry else done)], "dryRun": dry})


async def _parse(context: Context, body: bytes, *, is_json: bool) -> Sequence[Resource]:
    if is_json:
        # Refuses what YAML lets pass, with JSON's own words for what is wrong.
        parse_json(body)
    try:
        text = body.decode("utf-8")
        # In a thread, one at a time: PyYAML needs seconds for megabytes, and heartbeats are answered meanwhile.
        found = await anyio.to_thread.run_sync(parse_documents, text, "request", limiter=context.parsing)
    except UnicodeDecodeError:
        raise invalid("the body is not UTF-8 text") from None
    except ManifestError as error:
        raise invalid(str(error)) from None
    if not found:
        raise invalid("there is no manifest in the body")
    if len(found) > _MAX_OBJECTS:
        raise invalid(f"there are {len(found)} manifests; apply at most {_MAX_OBJECTS} at once")
    return found


async def _apply_one(store: Store, wanted: Resource) -> _Applied:
    for attempt in range(_ATTEMPTS):
        try:
            return await _try_to_apply(store, wanted, dry=False)
        except (AlreadyExistsError, ConflictError, NotFoundError):
            # It was created, changed or deleted in between: look again.
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


async def _try_to_apply(store: Store, wanted: Resource, *, dry: bool) -> _Applied:
    try:
        current = await store.get(wanted.kind, wanted.meta.key)
    except NotFoundError:
        return _Applied(wanted if dry else await store.create(wanted), "created")
    changed = merged(current, wanted)
    if (changed.spec, changed.meta) == (current.spec, current.meta):
        return _Applied(current, "unchanged")
    if frozen := rules.frozen(current, changed):
        begun = "been dispatched" if isinstance(current, Task) else "started"
        what = f"{current.kind.value} {current.meta.key} has {begun}: {', '.join(frozen)} cannot change any more"
        raise ProblemError(409, "frozen", f"{what}; delete it and apply it again, or give the new one another name")
    return _Applied(changed if dry else await store.put(changed), "configured")


_ONE = "/api/v1/{kind}/{namespace}/{name}"

OPERATIONS = (
    Operation(
        "POST",
        "/api/v1/apply",
        apply,
        "Create or update resources from manifests",
        answer="Applied",
        body="Manifests",
        body_types=(JSON, *_YAML),
        parameters=("dryRun",),
        errors=(400, 408, 409, 413, 415),
        tag="manifests",
    ),
    Operation(
        "POST",
        "/api/v1/tasks/{namespace}/{name}/start",
        start_task,
        "Start a task",
        answer="Manifest",
        errors=(404,),
        tag="manifests",
    ),
    Operation(
        "POST",
        "/api/v1/tasks/{namespace}/{name}/stop",
        stop_task,
        "Stop a task",
        answer="Manifest",
        errors=(404, 409),
        tag="manifests",
    ),
    Operation(
        "POST",
        "/api/v1/propellerjobs/{namespace}/{name}/start",
        start_job,
        "Start a job that waits for that",
        answer="Manifest",
        errors=(404, 409),
        tag="manifests",
    ),
    Operation(
        "POST",
        "/api/v1/propellerjobs/{namespace}/{name}/stop",
        stop_job,
        "Stop a job",
        answer="Manifest",
        errors=(404, 409),
        tag="manifests",
    ),
    Operation(
        "GET",
        "/api/v1/tasks/{namespace}/{name}/logs",
        task_logs,
        "Get a task's last output lines",
        answer="Logs",
        parameters=("since:logs", "wait"),
        errors=(400, 404),
        tag="manifests",
    ),
    Operation("GET", _ONE, get_resource, "Get a manifest", answer="Manifest", errors=(404,), tag="manifests"),
    Operation(
        "DELETE", _ONE, delete_resource, "Delete a resource", answer="Manifest", errors=(404, 409, 412), tag="manifests"
    ),
    Operation(
        "GET",
        "/api/v1/{kind}",
        list_resources,
        "List manifests of a kind",
        answer="ManifestList",
        parameters=("namespace",),
        errors=(404,),
        tag="manifests",
    ),
)
