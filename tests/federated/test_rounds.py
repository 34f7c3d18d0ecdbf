"""A training round: whom it asks, what it takes, when it ends."""

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.manager import rounds
from proplet.manager.averaging import MAX_UPDATE_BYTES
from proplet.manager.model import (
    JobReference,
    Meta,
    Owner,
    RoundSpec,
    Task,
    TrainingRound,
    WorkPhase,
)
from proplet.manager.participation import label_of, name_of
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.rules import check_meta
from proplet.manager.updates import read_envelope
from proplet.manager.work import Related
from tests.federated.scene import Scene, a_job, update


@pytest.fixture
def scene() -> Scene:
    begun = Scene()
    begun.settle()
    return begun


def test_every_participant_gets_a_task_that_says_what_to_train(scene: Scene) -> None:
    assert sorted(scene.tasks) == [f"round-1-job-device-{n}" for n in (1, 2, 3)]
    task = scene.tasks["round-1-job-device-2"]
    assert task.spec.selector.proplet_id == "device-2"
    assert (task.spec.image_url, task.spec.mode) == ("registry/trainer:1", "train")
    assert task.spec.env == {"ROUND_ID": "round-1", "MODEL_URI": "oci://models/m:0", "FL_JOB_ID": "e"}
    assert (task.spec.active_deadline_seconds, task.spec.limits.cpu_s) == (60, 60)
    assert task.meta.owner == Owner("TrainingRound", "round-1-job", scene.round(1).meta.uid)
    assert task.meta.labels == {"training-round": "round-1-job", "round-id": "round-1", "participant": "device-2"}


def test_hyperparameters_reach_the_client_as_json() -> None:
    scene = Scene(a_job(hyperparams={"epochs": 3, "rate": 0.5}))
    scene.settle()
    assert json.loads(scene.tasks["round-1-job-device-1"].spec.env["HYPERPARAMS"]) == {"epochs": 3, "rate": 0.5}


def test_a_running_round_shows_who_has_answered(scene: Scene) -> None:
    scene.answer(1, 3, 1.0)
    status = scene.round(1).status
    assert (status.phase, status.updates_received, status.updates_required) == (WorkPhase.RUNNING, 1, 2)
    assert scene.statuses(1) == {"device-1": "Pending", "device-2": "Pending", "device-3": "Completed"}
    assert [p.update_received for p in status.participants] == [False, False, True]
    assert status.participants[2].task_ref["name"] == "round-1-job-device-3"
    assert [(c.type, c.status, c.reason) for c in status.conditions] == [("Ready", True, "Running")]


def test_updates_count_over_time_and_the_kth_ends_the_round(scene: Scene) -> None:
    scene.answer(1, 1, 1.0, 10.0, samples=1)
    scene.now += 30
    scene.answer(1, 3, 5.0, 30.0, samples=3)
    status = scene.round(1).status
    assert (status.phase, status.updates_received) == (WorkPhase.COMPLETED, 2)
    assert (status.start_time, status.end_time) == (1000.0, 1030.0)
    assert status.aggregate is not None
    aggregate = read_envelope(status.aggregate)
    assert aggregate.parameters().values == (4.0, 25.0)
    assert (aggregate.round_id, aggregate.proplet_id, aggregate.num_samples) == ("round-1", "aggregator", 4)
    assert status.aggregated_model_ref == "traininground/round-1-job"


def test_who_has_not_answered_when_the_round_ends_is_stopped_and_too_late(scene: Scene) -> None:
    scene.answer(1, 1, 1.0)
    scene.answer(1, 2, 3.0)
    assert scene.stopped == ["round-1-job-device-3"]
    assert scene.statuses(1)["device-3"] == "Stopped"
    ended = scene.round(1)
    # The update was on its way: the Task comes to its end, although it was to be stopped.
    scene.end("round-1-job-device-3", results=update(100.0))
    scene.settle()
    assert scene.round(1) == ended


