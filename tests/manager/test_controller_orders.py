"""The controller on the memory store: who waits for whom, for a time, for room; deletions; how much is written."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anyio
import pytest

from proplet.manager.deletion import FINALIZER
from proplet.manager.membership import Membership
from proplet.manager.model import Key, Kind, Meta, Proplet, PropletSelector, PropletSpec, Resource, Task
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.ports import NotFoundError, ResourceTooLargeError, StoreUnavailableError
from proplet.manager.store_memory import MemoryStore
from tests.manager.fakes import FAST, Node, eventually, open_node

pytestmark = pytest.mark.anyio

PATIENT = replace(FAST, silence_s=60.0, hello_every_s=60.0)
CLUSTER = replace(PATIENT, finalizers=True, finalize_after_s=0.2, last_seen_every_s=30.0)


class CountingStore(MemoryStore):
    """Counts the writes that changed something, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[str, str]] = []

    async def put(self, resource: Resource) -> Resource:
        return self._counted("put", resource, await super().put(resource))

    async def record(self, resource: Resource) -> Resource:
        return self._counted("record", resource, await super().record(resource))

    def _counted(self, what: str, before: Resource, after: Resource) -> Resource:
        if after.meta.version != before.meta.version:
            self.writes.append((what, after.meta.name))
        return after

    def of(self, name: str) -> list[str]:
        return [what for what, which in self.writes if which == name]


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with open_node(MemoryStore(), policy=PATIENT) as node:
        yield node


async def gone(node: Node, name: str) -> None:
    with anyio.fail_after(8):
        while True:
            try:
                await node.get(name)
            except NotFoundError:
                return
            await anyio.sleep(0.005)


async def test_a_workflow_runs_in_its_order_and_nothing_is_looked_at_in_vain(node: Node) -> None:
    pi = node.proplet("pi-1", instant=True)
    await node.create("c", depends_on=("b", "a"), workflow_id="w")
    await node.create("b", depends_on=("a",), workflow_id="w")
    waiting = await node.until("b", lambda t: bool(t.status.message))
    assert waiting.status.message == "there is no Task a in the namespace default"
    await node.create("a", workflow_id="w")
    assert (await node.ended("c")).status.phase is Phase.COMPLETED
    assert [start.name for start in pi.started] == ["a", "b", "c"]


async def test_what_depends_on_a_failed_task_is_skipped_and_its_handler_runs(node: Node) -> None:
    pi = node.proplet("pi-1")
    await node.create("next", depends_on=("first",), workflow_id="w")
    await node.create("after-next", depends_on=("next",), workflow_id="w")
    await node.create("handler", depends_on=("first",), run_if="failure", workflow_id="w")
    first = await node.create("first", workflow_id="w")
    await eventually(lambda: bool(pi.held))
    pi.finish(first.id, "", error="no")
    assert (await node.ended("next")).status.phase is Phase.SKIPPED
    assert (await node.ended("after-next")).status.phase is Phase.SKIPPED
    handler = await node.until("handler", lambda t: t.status.phase in (Phase.SCHEDULED, Phase.RUNNING))
    assert handler.status.attempt == 1


async def test_a_circle_fails_whoever_comes_last(node: Node) -> None:
    node.proplet("pi-1", instant=True)
    names = ("a", "b", "c")
    for name, on in zip(names, ("b", "c", "a"), strict=True):
        await node.create(name, depends_on=(on,), workflow_id="w")
    ended = [await node.ended(name) for name in names]
    assert {task.status.phase for task in ended} <= {Phase.FAILED, Phase.SKIPPED}
    circles = [task.status.error or "" for task in ended if task.status.phase is Phase.FAILED]
    assert circles
    assert all("its dependencies go in a circle: " in text for text in circles)


async def test_the_most_urgent_of_those_that_wait_run_first() -> None:
    async with open_node(MemoryStore(), policy=PATIENT, window=1) as node:
        pi = node.proplet("pi-1")
        blocker = await node.create("blocker")
        await eventually(lambda: bool(pi.held))
        for priority in (10, 90, 50, 91, 0):
            await node.create(f"p{priority}", priority=priority)
        await eventually(lambda: len(node.controller._book.crowd) == 5)
        pi.instant = True
        pi.finish(blocker.id)
        for priority in (10, 90, 50, 91, 0):
            await node.ended(f"p{priority}")
        assert [start.name for start in pi.started] == ["blocker", "p91", "p90", "p50", "p10", "p0"]


async def test_the_most_urgent_of_those_that_wait_for_a_proplet_are_placed_first(node: Node) -> None:
    for priority in (10, 90, 50):
        await node.create(f"p{priority}", priority=priority)
        await node.until(f"p{priority}", lambda t: bool(t.status.message))
    pi = node.proplet("pi-1", instant=True)
    for priority in (10, 90, 50):
        await node.ended(f"p{priority}")
    assert [start.name for start in pi.started] == ["p90", "p50", "p10"]


