"""What every store must do: one suite, run against each of them.

A test class derives from `StoreContract` and has a fixture `open_store`: a function that takes `history` (how many
changes a watcher can be behind; None where the store cannot be told) and returns an async context manager of a store,
empty the first time.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from proplet.agent.wire import Limits, Metadata, MonitoringProfile, Reason, RestartPolicy, Usage
from proplet.manager.model import (
    Aggregator,
    Condition,
    ExecutionMode,
    FederatedJob,
    FederatedSpec,
    FederatedStatus,
    JobReference,
    JobSpec,
    JobStatus,
    Key,
    Kind,
    Meta,
    Owner,
    Participant,
    ParticipantStatus,
    Participation,
    PropellerJob,
    Proplet,
    PropletPhase,
    PropletSelector,
    PropletSpec,
    PropletStatus,
    Resources,
    Rounds,
    RoundSpec,
    RoundStatus,
    Task,
    TaskSpec,
    TaskStatus,
    TrainingRound,
    WorkPhase,
)
from proplet.manager.phases import Phase
from proplet.manager.ports import (
    AlreadyExistsError,
    Change,
    ChangeType,
    ConflictError,
    GoneError,
    NotFoundError,
    Store,
)

OpenStore = Callable[..., AbstractAsyncContextManager[Store]]

MODULE = b"\0asm\x01\0\0\0"


def task(name: str = "addition", **spec: Any) -> Task:
    return Task(Meta(name), TaskSpec(**{"name": "main", "file": MODULE, "inputs": ("10", "32"), **spec}))


FULL_TASK = Task(
    Meta("full", "lab", labels={"a": "b"}, annotations={"why": "ü\n☃"}),
    TaskSpec(
        name="main",
        function_name="add",
        image_url="",
        file=MODULE + bytes(range(256)),
        inputs=("1", "x", "", "18446744073709551616"),
        env={"A": "1", "B": ""},
        env_secrets={"S": {"name": "n", "key": "k"}},
        selector=PropletSelector("pi", {"zone": "a"}, ("pi",), ("gpu",)),
        resources=Resources(0.25, 2**40, {"gpu": "1"}),
        monitoring_profile=MonitoringProfile(interval=2.5, collect_cpu=False),
        restart_policy=RestartPolicy.ON_FAILURE,
        limits=Limits(memory_bytes=2**26, cpu_s=0.1),
        metadata={"deep": [1, 2.5, None, {"x": True}]},
        priority=0,
        active_deadline_seconds=1.5,
    ),
    TaskStatus(
        phase=Phase.FAILED,
        proplet_id="pi",
        attempt=3,
        failures=2,
        started_at=1.25,
        results="",
        error="trap ☃",
        reason=Reason.TRAP,
        usage=Usage(0.1, 65536, {"run": 0.001}, "hot"),
        broadcast_results=({"proplet_id": "a", "results": "1"},),
        conditions=(Condition("Completed", False, "Failed", "trap", 1.5),),
    ),
)
FULL_PROPLET = Proplet(
    Meta("pi", labels={"zone": "a"}),
    PropletSpec(
        device_type="pi",
        capabilities=("gpu",),
        resources=Resources(4.0, 2**32, {"npu": "1"}),
        connection={"domainId": "d", "channelId": "c", "clientId": "pi-1", "clientKey": "k", "mqttQos": 1},
        declared=False,
    ),
    PropletStatus(
        PropletPhase.RUNNING, 12.5, Metadata(tags=("a", "b"), total_memory_bytes=2**33), ("own", "logs"), ("cbor",)
    ),
)

FULL_JOB = PropellerJob(
    Meta("job", "lab"),
    JobSpec(
        name="both",
        execution_mode=ExecutionMode.SEQUENTIAL,
        tasks=(TaskSpec(name="one", file=MODULE, inputs=("1",)), TaskSpec(name="two", image_url="localhost:5000/m:1")),
        task_refs=("other",),
    ),
    JobStatus(WorkPhase.FAILED, 1.5, 2.5, 3, 1, 1, 0, 1, (Condition("Failed", True, "TaskFailed", "one", 2.5),), 4),
)
FULL_FEDERATED_JOB = FederatedJob(
    Meta("learn", "lab"),
    FederatedSpec(
        experiment_id="e",
        model_ref="localhost:5000/model:1",
        task_wasm_image="localhost:5000/client:1",
        participants=(Participant("a"), Participant("b")),
        hyperparams={"lr": 0.5},
        k_of_n=1,
        timeout_seconds=30,
        rounds=Rounds(5, "x"),
        aggregator=Aggregator("fedavg", {"a": [1]}),
    ),
    FederatedStatus(
        phase=WorkPhase.RUNNING,
        current_round=2,
        completed_rounds=1,
        participants=(ParticipantStatus("a", "completed", 1.5),),
        aggregated_model_ref="m",
        aggregate={"format": "json-f64", "update_b64": "WzFd"},
        start_time=1.5,
    ),
)
FULL_ROUND = TrainingRound(
    Meta("round-2-learn", "lab"),
    RoundSpec(
        round_id="round-2",
        federated_job=JobReference("learn"),
        model_ref="m",
        task_wasm_image="localhost:5000/client:1",
        participants=("a", "b"),
        hyperparams={"lr": 0.5},
        k_of_n=1,
        timeout_seconds=30,
        global_update={"format": "json-f64", "update_b64": "WzFd"},
    ),
    RoundStatus(
        phase=WorkPhase.COMPLETED,
        start_time=1.5,
        end_time=2.5,
        participants=(Participation("a", {"name": "round-2-learn-a"}, "completed", update_received=True),),
        updates_received=1,
        updates_required=1,
        aggregate={"format": "json-f64", "update_b64": "WzFd"},
    ),
)


async def collect(store: Store, kind: Kind, since: int, count: int) -> list[Change]:
    """The next `count` changes."""
    seen: list[Change] = []
    with anyio.fail_after(10):
        async with aclosing(store.watch(kind, since)) as changes:  # type: ignore[type-var]
            async for change in changes:
                seen.append(change)
                if len(seen) == count:
                    break
    return seen


class StoreContract:
    """The tests."""

    async def test_an_empty_store_lists_nothing(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            assert (await store.list(Kind.TASK)).items == ()
            assert (await store.list(Kind.PROPLET)).items == ()

    async def test_a_created_resource_gets_a_uid_a_time_and_a_version(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            made = await store.create(task())
            assert made.meta.uid
            assert made.meta.version > 0
            assert made.meta.generation == 1
            assert made.meta.created_at == made.meta.updated_at > 0
            assert await store.get(Kind.TASK, Key("addition")) == made
            assert await store.find(Kind.TASK, made.meta.uid) == made

    async def test_a_given_uid_is_kept(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            made = await store.create(Task(Meta("a", uid="mine"), task().spec))
            assert made.meta.uid == "mine"
            with pytest.raises(AlreadyExistsError):
                await store.create(Task(Meta("b", uid="mine"), task().spec))

    async def test_every_field_comes_back_as_it_was_given(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            for resource in (FULL_TASK, FULL_PROPLET):
                made = await store.create(resource)
                assert replace(made, meta=resource.meta) == resource
                assert await store.get(resource.kind, resource.meta.key) == made
                assert (made.meta.labels, made.meta.annotations) == (resource.meta.labels, resource.meta.annotations)

    async def test_creating_what_exists_is_refused_and_changes_nothing(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            made = await store.create(task())
            with pytest.raises(AlreadyExistsError):
                await store.create(task(inputs=("1", "1")))
            assert (await store.list(Kind.TASK)).items == (made,)

    async def test_the_same_name_in_another_namespace_or_kind_is_another_resource(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await store.create(task("x"))
            await store.create(Task(Meta("x", "lab"), task().spec))
            await store.create(Proplet(Meta("x")))
            assert len((await store.list(Kind.TASK)).items) == 2
            assert len((await store.list(Kind.PROPLET)).items) == 1

    async def test_what_is_not_there_is_not_found(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            ghost = replace(task("ghost"), meta=Meta("ghost", version=1))
            with pytest.raises(NotFoundError, match="ghost"):
                await store.get(Kind.TASK, Key("ghost"))
            with pytest.raises(NotFoundError, match="some-uid"):
                await store.find(Kind.TASK, "some-uid")
            with pytest.raises(NotFoundError):
                await store.put(ghost)
            with pytest.raises(NotFoundError):
                await store.record(ghost)
            with pytest.raises(NotFoundError):
                await store.delete(Kind.TASK, Key("ghost"))

    async def test_put_writes_meta_and_spec_and_leaves_the_status(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            made = await store.create(task())
            running = await store.record(replace(made, status=TaskStatus(Phase.RUNNING)))
            spec = replace(made.spec, priority=1)
            new = await store.put(
                replace(running, meta=replace(running.meta, labels={"a": "b"}), spec=spec, status=TaskStatus())
            )
            assert new.spec == spec
            assert new.status == TaskStatus(Phase.RUNNING)
            assert new.meta.labels == {"a": "b"}
            assert new.meta.generation == 2
            assert new.meta.version > running.meta.version

    async def test_new_labels_alone_are_no_new_generation(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            made = await store.create(task())
            new = await store.put(replace(made, meta=replace(made.meta, labels={"a": "b"})))
            assert new.meta.generation == 1
            assert new.meta.version > made.meta.version

    async def test_put_does_not_move_uid_or_creation_time(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            made = await store.create(task())
            forged = replace(made.meta, uid="forged", created_at=5.0, generation=9)
            new = await store.put(replace(made, meta=forged, spec=replace(made.spec, priority=1)))
            assert (new.meta.uid, new.meta.created_at, new.meta.generation) == (made.meta.uid, made.meta.created_at, 2)

    async def test_record_writes_the_status_and_leaves_the_spec(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            made = await store.create(task())
            new = await store.record(
                replace(made, spec=replace(made.spec, priority=1), status=TaskStatus(Phase.SCHEDULED, "pi", 1))
            )
            assert new.spec == made.spec
            assert new.status == TaskStatus(Phase.SCHEDULED, "pi", 1)
            assert new.meta.generation == 1

    async def test_a_write_over_an_older_version_is_a_conflict_and_changes_nothing(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            old = await store.create(task())
            new = await store.record(replace(old, status=TaskStatus(Phase.SCHEDULED)))
            with pytest.raises(ConflictError):
                await store.record(replace(old, status=TaskStatus(Phase.FAILED)))
            with pytest.raises(ConflictError):
                await store.put(replace(old, spec=replace(old.spec, priority=1)))
            with pytest.raises(ConflictError):
                await store.delete(Kind.TASK, Key("addition"), old.meta.version)
            assert await store.get(Kind.TASK, Key("addition")) == new

    async def test_of_many_writers_over_one_version_exactly_one_wins(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            made = await store.create(task())
            outcomes: list[str] = []

            async def attempt(number: int) -> None:
                try:
                    await store.record(replace(made, status=TaskStatus(attempt=number)))
                    outcomes.append("won")
                except ConflictError:
                    outcomes.append("lost")

            async with anyio.create_task_group() as group:
                for number in range(1, 21):
                    group.start_soon(attempt, number)
            assert sorted(outcomes) == ["lost"] * 19 + ["won"]

    async def test_counting_with_conflicts_and_retries_loses_no_count(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await store.create(task())

            async def count() -> None:
                for _ in range(5):
                    while True:
                        now = await store.get(Kind.TASK, Key("addition"))
                        assert isinstance(now, Task)
                        try:
                            await store.record(replace(now, status=replace(now.status, attempt=now.status.attempt + 1)))
                            break
                        except ConflictError:
                            await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(count)
            final = await store.get(Kind.TASK, Key("addition"))
            assert isinstance(final, Task)
            assert final.status.attempt == 40

    async def test_an_unchanged_write_is_no_change(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            made = await store.create(FULL_TASK)
            before = (await store.list(Kind.TASK)).version
            assert await store.record(made) == made
            assert await store.put(made) == made
            assert (await store.list(Kind.TASK)).version == before

    async def test_an_unchanged_write_over_an_older_version_is_still_a_conflict(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            made = await store.create(task())
            await store.record(replace(made, status=TaskStatus(Phase.SCHEDULED)))
            with pytest.raises(ConflictError):
                await store.record(made)

    async def test_delete_returns_the_last_state_and_forgets_the_uid(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            made = await store.create(task())
            assert await store.delete(Kind.TASK, Key("addition"), made.meta.version) == made
            with pytest.raises(NotFoundError):
                await store.get(Kind.TASK, Key("addition"))
            with pytest.raises(NotFoundError):
                await store.find(Kind.TASK, made.meta.uid)
            again = await store.create(task())
            assert again.meta.uid != made.meta.uid
            assert again.meta.version > made.meta.version

    async def test_lists_are_in_order_of_creation(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            names = ["m", "a", "z", "b"]
            for name in names:
                await store.create(task(name))
            first = await store.get(Kind.TASK, Key("m"))
            await store.put(replace(first, spec=replace(first.spec, priority=1)))  # type: ignore[arg-type]
            assert [item.meta.name for item in (await store.list(Kind.TASK)).items] == names

    async def test_a_watch_yields_every_change_after_its_version_in_order(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            first = await store.create(task("first"))
            since = (await store.list(Kind.TASK)).version
            made = await store.create(task("second"))
            await store.create(Proplet(Meta("pi")))
            recorded = await store.record(replace(made, status=TaskStatus(Phase.SCHEDULED)))
            changed = await store.put(replace(recorded, spec=replace(made.spec, priority=1)))  # type: ignore[arg-type]
            await store.delete(Kind.TASK, Key("first"))
            changes = await collect(store, Kind.TASK, since, 4)
            assert [(c.type, c.resource) for c in changes] == [
                (ChangeType.ADDED, made),
                (ChangeType.MODIFIED, recorded),
                (ChangeType.MODIFIED, changed),
                (ChangeType.DELETED, first),
            ]
            versions = [c.version for c in changes]
            assert versions == sorted(set(versions))
            assert versions[0] > since

    async def test_a_watch_waits_for_what_comes(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            since = (await store.list(Kind.TASK)).version
            seen: list[Change] = []

            async def watch() -> None:
                seen.extend(await collect(store, Kind.TASK, since, 1))

            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                await anyio.wait_all_tasks_blocked()
                made = await store.create(task())
            assert [c.resource for c in seen] == [made]

    async def test_list_then_watch_has_no_gap_under_concurrent_writers(self, open_store: OpenStore) -> None:
        """A follower that lists and watches ends with the store's state, whenever it began."""
        async with open_store() as store:
            done = anyio.Event()
            followers: list[dict[Key, Any]] = []

            async def write(writer: int) -> None:
                for number in range(12):
                    made = await store.create(task(f"t{writer}-{number}"))
                    made = await store.record(replace(made, status=TaskStatus(Phase.SCHEDULED)))
                    if number % 3 == 0:
                        await store.delete(Kind.TASK, made.meta.key)

            async def follow(delay: int) -> None:
                for _ in range(delay):
                    await anyio.lowlevel.checkpoint()
                listing = await store.list(Kind.TASK)
                state = {item.meta.key: item for item in listing.items}
                followers.append(state)
                async with aclosing(store.watch(Kind.TASK, listing.version)) as changes:  # type: ignore[type-var]
                    async for change in changes:
                        key = change.resource.meta.key
                        if change.type is ChangeType.DELETED:
                            del state[key]
                        else:
                            assert (change.type is ChangeType.ADDED) == (key not in state)
                            state[key] = change.resource
                        if key.name == "last":
                            break

            async with anyio.create_task_group() as group:
                for delay in (0, 1, 5, 20, 60, 150):
                    group.start_soon(follow, delay)
                async with anyio.create_task_group() as writers:
                    for writer in range(6):
                        writers.start_soon(write, writer)
                with anyio.fail_after(10):
                    while len(followers) < 6:
                        await anyio.lowlevel.checkpoint()
                await store.create(task("last"))
                done.set()
            truth = {item.meta.key: item for item in (await store.list(Kind.TASK)).items}
            assert len(truth) == 6 * 8 + 1
            assert all(state == truth for state in followers)

    async def test_a_watch_from_a_forgotten_version_is_gone(self, open_store: OpenStore) -> None:
        async with open_store(history=4) as store:
            made = await store.create(task())
            since = (await store.list(Kind.TASK)).version
            for attempt in range(1, 7):
                made = await store.record(replace(made, status=TaskStatus(attempt=attempt)))
            with pytest.raises(GoneError, match="list again"):
                await collect(store, Kind.TASK, since, 1)
            assert (await collect(store, Kind.TASK, made.meta.version - 1, 1))[0].resource == made

    async def test_a_watch_from_a_version_that_was_never_reached_is_gone(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            with pytest.raises(GoneError):
                await collect(store, Kind.TASK, 1_000_000_000, 1)

    async def test_a_watcher_that_falls_behind_is_told_instead_of_missing_something(
        self, open_store: OpenStore
    ) -> None:
        async with open_store(history=4) as store:
            made = await store.create(task())
            changes = store.watch(Kind.TASK, made.meta.version)
            made = await store.record(replace(made, status=TaskStatus(attempt=1)))
            assert (await anext(changes)).resource == made
            for attempt in range(2, 9):
                made = await store.record(replace(made, status=TaskStatus(attempt=attempt)))
            await store.list(Kind.TASK)  # after which a store whose changes come from a server has heard of them
            with pytest.raises(GoneError):
                await anext(changes)

    async def test_a_cancelled_watcher_disturbs_nobody(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            since = (await store.list(Kind.TASK)).version
            with anyio.move_on_after(0.05):
                await collect(store, Kind.TASK, since, 1)
            made = await store.create(task())
            assert (await collect(store, Kind.TASK, since, 1))[0].resource == made

    async def test_every_kind_is_kept_with_everything_it_says(self, open_store: OpenStore) -> None:
        for given in (FULL_JOB, FULL_FEDERATED_JOB, FULL_ROUND):
            async with open_store() as store:
                made = await store.create(replace(given, status=type(given.status)()))
                kept = await store.record(replace(made, status=given.status))
                assert (kept.spec, kept.status) == (given.spec, given.status)
                assert await store.get(given.kind, given.meta.key) == kept
                assert (await store.list(given.kind)).items == (kept,)

    async def test_an_owner_is_kept(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            owner = Owner("PropellerJob", "job", "1b5a", controller=True)
            made = await store.create(replace(task(), meta=Meta("addition", owner=owner)))
            assert made.meta.owner == owner
            assert (await store.get(Kind.TASK, Key("addition"))).meta.owner == owner

    async def test_a_deleted_resource_stays_until_its_last_finalizer_is_gone(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            made = await store.create(task())
            held = await store.put(
                replace(made, meta=replace(made.meta, finalizers=("example.org/one", "example.org/two")))
            )
            since = held.meta.version
            assert not held.meta.deleted_at
            marked = await store.delete(Kind.TASK, Key("addition"))
            assert marked.meta.deleted_at
            assert (await store.delete(Kind.TASK, Key("addition"))).meta.version == marked.meta.version
            one = await store.put(replace(marked, meta=replace(marked.meta, finalizers=("example.org/two",))))
            assert one.meta.deleted_at == marked.meta.deleted_at
            await store.put(replace(one, meta=replace(one.meta, finalizers=())))
            with pytest.raises(NotFoundError):
                await store.get(Kind.TASK, Key("addition"))
            changes = await collect(store, Kind.TASK, since, 3)
            assert [change.type for change in changes] == [
                ChangeType.MODIFIED,
                ChangeType.MODIFIED,
                ChangeType.DELETED,
            ]
