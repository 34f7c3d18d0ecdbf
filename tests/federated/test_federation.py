"""A federated job: its rounds, one after the other, and what it has learnt."""

import base64
import json
import struct
from dataclasses import replace

import pytest

from proplet.manager import federation
from proplet.manager.model import Aggregator, FederatedJob, Meta, Owner, Participant, TrainingRound, WorkPhase
from proplet.manager.phases import Phase
from proplet.manager.updates import read_envelope
from proplet.manager.work import Related
from tests.federated.scene import Scene, a_job


def test_a_job_begins_with_its_first_round() -> None:
    scene = Scene()
    scene.settle()
    assert scene.job is not None
    status = scene.job.status
    assert (status.phase, status.current_round, status.completed_rounds) == (WorkPhase.RUNNING, 1, 0)
    assert [(c.type, c.status, c.reason, c.message) for c in status.conditions] == [
        ("Ready", True, "Running", "Job is running")
    ]
    round_ = scene.round(1)
    assert round_.meta.owner == Owner("FederatedJob", "job", "job-uid")
    assert (round_.spec.round_id, round_.spec.federated_job.name) == ("round-1", "job")
    assert round_.spec.participants == ("device-1", "device-2", "device-3")
    assert (round_.spec.k_of_n, round_.spec.timeout_seconds, round_.spec.global_update) == (2, 60, None)


def test_a_round_hands_what_it_learnt_to_the_next() -> None:
    scene = Scene()
    scene.settle()
    scene.answer(1, 1, 1.0)
    scene.answer(1, 2, 3.0)
    assert scene.job is not None
    status = scene.job.status
    assert (status.phase, status.current_round, status.completed_rounds) == (WorkPhase.RUNNING, 2, 1)
    assert status.aggregated_model_ref == "traininground/round-1-job"
    env = scene.tasks["round-2-job-device-3"].spec.env
    assert (env["ROUND_ID"], env["FL_GLOBAL_VERSION"], env["FL_GLOBAL_UPDATE_FORMAT"]) == ("round-2", "1", "json-f64")
    assert json.loads(base64.b64decode(env["FL_GLOBAL_UPDATE_B64"])) == [2.0]
    assert env["MODEL_URI"] == "oci://models/m:0"


def test_a_job_ends_with_its_last_round_and_keeps_what_was_learnt() -> None:
    scene = Scene(a_job(total=3))
    scene.settle()
    for number in (1, 2, 3):
        scene.now += 10
        scene.answer(number, 1, float(number))
        scene.answer(number, 3, float(number) + 2)
    assert scene.job is not None
    status = scene.job.status
    assert (status.phase, status.current_round, status.completed_rounds) == (WorkPhase.COMPLETED, 3, 3)
    assert (status.start_time, status.finish_time) == (1000.0, 1030.0)
    assert (status.conditions[0].reason, status.conditions[0].message) == ("Completed", "All rounds completed")
    assert status.aggregate is not None
    aggregate = read_envelope(status.aggregate)
    assert (aggregate.parameters().values, aggregate.global_version) == ((4.0,), 3)
    assert sorted(scene.rounds) == [f"round-{n}-job" for n in (1, 2, 3)]
    assert scene.reasons().count("RoundCompleted") == 3


def test_changes_add_up_over_the_rounds() -> None:
    scene = Scene(a_job(k=1, total=3))
    scene.settle()
    change = base64.b64encode(struct.pack("<f", 0.5)).decode()
    for number in (1, 2, 3):
        results = json.dumps({"update_b64": change, "format": "f32-delta", "num_samples": 4})
        scene.end(f"round-{number}-job-device-1", results=results)
        scene.settle()
    assert scene.job is not None
    assert scene.job.status.aggregate is not None
    assert read_envelope(scene.job.status.aggregate).parameters().values == (1.5,)


def test_a_finished_round_may_be_deleted() -> None:
    scene = Scene()
    scene.settle()
    scene.answer(1, 1, 1.0)
    scene.answer(1, 2, 3.0)
    del scene.rounds["round-1-job"]
    scene.settle()
    assert scene.job is not None
    assert scene.job.status.completed_rounds == 1
    scene.answer(2, 1, 1.0)
    scene.answer(2, 2, 3.0)
    assert scene.job.status.phase is WorkPhase.COMPLETED


def test_a_round_that_fails_fails_the_job_with_its_reason() -> None:
    scene = Scene()
    scene.settle()
    for device in (1, 2):
        scene.end(f"round-1-job-device-{device}", Phase.FAILED, error="out of memory")
    scene.settle()
    assert scene.job is not None
    status = scene.job.status
    assert (status.phase, status.completed_rounds) == (WorkPhase.FAILED, 0)
    (condition,) = status.conditions
    assert (condition.status, condition.reason) == (False, "RoundFailed")
    assert condition.message.startswith("Training round failed: round-1-job: Only 0/2 updates received")
    assert "out of memory" in condition.message