async def test_a_task_can_ask_for_a_proplet_by_its_name_or_its_client_id_or_by_what_it_is(node: Node) -> None:
    k8s = PropletSpec(type="k8s", connection={"clientId": "4711"})
    await node.store.create(Proplet(Meta("pods", labels={"zone": "b"}), k8s))
    await node.store.create(Proplet(Meta("camera"), PropletSpec(device_type="cam", capabilities=("gpu",))))
    node.proplet("4711", instant=True)
    node.proplet("camera", instant=True)
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "by-name": ("pods", {"selector": PropletSelector("pods")}),
        "by-id": ("pods", {"selector": PropletSelector("4711")}),
        "by-type": ("pods", {"preferred_proplet_type": "k8s"}),
        "by-label": ("pods", {"selector": PropletSelector(match_labels={"zone": "b"})}),
        "by-ability": ("camera", {"selector": PropletSelector(match_capabilities=("gpu",))}),
        "by-device": ("camera", {"selector": PropletSelector(match_device_types=("cam",))}),
    }
    for name, (_, spec) in wanted.items():
        await node.create(name, **spec)
    for name, (proplet, _) in wanted.items():
        done = await node.ended(name)
        assert (done.status.phase, done.status.assigned_proplet) == (Phase.COMPLETED, proplet), name


async def test_a_scheduled_task_runs_at_its_time_and_again_when_the_clock_is_set() -> None:
    ahead = 60.0 - time.time() % 60.0 - 0.3  # the next full minute is a moment away

    def clock() -> float:
        return time.time() + ahead

    async with open_node(MemoryStore(clock), policy=PATIENT, clock=clock) as node:
        pi = node.proplet("pi-1", instant=True)
        await node.create("tick", schedule="* * * * *", is_recurring=True)
        planned = await node.until("tick", lambda t: t.status.next_run > 0)
        assert (planned.status.phase, pi.started) == (Phase.PENDING, [])
        done = await node.ended("tick")
        assert done.status.dispatched_at >= planned.status.next_run
        assert done.status.next_run == planned.status.next_run + 60
        ahead += 24 * 3600
        again = await node.until("tick", lambda t: t.status.attempt == 2 and t.status.phase in TERMINAL)
        assert again.status.next_run - clock() <= 60
        ahead -= 24 * 3600
        replanned = await node.until("tick", lambda t: t.status.next_run - clock() <= 120)
        assert replanned.status.attempt == 2


async def test_a_short_task_is_written_twice_and_one_that_lasts_is_marked() -> None:
    store = CountingStore()
    async with open_node(store, policy=replace(CLUSTER, confirm_delay_s=0.1)) as node:
        pi = node.proplet("pi-1", instant=True)
        await node.create("short")
        await node.ended("short")
        assert store.of("short") == ["record", "record"]
        pi.instant = False
        lasting = await node.create("lasting")
        marked = await node.until("lasting", lambda t: bool(t.meta.finalizers))
        assert (marked.status.phase, marked.meta.finalizers) == (Phase.RUNNING, (FINALIZER,))
        pi.finish(lasting.id)
        await node.until("lasting", lambda t: t.status.phase in TERMINAL and not t.meta.finalizers)
        assert store.of("lasting") == ["record", "record", "put", "record", "put"]


class ForgetfulStore(MemoryStore):
    """Cannot write meta and spec for a while."""

    away = 0

    async def put(self, resource: Resource) -> Resource:
        if self.away > 0:
            self.away -= 1
            raise StoreUnavailableError("the server is away")
        return await super().put(resource)


async def test_a_mark_that_cannot_be_put_or_taken_off_now_is_later_and_nothing_counts_twice() -> None:
    store = ForgetfulStore()
    async with open_node(store, policy=CLUSTER) as node:
        pi = node.proplet("pi-1")
        store.away = 1
        daemon = await node.create("daemon", daemon=True)
        await eventually(lambda: bool(pi.held))
        assert (await node.get("daemon")).meta.finalizers == (FINALIZER,)
        store.away = 1
        pi.finish(daemon.id)
        done = await node.until("daemon", lambda t: t.status.phase is Phase.COMPLETED and not t.meta.finalizers)
        assert (done.status.attempt, store.away, pi.acks > 0) == (1, 0, True)


async def test_deleting_a_task_that_lasts_waits_for_its_end() -> None:
    async with open_node(MemoryStore(), policy=CLUSTER) as node:
        pi = node.proplet("pi-1")
        task = await node.create("daemon", daemon=True)
        await eventually(lambda: bool(pi.held))
        assert (await node.get("daemon")).meta.finalizers == (FINALIZER,)
        pi.answers = False
        await node.store.delete(Kind.TASK, Key("daemon"))
        await eventually(lambda: len(pi.stopped) == 1)
        assert (await node.get("daemon")).status.stop_requested
        pi.answers = True
        for uid, attempt in list(pi.held):
            pi.end(uid, attempt, error="stopped")
        await gone(node, "daemon")
        assert node.controller._book.get(task.id) is None
        assert not node.controller._book.crowd


