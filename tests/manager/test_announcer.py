"""What a person is told as it happens, and that it is told once."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from proplet.agent.wire import Reason
from proplet.manager.membership import Membership
from proplet.manager.model import Key, Kind, Meta, Proplet, PropletSelector, PropletSpec, Resource
from proplet.manager.store_memory import MemoryStore
from tests.manager.fakes import FAST, Node, eventually, open_node

pytestmark = pytest.mark.anyio


class Told:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str, bool]] = []

    def emit(self, resource: Resource, reason: str, message: str, *, warning: bool = False) -> None:
        self.events.append((resource.meta.name, reason, message, warning))

    def of(self, name: str) -> list[tuple[str, str, bool]]:
        return [event[1:] for event in self.events if event[0] == name]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def node(told: Told) -> AsyncIterator[Node]:
    policy, membership = replace(FAST, silence_s=60.0), Membership(channel=("d", "c"))
    async with open_node(MemoryStore(), policy=policy, events=told, membership=membership) as node:
        yield node


async def test_a_task_is_told_of_from_waiting_to_its_end(node: Node, told: Told) -> None:
    await node.create("add")
    await node.until("add", lambda t: bool(t.status.message))
    node.proplet("pi-1", instant=True)
    await node.ended("add")
    await eventually(lambda: len(told.of("add")) == 3)
    assert told.of("add") == [
        ("NoProplet", "no proplet is known yet: none has announced itself", True),
        ("Dispatched", "attempt 1 was sent to pi-1", False),
        ("Completed", "it completed (attempt 1 on pi-1)", False),
    ]


async def test_a_failure_is_a_warning_with_its_text(node: Node, told: Told) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add")
    await eventually(lambda: bool(pi.held))
    pi.finish(task.id, "", error="wasm trap: unreachable", reason=Reason.TRAP)
    await node.ended("add")
    await eventually(lambda: len(told.of("add")) == 2)
    assert told.of("add")[1] == ("Failed", "wasm trap: unreachable (attempt 1 on pi-1)", True)


async def test_a_lost_attempt_is_told_of_beside_the_next_one(node: Node, told: Told) -> None:
    first = node.proplet("pi-1")
    await node.create("add")
    await eventually(lambda: bool(first.held))
    node.proplet("pi-2")
    first.vanish()
    await node.until("add", lambda t: t.status.attempt == 2)
    await eventually(lambda: len(told.of("add")) == 3)
    assert told.of("add")[1:] == [
        ("Lost", "attempt 1 on pi-1 ended without a result", True),
        ("Dispatched", "attempt 2 was sent to pi-2", False),
    ]


async def test_what_does_not_change_is_not_told_again(node: Node, told: Told) -> None:
    pi = node.proplet("pi-1")
    await node.create("add", selector=PropletSelector(match_labels={"site": "roof"}))
    await node.until("add", lambda t: bool(t.status.message))
    for labels in ({"a": "1"}, {"a": "2"}, {"a": "3"}):
        record = await node.store.get(Kind.PROPLET, Key("pi-1"))
        assert isinstance(record, Proplet)
        await node.store.put(replace(record, meta=replace(record.meta, labels=labels)))
        pi.beat()
        await eventually(lambda: node.controller._roster.idle and node.controller._queue.idle)
    assert told.of("add") == [("NoProplet", "no proplet is alive that fits: pi-1: it lacks the label site=roof", True)]


async def test_a_proplet_is_told_of_when_it_comes_and_goes(node: Node, told: Told) -> None:
    pi = node.proplet("pi-1")
    await eventually(lambda: len(told.of("pi-1")) == 1)
    pi.beat()
    pi.vanish()
    await eventually(lambda: len(told.of("pi-1")) == 2)
    pi.appear()
    await eventually(lambda: len(told.of("pi-1")) == 3)
    assert [(reason, warning) for reason, _, warning in told.of("pi-1")] == [
        ("PropletOnline", False),
        ("PropletOffline", True),
        ("PropletOnline", False),
    ]


async def test_a_proplet_that_cannot_be_worked_with_is_told_why(node: Node, told: Told) -> None:
    await node.store.create(Proplet(Meta("far"), PropletSpec(connection={"domainId": "d", "channelId": "other"})))
    await node.store.create(Proplet(Meta("first"), PropletSpec(connection={"clientId": "x"})))
    await node.store.create(Proplet(Meta("second"), PropletSpec(connection={"clientId": "x"})))
    await eventually(lambda: bool(told.of("far") and told.of("second")))
    other, ours = "the domain d and the channel other", "the domain d and the channel c"
    assert told.of("far") == [
        ("OtherChannel", f"its connectionConfig names {other}; this manager listens on {ours}", True)
    ]
    assert told.of("second") == [("DuplicateIdentity", "x is the client id of the Proplet default/first, too", True)]
    assert told.of("first") == []


async def test_where_events_cost_a_write_the_success_of_a_brief_task_is_not_told(told: Told) -> None:
    policy = replace(FAST, silence_s=60.0, finalizers=True, finalize_after_s=30.0)
    async with open_node(MemoryStore(), policy=policy, events=told) as node:
        pi = node.proplet("pi-1", instant=True)
        await node.create("brief")
        await node.ended("brief")
        pi.instant = False
        task = await node.create("fails")
        await eventually(lambda: bool(pi.held))
        pi.finish(task.id, "", error="wasm trap: unreachable", reason=Reason.TRAP)
        await node.ended("fails")
        await eventually(lambda: bool(told.of("fails")))
    assert told.of("brief") == []
    assert told.of("fails") == [("Failed", "wasm trap: unreachable (attempt 1 on pi-1)", True)]


async def test_a_task_that_lasts_is_told_of_when_it_does(told: Told) -> None:
    policy = replace(FAST, silence_s=60.0, finalizers=True, finalize_after_s=0.01)
    async with open_node(MemoryStore(), policy=policy, events=told) as node:
        pi = node.proplet("pi-1")
        task = await node.create("lasts")
        await eventually(lambda: len(told.of("lasts")) == 1)
        pi.finish(task.id, "42")
        await node.ended("lasts")
        await eventually(lambda: len(told.of("lasts")) == 2)
    assert [reason for reason, _, _ in told.of("lasts")] == ["Dispatched", "Completed"]


async def test_a_task_that_was_said_to_wait_is_said_to_go_on(told: Told) -> None:
    policy = replace(FAST, silence_s=60.0, finalizers=True, finalize_after_s=30.0)
    async with open_node(MemoryStore(), policy=policy, events=told) as node:
        await node.create("add")
        await node.until("add", lambda t: bool(t.status.message))
        node.proplet("pi-1", instant=True)
        await node.ended("add")
        await eventually(lambda: len(told.of("add")) == 2)
    assert [reason for reason, _, _ in told.of("add")] == ["NoProplet", "Dispatched"]
