"""The API's table of operations, and the one way a request goes through it.

Each operation is written down once, with what the OpenAPI document says of it; routing, ``Allow``, metrics and the
document all come from this table (`api_table`).
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proplet.manager.api_http import BodyRules, ProblemError, problem_of, unavailable
from proplet.manager.api_stats import Stats
from proplet.manager.manifest import to_manifest
from proplet.manager.model import Proplet, Resource
from proplet.manager.ports import Control, Store


@dataclass(frozen=True, slots=True)
class NodeState:
    """What the node says of itself at this moment; the program around the API provides it.

    Attributes:
        version: of the program.
        services: which parts are on: agent, broker, manager.
        proplet_id: the agent's id, if there is one.
        manager_id: the manager's identity on the broker.
        broker_address: where the manager's broker is, as a URL without credentials.
        mqtt_connected: whether the manager is connected to it right now.
        started_at: epoch time of the start.
        engine: what the agent's guests run on, if there is an agent.
        agent_metrics: what the agent of this node counts, in Prometheus' format.
    """

    version: str
    services: tuple[str, ...] = ()
    proplet_id: str | None = None
    manager_id: str | None = None
    broker_address: str | None = None
    mqtt_connected: bool = False
    started_at: float = 0.0
    engine: str | None = None
    agent_metrics: Callable[[], str] = str


@dataclass(slots=True)
class Context:
    """What the operations work with."""

    store: Store
    control: Control
    node: Callable[[], NodeState]
    body: BodyRules
    timeout_s: float
    max_watchers: int
    heartbeat_s: float
    operations: "tuple[Operation, ...]" = ()
    stats: Stats = field(default_factory=Stats)
    closing: anyio.Event = field(default_factory=anyio.Event)
    parsing: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))

    def manifest(self, resource: Resource) -> dict[str, Any]:
        """Return a resource as its manifest; when a proplet was last heard is told as of now, not as last written."""
        if isinstance(resource, Proplet):
            seen = self.control.liveness(resource.id).last_seen
            if seen > resource.status.last_seen:
                resource = replace(resource, status=replace(resource.status, last_seen=seen))
        return to_manifest(resource)


Handler = Callable[[Context, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    `body` and `answer` name schemas of the OpenAPI document; `errors` are statuses beyond those that every operation
    can answer (401, 403, 421, 500, 503). `parameters` are names of query parameters described in `api_openapi`.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    status: int = 200
    answer: str | None = None
    answer_type: str = "application/json"
    body: str | None = None
    body_types: tuple[str, ...] = ("application/json",)
    parameters: tuple[str, ...] = ()
    errors: tuple[int, ...] = ()
    tag: str = "tasks"


class _Resource:
    """The operations of one path, as an ASGI application."""

    def __init__(self, context: Context, path: str, operations: Mapping[str, Operation]) -> None:
        self._context = context
        self._path = path
        self._operations = operations
        methods = {*operations, "OPTIONS"} | ({"HEAD"} if "GET" in operations else set())
        self._allow = ", ".join(sorted(methods))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app_route"] = self._path
        method = scope["method"]
        if method == "OPTIONS":
            await Response(status_code=204, headers={"Allow": self._allow})(scope, receive, send)
            return
        operation = self._operations.get("GET" if method == "HEAD" else method)
        if operation is None:
            message = f"{self._path} does not know {method[:20]}; it knows {self._allow}"
            raise ProblemError(405, "method_not_allowed", message, {"Allow": self._allow})
        request = Request(scope, receive)
        try:
            with anyio.fail_after(self._context.timeout_s):
                response = await operation.handler(self._context, request)
        except TimeoutError:
            raise unavailable("timeout", "the node did not answer in time, try again later") from None
        await response(scope, receive, send)


class Application:
    """The API as an ASGI application, behind the guard: counts requests, routes them."""

    def __init__(self, context: Context) -> None:
        paths: dict[str, dict[str, Operation]] = {}
        for operation in context.operations:
            paths.setdefault(operation.path, {})[operation.method] = operation
        self._context = context
        routes = [Route(path, _Resource(context, path, found)) for path, found in paths.items()]
        self._router: ASGIApp = Router(routes, redirect_slashes=False, default=_no_route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.monotonic()
        status = 500

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        scope["app_route"] = "unknown"
        try:
            await self._answer(scope, receive, observe)
        finally:
            self._context.stats.count(scope["method"], scope["app_route"], status, time.monotonic() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._router(scope, receive, note)
        except Exception as error:  # the last line of defence: every request gets an answer with a body
            problem = problem_of(error)
            if started:
                raise  # too late to say it; the connection ends
            await problem.response()(scope, receive, send)


async def _no_route(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise ProblemError(404, "no_such_route", "there is nothing at this path; /openapi.json lists what there is")


#: Query parameters that every list of the reference's shape takes.
PAGING: Final = ("offset", "limit")
