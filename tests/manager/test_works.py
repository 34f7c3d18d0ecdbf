"""The loop over works, over a store in memory, with a controller that ends Tasks as it is told."""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

import anyio
import anyio.lowlevel
import pytest

from proplet.manager.job_plan import HELD, STOP, TASK_IDS
from proplet.manager.model import (
    Aggregator,
    ExecutionMode,
    FederatedJob,
    FederatedSpec,
    JobSpec,
    JobStatus,
    Key,
    Kind,
    Meta,
    Owner,
    Participant,
    PropellerJob,
    Resource,
    Rounds,
    Task,
    TaskSpec,
    WorkPhase,
)
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.ports import ConflictError, NotFoundError, StoreUnavailableError
from proplet.manager.store_memory import MemoryStore
from proplet.manager.work import Related, Told, WorkDecision
from proplet.manager.works import RETRY_S, WATCHED, Works, open_works

pytestmark = pytest.mark.anyio

R = TypeVar("R", bound=Resource)


def spec(name: str, *depends_on: str, **more: Any) -> TaskSpec:
    return TaskSpec(name, image_url="localhost:5000/add:1", depends_on=depends_on, **more)


def job(name: str, *names: str, mode: str = "parallel", refs: tuple[str, ...] = (), **meta: Any) -> PropellerJob:
    return PropellerJob(Meta(name, **meta), JobSpec(name, ExecutionMode(mode), tuple(map(spec, names)), refs))


class Store(MemoryStore):
    """A store that remembers what was done with it, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__(history=64)
        self.writes: list[str] = []
        self.fail: Callable[[str], Exception | None] = lambda _: None
        self.before_record: Callable[[Resource], Any] | None = None

    def _check(self, what: str) -> None:
        problem = self.fail(what)
        if problem is not None:
            raise problem
        self.writes.append(what)

    async def create(self, resource: Resource) -> Resource:
        self._check(f"create {resource.meta.name}")
        return await super().create(resource)

    async def record(self, resource: Resource) -> Resource:
        if self.before_record is not None:
            await self.before_record(resource)
        self._check(f"record {resource.meta.name}")
        return await super().record(resource)

    async def delete(self, kind: Kind, key: Key, version: int | None = None) -> Resource:
        self._check(f"delete {key.name}")
        return await super().delete(kind, key, version)

    async def is_so(self, kind: Kind, name: str, met: Callable[[Any], bool]) -> Any:
        """Return the resource as soon as it is there and as wanted."""
        with anyio.fail_after(20):
            async with aclosing(cast("Any", self.watch(kind, (await self.list(kind)).version))) as news:
                changes = aiter(news)
                while True:
                    found = next((i for i in (await self.list(kind)).items if i.meta.name == name), None)
                    if found is not None and met(found):
                        return found
                    await anext(changes)

    async def is_gone(self, kind: Kind, name: str) -> None:
        with anyio.fail_after(20):
            async with aclosing(cast("Any", self.watch(kind, (await self.list(kind)).version))) as news:
                changes = aiter(news)
                while any(item.meta.name == name for item in (await self.list(kind)).items):
                    await anext(changes)

    async def end(self, name: str, phase: Phase = Phase.COMPLETED) -> None:
        """What the controller does."""
        while True:
            task = await self.is_so(Kind.TASK, name, lambda _: True)
            try:
                await self.record(replace(task, status=replace(task.status, phase=phase, finished_at=1.0)))
                return
            except ConflictError:
                continue


async def job_in(store: Store, name: str, phase: WorkPhase) -> PropellerJob:
    found = await store.is_so(Kind.JOB, name, lambda of: of.status.phase is phase)
    assert isinstance(found, PropellerJob)
    return found


async def task_of(store: Store, name: str) -> Task:
    found = await store.is_so(Kind.TASK, name, lambda _: True)
    assert isinstance(found, Task)
    return found


@asynccontextmanager
async def finishing(store: Store, ends: Mapping[str, Phase] | None = None) -> AsyncIterator[list[str]]:
    """A controller that ends every Task as soon as its dependencies have; yields their names in the order of that."""
    done: list[str] = []

    async def work() -> None:
        async with aclosing(cast("Any", store.watch(Kind.TASK, 0))) as changes:
            async for _ in changes:
                for item in (await store.list(Kind.TASK)).items:
                    task = cast("Task", item)
                    others = [await store.get(Kind.TASK, Key(name)) for name in task.spec.depends_on]
                    if task.status.phase in TERMINAL or any(
                        cast("Task", other).status.phase not in TERMINAL for other in others
                    ):
                        continue
                    phase = (ends or {}).get(task.meta.name, Phase.COMPLETED)
                    done.append(task.meta.name)
                    await store.record(replace(task, status=replace(task.status, phase=phase)))

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        yield done
        group.cancel_scope.cancel()


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, bool]] = []

    def emit(self, resource: Resource, reason: str, message: str, *, warning: bool = False) -> None:
        assert message
        self.told.append((resource.meta.name, reason, warning))


@asynccontextmanager
async def driven(
    store: Store, sink: Sink | None = None, *, collect: bool = True, retry_s: float = RETRY_S
) -> AsyncIterator[Works]:
    async with open_works(store, sink, collect_garbage=collect, retry_s=retry_s) as works:
        yield works


async def until_idle(works: Works) -> None:
    """Return when the loop has looked at all that is new."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()
    with anyio.fail_after(20):
        while not works.idle:
            await anyio.lowlevel.checkpoint()


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
async def test_a_job_runs_its_tasks_and_completes(mode: str) -> None:
    store, sink = Store(), Sink()
    async with driven(store, sink), finishing(store) as done:
        await store.create(job("j", "a", "b", "c", mode=mode))
        ended = await job_in(store, "j", WorkPhase.COMPLETED)
    assert done == ["j-a", "j-b", "j-c"]
    assert ended.status.completed_count == 3
    assert sink.told == [("j", "Started", False), ("j", "Completed", False)]