def test_a_participant_that_dies_does_not_keep_the_others_from_going_on(scene: Scene) -> None:
    scene.end("round-1-job-device-1", Phase.FAILED, error="proplet device-1 was lost")
    scene.settle()
    assert scene.statuses(1)["device-1"] == "Failed: proplet device-1 was lost"
    assert scene.round(1).status.phase is WorkPhase.RUNNING
    scene.answer(1, 2, 1.0)
    scene.answer(1, 3, 2.0)
    assert scene.round(1).status.phase is WorkPhase.COMPLETED


def test_a_round_that_can_no_longer_succeed_fails_at_once_with_the_reasons(scene: Scene) -> None:
    scene.end("round-1-job-device-1", Phase.FAILED, error="it trapped")
    scene.end("round-1-job-device-2", Phase.COMPLETED, results="no envelope")
    scene.settle()
    status = scene.round(1).status
    assert status.phase is WorkPhase.FAILED
    (condition,) = status.conditions
    assert (condition.status, condition.reason) == (False, "InsufficientUpdates")
    assert "Only 0/2 updates received" in condition.message
    assert "device-1: Failed: it trapped" in condition.message
    assert "device-2: Rejected: the results hold no update envelope" in condition.message
    assert scene.stopped == ["round-1-job-device-3"]
    assert "UpdateRejected" in scene.reasons()


def test_a_round_ends_when_its_time_is_over(scene: Scene) -> None:
    scene.answer(1, 1, 1.0)
    assert scene.wakes["round-1-job"] == 1060.0
    scene.now = 1059.9
    scene.settle()
    assert scene.round(1).status.phase is WorkPhase.RUNNING
    scene.now = 1060.0
    scene.settle()
    (condition,) = scene.round(1).status.conditions
    assert (condition.status, condition.reason) == (False, "Timeout")
    assert condition.message.startswith("Round timed out: only 1/2 updates received; device-2: Pending")
    assert sorted(scene.stopped) == ["round-1-job-device-2", "round-1-job-device-3"]


def test_updates_that_wait_in_the_store_count_also_after_the_time_is_over(scene: Scene) -> None:
    """The manager was away meanwhile."""
    scene.end("round-1-job-device-1", results=update(1.0))
    scene.end("round-1-job-device-2", results=update(3.0))
    scene.now += 1000
    scene.settle()
    assert scene.round(1).status.phase is WorkPhase.COMPLETED


@pytest.mark.parametrize(
    ("results", "why"),
    [
        (update(1.0, 2.0, 3.0), "3 parameters as json-f64, not 2 parameters"),
        (update(1.0, 2.0, samples=0), "num_samples 0"),
        (update(1.0, float("nan")), "parameter 1 of 2 is nan"),
        (update(1.0, 2.0, format="secret"), "'secret'"),
        (update(1.0, 2.0, round_id=7), "the update is of round '7'"),
        (update(*[0.123456789] * 40_000), f"the most is {MAX_UPDATE_BYTES}"),
    ],
)
def test_an_update_that_cannot_be_used_is_refused_alone_and_told_once(scene: Scene, results: str, why: str) -> None:
    scene.answer(1, 3, 1.0, 2.0)
    scene.end("round-1-job-device-1", results=results)
    scene.settle()
    scene.answer(1, 2, 3.0, 4.0)
    status = scene.round(1).status
    assert (status.phase, status.updates_received) == (WorkPhase.COMPLETED, 2)
    assert why in scene.statuses(1)["device-1"]
    told = [told for told in scene.told if told.reason == "UpdateRejected" and "device-1" in told.message]
    assert len(told) == 1
    assert told[0].warning
    assert why in told[0].message


def test_an_update_for_another_model_than_the_global_one_is_refused() -> None:
    scene = Scene(a_job(total=2))
    scene.settle()
    scene.answer(1, 1, 1.0, 2.0)
    scene.answer(1, 2, 1.0, 2.0)
    for device in (1, 2):
        scene.answer(2, device, 1.0)
    assert "1 parameters as json-f64, not 2 parameters" in scene.statuses(2)["device-1"]
    assert scene.round(2).status.phase is WorkPhase.FAILED


