"""A FederatedJob: training rounds one after the other, each beginning with what the one before has learnt. Pure.

The newest global update is kept in the job's status, from where the next round gets it in its spec: a finished round
may be deleted. `MODEL_URI` stays the model that the job began with, since nobody pushes a model anywhere; how far the
model has come since is the global update. Never does: I/O, clocks.
"""

from dataclasses import replace
from typing import Final

from proplet.manager.conditions import READY, settled
from proplet.manager.model import (
    Condition,
    FederatedJob,
    FederatedStatus,
    JobReference,
    Kind,
    Meta,
    Owner,
    ParticipantStatus,
    RoundSpec,
    TrainingRound,
    WorkPhase,
)
from proplet.manager.participation import label_of, name_of
from proplet.manager.rounds import ENDED, LOOK_AGAIN_S, problem_of
from proplet.manager.rules_work import FEDERATED_RULES
from proplet.manager.work import Related, Told, WorkDecision

JOB_LABEL: Final = "federated-job"


def decide(job: FederatedJob, related: Related, now: float) -> WorkDecision:
    """Return what follows for a job from its rounds, at `now` (epoch seconds)."""
    if job.meta.deleted_at or job.status.phase in ENDED:
        return WorkDecision(job)
    if job.status.phase is WorkPhase.PENDING:
        problem = _problem(job)
        if problem is not None:
            return _failed(job, "InvalidSpec", problem, now)
        status = replace(job.status, phase=WorkPhase.RUNNING, start_time=now, current_round=1)
        decision = _follow(replace(job, status=status), related, now)
        return replace(decision, told=(Told("Running", "Job is running"), *decision.told))
    return _follow(job, related, now)


def round_name(job: FederatedJob, number: int) -> str:
    """Return the name of a job's round."""
    return name_of(f"round-{number}-{job.meta.name}")


def _problem(job: FederatedJob) -> str | None:
    for rule in FEDERATED_RULES:
        if rule.broken(job):
            return f"{rule.path} {rule.message}"
    return problem_of(_round_of(job, 1))


def _follow(job: FederatedJob, related: Related, now: float) -> WorkDecision:
    """Go through the rounds there are: one made before a crash can be over, and then nothing would bring a look."""
    told: list[Told] = []
    while True:
        number = max(job.status.current_round, 1)
        name = round_name(job, number)
        round_ = related.rounds.get(name)
        if round_ is None:
            return WorkDecision(_running(job, now), create=(_round_of(job, number),), told=tuple(told))
        if round_.meta.owner is None or round_.meta.owner.uid != job.meta.uid:
            message = f"TrainingRound {name} is in the way: it is not this job's; delete it"
            return WorkDecision(_running(job, now, message), told=tuple(told), wake_at=now + LOOK_AGAIN_S)
        job = replace(job, status=replace(job.status, participants=_participants(job, round_, now)))
        if round_.status.phase is WorkPhase.FAILED:
            why = next((each.message for each in round_.status.conditions if each.type == READY), "")
            failed = _failed(job, "RoundFailed", f"Training round failed: {name}: {why}", now)
            return replace(failed, told=(*told, *failed.told))
        if round_.status.phase is not WorkPhase.COMPLETED:
            return WorkDecision(_running(job, now), told=tuple(told))
        job = _taken_over(job, round_, number, now)
        told.append(Told("RoundCompleted", f"Round {number} of {job.spec.rounds.total} is completed"))
        if job.status.phase is WorkPhase.COMPLETED:
            return WorkDecision(job, told=(*told, Told("Completed", "All rounds completed")))


def _taken_over(job: FederatedJob, round_: TrainingRound, number: int, now: float) -> FederatedJob:
    """The job after a round: with what it has learnt, at the next round or over."""
    status = replace(
        job.status,
        completed_rounds=number,
        aggregate=round_.status.aggregate,
        aggregated_model_ref=round_.status.aggregated_model_ref,
        observed_generation=job.meta.generation,
    )
    if number < job.spec.rounds.total:
        return replace(job, status=replace(status, current_round=number + 1))
    conditions = _ready(job, "Completed", "All rounds completed", now)
    return replace(job, status=replace(status, phase=WorkPhase.COMPLETED, finish_time=now, conditions=conditions))


def _round_of(job: FederatedJob, number: int) -> TrainingRound:
    spec = job.spec
    meta = Meta(
        round_name(job, number),
        job.meta.namespace,
        labels={JOB_LABEL: label_of(job.meta.name)},
        owner=Owner(Kind.FEDERATED_JOB.value, job.meta.name, job.meta.uid),
    )
    return TrainingRound(
        meta,
        RoundSpec(
            round_id=f"round-{number}",
            federated_job=JobReference(job.meta.name),
            model_ref=spec.model_ref,
            task_wasm_image=spec.task_wasm_image,
            participants=tuple(each.proplet_id for each in spec.participants),
            hyperparams=spec.hyperparams,
            k_of_n=spec.k_of_n,
            timeout_seconds=spec.timeout_seconds,
            algorithm=spec.aggregator.algorithm,
            experiment_id=spec.experiment_id,
            global_update=job.status.aggregate,
        ),
    )


def _running(job: FederatedJob, now: float, message: str = "Job is running") -> FederatedJob:
    status = replace(
        job.status,
        current_round=max(job.status.current_round, 1),
        conditions=_ready(job, "Running", message, now),
        observed_generation=job.meta.generation,
    )
    return replace(job, status=status)


def _failed(job: FederatedJob, reason: str, message: str, now: float) -> WorkDecision:
    status: FederatedStatus = replace(
        job.status,
        phase=WorkPhase.FAILED,
        finish_time=now,
        conditions=_ready(job, reason, message, now, ok=False),
        observed_generation=job.meta.generation,
    )
    return WorkDecision(replace(job, status=status), told=(Told(reason, message, warning=True),))


def _participants(job: FederatedJob, round_: TrainingRound, now: float) -> tuple[ParticipantStatus, ...]:
    """How each takes part in the current round; the time of an update is when it was first seen here."""
    before = {each.proplet_id: each.last_update for each in job.status.participants}
    found = []
    for each in round_.status.participants:
        last = before.get(each.proplet_id, 0.0)
        new = each.update_received and last < round_.status.start_time
        found.append(ParticipantStatus(each.proplet_id, each.status, now if new else last))
    return tuple(found)


def _ready(job: FederatedJob, reason: str, message: str, now: float, *, ok: bool = True) -> tuple[Condition, ...]:
    return settled([Condition(READY, ok, reason, message)], job.status.conditions, now)