async def test_a_configurable_job_runs_as_its_tasks_depend_on_each_other() -> None:
    store = Store()
    made = PropellerJob(Meta("j"), JobSpec("j", tasks=(spec("c", "a", "b"), spec("b", "a"), spec("a"))))
    async with driven(store), finishing(store) as done:
        await store.create(made)
        await job_in(store, "j", WorkPhase.COMPLETED)
    assert done == ["j-a", "j-b", "j-c"]


async def test_many_jobs_go_on_at_the_same_time() -> None:
    store = Store()
    async with driven(store), finishing(store):
        for number in range(30):
            await store.create(job(f"j{number}", "a", "b", mode="sequential"))
        for number in range(30):
            await job_in(store, f"j{number}", WorkPhase.COMPLETED)


async def test_a_task_referred_to_that_comes_later_is_noticed() -> None:
    store = Store()
    async with driven(store) as works:
        await store.create(job("j", refs=("late",)))
        await job_in(store, "j", WorkPhase.RUNNING)
        await store.create(Task(Meta("late"), spec("late")))
        await until_idle(works)
        await store.end("late")
        assert (await job_in(store, "j", WorkPhase.COMPLETED)).status.completed_count == 1


async def test_a_held_job_starts_when_it_is_let_go_and_stops_when_that_is_asked() -> None:
    store = Store()
    async with driven(store):
        made = await store.create(job("j", "a", "b", mode="sequential", annotations={HELD: "true"}))
        waiting = await store.is_so(Kind.JOB, "j", lambda of: of.status.conditions)
        assert [cast("Task", item).spec.suspend for item in (await store.list(Kind.TASK)).items] == [True, True]
        await store.put(replace(waiting, meta=replace(waiting.meta, annotations={})))
        await store.is_so(Kind.TASK, "j-a", lambda task: not task.spec.suspend)
        while True:
            current = await store.get(Kind.JOB, made.meta.key)
            try:
                await store.put(replace(current, meta=replace(current.meta, annotations={STOP: "true"})))
                break
            except ConflictError:
                continue
        await store.is_so(Kind.TASK, "j-a", lambda task: task.status.phase is Phase.INTERRUPTED)
        ended = await job_in(store, "j", WorkPhase.FAILED)
        await store.is_so(Kind.TASK, "j-b", lambda task: task.status.phase is Phase.INTERRUPTED)
    assert (ended.status.interrupted_count, ended.status.skipped_count) == (1, 1)


# --- what can go wrong ------------------------------------------------------------------------------------------------


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


# --- garbage ----------------------------------------------------------------------------------------------------------


async def test_deleting_a_job_deletes_its_tasks_and_nobody_elses() -> None:
    store = Store()
    await store.create(Task(Meta("referred"), spec("referred")))
    async with driven(store):
        await store.create(job("j", "a", "b", refs=("referred",)))
        await task_of(store, "j-b")
        await store.delete(Kind.JOB, Key("j"))
        await store.is_gone(Kind.TASK, "j-a")
        await store.is_gone(Kind.TASK, "j-b")
        assert [item.meta.name for item in (await store.list(Kind.TASK)).items] == ["referred"]


async def test_what_a_job_made_that_was_deleted_while_nobody_worked_goes_at_the_start() -> None:
    store = Store()
    gone = Owner("PropellerJob", "gone", "11111111-1111-4111-8111-111111111111")
    await store.create(Task(Meta("orphan", owner=gone), spec("a")))
    await store.create(Task(Meta("of-another-program", owner=replace(gone, kind="Deployment")), spec("a")))
    async with driven(store):
        await store.is_gone(Kind.TASK, "orphan")
    assert [item.meta.name for item in (await store.list(Kind.TASK)).items] == ["of-another-program"]


