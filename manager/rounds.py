"""A TrainingRound: a Task for each participant, the first `kOfN` updates or more, and their mean. Pure decisions.

The Tasks' results in the store are the updates; nothing is counted that is not read from them again. So a restart loses
nothing, and a round decides the same however often it is looked at. The mean is kept in the round's status.

Participants that die keep the round waiting only as long as enough others are left, or its time is over: a Task that is
lost is placed again, so its proplet can come back. What is unfinished when the round ends is stopped; an update that
comes later is in its Task and is not counted. Never does: I/O, clocks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from proplet.manager.averaging import UpdateError
from proplet.manager.conditions import READY, settled
from proplet.manager.manifest import API_VERSION
from proplet.manager.model import Condition, Key, Kind, Participation, RoundStatus, Task, TrainingRound, WorkPhase
from proplet.manager.participation import (
    Part,
    agreeing,
    global_update,
    hyperparams_of,
    is_of,
    job_id_of,
    parts_of,
    task_of,
)
from proplet.manager.phases import TERMINAL
from proplet.manager.rules_work import ROUND_RULES
from proplet.manager.updates import Envelope, combine, write_envelope
from proplet.manager.work import Related, Told, WorkDecision

ENDED: Final = frozenset({WorkPhase.COMPLETED, WorkPhase.FAILED})
LOOK_AGAIN_S: Final = 10.0  # for what is in the way and belongs to somebody else
_HYPERPARAMS_MAX: Final = 256 * 1024  # characters of JSON; they are in every Task, beside the global update


def decide(round_: TrainingRound, related: Related, now: float) -> WorkDecision:
    """Return what follows for a round from its Tasks, at `now` (epoch seconds)."""
    if round_.meta.deleted_at:
        return WorkDecision(round_)
    if round_.status.phase in ENDED:
        return WorkDecision(round_, stop=_unfinished(round_, related.tasks.values()))
    if round_.status.phase is WorkPhase.PENDING:
        problem = problem_of(round_)
        if problem is not None:
            return _failed(round_, parts_of(round_, related.tasks), "InvalidSpec", problem, now)
        status = replace(round_.status, phase=WorkPhase.RUNNING, start_time=now)
        decision = _follow(replace(round_, status=status), related, now)
        started = Told("Running", f"Asked {len(round_.spec.participants)} participants to train")
        return replace(decision, told=(started, *decision.told))
    return _follow(round_, related, now)


def problem_of(round_: TrainingRound) -> str | None:
    """Return why a round cannot be run, or None."""
    for rule in ROUND_RULES:
        if rule.broken(round_):
            return f"{rule.path} {rule.message}"
    if len(hyperparams_of(round_)) > _HYPERPARAMS_MAX:
        return f"spec.hyperparams must have at most {_HYPERPARAMS_MAX} characters as JSON; put data into the model"
    try:
        global_update(round_)
    except UpdateError as error:
        return f"spec.globalUpdate cannot be used: {error}"
    return None


def _follow(round_: TrainingRound, related: Related, now: float) -> WorkDecision:
    spec = round_.spec
    before = global_update(round_)
    parts = agreeing(parts_of(round_, related.tasks), before)
    accepted = [part.envelope for part in parts if part.envelope is not None]
    if len(accepted) >= spec.k_of_n:
        try:
            after = combine(accepted, before, round_id=spec.round_id, job_id=job_id_of(round_))
        except UpdateError as error:
            return _failed(round_, parts, "AggregationFailed", f"The updates cannot be averaged: {error}", now)
        return _completed(round_, parts, after, now)
    deadline = round_.status.start_time + spec.timeout_seconds
    if now >= deadline:
        text = f"Round timed out: only {len(accepted)}/{spec.k_of_n} updates received"
        return _failed(round_, parts, "Timeout", _with_reasons(text, parts), now)
    if len(accepted) + sum(part.open for part in parts) < spec.k_of_n:
        text = f"Only {len(accepted)}/{spec.k_of_n} updates received, and no more can come"
        return _failed(round_, parts, "InsufficientUpdates", _with_reasons(text, parts), now)
    blocked = [part for part in parts if part.task is not None and not is_of(part.task, round_)]
    message = "Round is running"
    if blocked:
        message = f"Task {blocked[0].name} is in the way: it is not this round's; delete it"
    return WorkDecision(
        _noted(round_, parts, round_.status.phase, ("Running", message), now),
        create=tuple(task_of(round_, part) for part in parts if part.task is None),
        told=_refusals(round_, parts),
        wake_at=min(deadline, now + LOOK_AGAIN_S) if blocked else deadline,
    )


# --- the status -------------------------------------------------------------------------------------------------------


def _completed(round_: TrainingRound, parts: Sequence[Part], after: Envelope, now: float) -> WorkDecision:
    count = after.metrics["num_clients"]
    message = f"Round completed and aggregated {count} updates"
    done = _noted(round_, _stopped(parts), WorkPhase.COMPLETED, ("Completed", message), now)
    status = replace(
        done.status,
        aggregate=write_envelope(after),
        aggregated_model_ref=f"{Kind.ROUND.value.lower()}/{round_.meta.name}",
    )
    told = (*_refusals(round_, parts), Told("Completed", message))
    return WorkDecision(replace(done, status=status), stop=_left(round_, parts), told=told)


def _failed(round_: TrainingRound, parts: Sequence[Part], reason: str, message: str, now: float) -> WorkDecision:
    done = _noted(round_, _stopped(parts), WorkPhase.FAILED, (reason, message), now)
    told = (*_refusals(round_, parts), Told(reason, message, warning=True))
    return WorkDecision(done, stop=_left(round_, parts), told=told)


def _left(round_: TrainingRound, parts: Sequence[Part]) -> tuple[Key, ...]:
    """The Tasks that an ended round no longer needs."""
    return _unfinished(round_, (part.task for part in parts if part.task is not None))


def _unfinished(round_: TrainingRound, tasks: Iterable[Task]) -> tuple[Key, ...]:
    return tuple(
        task.meta.key
        for task in tasks
        if is_of(task, round_) and task.status.phase not in TERMINAL and not task.status.stop_requested
    )


def _stopped(parts: Sequence[Part]) -> list[Part]:
    return [replace(part, status="Stopped") if part.open else part for part in parts]


def _noted(
    round_: TrainingRound, parts: Sequence[Part], phase: WorkPhase, why: tuple[str, str], now: float
) -> TrainingRound:
    """The round with a status that says all of this; `why` is the condition's reason and message."""
    spec, status = round_.spec, round_.status
    ready = Condition(READY, phase is not WorkPhase.FAILED, *why)
    changed = RoundStatus(
        phase=phase,
        start_time=status.start_time,
        end_time=now if phase in ENDED else 0.0,
        participants=tuple(_participation(round_, part) for part in parts),
        updates_received=sum(part.envelope is not None for part in parts),
        updates_required=spec.k_of_n,
        aggregated_model_ref=status.aggregated_model_ref,
        aggregate=status.aggregate,
        conditions=settled([ready], status.conditions, now),
        observed_generation=round_.meta.generation,
    )
    return replace(round_, status=changed)


def _participation(round_: TrainingRound, part: Part) -> Participation:
    reference = {"apiVersion": API_VERSION, "kind": "Task", "namespace": round_.meta.namespace, "name": part.name}
    return Participation(part.proplet_id, reference, part.status, part.envelope is not None)


def _with_reasons(text: str, parts: Sequence[Part]) -> str:
    reasons = [f"{part.proplet_id}: {part.status}" for part in parts if part.envelope is None]
    return "; ".join([text, *reasons])[:1000]


def _refusals(round_: TrainingRound, parts: Sequence[Part]) -> tuple[Told, ...]:
    """Of every update that was refused since the status was recorded last, why."""
    known = {each.proplet_id: each.status for each in round_.status.participants}
    return tuple(
        Told("UpdateRejected", f"The update of {part.proplet_id} was not taken. {part.status}", warning=True)
        for part in parts
        if part.status.startswith("Rejected") and known.get(part.proplet_id) != part.status
    )
