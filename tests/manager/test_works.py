"""The loop over works, over a store in memory, with a controller that ends Tasks as it is told."""

from dataclasses import replace
from typing import cast

import anyio
import anyio.lowlevel
import pytest

from proplet.manager.job_plan import HELD, STOP
from proplet.manager.model import (
    Aggregator,
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
    Rounds,
    Task,
    WorkPhase,
)
from proplet.manager.phases import Phase
from proplet.manager.ports import ConflictError, NotFoundError
from proplet.manager.store_memory import MemoryStore
from proplet.manager.work import Related, Told, WorkDecision
from proplet.manager.works import WATCHED, Works
from tests.manager.driven_works import Sink, Store, driven, finishing, job, job_in, spec, task_of, until_idle

pytestmark = pytest.mark.anyio


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
