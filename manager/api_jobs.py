"""The reference's routes for jobs and workflows: same paths and shapes, right status codes.

Differences that are meant: reading a job answers 200 (the reference 201), an unknown one is 404, a job can be deleted
with its tasks, and `sequential` waits. A job that has ended is not started again: 409.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from proplet.manager.api_http import ProblemError, check_version, etag, invalid, page, read_object, rendered, reply
from proplet.manager.api_routes import PAGING, Context, Operation
from proplet.manager.job_plan import task_ids
from proplet.manager.jobs import decide_job
from proplet.manager.model import Kind, PropellerJob, Task
from proplet.manager.ports import AlreadyExistsError, NotFoundError, StoreError
from proplet.manager.rest import RestError, task_to_rest
from proplet.manager.rest_jobs import job_from_rest, job_to_rest, tasks_to_rest, workflow_from_rest
from proplet.manager.runs import have_job_end, let_job_go
from proplet.manager.work import Related


async def create_job(context: Context, request: Request) -> Response:
    """Create a job; it waits for its start."""
    body = await read_object(request, context.body)
    try:
        wanted = job_from_rest(body)
    except RestError as error:
        raise invalid(str(error)) from None
    await _are_free(context, task_ids(wanted).values())
    job = await context.store.create(wanted)
    assert isinstance(job, PropellerJob)
    # Made here and not only by the loop, so that a client finds them at once; they wait for the job's start.
    for child in decide_job(job, Related(), job.meta.created_at).create:
        with suppress(AlreadyExistsError):
            await context.store.create(child)
    headers = {"Location": f"/jobs/{job.meta.uid}", **etag(job.meta.version)}
    return reply({"job_id": job.meta.uid, "tasks": tasks_to_rest(job, {})}, 201, headers)


async def list_jobs(context: Context, request: Request) -> Response:
    """Answer a page of jobs, the newest first; `status` selects those that are so."""
    wanted = page(request)
    status = request.query_params.get("status", "")
    if status not in {"", "pending", "running", "completed", "failed"}:
        raise invalid("status must be pending, running, completed or failed")
    jobs = [item for item in (await context.store.list(Kind.JOB)).items if isinstance(item, PropellerJob)]
    chosen = [job for job in reversed(jobs) if not status or job.status.phase.value.lower() == status]
    shown = list(wanted.of(chosen))
    children = await _children(context, shown)
    answers = await rendered(shown, lambda job: job_to_rest(job, children[job.meta.uid]))
    return reply(wanted.body("jobs", answers, len(chosen)))


async def get_job(context: Context, request: Request) -> Response:
    """Answer one job."""
    job = await _find(context, request)
    children = await _children(context, [job])
    return reply(job_to_rest(job, children[job.meta.uid]), headers=etag(job.meta.version))


async def delete_job(context: Context, request: Request) -> Response:
    """Delete a job and its tasks; those that run are stopped."""
    job = await _find(context, request)
    check_version(request, job.meta.version)
    version = job.meta.version if "if-match" in request.headers else None
    await context.store.delete(Kind.JOB, job.meta.key, version)
    return Response(status_code=204)


async def start_job(context: Context, request: Request) -> Response:
    """Let a job go that waits for its start; of one under way nothing changes."""
    job = await let_job_go(context.store, request.path_params["id"])
    return reply({"message": "job started", "job_id": job.meta.uid})


async def stop_job(context: Context, request: Request) -> Response:
    """Stop what runs of a job, and start nothing more of it."""
    job = await have_job_end(context.store, request.path_params["id"])
    return reply({"message": "job stopped", "job_id": job.meta.uid})


async def create_workflow(context: Context, request: Request) -> Response:
    """Create tasks that depend on each other; all of them or none. Those that depend on none wait for their start."""
    body = await read_object(request, context.body)
    try:
        wanted = workflow_from_rest(body)
    except RestError as error:
        raise invalid(str(error)) from None
    await _are_free(context, [task.id for task in wanted])
    made: list[Task] = []
    try:
        for task in wanted:
            created = await context.store.create(task)
            assert isinstance(created, Task)
            made.append(created)
    except StoreError:
        for task in made:
            await context.store.delete(Kind.TASK, task.meta.key)
        raise
    return reply({"tasks": [task_to_rest(task) for task in made]}, 201)


async def _are_free(context: Context, uids: Iterable[str]) -> None:
    """Raise ProblemError (409) where a task with one of these ids exists."""
    for uid in uids:
        try:
            await context.store.find(Kind.TASK, uid)
        except NotFoundError:
            continue
        raise ProblemError(409, "already_exists", f"a task with the id {uid} exists; leave the id out to get a new one")


async def _children(context: Context, jobs: Iterable[PropellerJob]) -> Mapping[str, Mapping[str, Task]]:
    """The Tasks that the jobs have made, by the job's uid and their names."""
    found: dict[str, dict[str, Task]] = {job.meta.uid: {} for job in jobs}
    for item in (await context.store.list(Kind.TASK)).items if found else ():
        if item.meta.owner is not None and item.meta.owner.uid in found and isinstance(item, Task):
            found[item.meta.owner.uid][item.meta.name] = item
    return found


async def _find(context: Context, request: Request) -> PropellerJob:
    found: Any = await context.store.find(Kind.JOB, request.path_params["id"])
    assert isinstance(found, PropellerJob)
    return found


_BODY = (400, 408, 409, 413, 415)

OPERATIONS = (
    Operation(
        "GET", "/jobs", list_jobs, "List jobs", answer="JobList", parameters=(*PAGING, "status:job"), errors=(400,),
        tag="jobs",
    ),
    Operation("POST", "/jobs", create_job, "Create a job", 201, "Job", body="JobInput", errors=_BODY, tag="jobs"),
    Operation("GET", "/jobs/{id}", get_job, "Get a job", answer="Job", errors=(404,), tag="jobs"),
    Operation("DELETE", "/jobs/{id}", delete_job, "Delete a job", 204, errors=(404, 409, 412), tag="jobs"),
    Operation(
        "POST", "/jobs/{id}/start", start_job, "Start a job", answer="JobMessage", errors=(404, 409), tag="jobs"
    ),
    Operation("POST", "/jobs/{id}/stop", stop_job, "Stop a job", answer="JobMessage", errors=(404, 409), tag="jobs"),
    Operation(
        "POST",
        "/workflows",
        create_workflow,
        "Create tasks that depend on each other",
        201,
        "Workflow",
        body="WorkflowInput",
        errors=_BODY,
        tag="workflows",
    ),
)  # fmt: skip
