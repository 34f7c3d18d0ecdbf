"""Tasks that cannot be recorded or sent: tried again after growing pauses, by a clock that is moved by hand."""

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio.lowlevel
import pytest

from proplet.manager.bus import Heard
from proplet.manager.exchange import Contact, Policy
from proplet.manager.model import Key, Kind, Resource, Task
from proplet.manager.phases import Phase
from proplet.manager.ports import RefusedError, StoreUnavailableError
from proplet.manager.store_memory import MemoryStore
from tests.manager.fakes import Node, ScriptedProplet, open_node

pytestmark = pytest.mark.anyio

PATIENT = Policy(silence_s=1e6, hello_every_s=1e6, confirm_s=1.0, confirm_delay_s=0.0)


class Failing(MemoryStore):
    """Takes no record, and with `no_marks` no other write, of what has the name `failing`."""

    def __init__(self) -> None:
        super().__init__(clock=self.wall)
        self.mono = 1000.0
        self.failing = ""
        self.no_marks = False
        self.error: type[StoreUnavailableError] = StoreUnavailableError
        self.tried: list[float] = []

    async def record(self, resource: Resource) -> Resource:
        if not self.no_marks:
            self._check(resource)
        return await super().record(resource)

    async def put(self, resource: Resource) -> Resource:
        if self.no_marks:
            self._check(resource)
        return await super().put(resource)

    def _check(self, resource: Resource) -> None:
        if resource.meta.name == self.failing:
            self.tried.append(self.mono)
            raise self.error("it says no")

    def wall(self) -> float:
        return 1_800_000_000.0 + self.mono

    def pauses(self) -> Iterator[float]:
        """Seconds between one try and the next."""
        return (later - sooner for sooner, later in zip(self.tried, self.tried[1:], strict=False))


@asynccontextmanager
async def by_hand(store: Failing, **kwargs: Any) -> AsyncIterator[Node]:
    given: dict[str, Any] = {"policy": PATIENT, **kwargs}
    clocks: dict[str, Any] = {"clock": store.wall, "monotonic": lambda: store.mono}
    async with open_node(store, spread=lambda: 1.0, **clocks, **given) as node:
        await passes(node, 3)
        yield node


async def passes(node: Node, seconds: int) -> None:
    """Let so much time pass, and everybody do what is due after each second."""
    store = node.store
    assert isinstance(store, Failing)
    for _ in range(seconds):
        store.mono += 1.0
        node.controller._rhythm.nudge()
        for _ in range(30):
            await anyio.lowlevel.checkpoint()


async def running(node: Node, pi: ScriptedProplet, name: str) -> Task:
    task = await node.create(name)
    await passes(node, 1)
    assert (await node.get(name)).status.phase is Phase.RUNNING
    assert pi.held
    return task


@pytest.mark.parametrize("error", [RefusedError, StoreUnavailableError])
async def test_each_pause_is_longer_whatever_else_happens(error: type[StoreUnavailableError]) -> None:
    store = Failing()
    store.failing, store.error = "poison", error
    async with by_hand(store) as node:
        await node.create("poison")
        for number in range(220):
            node.proplet(f"pi-{number % 20}")  # news for what waits for a proplet
            await passes(node, 1)
        assert list(store.pauses()) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


async def test_a_task_that_was_changed_is_tried_at_once_and_then_as_if_for_the_first_time() -> None:
    store = Failing()
    store.failing = "poison"
    async with by_hand(store) as node:
        await node.create("poison")
        await passes(node, 20)
        store.tried.clear()
        task = await node.get("poison")
        await store.put(replace(task, meta=replace(task.meta, labels={"allowed": "perhaps"})))
        await passes(node, 8)
        assert list(store.pauses())[:3] == [1.0, 2.0, 4.0]


async def test_a_task_that_could_be_recorded_has_short_pauses_again() -> None:
    store = Failing()
    store.failing = "poison"
    async with by_hand(store) as node:
        pi = node.proplet("pi-1")
        await node.create("poison")
        await passes(node, 20)
        store.failing = ""
        await passes(node, 60)
        assert (await node.get("poison")).status.phase is Phase.RUNNING
        assert len(node.controller._pauses) == 0
        store.failing = "poison"
        store.tried.clear()
        pi.finish((await node.get("poison")).id)
        await passes(node, 8)
        assert list(store.pauses())[:3] == [1.0, 2.0, 4.0]


