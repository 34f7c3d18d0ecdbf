"""A control behind the port, and a node's API opened for a test."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio

from proplet.agent.wire import InvokeResult, LogLines, PropletMetrics, Reason, ResultTerms, TaskMetrics, Usage
from proplet.manager.api import Api, ApiSettings, open_api
from proplet.manager.api_routes import NodeState
from proplet.manager.model import Key, Kind, Resource, Task
from proplet.manager.phases import Phase
from proplet.manager.ports import (
    InvocationError,
    Listing,
    Liveness,
    NoAnswerError,
    NotRunningError,
    Printed,
    Store,
    StoreUnavailableError,
)
from proplet.manager.store_memory import MemoryStore

TOKEN = "correct-horse-battery-staple"


@dataclass
class FakeControl:
    """Keeps to the port's contract with nothing behind it: a started task runs at once, for ever."""

    store: Store
    alive: dict[str, Liveness] = field(default_factory=dict)
    proplets_metrics: dict[str, Sequence[PropletMetrics]] = field(default_factory=dict)
    tasks_metrics: dict[str, Sequence[TaskMetrics]] = field(default_factory=dict)
    tasks_states: dict[str, Mapping[str, tuple[int | None, str]]] = field(default_factory=dict)
    logs: dict[str, Sequence[LogLines]] = field(default_factory=dict)

    async def start(self, uid: str) -> Task:
        task = await self._find(uid)
        if task.status.phase in {Phase.SCHEDULED, Phase.RUNNING}:
            return task
        task = await self._put(replace(task, spec=replace(task.spec, held=False)))
        status = replace(task.status, phase=Phase.RUNNING, attempt=task.status.attempt + 1, proplet_id="pi-1")
        return await self._record(replace(task, status=status))

    async def invoke(self, uid: str, inputs: Sequence[str], env: Mapping[str, str], timeout_s: float) -> InvokeResult:
        """Answers with what it was given; inputs that name an error raise it."""
        task = await self._find(uid)
        if not task.spec.latent:
            raise InvocationError("not_latent", f"task {uid} is not latent")
        if inputs and inputs[0] == "silence":
            raise NoAnswerError(f"proplet pi-1 did not answer within {timeout_s:g} s")
        if inputs and inputs[0] == "trap":
            return InvokeResult(uid, "i", "pi-1", error="it trapped", ext=ResultTerms(1, Reason.TRAP))
        given = f"{' '.join(inputs)} {dict(env)}"
        return InvokeResult(uid, "i", "pi-1", given, ext=ResultTerms(1, Reason.OK, usage=Usage(0.5)))

    async def stop(self, uid: str) -> Task:
        task = await self._find(uid)
        if task.status.phase not in {Phase.SCHEDULED, Phase.RUNNING}:
            raise NotRunningError(f"task {uid} is {task.status.phase.value}, there is nothing to stop")
        return await self._record(replace(task, status=replace(task.status, phase=Phase.INTERRUPTED)))

    async def _find(self, uid: str) -> Task:
        task = await self.store.find(Kind.TASK, uid)
        assert isinstance(task, Task)
        return task

    async def _put(self, task: Task) -> Task:
        written = await self.store.put(task)
        assert isinstance(written, Task)
        return written

    async def _record(self, task: Task) -> Task:
        written = await self.store.record(task)
        assert isinstance(written, Task)
        return written

    def liveness(self, proplet_id: str) -> Liveness:
        return self.alive.get(proplet_id, Liveness(alive=False))

    def proplet_metrics(self, proplet_id: str) -> Sequence[PropletMetrics]:
        return self.proplets_metrics.get(proplet_id, ())

    def task_metrics(self, uid: str) -> Sequence[TaskMetrics]:
        return self.tasks_metrics.get(uid, ())

    def task_states(self, uid: str) -> Mapping[str, tuple[int | None, str]]:
        return self.tasks_states.get(uid, {})

    def task_logs(self, uid: str, since: int = 0) -> Sequence[Printed]:
        numbered = enumerate(self.logs.get(uid, ()), 1)
        return tuple(Printed(number, lines.at or 1.7e9, lines) for number, lines in numbered if number > since)

    async def task_printed(self, uid: str) -> None:
        await anyio.sleep_forever()


class AwayStore(MemoryStore):
    """A store whose server is away while `away` is set."""

    away = False

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailableError("the disk is full")

    async def list(self, kind: Kind) -> Listing:
        self._check()
        return await super().list(kind)

    async def get(self, kind: Kind, key: Key) -> Resource:
        self._check()
        return await super().get(kind, key)

    async def find(self, kind: Kind, uid: str) -> Resource:
        self._check()
        return await super().find(kind, uid)

    async def create(self, resource: Resource) -> Resource:
        self._check()
        return await super().create(resource)


@dataclass
class Node:
    """An open API and what is behind it."""

    api: Api
    store: Store
    control: FakeControl
    state: NodeState

    @property
    def socket(self) -> Path:
        assert self.api.socket is not None
        return self.api.socket

    @property
    def port(self) -> int:
        assert self.api.address is not None
        return self.api.address[1]


@asynccontextmanager
async def open_node(settings: ApiSettings, store: Store | None = None) -> AsyncIterator[Node]:
    """Open an API over `store`, a new one in memory unless given."""
    store = MemoryStore() if store is None else store
    control = FakeControl(store)
    state = NodeState(
        "1.2.3", ("agent", "broker", "manager"), "pi-1", "manager-1", "mqtt://127.0.0.1:1883", True, 1.7e9
    )
    node: Node | None = None
    async with open_api(settings, store, control, lambda: node.state if node is not None else state) as api:
        node = Node(api, store, control, state)
        yield node
