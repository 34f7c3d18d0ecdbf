"""Taking part in a TrainingRound: the Task of each participant, and what its results amount to. Pure."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from proplet.agent.wire import Limits
from proplet.manager.averaging import Parameters, UpdateError, common_layout
from proplet.manager.model import Kind, Meta, Owner, PropletSelector, Task, TaskSpec, TrainingRound
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.updates import Envelope, read_envelope, same_round, write_envelope

_NAME_MAX, _LABEL_MAX = 253, 63
_TOLD_MAX: Final = 200  # characters of why there is no update


@dataclass(frozen=True, slots=True)
class Part:
    """What a participant has done: an update, or why there is none (yet, if it is `open`)."""

    proplet_id: str
    name: str
    task: Task | None
    status: str
    open: bool = False
    envelope: Envelope | None = None
    parameters: Parameters | None = None


# --- what the participants have done ----------------------------------------------------------------------------------


def parts_of(round_: TrainingRound, tasks: Mapping[str, Task]) -> list[Part]:
    """Return what every participant has done, in the order of the spec."""
    return [_part_of(round_, proplet_id, tasks) for proplet_id in round_.spec.participants]


def _part_of(round_: TrainingRound, proplet_id: str, tasks: Mapping[str, Task]) -> Part:
    name = name_of(round_.meta.name, proplet_id)
    task = tasks.get(name)
    if task is None or not is_of(task, round_):
        return Part(proplet_id, name, task, "Pending", open=True)
    phase = task.status.phase
    if phase not in TERMINAL:
        return Part(proplet_id, name, task, phase.value.capitalize(), open=True)
    if phase is not Phase.COMPLETED:
        why = task.status.error or task.status.message
        return Part(proplet_id, name, task, _said(phase.value.capitalize(), why))
    try:
        envelope = read_envelope(task.status.results)
        parameters = envelope.parameters()
    except UpdateError as error:
        return Part(proplet_id, name, task, _said("Rejected", str(error)))
    if envelope.round_id and not same_round(envelope.round_id, round_.spec.round_id):
        return Part(proplet_id, name, task, _said("Rejected", f"the update is of round {envelope.round_id[:40]!a}"))
    return Part(proplet_id, name, task, "Completed", envelope=envelope, parameters=parameters)


def agreeing(parts: Sequence[Part], before: Envelope | None) -> list[Part]:
    """Return the parts, with the updates refused that are of another model than most."""
    base = before.parameters() if before else None
    common = common_layout((part.parameters for part in parts if part.parameters is not None), base)
    expected = common or (base.layout if base else None)
    return [
        part
        if part.parameters is None or part.parameters.layout == common
        else replace(
            part,
            status=_said("Rejected", f"it has {part.parameters.layout}, not {expected}: it is of another model"),
            envelope=None,
            parameters=None,
        )
        for part in parts
    ]


def _said(word: str, why: str) -> str:
    return f"{word}: {why[:_TOLD_MAX]}" if why else word


def is_of(task: Task, round_: TrainingRound) -> bool:
    """Whether the round made the Task; one of the same name can be somebody else's, or of an earlier such round."""
    return task.meta.owner is not None and task.meta.owner.uid == round_.meta.uid


# --- the Tasks --------------------------------------------------------------------------------------------------------


def name_of(*parts: str) -> str:
    """Return a resource's name made of others.

    Where they are no name together, or too long, what is no part of a name is replaced, and a digest keeps it apart
    from others that would then be called the same.
    """
    plain = "-".join(parts)
    name = re.sub(r"[^a-z0-9.-]|(?<![a-z0-9])\.|\.(?![a-z0-9])", "-", plain.lower()).strip("-.")
    if name == plain and len(name) <= _NAME_MAX:
        return name
    digest = hashlib.sha256(plain.encode(errors="replace")).hexdigest()[:8]
    return f"{name[: _NAME_MAX - 9].rstrip('-.')}-{digest}".lstrip("-")


def label_of(value: str) -> str:
    """Return a text as the value of a label."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", value)[:_LABEL_MAX].strip("-_.")


def task_of(round_: TrainingRound, part: Part) -> Task:
    """Return the Task of a participant. PROPLET_ID and TASK_ID come with its start.

    The spec's name is what the start is called: components on proplets of the reference run only under such a name.
    """
    spec = round_.spec
    labels = {"training-round": round_.meta.name, "round-id": spec.round_id, "participant": part.proplet_id}
    meta = Meta(
        part.name,
        round_.meta.namespace,
        labels={key: label_of(value) for key, value in labels.items()},
        owner=Owner(Kind.ROUND.value, round_.meta.name, round_.meta.uid),
    )
    return Task(
        meta,
        TaskSpec(
            name=f"fl-round-{part.name}"[:_NAME_MAX],
            image_url=spec.task_wasm_image,
            mode="train",
            env=_environment(round_),
            selector=PropletSelector(proplet_id=part.proplet_id),
            active_deadline_seconds=float(spec.timeout_seconds),
            limits=Limits(cpu_s=float(spec.timeout_seconds)),  # a proplet's default is too little to train in
        ),
    )


def _environment(round_: TrainingRound) -> dict[str, str]:
    spec = round_.spec
    env = {"ROUND_ID": spec.round_id, "MODEL_URI": spec.model_ref, "FL_JOB_ID": job_id_of(round_)}
    if spec.hyperparams is not None:
        env["HYPERPARAMS"] = hyperparams_of(round_)
    before = global_update(round_)
    if before is not None:
        plain = write_envelope(before)
        env["FL_GLOBAL_VERSION"] = str(before.global_version)
        env["FL_GLOBAL_UPDATE_B64"] = plain["update_b64"]
        env["FL_GLOBAL_UPDATE_FORMAT"] = before.parameters().layout.format.value
    return env


def hyperparams_of(round_: TrainingRound) -> str:
    """Return the hyperparameters as clients get them: JSON."""
    return json.dumps(round_.spec.hyperparams, separators=(",", ":"), default=str)


def job_id_of(round_: TrainingRound) -> str:
    """Return what the updates belong to."""
    return round_.spec.experiment_id or round_.spec.federated_job.name


def global_update(round_: TrainingRound) -> Envelope | None:
    """Return what the round begins with. Raises UpdateError where that cannot be used."""
    given = round_.spec.global_update
    if given is None:
        return None
    envelope = read_envelope(given)
    envelope.parameters()
    return envelope