async def test_what_is_not_acknowledged_is_never_left_alone_for_long() -> None:
    """It keeps the heartbeats behind it from us: proplets would be taken for lost."""
    store, acked = Failing(), list[float]()
    async with by_hand(store) as node:
        pi = node.proplet("pi-1")
        task = await running(node, pi, "poison")
        store.failing = "poison"
        pi.end(task.id, 1, results="42", silently=True)
        node.controller.hear(Heard(pi.done[task.id, 1], lambda: acked.append(store.mono)))
        await passes(node, 60)
        assert list(store.pauses())[:4] == [1.0, 2.0, 4.0, 8.0]
        assert max(store.pauses()) == 8.0
        assert acked == []
        store.failing = ""
        await passes(node, 8)
        assert (len(acked), (await node.get("poison")).status.results) == (1, "42")


async def test_what_is_refused_is_acknowledged_when_it_was_held_for_long_and_what_follows_at_once() -> None:
    store, acked = Failing(), list[float]()
    store.error = RefusedError
    async with by_hand(store, hold_s=20.0) as node:
        pi = node.proplet("pi-1")
        task = await running(node, pi, "poison")
        store.failing = "poison"
        pi.end(task.id, 1, results="42", silently=True)
        first_tried = store.mono + 1.0
        node.controller.hear(Heard(pi.done[task.id, 1], lambda: acked.append(store.mono)))
        await passes(node, 300)
        assert acked == [first_tried + 20.0]
        assert max(store.pauses()) == 60.0
        node.controller.hear(Heard(pi.done[task.id, 1], lambda: acked.append(store.mono)))
        tried = len(store.tried)
        await passes(node, 1)
        assert (len(acked), len(store.tried) - tried) == (2, 0)
        store.failing = ""
        await passes(node, 61)
        assert (await node.get("poison")).status.results == "42"


async def test_a_message_that_comes_in_a_long_pause_shortens_it() -> None:
    store = Failing()
    async with by_hand(store) as node:
        pi = node.proplet("pi-1")
        task = await running(node, pi, "poison")
        store.failing = "poison"
        running_one = await node.get("poison")
        await store.put(replace(running_one, spec=replace(running_one.spec, active_deadline_seconds=1.0)))
        asked = await node.get("poison")
        assert asked.id == task.id
        node.controller._pauses.failed(task.id, asked.meta.version, store.mono)
        for _ in range(8):
            node.controller._pauses.failed(task.id, asked.meta.version, store.mono)
        pi.finish(task.id)
        await passes(node, 9)
        assert len(store.tried) == 1


@pytest.mark.parametrize("error", [RefusedError, StoreUnavailableError])
async def test_one_that_cannot_be_recorded_takes_no_place_from_others(error: type[StoreUnavailableError]) -> None:
    store = Failing()
    store.failing, store.error = "poison", error
    async with by_hand(store, window=1) as node:
        node.proplet("pi-1", instant=True)
        await node.create("poison", priority=100)
        await passes(node, 30)
        for number in range(5):
            await node.create(f"t-{number}")
        await passes(node, 20)
        for number in range(5):
            assert (await node.get(f"t-{number}")).status.phase is Phase.COMPLETED
        store.failing = ""
        await passes(node, 60)
        assert (await node.get("poison")).status.phase is Phase.COMPLETED


async def test_a_mark_that_cannot_be_put_is_tried_again_after_growing_pauses_and_holds_up_no_result() -> None:
    store = Failing()
    store.failing, store.no_marks = "poison", True
    async with by_hand(store, policy=replace(PATIENT, finalizers=True, finalize_after_s=1.0)) as node:
        pi = node.proplet("pi-1")
        task = await running(node, pi, "poison")
        for _ in range(130):
            pi.inventory()
            await passes(node, 1)
        assert list(store.pauses()) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
        pi.finish(task.id)
        await passes(node, 2)
        assert (await node.get("poison")).status.phase is Phase.COMPLETED


async def test_nothing_is_kept_of_one_that_is_deleted_while_it_is_left_alone() -> None:
    store = Failing()
    store.failing = "poison"
    async with by_hand(store) as node:
        await node.create("poison")
        await passes(node, 20)
        await store.delete(Kind.TASK, Key("poison"))
        await passes(node, 2)
        assert len(node.controller._pauses) == 0


def test_a_command_that_the_broker_does_not_take_is_sent_after_growing_pauses_be_it_a_stop_or_a_start() -> None:
    contact = Contact(1, 0.0, 0.0)
    due = list[tuple[float, float]]()
    for _ in range(7):
        contact.unsent(0.0)
        due.append((contact.ask_at, contact.stop_at))
    assert [stop for _, stop in due] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0]
    assert all(ask == stop for ask, stop in due)
    contact.stopped(0.0, Policy(), tells=True)
    contact.unsent(0.0)
    assert contact.stop_at == 1.0
    assert contact.ask_at < math.inf
