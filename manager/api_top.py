"""What tasks and proplets use now, as last measured: what ``proplet top`` shows.

Measurements come from the devices as often as a task's monitoring profile, or a proplet's configuration, says; each is
told with the device's time of it, so that a reader can see how old it is. What was not measured is not there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from proplet.agent.codec import rfc3339
from proplet.agent.wire import TaskMetrics
from proplet.manager.api_http import reply
from proplet.manager.api_routes import Context, Operation
from proplet.manager.api_usage import UNDER_WAY, cpu_seconds, current, own_cpu_percent
from proplet.manager.model import Kind, Proplet, Resource, Task


def _task(
    task: Task, names: dict[str, str], one: TaskMetrics | None, states: Mapping[str, tuple[int | None, str]]
) -> dict[str, Any]:
    status = task.status
    where = one.proplet_id if one else status.proplet_id
    attempt, state = states.get(where or "", (None, None))
    said: dict[str, Any] = {
        "namespace": task.meta.namespace,
        "name": task.meta.name,
        "uid": task.id,
        "phase": status.phase.value,
        "state": state if attempt in (None, status.attempt) else None,  # the device's word, where it said one
        "attempt": status.attempt,
        "proplet": names.get(where or "", where),
        "started_at": rfc3339(status.started_at) if status.started_at else None,
    }
    if one is not None:
        sample, terms = one.metrics, one.ext
        said |= {
            "cpu_percent": sample.cpu_percent,
            "memory_bytes": sample.memory_bytes,
            "uptime_seconds": sample.uptime_seconds,
            "measured_at": rfc3339(one.timestamp),
        }
        if terms is not None:
            said |= {
                "cpu_seconds": terms.cpu_seconds,
                "restarts": terms.restarts,
                "invocations": terms.invocations if task.spec.latent else None,
            }
    return {key: value for key, value in said.items() if value is not None}


def _proplet(context: Context, proplet: Proplet) -> dict[str, Any]:
    known, found = context.control.liveness(proplet.id), context.control.proplet_metrics(proplet.id)
    about = proplet.status.metadata
    said: dict[str, Any] = {
        "namespace": proplet.meta.namespace,
        "name": proplet.meta.name,
        "alive": known.alive,
        "tasks": known.task_count,
        "total_memory_bytes": (about.total_memory_bytes or None) if about else None,
    }
    if found:
        last = found[-1]
        said |= {
            "cpu_percent": own_cpu_percent(found),
            "machine_cpu_percent": last.cpu_metrics.percent,
            "cpu_seconds": round(cpu_seconds(last), 3),
            "memory_bytes": last.memory_metrics.rss_bytes,
            "measured_at": rfc3339(last.timestamp),
        }
    return {key: value for key, value in said.items() if value is not None}


async def top(context: Context, request: Request) -> Response:
    """Answer what is under way and what it uses, and every proplet."""
    namespace = request.query_params.get("namespace")

    def wanted(items: Sequence[Resource]) -> list[Resource]:
        return [item for item in items if namespace in {None, item.meta.namespace}]

    every = [item for item in (await context.store.list(Kind.PROPLET)).items if isinstance(item, Proplet)]
    names = {proplet.id: proplet.meta.name for proplet in every}
    tasks = []
    for task in wanted((await context.store.list(Kind.TASK)).items):
        if isinstance(task, Task) and task.status.phase in UNDER_WAY:
            found = current(task.status, context.control.task_metrics(task.id))
            states = context.control.task_states(task.id)
            tasks += [_task(task, names, one, states) for one in found or (None,)]
    proplets = [_proplet(context, proplet) for proplet in wanted(every) if isinstance(proplet, Proplet)]
    return reply({"tasks": tasks, "proplets": proplets})


OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/top",
        top,
        "What tasks and proplets use, as last measured",
        answer="Top",
        parameters=("namespace",),
        tag="node",
    ),
)
