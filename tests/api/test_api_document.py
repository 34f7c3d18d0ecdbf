"""The OpenAPI document says what the API does: held to the route table, and real answers to its schemas."""

import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from proplet.agent.wire import LogLines, Metadata, PropletMetrics, TaskMetrics
from proplet.manager.api_openapi import document
from proplet.manager.api_table import OPERATIONS
from proplet.manager.model import Kind, Meta, Proplet, PropletStatus, Task
from proplet.manager.ports import Liveness
from tests.api.fakes import Node
from tests.api.http import send
from tests.api.test_api_manifests import manifest
from tests.api.test_api_tasks import TASK

pytestmark = pytest.mark.anyio


async def fetch(node: Node) -> Any:
    answer = await send(node.socket, "GET", "/openapi.json")
    assert answer.status == 200
    return answer.json


async def test_the_document_has_every_operation_and_no_other(node: Node) -> None:
    shown = await fetch(node)
    described = {(method.upper(), path) for path, methods in shown["paths"].items() for method in methods}
    assert described == {(operation.method, operation.path) for operation in OPERATIONS}
    assert shown["openapi"] == "3.1.0"
    ids = [operation["operationId"] for methods in shown["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


async def test_every_described_operation_is_routed(node: Node) -> None:
    shown = await fetch(node)
    for path, methods in shown["paths"].items():
        for method, operation in methods.items():
            if path == "/api/v1/watch":
                continue
            concrete = path.replace("{kind}", "tasks")
            answer = await send(node.socket, method.upper(), re.sub(r"{\w+}", "x", concrete))
            assert answer.status != 405
            assert str(answer.status) in operation["responses"], (method, path, answer.status)
            if answer.status == 404:
                assert answer.json["reason"] != "no_such_route"


def test_every_schema_is_a_schema_and_every_reference_leads_somewhere() -> None:
    shown = document(OPERATIONS, "1")
    schemas = shown["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    used = set(re.findall(r"#/components/schemas/(\w+)", str(shown)))
    assert used <= set(schemas)
    assert set(schemas) <= used


async def filled(node: Node) -> Task:
    created = await send(node.socket, "POST", "/tasks", {**TASK, "metadata": {"a": 1}, "env": {"A": "b"}})
    uid = created.json["id"]
    await send(node.socket, "POST", f"/tasks/{uid}/start")
    applied = await send(
        node.socket, "POST", "/api/v1/apply", manifest("a").encode(), {"Content-Type": "application/yaml"}
    )
    assert applied.status == 200
    status = PropletStatus(metadata=Metadata(os="linux"))
    await node.store.create(Proplet(Meta("pi-1"), status=status))
    node.control.alive["pi-1"] = Liveness(alive=True, last_seen=1.7e9, history=(1.7e9,), task_count=1)
    node.control.proplets_metrics["pi-1"] = [PropletMetrics("pi-1", timestamp=1.7e9)]
    task = await node.store.find(Kind.TASK, uid)
    assert isinstance(task, Task)
    node.control.tasks_metrics[uid] = [TaskMetrics(uid, "pi-1", timestamp=1.7e9)]
    node.control.logs[uid] = [LogLines("pi-1", uid, 1, "stdout", ("x",))]
    return task


async def test_real_answers_keep_to_their_schemas(node: Node) -> None:
    task = await filled(node)
    job = await send(node.socket, "POST", "/jobs", {"name": "both", "tasks": [TASK]})
    assert job.status == 201, job.body
    shown = await fetch(node)
    concrete = {"{id}": task.id, "{kind}": "tasks", "{namespace}": task.meta.namespace, "{name}": task.meta.name}
    checked = set()
    for operation in OPERATIONS:
        if operation.method != "GET" or operation.answer in {None, "Event", "Text"} or operation.status == 501:
            continue
        path = operation.path.replace("{id}", "pi-1") if operation.tag == "proplets" else operation.path
        path = path.replace("{id}", job.json["job_id"]) if operation.tag == "jobs" else path
        for pattern, value in concrete.items():
            path = path.replace(pattern, value)
        answer = await send(node.socket, "GET", path)
        assert answer.status == 200, (path, answer.body)
        assert answer.headers["content-type"] == operation.answer_type
        schema = {"$ref": f"#/components/schemas/{operation.answer}", "components": shown["components"]}
        Draft202012Validator(schema).validate(answer.json)
        checked.add(operation.path)
    assert len(checked) == 18
