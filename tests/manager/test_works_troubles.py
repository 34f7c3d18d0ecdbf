"""The loop over works where something goes wrong: conflicts, crashes, a store that is away, names that are taken."""

import logging
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from proplet.manager.job_plan import TASK_IDS
from proplet.manager.model import (
    JobStatus,
    Key,
    Kind,
    Meta,
    Owner,
    PropellerJob,
    Resource,
    Task,
    WorkPhase,
)
from proplet.manager.ports import StoreUnavailableError
from proplet.manager.store_memory import MemoryStore
from proplet.manager.work import Related, WorkDecision
from proplet.manager.works import Works
from tests.manager.driven_works import Sink, Store, driven, finishing, job, job_in, spec, task_of, until_idle

pytestmark = pytest.mark.anyio


async def test_a_conflict_is_decided_again() -> None:
    store = Store()
    labelled = False

    async def label(given: Resource) -> None:
        nonlocal labelled
        if given.kind is Kind.JOB and not labelled:
            labelled = True
            current = await store.get(Kind.JOB, given.meta.key)
            await store.put(replace(current, meta=replace(current.meta, labels={"by": "somebody"})))

    store.before_record = label
    async with driven(store), finishing(store):
        await store.create(job("j", "a"))
        ended = await job_in(store, "j", WorkPhase.COMPLETED)
    assert (labelled, ended.meta.labels) == (True, {"by": "somebody"})
    assert store.writes.count("create j-a") == 1


@pytest.mark.parametrize("step", ["create j-a", "create j-c", "record j"])
async def test_after_a_crash_at_any_step_a_restart_goes_on_without_making_anything_twice(step: str) -> None:
    store = Store()
    reached = anyio.Event()

    def crash(what: str) -> Exception | None:
        if what != step:
            return None
        reached.set()
        return StoreUnavailableError("the power is gone")

    await store.create(job("j", "a", "b", "c"))
    store.fail = crash
    async with driven(store):
        await reached.wait()
    store.fail = lambda _: None
    before = {item.meta.uid for item in (await store.list(Kind.TASK)).items}
    async with driven(store), finishing(store):
        await job_in(store, "j", WorkPhase.COMPLETED)
    after = {item.meta.uid for item in (await store.list(Kind.TASK)).items}
    assert before < after or before == after
    assert len(after) == 3


async def test_a_store_that_is_away_is_tried_again() -> None:
    store, left = Store(), 4

    def away(what: str) -> Exception | None:
        nonlocal left
        if what != "create j-a" or left == 0:
            return None
        left -= 1
        return StoreUnavailableError("the disk is full")

    store.fail = away
    async with driven(store, retry_s=0.01), finishing(store):
        await store.create(job("j", "a"))
        await job_in(store, "j", WorkPhase.COMPLETED)
    assert left == 0


async def test_a_restart_in_the_middle_neither_repeats_nor_forgets() -> None:
    store = Store()
    await store.create(job("j", "a", "b", mode="sequential"))
    async with driven(store):
        await store.end("j-a")
        await task_of(store, "j-b")
    await store.end("j-b")
    async with driven(store):
        await job_in(store, "j", WorkPhase.COMPLETED)
    assert [what for what in store.writes if what.startswith("create")] == ["create j", "create j-a", "create j-b"]


async def test_a_task_of_somebody_elses_is_left_alone_and_told() -> None:
    store, sink = Store(), Sink()
    await store.create(Task(Meta("j-a"), spec("a")))
    async with driven(store, sink):
        await store.create(job("j", "a"))
        told = await store.is_so(Kind.JOB, "j", lambda of: of.status.conditions)
        assert told.status.conditions[0].reason == "NameTaken"
        assert ("j", "NameTaken", True) in sink.told
        await store.delete(Kind.TASK, Key("j-a"))
        child = await store.is_so(Kind.TASK, "j-a", lambda task: task.meta.owner is not None)
        assert child.meta.owner.name == "j"


async def test_a_decision_that_insists_on_a_taken_name_gets_a_condition_and_no_hot_loop() -> None:
    store = Store()
    await store.create(Task(Meta("taken"), spec("a")))
    looks = 0

    def insists(of: PropellerJob, related: Related, now: float) -> WorkDecision:
        nonlocal looks
        looks += 1
        mine = Owner("PropellerJob", of.meta.name, of.meta.uid)
        create = () if "taken" in related.tasks and related.tasks["taken"].meta.owner else (Meta("taken", owner=mine),)
        return WorkDecision(of, tuple(Task(meta, spec("a")) for meta in create))

    works = Works(store, collect_garbage=True, decisions={Kind.JOB: insists})
    await works.load()
    async with anyio.create_task_group() as group:
        group.start_soon(works.run)
        await store.create(job("j", "a"))
        blocked = await store.is_so(Kind.JOB, "j", lambda of: of.status.conditions)
        assert [(c.type, c.status) for c in blocked.status.conditions] == [("Blocked", True)]
        await until_idle(works)
        seen = looks
        await until_idle(works)
        assert looks == seen <= 4
        await store.delete(Kind.TASK, Key("taken"))
        await store.is_so(Kind.JOB, "j", lambda of: not of.status.conditions)
        group.cancel_scope.cancel()


async def test_a_defect_in_a_decision_stops_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()

    def broken(of: PropellerJob, _related: Related, _now: float) -> WorkDecision:
        if of.meta.name == "bad":
            raise ZeroDivisionError
        return WorkDecision(replace(of, status=JobStatus(WorkPhase.COMPLETED)))

    works = Works(store, collect_garbage=True, decisions={Kind.JOB: broken})
    with caplog.at_level(logging.CRITICAL, "proplet.manager.works"):
        async with anyio.create_task_group() as group:
            group.start_soon(works.run)
            await store.create(job("bad"))
            await store.create(job("good"))
            await job_in(store, "good", WorkPhase.COMPLETED)
            group.cancel_scope.cancel()


async def test_a_watch_that_lost_its_past_lists_again() -> None:
    store = Store()
    async with driven(store) as works:
        await store.create(job("j", "a", "b"))
        await task_of(store, "j-b")
        await until_idle(works)
        for number in range(100):  # more than the history holds, before the loop gets to look
            await MemoryStore.create(store, Task(Meta(f"t{number}"), spec("t")))
        await store.end("j-a")
        await store.end("j-b")
        await job_in(store, "j", WorkPhase.COMPLETED)


async def test_children_that_the_store_refuses_are_told_in_the_status() -> None:
    store = Store()
    store.fail = lambda what: StoreUnavailableError("a rule forbids it") if what == "create j-a" else None
    async with driven(store, retry_s=0.01), finishing(store):
        await store.create(job("j", "a"))
        blocked = await store.is_so(Kind.JOB, "j", lambda of: of.status.conditions)
        assert [(c.type, c.reason, c.message) for c in blocked.status.conditions] == [
            ("Blocked", "NotMade", "Its children cannot be made: a rule forbids it")
        ]
        store.fail = lambda _: None
        ended = await job_in(store, "j", WorkPhase.COMPLETED)
    assert "Blocked" not in [condition.type for condition in ended.status.conditions]


async def test_a_promised_uid_that_is_taken_meanwhile_is_replaced() -> None:
    store = Store()
    uid = "11111111-1111-4111-8111-111111111111"
    await store.create(Task(Meta("somebody", uid=uid), spec("a")))
    async with driven(store):
        await store.create(job("j", "a", annotations={TASK_IDS: f'{{"a": "{uid}"}}'}))
        child = await task_of(store, "j-a")
        await job_in(store, "j", WorkPhase.RUNNING)
    assert child.meta.uid != uid
