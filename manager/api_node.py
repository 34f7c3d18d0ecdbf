"""The node itself: health, metrics, what is on, and the API's own description.

Metrics, in Prometheus' text format: `proplet_build_info`, `proplet_mqtt_connected`, `proplet_tasks{phase}`,
`proplet_proplets{state}`, `proplet_store_version`, `proplet_http_requests_total{method,route,code}`,
`proplet_http_request_seconds_total{route}`, `proplet_http_watchers`, those of tasks and proplets in `api_usage`, what
the agent of this node counts (`proplet.agent.metrics_page`), `process_resident_memory_bytes`,
`process_cpu_seconds_total`, `process_open_fds`, `process_start_time_seconds`.
"""

import os
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import anyio
from starlette.requests import Request
from starlette.responses import Response

from proplet.agent.codec import rfc3339
from proplet.manager.api_http import reply
from proplet.manager.api_openapi import document
from proplet.manager.api_routes import Context, Operation
from proplet.manager.api_stats import family
from proplet.manager.api_usage import families
from proplet.manager.model import Kind, Proplet, Task
from proplet.manager.phases import Phase
from proplet.manager.ports import StoreError

_HEALTH_TIMEOUT_S: Final = 2.0
_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


async def health(context: Context, _request: Request) -> Response:
    """Answer whether the manager can work: 503 and `fail` without its store, 200 and `warn` without its broker.

    Without a broker it still takes tasks, and sends them out when the broker is back.
    """
    node = context.node()
    store_error = await _store_error(context)
    status = "fail" if store_error else "pass" if node.mqtt_connected else "warn"
    store = {"status": "fail", "output": store_error} if store_error else {"status": "pass"}
    mqtt = {"status": "pass"} if node.mqtt_connected else {"status": "warn", "output": "not connected to the broker"}
    body = {
        "status": status,
        "version": node.version,
        "commit": "",
        "description": "manager service",
        "build_time": "",
        "instance_id": node.manager_id or node.proplet_id or "",
        "checks": {"store": [store], "mqtt": [mqtt]},
    }
    return reply(body, 503 if store_error else 200, media_type="application/health+json")


async def _store_error(context: Context) -> str | None:
    try:
        with anyio.fail_after(_HEALTH_TIMEOUT_S):
            await context.store.list(Kind.PROPLET)
    except TimeoutError:
        return f"no answer within {_HEALTH_TIMEOUT_S:g} s"
    except StoreError as error:
        return str(error) or "not available"
    return None


async def node_state(context: Context, _request: Request) -> Response:
    """Answer what this node is and what is on."""
    node = context.node()
    body: dict[str, Any] = {
        "version": node.version,
        "services": list(node.services),
        "proplet_id": node.proplet_id,
        "manager_id": node.manager_id,
        "broker": {"address": _without_credentials(node.broker_address), "connected": node.mqtt_connected},
        "started_at": rfc3339(node.started_at),
        "engine": node.engine,
        "pid": os.getpid(),
    }
    return reply(body)


def _without_credentials(address: str | None) -> str | None:
    if address is None or "@" not in address:
        return address
    scheme, separator, rest = address.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


async def metrics(context: Context, _request: Request) -> Response:
    """Answer the node's numbers in Prometheus' text format."""
    node = context.node()
    listing = await context.store.list(Kind.TASK)
    tasks = [task for task in listing.items if isinstance(task, Task)]
    phases = Counter(task.status.phase for task in tasks)
    proplets = [item for item in (await context.store.list(Kind.PROPLET)).items if isinstance(item, Proplet)]
    alive = sum(context.control.liveness(proplet.id).alive for proplet in proplets)
    states = {"alive": alive, "offline": len(proplets) - alive}
    told = [
        family("proplet_build_info", "gauge", "The program's version.", [({"version": node.version}, 1)]),
        family("proplet_mqtt_connected", "gauge", "Whether the manager has its broker.", [({}, node.mqtt_connected)]),
        family("proplet_tasks", "gauge", "Tasks by phase.", [({"phase": p.value}, phases[p]) for p in Phase]),
        family("proplet_proplets", "gauge", "Proplets by state.", [({"state": s}, n) for s, n in states.items()]),
        family("proplet_store_version", "gauge", "The store's version.", [({}, listing.version)]),
        *families(tasks, proplets, context.control),
        node.agent_metrics(),
        *_requests(context),
        *_process(node.started_at),
    ]
    return Response("".join(told), media_type=_PROMETHEUS)


def _requests(context: Context) -> list[str]:
    stats = context.stats
    counts = [
        ({"method": method, "route": route, "code": str(code)}, float(count))
        for (method, route, code), count in sorted(stats.requests.items())
    ]
    seconds = [({"route": route}, spent) for route, spent in sorted(stats.seconds.items())]
    return [
        family("proplet_http_requests_total", "counter", "Requests answered.", counts),
        family("proplet_http_request_seconds_total", "counter", "Time spent answering them.", seconds),
        family("proplet_http_watchers", "gauge", "Open watches.", [({}, stats.watchers)]),
    ]


def _process(started_at: float) -> list[str]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE")
    files = sum(1 for _ in os.scandir("/proc/self/fd"))
    start = started_at or time.time()
    return [
        family("process_resident_memory_bytes", "gauge", "Memory of this process.", [({}, memory)]),
        family(
            "process_cpu_seconds_total", "counter", "CPU time of this process.", [({}, used.ru_utime + used.ru_stime)]
        ),
        family("process_open_fds", "gauge", "Open file descriptors of this process.", [({}, files)]),
        family("process_start_time_seconds", "gauge", "Start of the node, epoch time.", [({}, start)]),
    ]


async def openapi(context: Context, _request: Request) -> Response:
    """Answer the OpenAPI 3.1 document."""
    return reply(document(context.operations, context.node().version))


OPERATIONS = (
    Operation(
        "GET",
        "/health",
        health,
        "Whether the manager can work",
        answer="Health",
        answer_type="application/health+json",
        tag="node",
    ),
    Operation(
        "GET",
        "/metrics",
        metrics,
        "Numbers for Prometheus",
        answer="Text",
        answer_type="text/plain",
        tag="node",
    ),
    Operation("GET", "/api/v1/node", node_state, "What this node is", answer="Node", tag="node"),
    Operation("GET", "/openapi.json", openapi, "This document", answer="Document", tag="node"),
)
