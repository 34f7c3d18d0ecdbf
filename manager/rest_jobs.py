"""The reference's REST shapes of jobs and workflows as resources, and back.

A client names the tasks of one request by ids of its own, which `depends_on` refers to; those that are UUIDs become the
tasks' ids. A task's `name` is also the function to call, so several tasks of a job may have the same.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from proplet.manager.job_plan import HELD, TASK_IDS, task_ids, task_of
from proplet.manager.model import ExecutionMode, JobSpec, Meta, PropellerJob, Task, TaskSpec, WorkPhase
from proplet.manager.reading import Problem, Style, kind_of, unknown_field
from proplet.manager.rest import RestError, check, go_time, resource_name, spec_from_rest, task_to_rest
from proplet.manager.rules_work import child_name, cycle
from proplet.manager.vocabulary_work import JOB_STATUS

# The reference's numbers; a job is never in the others.
STATES: Final[Mapping[WorkPhase, int]] = {
    WorkPhase.PENDING: 0,
    WorkPhase.RUNNING: 2,
    WorkPhase.COMPLETED: 3,
    WorkPhase.FAILED: 4,
}
_GIVEN: Final = ("name", "execution_mode", "tasks")
# What a client sends back that has read it.
_READ_ONLY: Final = frozenset("job_id state phase start_time finish_time created_at updated_at".split())


@dataclass(frozen=True, slots=True)
class _Item:
    """One task of a request: the name it goes by there, the id it will have, and what it says."""

    called: str
    uid: str
    spec: TaskSpec
    labels: Mapping[str, str]


def job_from_rest(body: Any, *, namespace: str = "default") -> PropellerJob:
    """Return a new job, which waits for its start.

    Raises:
        RestError: with what is wrong.
    """
    given = _object(body, _GIVEN)
    mode = given.get("execution_mode") or ExecutionMode.CONFIGURABLE.value
    if mode not in [known.value for known in ExecutionMode]:
        raise RestError([Problem("execution_mode", "must be parallel, sequential or configurable")])
    name = given.get("name")
    if not isinstance(name, str) or not name:
        raise RestError([Problem("name", "is required: what a person calls the job")])
    items = _items(given.get("tasks"))
    names = _own_names([item.spec for item in items])
    called = {item.called: own for item, own in zip(items, names, strict=True)}
    specs = tuple(
        replace(
            item.spec,
            name=own,
            function_name=item.spec.function_name or ("" if own == item.spec.name else item.spec.name),
            depends_on=_resolved(item, called),
            job_id=None,
        )
        for item, own in zip(items, names, strict=True)
    )
    uid = str(uuid.uuid4())
    ids = {own: item.uid for item, own in zip(items, names, strict=True)}
    annotations = {HELD: "true", TASK_IDS: json.dumps(ids, separators=(",", ":"))}
    meta = Meta(resource_name(name, uid), namespace, uid=uid, annotations=annotations)
    job = PropellerJob(meta, JobSpec(name, ExecutionMode(mode), specs))
    check(job)
    return job


def workflow_from_rest(body: Any, *, namespace: str = "default") -> list[Task]:
    """Return the tasks of a new workflow. Those that depend on none wait for their start, the others for those.

    Each is named by its id: that is what the dependencies of a task name, in REST as in manifests.

    Raises:
        RestError: with what is wrong.
    """
    items = _items(_object(body, ("tasks",)).get("tasks"))
    workflow = next((item.spec.workflow_id for item in items if item.spec.workflow_id), None) or str(uuid.uuid4())
    called = {item.called: item.uid for item in items}
    tasks = []
    for item in items:
        depends_on = _resolved(item, called)
        spec = replace(item.spec, workflow_id=workflow, depends_on=depends_on, held=not depends_on)
        tasks.append(Task(Meta(item.uid, namespace, uid=item.uid, labels=item.labels), spec))
    circle = cycle({task.meta.name: task.spec.depends_on for task in tasks})
    if circle is not None:
        raise RestError([Problem("tasks", f"depends_on goes in a circle: {' -> '.join(circle)}")])
    for task in tasks:
        check(task)
    return tasks


def _object(body: Any, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise RestError([Problem("", f"the body must be a JSON object, not {kind_of(body)}")])
    strange = [name for name in body if name not in known and name not in _READ_ONLY]
    if strange:
        raise RestError([Problem(name, unknown_field(name, dict.fromkeys(known))) for name in strange])
    return body


def _items(bodies: Any) -> list[_Item]:
    if not isinstance(bodies, list) or not bodies:
        raise RestError([Problem("tasks", "is required: a list of at least one task")])
    items, problems, seen = [], list[Problem](), set[str]()
    for index, body in enumerate(bodies):
        where = f"tasks[{index}]"
        try:
            spec, labels = spec_from_rest(body)
        except RestError as error:
            problems += [replace(each, path=f"{where}.{each.path}".rstrip(".")) for each in error.problems]
            continue
        called = body.get("id") or str(uuid.uuid4())
        if not isinstance(called, str) or called in seen:
            problems.append(Problem(f"{where}.id", "must be a text, and another one than the other tasks'"))
            continue
        seen.add(called)
        items.append(_Item(called, _as_uuid(called), spec, labels))
    if problems:
        raise RestError(problems)
    return items


def _as_uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return str(uuid.uuid4())


def _own_names(specs: Sequence[TaskSpec]) -> list[str]:
    """Names that differ, for tasks whose names need not."""
    taken: set[str] = set()
    names = []
    for index, spec in enumerate(specs, 1):
        name, number = spec.name if child_name(spec.name) or not spec.name else f"task-{index}", 1
        while name and child_name(name) in taken:
            number += 1
            name = f"{spec.name}-{number}"
        taken.add(child_name(name))
        names.append(name)
    return names


def _resolved(item: _Item, called: Mapping[str, str]) -> tuple[str, ...]:
    unknown = [name for name in item.spec.depends_on if name not in called]
    if unknown:
        raise RestError([Problem("tasks", f"depends_on names {unknown[0][:80]!r}, which is no task's id here")])
    return tuple(called[name] for name in item.spec.depends_on)


# --- writing ----------------------------------------------------------------------------------------------------------


def job_to_rest(job: PropellerJob, children: Mapping[str, Task]) -> dict[str, Any]:
    """Return a job as the API shows it, with its tasks as they are or, where not made yet, as they will be.

    Args:
        job: the job.
        children: the Tasks it has made, by name.
    """
    status = job.status
    return {
        "job_id": job.meta.uid,
        "name": job.spec.name,
        "execution_mode": job.spec.execution_mode.value,
        **JOB_STATUS.write(status, Style.REST),
        "state": STATES[status.phase],
        "tasks": tasks_to_rest(job, children),
        "start_time": go_time(status.start_time),
        "finish_time": go_time(status.finish_time),
        "created_at": go_time(job.meta.created_at),
        "namespace": job.meta.namespace,
        "resource_name": job.meta.name,
        "version": job.meta.version,
    }


def tasks_to_rest(job: PropellerJob, children: Mapping[str, Task]) -> list[dict[str, Any]]:
    """Return a job's tasks, whose dependencies are ids."""
    planned = [task_of(job, index) for index in range(len(job.spec.tasks))]
    tasks = [children.get(task.meta.name, task) for task in planned]
    ids = {**task_ids(job), **{spec.name: task.id for spec, task in zip(job.spec.tasks, tasks, strict=True) if task.id}}
    shown = []
    for spec, task in zip(job.spec.tasks, tasks, strict=True):
        plain = task_to_rest(task)
        if spec.depends_on:
            plain["depends_on"] = [ids.get(name, name) for name in spec.depends_on]
        shown.append({**plain, "job_id": job.meta.uid})
    return shown