async def test_where_an_api_server_collects_garbage_nothing_is_deleted() -> None:
    store = Store()
    gone = Owner("PropellerJob", "gone", "11111111-1111-4111-8111-111111111111")
    await store.create(Task(Meta("orphan", owner=gone), spec("a")))
    async with driven(store, collect=False) as works:
        await until_idle(works)
    assert not [what for what in store.writes if what.startswith("delete")]


async def test_a_job_made_again_under_its_name_gets_tasks_of_its_own() -> None:
    store = Store()
    async with driven(store), finishing(store):
        first = await store.create(job("j", "a"))
        await job_in(store, "j", WorkPhase.COMPLETED)
        await store.delete(Kind.JOB, Key("j"))
        second = await store.create(job("j", "a"))
        await job_in(store, "j", WorkPhase.COMPLETED)
        child = await task_of(store, "j-a")
    assert first.meta.uid != second.meta.uid
    assert child.meta.owner is not None
    assert child.meta.owner.uid == second.meta.uid


# --- time, and idling -------------------------------------------------------------------------------------------------


async def test_a_work_is_looked_at_again_when_it_said_so() -> None:
    store = Store()
    async with driven(store), finishing(store):
        await store.create(PropellerJob(Meta("j"), JobSpec("j", tasks=(spec("a", ttl_seconds_after_finished=0),))))
        await job_in(store, "j", WorkPhase.COMPLETED)
        await store.is_gone(Kind.TASK, "j-a")


async def test_an_idle_loop_writes_nothing() -> None:
    store = Store()
    async with driven(store) as works:
        await store.create(job("j", "a", "b", refs=("missing",)))
        await task_of(store, "j-b")
        await job_in(store, "j", WorkPhase.RUNNING)
        await until_idle(works)
        before = list(store.writes)
        task = await task_of(store, "j-a")
        await MemoryStore.put(store, replace(task, meta=replace(task.meta, labels={"seen": "true"})))
        await until_idle(works)
        assert store.writes == before


async def test_counts_are_recorded_now_and_then_and_the_end_at_once() -> None:
    store = Store()
    works = Works(store, collect_garbage=True, monotonic=lambda: 100.0)  # time stands still
    names = [f"t{number}" for number in range(20)]
    async with anyio.create_task_group() as group:
        group.start_soon(works.run)
        await store.create(job("j", *names))
        for name in names:
            await store.end(f"j-{name}")
            await until_idle(works)
        ended = await job_in(store, "j", WorkPhase.COMPLETED)
        group.cancel_scope.cancel()
    assert ended.status.completed_count == 20
    assert store.writes.count("record j") == 2


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


async def test_what_a_person_is_told_is_told_after_it_is_recorded() -> None:
    store, sink = Store(), Sink()
    failed = anyio.Event()

    def once(what: str) -> Exception | None:
        if what == "record j" and not failed.is_set():
            failed.set()
            assert sink.told == []
            return ConflictError("somebody was faster")
        return None

    def tells(of: PropellerJob, _related: Related, _now: float) -> WorkDecision:
        status = JobStatus(WorkPhase.RUNNING)
        return WorkDecision(replace(of, status=status), told=(Told("Once", "said"),) if of.status != status else ())

    store.fail = once
    works = Works(store, sink, collect_garbage=True, decisions={Kind.JOB: tells})
    async with anyio.create_task_group() as group:
        group.start_soon(works.run)
        made = await store.create(job("j"))
        await failed.wait()
        await store.put(replace(made, meta=replace(made.meta, labels={"a": "b"})))
        await job_in(store, "j", WorkPhase.RUNNING)
        await until_idle(works)
        group.cancel_scope.cancel()
    assert sink.told == [("j", "Once", False)]


# --- the other kinds --------------------------------------------------------------------------------------------------


async def test_a_federated_job_makes_a_round_and_the_round_its_tasks_and_all_go_with_the_job() -> None:
    store = Store()
    learning = FederatedSpec(
        "e", "oci://m:0", "localhost:5000/t:1", (Participant("p1"), Participant("p2")), k_of_n=1, timeout_seconds=60,
        rounds=Rounds(2), aggregator=Aggregator("fedavg"),
    )  # fmt: skip
    async with driven(store):
        await store.create(FederatedJob(Meta("plane"), learning))
        round_ = await store.is_so(Kind.ROUND, "round-1-plane", lambda of: of.status.phase is WorkPhase.RUNNING)
        await task_of(store, "round-1-plane-p2")
        assert round_.meta.owner.name == "plane"
        await store.delete(Kind.FEDERATED_JOB, Key("plane"))
        await store.is_gone(Kind.TASK, "round-1-plane-p1")
        await store.is_gone(Kind.TASK, "round-1-plane-p2")
        await store.is_gone(Kind.ROUND, "round-1-plane")
    with pytest.raises(NotFoundError):
        await store.get(Kind.ROUND, Key("round-1-plane"))


def test_children_are_listed_before_those_who_own_them() -> None:
    assert WATCHED.index(Kind.TASK) < WATCHED.index(Kind.ROUND) < WATCHED.index(Kind.FEDERATED_JOB)
