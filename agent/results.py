"""The message that tells how an attempt ended: the reference's shape, with what it cost in our `ext`. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from proplet.agent import codec, wire
from proplet.agent.events import Outcome, Spent, StartKind
from proplet.agent.wire import Reason, Start

_ERROR_KEPT = 200
_NO_EXPORT = "' not found in component"
_MAY_NOT = "Operation not permitted"  # EPERM, as what is written with libc or Rust says it

#: What is said of a task that was ended, by the reason.
ENDINGS = {
    Reason.STOPPED: "Task {} was stopped before completion",
    Reason.SUPERSEDED: "Task {} was stopped: a newer attempt of it arrived",
    Reason.INTERRUPTED: "Task {} was interrupted: the node was restarted while it ran",
}


def result_of(
    start: Start,
    outcome: Outcome,
    spent: Spent,
    *,
    proplet_id: str,
    stages: Mapping[str, float],
    image_digest: str | None,
    restarts: int,
    start_kind: StartKind | None,
) -> wire.Result:
    """Return the result of `start` on this proplet; a round of federated learning gets the reference's variant.

    `outcome` is the last run's, `spent` what all of them have cost: also the invocations of a latent task.
    """
    kind = outcome.start_kind or start_kind
    usage = wire.Usage(
        cpu_seconds=_rounded(spent.cpu_s),
        peak_memory_bytes=spent.peak_memory_bytes,
        wall_seconds={stage: round(seconds, 6) for stage, seconds in stages.items()},
        start_kind=kind.value if kind else None,
        memory_note=spent.memory_note,
        fuel_used=spent.fuel_used,
        invocations=spent.runs if start.latent else 0,
        restarts=restarts,
    )
    ext = wire.ResultTerms(
        attempt=start.attempt,
        reason=outcome.reason,
        exit_code=outcome.exit_code,
        image_digest=image_digest,
        usage=usage,
        restarts=restarts,
    )
    error = error_of(outcome, start.id)
    if error is not None:
        error += _only_reads(start, outcome)
    results: str | wire.FederatedUpdate = outcome.results
    if error is None and start.env.get("ROUND_ID"):
        results = _round_update(start, outcome.results, proplet_id)
    return wire.Result(start.id, proplet_id, results, error, ext)


def error_of(outcome: Outcome, task_id: str) -> str | None:
    """Return what is said of a run that went wrong, None of one that went well."""
    if outcome.reason is Reason.OK:
        return None
    text = outcome.error or outcome.reason.value
    if outcome.reason is Reason.UNKNOWN_EXPORT:  # the reference names the task there
        text = text.replace(_NO_EXPORT, f"{_NO_EXPORT} for task {task_id}", 1)
    return text


def _only_reads(start: Start, outcome: Outcome) -> str:
    """Return a hint for a guest that likely tried to write where its task asked for reading: that is the default."""
    dirs = start.ext.permissions.dirs if start.ext else ()
    places = ", ".join(asked.guest for asked in dirs if asked.read_only)
    said = _MAY_NOT in (outcome.error or "") or _MAY_NOT.encode() in outcome.stderr
    if not places or not said or outcome.reason not in (Reason.EXIT_CODE, Reason.TRAP):
        return ""
    return f" (it asked for {places} for reading only: to write there, ask with readOnly: false in permissions.dirs)"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 9)


def _round_update(start: Start, text: str, proplet_id: str) -> wire.FederatedUpdate:
    samples = start.env.get("FL_NUM_SAMPLES", "1")
    return wire.FederatedUpdate(
        start.id,
        start.env["ROUND_ID"],
        start.env.get("PROPLET_ID") or proplet_id,
        int(samples) if samples.isascii() and samples.isdecimal() and len(samples) < 19 else 1,
        text.encode(),
        start.env.get("FL_FORMAT") or "f32-delta",
    )


def shortened(payload: bytes) -> bytes:
    """Return a result message without its text: how the task ended stays, the text says what happened to it."""
    message = codec.decode_as(wire.Result, payload)
    note = f"[{len(payload)} bytes dropped: more than the proplet could keep or send]"
    error = message.error
    if error is not None and len(error) > _ERROR_KEPT:
        error = f"{error[:_ERROR_KEPT]} {note}"
    return codec.encode(replace(message, results=note if message.error is None else "", error=error))
