"""A Task's status after something happened to it; every change of phase goes through the table of `phases`.

Pure: status in, status out. The two kinds of return to `pending` differ in `proplet_id`: after a loss the attempt may
yet turn up, so its proplet stays written down; after a result that ends the attempt it is gone for good.
"""

import json
from dataclasses import replace
from typing import Final

from proplet.agent.codec import to_plain
from proplet.agent.wire import FederatedUpdate, Reason, RestartPolicy, Result
from proplet.manager import conditions
from proplet.manager.exchange import Holds, Policy
from proplet.manager.model import Task, TaskStatus
from proplet.manager.phases import TERMINAL, Happening, Phase, advance

_LITTLE: Final = 4096  # characters
PLACED_AGAIN: Final = "it is placed again"


def dispatched(task: Task, proplet_id: str | None, wall: float) -> TaskStatus:
    """The intent to start the next attempt on a proplet."""
    status = task.status
    return replace(
        status,
        phase=advance(status.phase, Happening.DISPATCHED),
        proplet_id=proplet_id,
        attempt=status.attempt + 1,
        stop_requested=False,
        dispatched_at=wall,
        started_at=0.0,
        finished_at=0.0,
        not_before=0.0,
        message="",
        observed_generation=task.meta.generation,
    )


def held(status: TaskStatus, word: Holds, wall: float) -> TaskStatus:
    """A proplet says that it holds the current attempt, and perhaps why it waits there."""
    status = confirmed(status, wall) if word.confirms else _taken_up(status)
    status = replace(status, resolved_image=word.image or status.resolved_image)
    return status if word.note is None else replace(status, message=word.note[:_LITTLE])


def _taken_up(status: TaskStatus) -> TaskStatus:
    """One that was taken for lost is there again."""
    if status.phase is not Phase.PENDING:
        return status
    phase = advance(status.phase, Happening.DISPATCHED)
    return replace(status, phase=phase, failures=max(0, status.failures - 1), not_before=0.0, message="")


def confirmed(status: TaskStatus, wall: float) -> TaskStatus:
    """The current attempt runs, or lies ready; one that was taken for lost is taken up again."""
    status = _taken_up(status)
    if status.phase is not Phase.SCHEDULED:
        return status
    return replace(status, phase=advance(status.phase, Happening.CONFIRMED), started_at=status.started_at or wall)


def restarted(status: TaskStatus) -> TaskStatus:
    """A new run was asked for. Attempts go on counting, so nothing of an earlier run is taken for this one's."""
    return TaskStatus(
        phase=advance(status.phase, Happening.RESTARTED),
        attempt=status.attempt,
        next_run=status.next_run,
        observed_generation=status.observed_generation,
    )


def ended(task: Task, result: Result, policy: Policy, wall: float) -> TaskStatus:
    """The current attempt's result."""
    status, terms = task.status, result.ext
    if status.phase is Phase.PENDING:
        status = confirmed(status, status.dispatched_at)
    reason = terms.reason if terms else None
    status = replace(
        status,
        exit_code=terms.exit_code if terms else None,
        usage=terms.usage if terms else None,
        resolved_image=(terms.image_digest if terms else None) or status.resolved_image,
    )
    status = replace(status, started_at=_began(status, wall))
    text = result_text(result)
    if not result.error:
        return _final(status, Happening.SUCCEEDED, wall, reason=reason or Reason.OK, results=text)
    if reason is Reason.STOPPED or (reason is None and status.stop_requested):
        return _final(status, Happening.INTERRUPTED, wall, reason=Reason.STOPPED, error=result.error, results=text)
    if reason in (Reason.INTERRUPTED, Reason.LOST, Reason.SUPERSEDED):
        after = _again(replace(task, status=status), reason, result.error, policy, wall)
        return replace(after, proplet_id=None) if after.phase is Phase.PENDING else after
    if reason is Reason.OVERLOADED and not status.stop_requested:
        message = f"{status.proplet_id} is overloaded and did not take attempt {status.attempt}: {result.error}"
        return replace(_pending(status, message, not_before=wall + 1.0), proplet_id=None)
    return _final(status, Happening.FAILED, wall, reason=reason, error=result.error, results=text)


def _began(status: TaskStatus, wall: float) -> float:
    """When an attempt that has ended began to run: short ones tell only how long each stage has taken them."""
    if status.started_at or status.usage is None:
        return status.started_at
    took = status.usage.wall_seconds
    before = sum(took.get(stage, 0.0) for stage in ("queue", "fetch", "compile", "worker"))
    return max(status.dispatched_at, wall - max(0.0, took.get("total", before) - before, took.get("run", 0.0)))


