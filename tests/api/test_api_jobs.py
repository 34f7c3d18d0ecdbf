"""The reference's routes for jobs and workflows, over a real socket, with the loop that drives jobs behind them."""

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from proplet.manager.api import ApiSettings
from proplet.manager.model import Kind, PropellerJob, Task, WorkPhase
from proplet.manager.phases import Phase
from proplet.manager.works import open_works
from tests.api.fakes import Node, open_node
from tests.api.http import Answer, send
from tests.api.test_api_tasks import is_error

pytestmark = pytest.mark.anyio

UNKNOWN = "00000000-0000-4000-8000-000000000000"
A, B = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


@pytest.fixture
async def node(settings: ApiSettings, anyio_backend: str) -> AsyncIterator[Node]:
    async with open_node(settings) as opened, open_works(opened.store, collect_garbage=True):
        yield opened


def task(name: str = "add", **more: Any) -> dict[str, Any]:
    return {"name": name, "image_url": "localhost:5000/add:1", "inputs": [1, 2], **more}


async def create(node: Node, *tasks: dict[str, Any], mode: str = "parallel", name: str = "both") -> Answer:
    return await send(node.socket, "POST", "/jobs", {"name": name, "tasks": list(tasks), "execution_mode": mode})


async def until(node: Node, kind: Kind, met: Callable[[Any], bool]) -> Any:
    """Return a resource of a kind as soon as one is as wanted."""
    with anyio.fail_after(20):
        async with aclosing(cast("Any", node.store.watch(kind, (await node.store.list(kind)).version))) as news:
            changes = aiter(news)
            while True:
                for item in (await node.store.list(kind)).items:
                    if met(item):
                        return item
                await anext(changes)


async def end(node: Node, uid: str, phase: Phase = Phase.COMPLETED) -> None:
    found = cast("Task", await until(node, Kind.TASK, lambda item: item.meta.uid == uid))
    await node.store.record(replace(found, status=replace(found.status, phase=phase, results="3")))


async def ended(node: Node, job_id: str) -> PropellerJob:
    def is_over(job: PropellerJob) -> bool:
        return job.meta.uid == job_id and job.status.phase in (WorkPhase.COMPLETED, WorkPhase.FAILED)

    return cast("PropellerJob", await until(node, Kind.JOB, is_over))


async def test_a_job_is_created_waits_for_its_start_runs_and_is_shown_at_every_step(node: Node) -> None:
    created = await create(node, task(id=A), task(id=B))
    assert created.status == 201
    job_id = created.json["job_id"]
    assert created.headers["location"] == f"/jobs/{job_id}"
    assert [(each["id"], each["state"], each["job_id"]) for each in created.json["tasks"]] == [
        (A, 0, job_id),
        (B, 0, job_id),
    ]
    shown = await send(node.socket, "GET", f"/jobs/{job_id}")
    assert (shown.status, shown.json["state"], shown.json["start_time"]) == (200, 0, "0001-01-01T00:00:00Z")
    assert (await send(node.socket, "GET", f"/tasks/{A}")).json["state"] == 0
    for _ in range(2):
        started = await send(node.socket, "POST", f"/jobs/{job_id}/start")
        assert (started.status, started.json) == (200, {"message": "job started", "job_id": job_id})
    await end(node, A)
    await end(node, B)
    await ended(node, job_id)
    shown = await send(node.socket, "GET", f"/jobs/{job_id}")
    assert (shown.json["state"], shown.json["completed_count"]) == (3, 2)
    assert [(each["id"], each["state"], each["results"]) for each in shown.json["tasks"]] == [(A, 3, "3"), (B, 3, "3")]
    assert (await send(node.socket, "GET", f"/tasks/{A}")).json["job_id"] == job_id
    assert is_error(await send(node.socket, "POST", f"/jobs/{job_id}/start"), 409, "not_running")
    assert is_error(await send(node.socket, "POST", f"/jobs/{job_id}/stop"), 409, "not_running")