def test_a_mean_that_no_store_could_keep_fails_the_round_with_the_reason(scene: Scene) -> None:
    scene.answer(1, 1, *[1] * 30_000)
    scene.answer(1, 2, *[2] * 30_000, samples=2)
    (condition,) = scene.round(1).status.conditions
    assert condition.reason == "AggregationFailed"
    assert "etcd" in condition.message


def test_a_round_of_its_own_without_a_job_works() -> None:
    spec = RoundSpec("warm-up", JobReference("none"), "m", "i", ("a", "b"), None, 1, 10)
    scene = Scene(job=None)
    scene.rounds["alone"] = TrainingRound(Meta("alone", "edge", uid="r"), spec)
    scene.settle()
    scene.end("alone-b", results=update(2.0, round_id="warm-up"))
    scene.settle()
    assert scene.rounds["alone"].status.phase is WorkPhase.COMPLETED
    assert scene.tasks["alone-b"].spec.env["FL_JOB_ID"] == "none"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"k_of_n": 0}, "spec.kOfN must be from 1"),
        ({"k_of_n": 4}, "spec.kOfN must be from 1"),
        ({"timeout_seconds": 0}, "spec.timeoutSeconds must be more than 0"),
        ({"algorithm": "fedprox"}, "spec.algorithm must be one of fedavg"),
        ({"participants": ()}, "spec.participants"),
        ({"hyperparams": "x" * 300_000}, "spec.hyperparams"),
        ({"global_update": {"update_b64": "?"}}, "spec.globalUpdate cannot be used"),
    ],
)
def test_a_round_that_cannot_be_run_says_so_and_asks_nobody(changes: dict[str, object], text: str) -> None:
    spec = RoundSpec("round-1", JobReference("job"), "m", "i", ("a", "b", "c"), None, 2, 10)
    round_ = TrainingRound(Meta("r", "edge", uid="r"), replace(spec, **changes))  # type: ignore[arg-type]
    decision = rounds.decide(round_, Related(), 1.0)
    assert isinstance(decision.work, TrainingRound)
    (condition,) = decision.work.status.conditions
    assert (decision.work.status.phase, condition.reason) == (WorkPhase.FAILED, "InvalidSpec")
    assert condition.message.startswith(text)
    assert decision.create == ()


def test_a_task_of_the_same_name_that_is_somebody_elses_is_not_counted() -> None:
    scene = Scene()
    stranger = Task(Meta("round-1-job-device-1", "edge", owner=Owner("TrainingRound", "round-1-job", "an-earlier-one")))
    status = replace(stranger.status, phase=Phase.COMPLETED, results=update(9.0))
    scene.tasks["round-1-job-device-1"] = replace(stranger, status=status)
    scene.settle()
    assert scene.round(1).status.updates_received == 0
    assert "Task round-1-job-device-1 is in the way" in scene.round(1).status.conditions[0].message
    assert scene.wakes["round-1-job"] == scene.now + rounds.LOOK_AGAIN_S
    del scene.tasks["round-1-job-device-1"]
    scene.settle()
    assert scene.tasks["round-1-job-device-1"].status.phase is Phase.PENDING
    assert scene.round(1).status.conditions[0].message == "Round is running"


def test_a_task_that_was_deleted_is_made_again(scene: Scene) -> None:
    del scene.tasks["round-1-job-device-1"]
    scene.settle()
    assert "round-1-job-device-1" in scene.tasks


def test_a_crash_between_stopping_and_recording_changes_nothing(scene: Scene) -> None:
    scene.end("round-1-job-device-1", results=update(1.0))
    scene.end("round-1-job-device-2", results=update(3.0))
    first = scene.look("round-1-job")  # its status is not recorded
    second = scene.look("round-1-job")
    assert isinstance(first.work, TrainingRound)
    assert isinstance(second.work, TrainingRound)
    assert second.work.status.aggregate == first.work.status.aggregate
    assert scene.stopped == ["round-1-job-device-3"]


