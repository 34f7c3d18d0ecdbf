"""Rounds that are started over MQTT become federated jobs, once."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest

from proplet.agent import codec
from proplet.agent.topics import Route
from proplet.agent.wire import Alive, RoundStart
from proplet.manager.bus import BusEvent, Heard
from proplet.manager.model import FederatedJob, Key, Kind, Meta, Proplet, PropletSpec, Resource
from proplet.manager.ports import StoreUnavailableError
from proplet.manager.round_starts import GIVE_UP_AFTER, RoundStarts, job_of
from proplet.manager.rules import check
from proplet.manager.store_memory import MemoryStore

pytestmark = pytest.mark.anyio

# What the reference's manager sends.
SENT = b"""{"round_id": "r-1", "model_uri": "oci://models/m:0", "task_wasm_image": "registry/trainer:1",
 "participants": ["device-1", "device-2"], "hyperparams": {"lr": 0.1}}"""


def start(**more: Any) -> RoundStart:
    message = codec.decode(Route.ROUND_START, SENT)
    assert isinstance(message, RoundStart)
    return replace(message, **more)


def proplet(name: str, namespace: str, device: str) -> Proplet:
    return Proplet(Meta(name, namespace), PropletSpec(connection={"clientId": device}))


def test_a_start_of_the_references_manager_is_a_job_of_one_round() -> None:
    job = job_of(start(), [])
    assert (job.meta.name, job.meta.namespace) == ("fl-r-1", "default")
    assert (job.spec.experiment_id, job.spec.model_ref) == ("r-1", "oci://models/m:0")
    assert (job.spec.k_of_n, job.spec.timeout_seconds, job.spec.rounds.total) == (2, 60, 1)
    assert job.spec.hyperparams == {"lr": 0.1}
    assert check(job) == []


def test_what_a_start_says_counts() -> None:
    message = codec.decode(
        Route.ROUND_START, SENT[:-1] + b', "experiment_id": "E 1", "k_of_n": 1, "timeout_seconds": 9}'
    )
    assert isinstance(message, RoundStart)
    job = job_of(message, [])
    assert job.meta.name.startswith("fl-e-1-")
    assert (job.spec.experiment_id, job.spec.k_of_n, job.spec.timeout_seconds) == ("E 1", 1, 9)
    assert check(job) == []


def test_participants_are_named_by_their_resources_in_their_namespace() -> None:
    known = [proplet("barn", "edge", "device-1"), proplet("pond", "edge", "device-2"), proplet("x", "other", "d")]
    job = job_of(start(), known)
    assert job.meta.namespace == "edge"
    assert [each.proplet_id for each in job.spec.participants] == ["barn", "pond"]


class Store(MemoryStore):
    """It can be away for a number of calls."""

    away = 0

    async def create(self, resource: Resource) -> Resource:
        if self.away:
            self.away -= 1
            raise StoreUnavailableError("the disk is full")
        return await super().create(resource)


async def heard(store: MemoryStore, *messages: RoundStart) -> None:
    """Returns when all are acknowledged."""
    left = len(messages)
    over = anyio.Event()

    def done() -> None:
        nonlocal left
        left -= 1
        if not left:
            over.set()

    others: list[BusEvent] = []
    starts = RoundStarts(store, others.append, retry_s=0.01)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(starts.run)
            for message in messages:
                starts.hear(Heard(message, done))
            await over.wait()
            group.cancel_scope.cancel()
    assert others == []


async def test_a_start_that_arrives_twice_makes_one_job() -> None:
    store = MemoryStore()
    await heard(store, start(), start())
    (job,) = (await store.list(Kind.FEDERATED_JOB)).items
    assert job.meta.key == Key("fl-r-1")


async def test_a_start_that_is_no_job_is_dropped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    await heard(store, start(participants=()), start(round_id="r-2"))
    (job,) = (await store.list(Kind.FEDERATED_JOB)).items
    assert job.meta.name == "fl-r-2"
    assert "spec.participants: at least one is required" in caplog.text


async def test_a_start_is_acknowledged_only_when_its_job_is_stored() -> None:
    store = Store()
    store.away = 2
    await heard(store, start())
    assert isinstance(await store.get(Kind.FEDERATED_JOB, Key("fl-r-1")), FederatedJob)


async def test_everything_else_is_handed_on_in_order() -> None:
    others: list[BusEvent] = []
    starts = RoundStarts(MemoryStore(), others.append)
    nothing: Callable[[], None] = lambda: None  # noqa: E731
    said: list[BusEvent] = [Heard(Alive("a"), nothing), Heard(Alive("b"), nothing)]
    for event in said:
        starts.hear(event)
    assert others == said


async def test_a_start_that_the_store_never_takes_does_not_hold_up_the_others_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store()
    store.away = GIVE_UP_AFTER
    await heard(store, start(), start(round_id="r-2"))
    (job,) = (await store.list(Kind.FEDERATED_JOB)).items
    assert job.meta.name == "fl-r-2"
    assert "the store has not taken it" in caplog.text