async def test_tasks_of_one_name_are_told_apart_and_call_the_same_function(node: Node) -> None:
    created = await create(node, task(), task(), task("Add"))
    await send(node.socket, "POST", f"/jobs/{created.json['job_id']}/start")
    uids = [each["id"] for each in created.json["tasks"]]
    assert len(set(uids)) == 3
    functions = []
    for uid in uids:
        found = await until(node, Kind.TASK, lambda item, uid=uid: item.meta.uid == uid)
        functions.append(found.spec.function_name or found.spec.name)
    assert functions == ["add", "add", "Add"]


async def test_dependencies_are_ids_and_stay_ids(node: Node) -> None:
    created = await create(node, task("second", id="b", depends_on=["a"]), task("first", id="a"), mode="configurable")
    first = created.json["tasks"][1]["id"]
    assert uuid.UUID(first)
    assert created.json["tasks"][0]["depends_on"] == [first]
    await send(node.socket, "POST", f"/jobs/{created.json['job_id']}/start")
    second = await until(node, Kind.TASK, lambda item: item.meta.uid == created.json["tasks"][0]["id"])
    assert second.spec.depends_on == ((await node.store.find(Kind.TASK, first)).meta.name,)
    shown = await send(node.socket, "GET", f"/jobs/{created.json['job_id']}")
    assert shown.json["tasks"][0]["depends_on"] == [first]


async def test_a_sequential_job_waits_and_a_stopped_one_starts_nothing_more(node: Node) -> None:
    created = await create(node, task(id=A), task(id=B), mode="sequential")
    job_id = created.json["job_id"]
    await send(node.socket, "POST", f"/jobs/{job_id}/start")
    await until(node, Kind.TASK, lambda item: item.meta.uid == A)
    stopped = await send(node.socket, "POST", f"/jobs/{job_id}/stop")
    assert (stopped.status, stopped.json["message"]) == (200, "job stopped")
    job = await ended(node, job_id)
    assert (job.status.interrupted_count, job.status.skipped_count) == (1, 1)
    shown = await send(node.socket, "GET", f"/jobs/{job_id}")
    assert shown.json["state"] == 4
    await until(node, Kind.TASK, lambda item: item.meta.uid == B and item.status.phase is Phase.INTERRUPTED)


async def test_a_jobs_task_may_get_its_module_before_the_job_starts(node: Node) -> None:
    created = await create(node, {"name": "add", "id": A})
    wasm = {"Content-Type": "application/wasm"}
    assert (await send(node.socket, "PUT", f"/tasks/{A}/upload", b"\0asm\1\0\0\0", wasm)).status == 200
    await send(node.socket, "POST", f"/jobs/{created.json['job_id']}/start")
    found = await until(node, Kind.TASK, lambda item: item.meta.uid == A and not item.spec.suspend)
    assert found.spec.file == b"\0asm\1\0\0\0"


async def test_jobs_are_listed_the_newest_first_by_page_and_by_state(node: Node) -> None:
    ids = [(await create(node, task(), name=f"j{n}")).json["job_id"] for n in range(3)]
    await send(node.socket, "POST", f"/jobs/{ids[0]}/start")
    await until(node, Kind.JOB, lambda job: job.status.phase is WorkPhase.RUNNING)
    listed = (await send(node.socket, "GET", "/jobs")).json
    assert [job["job_id"] for job in listed["jobs"]] == ids[::-1]
    assert (listed["offset"], listed["limit"], listed["total"]) == (0, 100, 3)
    page = (await send(node.socket, "GET", "/jobs?offset=1&limit=1")).json
    assert ([job["job_id"] for job in page["jobs"]], page["total"]) == ([ids[1]], 3)
    running = (await send(node.socket, "GET", "/jobs?status=running")).json
    assert [(job["job_id"], job["state"]) for job in running["jobs"]] == [(ids[0], 2)]
    assert (await send(node.socket, "GET", "/jobs?status=failed")).json["jobs"] == []
    assert is_error(await send(node.socket, "GET", "/jobs?status=active"), 400, "invalid")