def test_a_task_that_still_runs_when_its_round_is_over_is_stopped(scene: Scene) -> None:
    scene.answer(1, 1, 1.0)
    scene.answer(1, 2, 3.0)
    running = scene.tasks["round-1-job-device-3"]
    scene.tasks["round-1-job-device-3"] = replace(running, status=replace(running.status, phase=Phase.RUNNING))
    assert scene.look("round-1-job").stop == (running.meta.key,)
    asked = replace(running.status, phase=Phase.RUNNING, stop_requested=True)
    scene.tasks["round-1-job-device-3"] = replace(running, status=asked)
    assert scene.look("round-1-job").stop == ()


def test_a_round_that_is_being_deleted_does_nothing(scene: Scene) -> None:
    going = replace(scene.round(1), meta=replace(scene.round(1).meta, deleted_at=5.0))
    decision = rounds.decide(going, Related(), scene.now + 1000)
    assert (decision.work, decision.create, decision.stop) == (going, (), ())


@given(st.lists(st.text(max_size=300), min_size=1, max_size=3))
def test_whatever_participants_are_called_their_tasks_have_names_and_labels(parts: list[str]) -> None:
    name = name_of("round-1-job", *parts)
    labels = {"participant": label_of(parts[0])}
    assert check_meta(Meta(name, labels=labels)) == []


def test_names_that_would_become_the_same_stay_apart() -> None:
    names = {name_of("r", participant) for participant in ("a-b", "a_b", "A-b", "a b", "a.-b", "a-.b")}
    assert len(names) == 6
    assert name_of("r", "a-b") == "r-a-b"


events = st.one_of(
    st.tuples(st.just("update"), st.integers(1, 3), st.sampled_from([(1.0,), (2.0,), (1.0, 2.0)])),
    st.tuples(st.just("fail"), st.integers(1, 3), st.just(())),
    st.tuples(st.just("nonsense"), st.integers(1, 3), st.just(())),
    st.tuples(st.just("forget"), st.integers(1, 3), st.just(())),
    st.tuples(st.just("wait"), st.integers(1, 40), st.just(())),
)


@given(st.integers(1, 3), st.lists(events, max_size=12))
def test_whatever_happens_a_round_ends_and_ends_once(
    k: int, happenings: list[tuple[str, int, tuple[float, ...]]]
) -> None:
    scene = Scene(a_job(k=k, total=1))
    scene.settle()
    ended: TrainingRound | None = None
    for what, number, values in happenings:
        name = f"round-1-job-device-{number}"
        if what == "wait":
            scene.now += number
        elif name in scene.tasks:
            if what == "forget":
                del scene.tasks[name]
            elif scene.tasks[name].status.phase not in TERMINAL:
                results = update(*values) if what == "update" else "?"
                scene.end(name, Phase.FAILED if what == "fail" else Phase.COMPLETED, results)
        scene.settle()
        status = scene.round(1).status
        assert (status.aggregate is not None) == (status.phase is WorkPhase.COMPLETED)
        assert status.phase is not WorkPhase.COMPLETED or status.updates_received >= k
        if ended is not None:
            assert scene.round(1) == ended
        if status.phase in rounds.ENDED:
            ended = scene.round(1)
            assert all(task.status.phase in TERMINAL for task in scene.tasks.values())
        else:
            assert scene.wakes["round-1-job"] <= status.start_time + 60
    scene.now += 60
    scene.settle()
    assert scene.round(1).status.phase in rounds.ENDED


def test_the_largest_update_is_handed_on_and_fits(scene: Scene) -> None:
    job = a_job(k=1, total=2)
    scene = Scene(job)
    scene.settle()
    data = base64.b64encode(bytes(MAX_UPDATE_BYTES)).decode()
    scene.end("round-1-job-device-1", results=json.dumps({"update_b64": data, "format": "f32-delta"}))
    scene.settle()
    assert scene.tasks["round-2-job-device-1"].spec.env["FL_GLOBAL_UPDATE_B64"] == data
