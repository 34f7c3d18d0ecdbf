"""The vocabulary of PropellerJobs, FederatedJobs and TrainingRounds, as literal tables; `vocabulary` has the rest.

Source of the names: the reference's custom resources (propeller), both eras; ours beside them.
"""

from typing import Final

from proplet.manager import model
from proplet.manager.scalars import ANY, FLAG, MOMENT, OBJECT, TEXT, WHOLE, choice
from proplet.manager.shapes import Field, Record, Sequence
from proplet.manager.vocabulary import CONDITIONS, TASK_SPEC, TEXTS

_PHASE: Final = Field("phase", choice(model.WorkPhase))

JOB_SPEC: Final = Record(
    model.JobSpec,
    (
        Field("name", TEXT),
        Field("execution_mode", choice(model.ExecutionMode)),
        Field("tasks", Sequence(TASK_SPEC)),
        Field("task_refs", TEXTS),
    ),
)

JOB_STATUS: Final = Record(
    model.JobStatus,
    (
        _PHASE,
        Field("start_time", MOMENT),
        Field("finish_time", MOMENT),
        Field("task_count", WHOLE, shown=True),
        Field("completed_count", WHOLE, shown=True),
        Field("failed_count", WHOLE, shown=True),
        Field("skipped_count", WHOLE, shown=True),
        Field("interrupted_count", WHOLE),
        Field("conditions", CONDITIONS),
        Field("observed_generation", WHOLE),
    ),
)

FEDERATED_SPEC: Final = Record(
    model.FederatedSpec,
    (
        Field("experiment_id", TEXT),
        Field("model_ref", TEXT),
        Field("task_wasm_image", TEXT),
        Field("participants", Sequence(Record(model.Participant, (Field("proplet_id", TEXT),)))),
        Field("hyperparams", ANY),
        Field("k_of_n", WHOLE),
        Field("timeout_seconds", WHOLE),
        Field("rounds", Record(model.Rounds, (Field("total", WHOLE, shown=True), Field("strategy", TEXT)))),
        Field("aggregator", Record(model.Aggregator, (Field("algorithm", TEXT), Field("config", ANY)))),
    ),
)

FEDERATED_STATUS: Final = Record(
    model.FederatedStatus,
    (
        _PHASE,
        Field("current_round", WHOLE, shown=True),
        Field("completed_rounds", WHOLE, shown=True),
        Field(
            "participants",
            Sequence(
                Record(
                    model.ParticipantStatus,
                    (Field("proplet_id", TEXT), Field("status", TEXT), Field("last_update", MOMENT)),
                )
            ),
        ),
        Field("aggregated_model_ref", TEXT),
        Field("aggregate", OBJECT),
        Field("start_time", MOMENT),
        Field("finish_time", MOMENT),
        Field("conditions", CONDITIONS),
        Field("observed_generation", WHOLE),
    ),
)

ROUND_SPEC: Final = Record(
    model.RoundSpec,
    (
        Field("round_id", TEXT),
        Field("federated_job", Record(model.JobReference, (Field("name", TEXT),)), ("federatedJobRef",)),
        Field("model_ref", TEXT),
        Field("task_wasm_image", TEXT),
        Field("participants", TEXTS),
        Field("hyperparams", ANY),
        Field("k_of_n", WHOLE),
        Field("timeout_seconds", WHOLE),
        Field("algorithm", TEXT),
        Field("experiment_id", TEXT),
        Field("global_update", OBJECT),
    ),
)

ROUND_STATUS: Final = Record(
    model.RoundStatus,
    (
        _PHASE,
        Field("start_time", MOMENT),
        Field("end_time", MOMENT),
        Field(
            "participants",
            Sequence(
                Record(
                    model.Participation,
                    (
                        Field("proplet_id", TEXT),
                        Field("task_ref", OBJECT),
                        Field("status", TEXT),
                        Field("update_received", FLAG, shown=True),
                    ),
                )
            ),
        ),
        Field("updates_received", WHOLE, shown=True),
        Field("updates_required", WHOLE, shown=True),
        Field("aggregated_model_ref", TEXT),
        Field("aggregate", OBJECT),
        Field("conditions", CONDITIONS),
        Field("observed_generation", WHOLE),
    ),
)