async def test_a_deleted_job_takes_its_tasks_with_it(node: Node) -> None:
    created = await create(node, task(id=A))
    job_id = created.json["job_id"]
    await send(node.socket, "POST", f"/jobs/{job_id}/start")
    await until(node, Kind.TASK, lambda item: item.meta.uid == A)
    assert (await send(node.socket, "DELETE", f"/jobs/{job_id}")).status == 204
    with anyio.fail_after(20):
        while (await node.store.list(Kind.TASK)).items:
            await anyio.lowlevel.checkpoint()
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/start"), ("POST", "/stop")):
        assert is_error(await send(node.socket, method, f"/jobs/{job_id}{path}"), 404, "not_found")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"tasks": [task()]}, "name: is required"),
        ({"name": "j"}, "tasks: is required"),
        ({"name": "j", "tasks": []}, "tasks: is required"),
        ({"name": "j", "tasks": [task(inputs="x")]}, "tasks[0].inputs"),
        ({"name": "j", "tasks": [task(), {"image_url": "x"}]}, "tasks[1].name"),
        ({"name": "j", "tasks": [task()], "execution_mode": "random"}, "execution_mode: must be"),
        ({"name": "j", "tasks": [task()], "mode": "parallel"}, "mode: unknown field"),
        ({"name": "j", "tasks": [task(depends_on=["x"])]}, "'x', which is no task's id"),
        ({"name": "j", "tasks": [task(id="a", depends_on=["b"]), task(id="b", depends_on=["a"])]}, "leads back"),
        ({"name": "j", "tasks": [task(id="a"), task(id="a")]}, "tasks[1].id"),
        ({"name": "j", "tasks": [task(run_if="never")]}, "run_if"),
    ],
)
async def test_what_is_wrong_with_a_job_is_400_and_says_where(node: Node, body: dict[str, Any], said: str) -> None:
    answer = await send(node.socket, "POST", "/jobs", body)
    assert is_error(answer, 400, "invalid")
    assert said in answer.json["error"]
    assert (await node.store.list(Kind.JOB)).items == ()


async def test_an_id_that_is_taken_is_409(node: Node) -> None:
    assert (await send(node.socket, "POST", "/workflows", {"tasks": [task(id=A)]})).status == 201
    assert is_error(await create(node, task(id=A)), 409, "already_exists")
    assert is_error(await send(node.socket, "POST", "/workflows", {"tasks": [task(id=A)]}), 409, "already_exists")


async def test_a_workflow_is_tasks_of_which_the_first_wait_for_their_start(node: Node) -> None:
    answer = await send(node.socket, "POST", "/workflows", {"tasks": [task(id=A), task(id="b", depends_on=[A])]})
    assert answer.status == 201
    first, second = answer.json["tasks"]
    assert (first["id"], second["depends_on"]) == (A, [A])
    assert first["workflow_id"] == second["workflow_id"]
    held = [cast("Task", await node.store.find(Kind.TASK, each["id"])).spec.held for each in (first, second)]
    assert held == [True, False]
    assert (await send(node.socket, "GET", f"/tasks/{second['id']}")).json["depends_on"] == [A]


async def test_a_circle_in_a_workflow_is_400_and_leaves_nothing(node: Node) -> None:
    circle = [task(id="a", depends_on=["b"]), task(id="b", depends_on=["a"])]
    answer = await send(node.socket, "POST", "/workflows", {"tasks": circle})
    assert is_error(answer, 400, "invalid")
    assert "circle" in answer.json["error"]
    assert (await node.store.list(Kind.TASK)).items == ()


async def test_a_task_of_its_own_may_depend_on_another_by_its_id(node: Node) -> None:
    first = (await send(node.socket, "POST", "/tasks", task(workflow_id="w"))).json
    second = await send(node.socket, "POST", "/tasks", task(workflow_id="w", depends_on=[first["id"]]))
    assert (second.status, second.json["depends_on"]) == (201, [first["resource_name"]])