def lost(task: Task, text: str, policy: Policy, wall: float) -> TaskStatus:
    """The current attempt is given up: its proplet is away, or does not hold it."""
    return _again(task, Reason.LOST, text, policy, wall)


def stop_asked(task: Task, wall: float) -> TaskStatus | None:
    """The status after somebody asked for the end of the run; None: there is no run that could end."""
    status = task.status
    if status.phase in TERMINAL or (status.phase is Phase.PENDING and task.spec.held):
        return None
    if status.phase is not Phase.PENDING:
        return replace(status, stop_requested=True)
    status = stopped(status, "stopped before it was placed", wall)
    return replace(status, conditions=conditions.of_task(task, status, "", "", wall))


def stopped(status: TaskStatus, text: str, wall: float) -> TaskStatus:
    """The run ends because that was asked for, without the proplet's word."""
    return _final(status, Happening.INTERRUPTED, wall, reason=Reason.STOPPED, error=text)


def succeeded(status: TaskStatus, results: str | None, wall: float) -> TaskStatus:
    """The run ends well."""
    return _final(status, Happening.SUCCEEDED, wall, reason=Reason.OK, results=results)


def failed(status: TaskStatus, reason: Reason | None, text: str, wall: float) -> TaskStatus:
    """The run ends with an error that trying again would not mend."""
    return _final(status, Happening.FAILED, wall, reason=reason, error=text)


def skipped(status: TaskStatus, text: str, wall: float) -> TaskStatus:
    """The run does not take place."""
    return _final(status, Happening.SKIPPED, wall, reason=None, error=text)


def lightened(status: TaskStatus) -> TaskStatus:
    """The same without what its results say, for a store that takes no more; the same where they say little."""
    said = (status.results, *(entry.get("results") for entry in status.broadcast_results))
    weight = sum(len(text) for text in said if text) + len(status.error or "")
    if weight <= _LITTLE:
        return status
    return replace(
        status,
        results=None,
        error=status.error and status.error[:_LITTLE],
        broadcast_results=tuple(
            {k: v for k, v in entry.items() if k != "results"} for entry in status.broadcast_results
        ),
        message=f"its result of {weight} characters was dropped: it is too large to be kept here",
    )


def result_text(result: Result) -> str | None:
    """What a result carries, as text; a federated update as its JSON."""
    if isinstance(result.results, FederatedUpdate):
        return json.dumps(to_plain(result.results))
    return result.results or (None if result.error else "")


def backoff(failures: int, policy: Policy) -> float:
    """Seconds until the next attempt: the first at once, then 1, 2, 4 ... up to the policy's most."""
    return 0.0 if failures <= 1 else min(policy.backoff_max_s, 2.0 ** min(failures - 2, 30))


def _again(task: Task, reason: Reason, text: str, policy: Policy, wall: float) -> TaskStatus:
    """Place it again, if its terms allow that."""
    spec, status = task.spec, task.status
    if status.stop_requested:
        return _final(status, Happening.INTERRUPTED, wall, reason=Reason.STOPPED, error=text)
    if spec.restart_policy is RestartPolicy.NEVER:
        return _final(status, Happening.INTERRUPTED, wall, reason=reason, error=text)
    failures = status.failures + 1
    limit = policy.backoff_limit if spec.backoff_limit is None else spec.backoff_limit
    status = replace(status, failures=failures)
    if failures > limit:
        more = f"{text} (attempt {status.attempt}; {limit} repetitions are allowed)"
        return _final(status, Happening.FAILED, wall, reason=reason, error=more)
    delay = backoff(failures, policy)
    message = f"attempt {status.attempt} ended without a result: {text}; {PLACED_AGAIN}"
    return _pending(status, message, not_before=wall + delay if delay else 0.0)


def _pending(status: TaskStatus, message: str, not_before: float) -> TaskStatus:
    phase = advance(status.phase, Happening.LOST)
    return replace(
        status, phase=phase, started_at=0.0, not_before=not_before, message=message, exit_code=None, usage=None
    )


def _final(
    status: TaskStatus,
    happening: Happening,
    wall: float,
    *,
    reason: Reason | None,
    error: str | None = None,
    results: str | None = None,
) -> TaskStatus:
    phase = advance(status.phase, happening)
    assert phase in TERMINAL
    return replace(
        status,
        phase=phase,
        stop_requested=False,
        started_at=status.started_at or status.dispatched_at,
        finished_at=wall,
        not_before=0.0,
        reason=reason,
        error=error,
        results=results,
        message="",
    )