def test_how_each_takes_part_is_seen_in_the_job() -> None:
    scene = Scene()
    scene.settle()
    scene.now = 1007.0
    scene.answer(1, 2, 1.0)
    assert scene.job is not None
    seen = {each.proplet_id: (each.status, each.last_update) for each in scene.job.status.participants}
    assert seen == {"device-1": ("Pending", 0.0), "device-2": ("Completed", 1007.0), "device-3": ("Pending", 0.0)}
    scene.now = 1009.0
    scene.answer(1, 1, 1.0)
    seen = {each.proplet_id: (each.status, each.last_update) for each in scene.job.status.participants}
    assert (seen["device-2"][1], seen["device-1"][1]) == (1007.0, 1009.0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"k_of_n": 0}, "spec.kOfN"),
        ({"k_of_n": 9}, "spec.kOfN"),
        ({"participants": ()}, "spec.participants"),
        ({"participants": (Participant("a"), Participant("a"))}, "spec.participants"),
        ({"experiment_id": ""}, "spec.experimentId"),
        ({"model_ref": ""}, "spec.modelRef"),
        ({"task_wasm_image": ""}, "spec.taskWasmImage"),
        ({"timeout_seconds": 0}, "spec.timeoutSeconds"),
        ({"aggregator": Aggregator("krum")}, "spec.aggregator.algorithm must be one of fedavg"),
        ({"hyperparams": ["x" * 300_000]}, "spec.hyperparams"),
    ],
)
def test_a_job_that_cannot_be_run_says_so_and_makes_no_round(changes: dict[str, object], text: str) -> None:
    job = a_job()
    job = replace(job, spec=replace(job.spec, **changes))  # type: ignore[arg-type]
    decision = federation.decide(job, Related(), 1.0)
    assert isinstance(decision.work, FederatedJob)
    status = decision.work.status
    assert (status.phase, status.conditions[0].reason) == (WorkPhase.FAILED, "InvalidSpec")
    assert status.conditions[0].message.startswith(text)
    assert decision.create == ()
    assert [told.warning for told in decision.told] == [True]


def test_a_round_of_the_same_name_that_is_not_the_jobs_is_not_taken_for_its_own() -> None:
    scene = Scene()
    owner = Owner("FederatedJob", "job", "an-earlier-job")
    old = TrainingRound(Meta("round-1-job", "edge", uid="x", owner=owner))
    scene.rounds["round-1-job"] = replace(old, status=replace(old.status, phase=WorkPhase.COMPLETED))
    scene.settle()
    assert scene.job is not None
    assert "TrainingRound round-1-job is in the way" in scene.job.status.conditions[0].message
    assert scene.job.status.completed_rounds == 0
    del scene.rounds["round-1-job"]
    scene.settle()
    assert scene.round(1).meta.owner == Owner("FederatedJob", "job", "job-uid")


def test_a_crash_after_the_next_round_was_made_finds_it_again() -> None:
    scene = Scene()
    scene.settle()
    before = scene.job
    scene.answer(1, 1, 1.0)
    scene.answer(1, 2, 3.0)
    after, rounds = scene.job, dict(scene.rounds)
    scene.job = before  # its status was not recorded
    scene.settle()
    assert (scene.job, scene.rounds) == (after, rounds)


def test_a_round_that_was_made_and_ended_before_a_crash_is_taken_over_in_one_look() -> None:
    """Nothing changes any more that would bring another."""
    scene = Scene(a_job(total=3))
    scene.settle()
    before = scene.job
    assert before is not None
    for number in (1, 2):
        scene.answer(number, 1, 1.0)
        scene.answer(number, 2, 3.0)
    decision = federation.decide(before, Related(scene.tasks, scene.rounds), scene.now)
    assert isinstance(decision.work, FederatedJob)
    assert (decision.work.status.current_round, decision.work.status.completed_rounds) == (3, 2)
    assert [told.reason for told in decision.told] == ["RoundCompleted", "RoundCompleted"]
    del scene.rounds["round-3-job"]
    decision = federation.decide(before, Related(scene.tasks, scene.rounds), scene.now)
    assert [child.meta.name for child in decision.create] == ["round-3-job"]


def test_the_longest_name_of_a_job_gives_rounds_and_tasks_their_names() -> None:
    job = a_job(participants=("Proplet_1", "x" * 253), k=1)
    scene = Scene(replace(job, meta=replace(job.meta, name="j" * 253)))
    scene.settle()  # the scene refuses what is no resource
    assert len(scene.tasks) == 2
    assert all(len(name) <= 253 for name in [*scene.tasks, *scene.rounds])


def test_a_job_that_is_being_deleted_does_nothing() -> None:
    job = a_job()
    going = replace(job, meta=replace(job.meta, deleted_at=5.0))
    assert federation.decide(going, Related(), 1.0).create == ()