async def test_a_deletion_that_happens_while_no_manager_is_there_is_carried_out_by_the_next() -> None:
    store = MemoryStore()
    async with open_node(store, policy=CLUSTER) as node:
        pi = node.proplet("pi-1")
        await node.create("daemon", daemon=True)
        await eventually(lambda: bool(pi.held))
        bus = node.bus
    await store.delete(Kind.TASK, Key("daemon"))
    async with open_node(store, bus, policy=CLUSTER) as node:
        pi.appear()
        await gone(node, "daemon")
        assert (pi.held, len(pi.stopped)) == ({}, 1)


async def test_a_deletion_does_not_hang_on_a_proplet_that_never_comes_back() -> None:
    store = MemoryStore()
    async with open_node(store, policy=CLUSTER) as node:
        pi = node.proplet("pi-1")
        await node.create("daemon", daemon=True)
        await eventually(lambda: bool(pi.held))
        pi.vanish()
        await node.store.delete(Kind.TASK, Key("daemon"))
        await gone(node, "daemon")


async def test_a_proplet_s_record_counts_the_tasks_it_has_and_had() -> None:
    async with open_node(MemoryStore(), policy=replace(CLUSTER, last_seen_every_s=0.05)) as node:
        pi = node.proplet("pi-1", instant=True)
        for name in ("one", "two", "three"):
            await node.create(name)
            await node.ended(name)
        await node.store.delete(Kind.TASK, Key("two"))

        async def count() -> int:
            pi.beat()
            record = await node.store.get(Kind.PROPLET, Key("pi-1"))
            assert isinstance(record, Proplet)
            return record.status.task_count

        with anyio.fail_after(8):
            while await count() != 2:  # noqa: ASYNC110 - it is written now and then
                await anyio.sleep(0.02)


async def test_a_cluster_s_manager_writes_nothing_while_nothing_happens() -> None:
    store = CountingStore()
    membership = Membership(register=False)
    async with open_node(store, policy=replace(CLUSTER, last_seen_every_s=60.0), membership=membership) as node:
        await store.create(Proplet(Meta("pi-1"), PropletSpec()))
        pi = node.proplet("pi-1")
        stranger = node.proplet("stranger")
        await node.create("lasting")
        await node.create("waiting", selector=PropletSelector("nobody"))
        await node.create("tomorrow", schedule="0 0 1 1 *")
        await node.create("dependent", depends_on=("lasting",), workflow_id="w")
        await node.until("lasting", lambda t: bool(t.meta.finalizers))
        for name in ("waiting", "tomorrow", "dependent"):
            await node.until(name, lambda t: bool(t.status.conditions))
        await eventually(lambda: node.controller._roster.idle and node.controller._queue.idle)
        before = list(store.writes)
        for _ in range(30):
            for proplet in (pi, stranger):
                proplet.beat()
                proplet.inventory()
            await anyio.sleep(0.05)
        assert store.writes == before
        assert [p.meta.name for p in (await store.list(Kind.PROPLET)).items] == ["pi-1"]


async def test_a_proplet_whose_record_is_deleted_loses_its_tasks_to_others() -> None:
    store = MemoryStore()
    async with open_node(store, policy=replace(CLUSTER, silence_s=0.3), membership=Membership(register=False)) as node:
        for name in ("pi-1", "pi-2"):
            await store.create(Proplet(Meta(name), PropletSpec()))
        first = node.proplet("pi-1")
        task = await node.create("add")
        await eventually(lambda: bool(first.held))
        second = node.proplet("pi-2")
        await store.delete(Kind.PROPLET, Key("pi-1"))
        with anyio.fail_after(8):
            while not second.held:
                second.beat()
                first.beat()
                await anyio.sleep(0.02)
        first.inventory()
        await eventually(lambda: not first.held)
        assert isinstance(await store.find(Kind.TASK, task.id), Task)


async def test_a_result_that_the_store_is_too_small_for_ends_its_task_without_it() -> None:
    class SmallStore(MemoryStore):
        async def record(self, resource: Resource) -> Resource:
            if isinstance(resource, Task) and len(resource.status.results or "") > 10_000:
                raise ResourceTooLargeError("at most 10,000")
            return await super().record(resource)

    async with open_node(SmallStore(), policy=PATIENT) as node:
        pi = node.proplet("pi-1")
        made = await node.create("a")
        await node.until("a", lambda t: t.status.phase is Phase.RUNNING)
        pi.finish(made.id, results="x" * 20_000)
        ended = await node.ended("a")
    assert (ended.status.phase, ended.status.results) == (Phase.COMPLETED, None)
    assert "20000 characters" in ended.status.message
