"""A broker in memory with scripted proplets on it: of ours, and as those of the reference behave."""

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from proplet.agent.wire import (
    Alive,
    Announcement,
    Discovery,
    Inventory,
    InventoryItem,
    Invoke,
    InvokeResult,
    Progress,
    Reason,
    Result,
    ResultTerms,
    Start,
    Stop,
)
from proplet.manager.bus import BusEvent, Down, Heard, Up
from proplet.manager.controller import Controller
from proplet.manager.exchange import Policy
from proplet.manager.model import Key, Kind, Meta, Task, TaskSpec
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.ports import BusError, Store

OURS = Announcement(1, ("cbor",), ("own", "inventory", "logs", "progress"))

FAST = Policy(
    silence_s=0.6,
    offline_grace_s=0.15,
    confirm_s=0.2,
    missing_grace_s=0.1,
    silent_stop_s=0.3,
    silent_deadline_s=0.4,
    deadline_margin_s=0.1,
    backoff_max_s=1.0,
    overload_rest_s=0.1,
    hello_every_s=1.0,
)


class FakeBus:
    """Commands go to the proplets that are plugged in; `fail` makes the broker refuse."""

    def __init__(self) -> None:
        self.proplets: dict[str, ScriptedProplet] = {}
        self.starts: list[tuple[str | None, Start]] = []
        self.stops: list[tuple[str | None, Stop]] = []
        self.hellos = 0
        self.fail: BusError | None = None
        self.drop = False
        self.controller: Controller | None = None

    def tell(self, event: BusEvent) -> None:
        if self.controller is not None:
            self.controller.hear(event)

    async def start(self, proplet_id: str | None, command: Start) -> None:
        await self._check()
        self.starts.append((proplet_id, command))
        for proplet in self._reached(proplet_id):
            proplet.on_start(command)

    async def stop(self, proplet_id: str | None, command: Stop) -> None:
        await self._check()
        self.stops.append((proplet_id, command))
        for proplet in self._reached(proplet_id):
            proplet.on_stop(command)

    async def invoke(self, proplet_id: str, command: Invoke) -> None:
        await self._check()
        for proplet in self._reached(proplet_id):
            proplet.on_invoke(command)

    async def hello(self) -> None:
        await self._check()
        self.hellos += 1
        for proplet in self._reached(None):
            proplet.on_hello()

    async def _check(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.fail is not None:
            raise self.fail

    def _reached(self, proplet_id: str | None) -> "list[ScriptedProplet]":
        if self.drop:
            return []
        return [p for p in list(self.proplets.values()) if proplet_id in (None, p.id) and p.plugged]


@dataclass
class ScriptedProplet:
    """A device. Holds what it was given until the script ends it; remembers attempts as ours do, if it is `ours`."""

    id: str
    bus: FakeBus
    ours: bool = True
    plugged: bool = True
    instant: bool = False
    held: dict[tuple[str, int | None], Start] = field(default_factory=dict)
    done: dict[tuple[str, int | None], Result] = field(default_factory=dict)
    started: list[Start] = field(default_factory=list)  # runs begun
    stopped: list[Stop] = field(default_factory=list)
    invoked: list[Invoke] = field(default_factory=list)
    stage: str = "running"  # what it says of what it holds
    acks: int = 0
    answers: bool = True

    def __post_init__(self) -> None:
        self.bus.proplets[self.id] = self

    def say(self, message: Any) -> None:
        if self.plugged:
            self.bus.tell(Heard(message, self._acked))

    def _acked(self) -> None:
        self.acks += 1

    def appear(self) -> None:
        self.plugged = True
        self.say(Discovery(self.id, ext=OURS if self.ours else None))
        self.say(Alive(self.id))
        if self.ours:
            self.inventory()

    def beat(self) -> None:
        self.say(Alive(self.id))

    def vanish(self, *, will: bool = True) -> None:
        """The power is cut; a broker says so at once if there is a will."""
        if will:
            self.say(Alive(self.id, "offline"))
        self.plugged = False

    def on_hello(self) -> None:
        if self.ours and self.answers:
            self.say(Discovery(self.id, ext=OURS))
            self.inventory()

    def inventory(self) -> None:
        self.say(Inventory(self.id, tuple(InventoryItem(uid, a, self.stage) for uid, a in self.held)))

    def on_start(self, start: Start) -> None:
        if not start.broadcast and start.proplet_id not in (None, self.id):
            return
        key = (start.id, start.ext.attempt if start.ext and self.ours else None)
        if not self.answers:
            return
        if key in self.held:
            if self.ours:
                self.inventory()
            return
        if self.ours and key in self.done:
            self.say(self.done[key])
            return
        self.started.append(start)
        self.held[key] = start
        if self.instant:
            self.finish(start.id)
        elif self.ours:
            self.say(Progress(self.id, start.id, key[1], self.stage))

    def on_invoke(self, invoke: Invoke) -> None:
        if not self.answers:
            return
        self.invoked.append(invoke)
        held = next((start for key, start in self.held.items() if key[0] == invoke.id), None)
        if held is None:
            error = f"task {invoke.id} has not been precompiled; deploy it as a latent task first"
            self.say(InvokeResult(invoke.id, invoke.invocation_id, self.id, error=error))
        else:
            inputs = invoke.inputs or held.inputs
            self.say(InvokeResult(invoke.id, invoke.invocation_id, self.id, f"{self.id}: {' '.join(inputs)}"))

    def on_stop(self, stop: Stop) -> None:
        self.stopped.append(stop)
        if not self.answers:
            return
        for uid, attempt in [k for k in self.held if k[0] == stop.id]:
            wanted = stop.ext.attempt if stop.ext and self.ours else None
            if wanted in (None, attempt):
                reason = Reason.STOPPED if self.ours else None
                self.end(uid, attempt, error="Task was stopped before completion", reason=reason)

    def finish(self, uid: str, results: str = "42", error: str | None = None, reason: Reason = Reason.OK) -> None:
        for held, attempt in [k for k in self.held if k[0] == uid]:
            self.end(held, attempt, results=results, error=error, reason=reason)

    def end(
        self,
        uid: str,
        attempt: int | None,
        *,
        results: str = "",
        error: str | None = None,
        reason: Reason | None = Reason.OK,
        silently: bool = False,
    ) -> None:
        self.held.pop((uid, attempt), None)
        ext = ResultTerms(attempt=attempt, reason=reason, exit_code=0) if self.ours else None
        result = Result(uid, self.id, results, error, ext)
        self.done[uid, attempt] = result
        if not silently:
            self.say(result)

    def forget_everything(self) -> None:
        self.held.clear()
        self.done.clear()


class Node:
    """A controller that runs on a store and a bus until it is closed."""

    def __init__(self, controller: Controller, store: Store, bus: FakeBus) -> None:
        self.controller = controller
        self.store = store
        self.bus = bus
        self.namespace = "default"

    def up(self, *, session_present: bool = True) -> None:
        self.controller.hear(Up(session_present))

    def down(self) -> None:
        self.controller.hear(Down("the test says so"))

    def proplet(self, name: str, **kwargs: Any) -> ScriptedProplet:
        proplet = ScriptedProplet(name, self.bus, **kwargs)
        proplet.appear()
        return proplet

    async def create(self, name: str, **spec: Any) -> Task:
        task = Task(Meta(name, self.namespace), TaskSpec(**{"name": name, "image_url": "registry.test/add:1", **spec}))
        created = await self.store.create(task)
        assert isinstance(created, Task)
        return created

    async def get(self, name: str) -> Task:
        task = await self.store.get(Kind.TASK, Key(name, self.namespace))
        assert isinstance(task, Task)
        return task

    async def until(self, name: str, condition: Callable[[Task], bool], within: float = 8.0) -> Task:
        """Return the task once `condition` holds of it."""
        version = (await self.store.list(Kind.TASK)).version
        task = await self.get(name)
        with anyio.move_on_after(within):
            if condition(task):
                return task
            async for _ in self.store.watch(Kind.TASK, version):
                task = await self.get(name)
                if condition(task):
                    return task
        task = await self.get(name)
        assert condition(task), task.status
        return task

    async def ended(self, name: str, within: float = 8.0) -> Task:
        return await self.until(name, lambda t: t.status.phase in TERMINAL, within)


@asynccontextmanager
async def open_node(
    store: Store, bus: FakeBus | None = None, *, policy: Policy = FAST, connect: bool = True, **kwargs: Any
) -> AsyncIterator[Node]:
    """Run a controller on `store`; leaving kills it where it stands."""
    bus = bus or FakeBus()
    controller = Controller(store, policy=policy, not_proplets=("manager",), **kwargs)
    await controller.load()
    bus.controller = controller
    node = Node(controller, store, bus)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(controller.run, bus)
        if connect:
            node.up()
        try:
            yield node
        finally:
            bus.controller = None
            tasks.cancel_scope.cancel()


async def eventually(condition: Callable[[], bool], within: float = 8.0) -> None:
    """Wait until `condition` holds, looking whenever other things have had their turn."""
    with anyio.move_on_after(within if within < math.inf else None):
        while not condition():  # noqa: ASYNC110 - what is waited for is in other objects
            await anyio.sleep(0.005)
    assert condition()


async def running(node: Node, name: str, attempt: int = 1) -> str:
    """Wait until this attempt of the task runs; return the task's id."""
    task = await node.until(name, lambda t: (t.status.phase, t.status.attempt) == (Phase.RUNNING, attempt))
    return task.id
