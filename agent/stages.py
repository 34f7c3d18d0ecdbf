"""Where an attempt's time went: wall seconds by stage, which add up to its total. Pure.

* ``queue``: it waited for a slot, and for others while its module was made ready;
* ``fetch`` and ``compile``: of its module, as far as it waited for that itself;
* ``worker``: it waited for a worker, the worker's start among it, and was handed there and back;
* ``run``: of its guest, all runs together, or all of a latent task's invocations;
* ``backoff``: it waited to be run again;
* ``total``: from the start's arrival to its end. What a latent task lies ready, and what a module took that could not
  be had in the end, is only in this.
"""

from proplet.agent.attempts import Attempt
from proplet.agent.events import ModuleReady, Outcome, Spent
from proplet.agent.lifecycle import State


def took_a_slot(attempt: Attempt, now: float) -> None:
    """Count how long it waited for a slot, or was held back; its preparation begins."""
    if attempt.state is State.ACCEPTED:
        attempt.stages["queue"] = max(0.0, now - attempt.received_at)
    else:
        _add(attempt, "backoff", now - attempt.since)
    attempt.since = now


def became_ready(attempt: Attempt, event: ModuleReady, now: float) -> None:
    """Count its preparation. One that joined another's has not waited for all of what that took."""
    waited = max(0.0, now - attempt.since)
    fetch_s = min(event.fetch_s, waited)
    compile_s = min(event.compile_s, waited - fetch_s)
    _add(attempt, "queue", waited - fetch_s - compile_s)
    _add(attempt, "fetch", fetch_s)
    _add(attempt, "compile", compile_s)
    attempt.since = now


def began_to_serve(attempt: Attempt, now: float) -> None:
    """Count the start of the program that serves it: the time of its run begins afterwards."""
    _add(attempt, "worker", now - attempt.since)
    attempt.since = now


def ran(attempt: Attempt, outcome: Outcome, now: float) -> None:
    """Count what a run took beside the guest's own time."""
    if not attempt.served:
        _add(attempt, "worker", now - attempt.since - outcome.run_s)


def ended(attempt: Attempt, spent: Spent, now: float) -> None:
    """Count it all together."""
    attempt.stages |= {"run": spent.run_s, "total": max(0.0, now - attempt.received_at)}


def _add(attempt: Attempt, stage: str, seconds: float) -> None:
    attempt.stages[stage] = attempt.stages.get(stage, 0.0) + max(0.0, seconds)
