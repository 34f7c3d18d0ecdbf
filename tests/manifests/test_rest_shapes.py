"""The REST API's shapes of tasks and proplets: the reference's, and what it gets wrong done right."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.agent.wire import Limits, Metadata, MonitoringProfile, Permissions, Reason, Usage
from proplet.manager.model import Meta, Proplet, PropletSelector, PropletSpec, PropletStatus, Task, TaskSpec, TaskStatus
from proplet.manager.phases import Phase
from proplet.manager.ports import Liveness
from proplet.manager.rest import (
    RestError,
    apply_update,
    proplet_to_rest,
    task_from_rest,
    task_to_rest,
    with_file,
)
from tests.manifests import strategies

MODULE = "AGFzbQEAAAABBwFgAn9/AX8DAgEABwgBBG1haW4AAAoJAQcAIAAgAWoL"
ZERO = "0001-01-01T00:00:00Z"


def test_a_task_as_the_references_command_line_creates_it() -> None:
    body = {
        "name": "main",
        "file": MODULE,
        "inputs": [10, "32"],
        "cli_args": None,
        "daemon": False,
        "state": 3,
        "id": "mine",
        "results": "forged",
        "start_time": ZERO,
        "created_at": ZERO,
        "priority": 0,
        "env": {"A": "1"},
        "proplet_id": "pi",
        "monitoring_profile": {"enabled": True, "interval": 5_000_000_000},
    }
    task = task_from_rest(body)
    assert task.spec == TaskSpec(
        name="main",
        file=base64.b64decode(MODULE),
        inputs=("10", "32"),
        env={"A": "1"},
        selector=PropletSelector("pi"),
        monitoring_profile=MonitoringProfile(interval=5.0),
        held=True,
    )
    assert task.status == TaskStatus()
    assert task.id != "mine"
    assert task.meta.name.startswith("main-")
    assert task.meta.name.endswith(task.id[:8])


def test_a_task_may_come_before_its_module_and_two_may_have_one_name() -> None:
    first, second = task_from_rest({"name": "Add Two!"}), task_from_rest({"name": "Add Two!"})
    assert first.meta.name.startswith("add-two-")
    assert first.meta.name != second.meta.name
    assert with_file(first, base64.b64decode(MODULE)).spec.file == base64.b64decode(MODULE)
    with pytest.raises(RestError, match="file: is no WebAssembly module"):
        with_file(first, b"GIF89a")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], "the body must be a JSON object, not a list"),
        ({}, "name: is required"),
        ({"name": ""}, "name: is required"),
        ({"name": 5}, "name: must be a string, not a number"),
        ({"name": "x", "imageUrl": "y"}, "imageUrl: unknown field; did you mean image_url?"),
        ({"name": "x", "inputs": [{}]}, "inputs[0]: must be a number, a string, true or false, not an object"),
        ({"name": "x", "file": "%"}, "file: is not standard base64"),
        ({"name": "x", "file": "aGVsbG8="}, "file: is no WebAssembly module"),
        ({"name": "x", "priority": 101}, "priority: must be from 0 to 100"),
        ({"name": "x", "broadcast": True, "proplet_id": "p"}, "broadcast: cannot be true beside proplet_id"),
        ({"name": "x", "depends_on": ["a"]}, "workflow_id: workflow_id or job_id is required beside depends_on"),
        ({"name": "x", "is_recurring": True}, "schedule: is required when is_recurring is true"),
        ({"name": "x", "run_if": "maybe"}, "run_if: must be one of success, failure"),
        ({"name": "x", "limits": {"memory": "1MB"}}, "limits.memory: '1MB' is no quantity"),
        ({"name": "x", "limits": {"cpuTime": 1}}, "limits.cpuTime: unknown field; did you mean cpu_time?"),
        ({"name": "x", "proplet_id": 5}, "proplet_id: must be a string"),
        ({"name": "x", "metadata": {"a": "b" * 2**20}}, "metadata: must not be larger than 1 MiB"),
    ],
)
def test_a_bad_body_is_refused_with_its_fields(body: Any, told: str) -> None:
    with pytest.raises(RestError) as refused:
        task_from_rest(body)
    assert told in str(refused.value)


RAN = Task(
    Meta("add-1", uid="u-1", created_at=1700000000.5, updated_at=1700000001.0, version=7),
    TaskSpec(
        name="add",
        file=base64.b64decode(MODULE),
        inputs=("1", "2"),
        limits=Limits(memory_bytes=2**26, cpu_s=1.5),
        schedule="* * * * *",
    ),
    TaskStatus(
        Phase.COMPLETED,
        "pi",
        2,
        started_at=1700000000.75,
        finished_at=1700000001.0,
        results="42",
        reason=Reason.OK,
        usage=Usage(0.25, 65536, {"run": 0.5}, "hot"),
    ),
)


def test_a_task_is_shown_as_the_reference_shows_it_with_ours_beside() -> None:
    shown = json.loads(json.dumps(task_to_rest(RAN)))
    assert (
        shown.items()
        >= {
            "id": "u-1",
            "name": "add",
            "kind": "standard",
            "state": 3,
            "inputs": ["1", "2"],
            "cli_args": [],
            "daemon": False,
            "file": "AGFzbQEAAA<REDACTED>cAIAAgAWoL",
            "proplet_id": "pi",
            "results": "42",
            "start_time": "2023-11-14T22:13:20.750000Z",
            "finish_time": "2023-11-14T22:13:21.000000Z",
            "created_at": "2023-11-14T22:13:20.500000Z",
            "next_run": ZERO,
            "priority": 50,
            "schedule": "* * * * *",
            "phase": "completed",
            "attempts": 2,
            "reason": "ok",
            "limits": {"memory": "64Mi", "cpu_time": "1.5s"},
            "usage": {
                "cpu_seconds": 0.25,
                "peak_memory_bytes": 65536,
                "wall_seconds": {"run": 0.5},
                "start_kind": "hot",
            },
        }.items()
    )
    assert "error" not in shown
    assert task_to_rest(RAN, redact_file=False)["file"] == MODULE


def test_an_update_changes_what_it_gives_and_nothing_else() -> None:
    updated = apply_update(RAN, {"inputs": [3, 4]})
    assert updated == replace(RAN, spec=replace(RAN.spec, inputs=("3", "4")))
    assert updated.spec.schedule == "* * * * *"


def test_sending_back_what_was_read_is_no_change() -> None:
    shown = json.loads(json.dumps(task_to_rest(RAN)))
    assert apply_update(RAN, shown) == RAN
    assert apply_update(RAN, {**shown, "name": "other"}).spec.selector == PropletSelector()


def test_a_go_clients_zero_values_are_not_given() -> None:
    task = replace(RAN, spec=replace(RAN.spec, daemon=True))
    body = {"name": "new", "daemon": False, "encrypted": False, "state": 0, "cli_args": None, "inputs": None}
    from_go = apply_update(task, {**body, "created_at": ZERO, "start_time": ZERO, "priority": 0})
    assert from_go == replace(task, spec=replace(task.spec, name="new"))
    assert apply_update(task, {"daemon": False}).spec.daemon is False


def test_an_update_can_clear_and_can_move_the_module() -> None:
    assert apply_update(RAN, {"schedule": None}).spec.schedule == "* * * * *"
    assert apply_update(RAN, {"inputs": []}).spec.inputs == ()
    moved = apply_update(RAN, {"image_url": "localhost:5000/add:v1"})
    assert (moved.spec.image_url, moved.spec.file) == ("localhost:5000/add:v1", b"")
    back = apply_update(moved, {"file": MODULE})
    assert (back.spec.image_url, back.spec.file) == ("", base64.b64decode(MODULE))
    pinned = apply_update(RAN, {"proplet_id": "other"})
    assert pinned.spec.selector.proplet_id == "other"
    assert apply_update(pinned, {"proplet_id": ""}).spec.selector.proplet_id is None


def test_a_bad_update_is_refused() -> None:
    for body, told in (({"priority": 200}, "priority"), ({"nmae": "x"}, "did you mean name"), ({"file": "x"}, "file")):
        with pytest.raises(RestError, match=told):
            apply_update(RAN, body)


def lawful(task: Task) -> Task:
    """The task without the fields whose random values break rules; the others stay random."""
    spec = replace(
        task.spec,
        file=base64.b64decode(MODULE) + task.spec.file,
        selector=replace(task.spec.selector, proplet_id=task.spec.selector.proplet_id or None),
        image_url="",
        encrypted=False,
        broadcast=False,
        schedule=None,
        is_recurring=False,
        depends_on=(),
        env={},
        env_secrets={},
        permissions=Permissions(),
        limits=Limits(output_bytes=task.spec.limits.output_bytes),
    )
    return replace(task, meta=replace(task.meta, created_at=1.0), spec=spec)


@settings(max_examples=60)
@given(strategies.tasks.map(lawful))
def test_any_task_is_shown_as_json_and_sent_back_without_a_change(task: Task) -> None:
    shown = json.loads(json.dumps(task_to_rest(task)))
    assert apply_update(task, shown) == task
    whole = json.loads(json.dumps(task_to_rest(task, redact_file=False)))
    again = task_from_rest(whole)
    pin = task.spec.selector.proplet_id or task.status.proplet_id or None
    selector = replace(task.spec.selector, proplet_id=pin)
    assert again.spec == replace(task.spec, held=True, selector=selector)


BODY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*task_to_rest(RAN), "limits", "permissions", "labels", "x"]), BODY, max_size=4))
def test_any_body_is_taken_or_refused(body: dict[str, Any]) -> None:
    for attempt in (lambda: task_from_rest({"name": "x", **body}), lambda: apply_update(RAN, body)):
        try:
            task = attempt()
        except RestError as error:
            problems = error.problems
            assert problems
        else:
            json.dumps(task_to_rest(task))


def test_a_proplet_is_shown_as_the_reference_shows_it() -> None:
    proplet = Proplet(
        Meta("pi", labels={"zone": "a"}),
        PropletSpec(connection={"clientId": "pi-1"}),
        PropletStatus(last_seen=1700000000.0, metadata=Metadata(tags=("x",), os="linux", total_memory_bytes=2**32)),
    )
    shown = json.loads(json.dumps(proplet_to_rest(proplet, Liveness(True, 1700000009.0, task_count=2))))
    assert (
        shown.items()
        >= {
            "id": "pi-1",
            "name": "pi",
            "task_count": 2,
            "alive": True,
            "last_alive_at": "2023-11-14T22:13:29.000000Z",
            "labels": {"zone": "a"},
        }.items()
    )
    assert shown["metadata"]["tags"] == ["x"]
    assert shown["metadata"]["os"] == "linux"
    silent = proplet_to_rest(replace(proplet, status=PropletStatus()), Liveness(False, reason="no heartbeat for 41 s"))
    assert "last_alive_at" not in silent
    assert silent["metadata"] == {}
    assert silent["reason"] == "no heartbeat for 41 s"
