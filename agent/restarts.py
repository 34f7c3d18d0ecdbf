"""Whether a task runs again after its guest has ended, and after how long. Pure.

The backoff doubles with every failure in a row, up to five minutes; a run that was healthy for ten minutes ends the
row. From the third failure on it is called a crash loop.
"""

from dataclasses import replace
from typing import Final

from proplet.agent.attempts import Attempt
from proplet.agent.events import Outcome
from proplet.agent.lifecycle import State
from proplet.agent.wire import InventoryItem, Reason, RestartPolicy

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 300.0
HEALTHY_S: Final = 600.0
CRASH_LOOP: Final = "crash_loop"
_LOOP_FROM: Final = 3

# After these another try of the same module on the same device may end differently.
_RETRYABLE: Final = frozenset(
    {
        Reason.EXIT_CODE,
        Reason.TRAP,
        Reason.TIMEOUT,
        Reason.CPU_LIMIT,
        Reason.MEMORY_LIMIT,
        Reason.OUTPUT_LIMIT,
        Reason.WORKER_CRASHED,
        Reason.MODULE_UNAVAILABLE,
        Reason.STORAGE,
        Reason.PORT_TAKEN,
        Reason.INTERNAL,
    }
)
# What can keep a latent task that was ready once from being ready again; none is its own doing.
_PASSING: Final = frozenset({Reason.MODULE_UNAVAILABLE, Reason.STORAGE, Reason.INTERNAL})


def runs_again(attempt: Attempt, outcome: Outcome) -> bool:
    """Return whether `attempt`, whose run ended with `outcome`, is run again on this device."""
    if attempt.start.latent and attempt.prepared and outcome.reason in _PASSING:
        return True
    if attempt.policy in (None, RestartPolicy.NEVER):
        return False
    if outcome.reason is Reason.OK:
        return attempt.policy is RestartPolicy.ALWAYS and attempt.stays
    return outcome.reason in _RETRYABLE and _may_repeat(attempt)


def given_up(attempt: Attempt, outcome: Outcome) -> Outcome:
    """Return the outcome of a last run; where its backoff limit allows no other, its error says how often it ran."""
    if attempt.policy in (None, RestartPolicy.NEVER) or outcome.reason not in _RETRYABLE or _may_repeat(attempt):
        return outcome
    runs = "1 run" if not attempt.restarts else f"{attempt.restarts + 1} runs"
    text = f"given up after {runs}: backoffLimit is {attempt.backoff_limit}"
    return replace(outcome, error=f"{outcome.error or outcome.reason.value} ({text})")


def repeats_interrupted(attempt: Attempt) -> bool:
    """Return whether it runs again after the node was restarted while it ran; a daemon does, unless it may never."""
    again = attempt.policy in (RestartPolicy.ON_FAILURE, RestartPolicy.ALWAYS)
    return (again or (attempt.policy is None and attempt.stays)) and _may_repeat(attempt)


def _may_repeat(attempt: Attempt) -> bool:
    """Whether its backoff limit allows one more; a daemon's counts failures in a row, and only if one is set."""
    if not attempt.stays:
        return attempt.restarts < attempt.backoff_limit
    limit = attempt.start.ext.backoff_limit if attempt.start.ext else None
    return limit is None or attempt.failures < limit


def back_off(attempt: Attempt, outcome: Outcome, now: float) -> float:
    """Count the failure, note when and why it runs again, and return the seconds until then."""
    if outcome.run_s >= HEALTHY_S:
        attempt.failures = 0
    delay: float = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(attempt.failures, 20))
    attempt.restarts += 1
    attempt.failures += 1
    attempt.since, attempt.not_before = now, now + delay
    why = outcome.error or ("it ended" if outcome.reason is Reason.OK else outcome.reason.value)
    attempt.trouble = f"{_times(attempt)}, next in {delay:g} s: {why}"
    return delay


def go_on_waiting(attempt: Attempt, now: float) -> None:
    """Take up a wait that a restart of the node fell into; why it waits was not kept."""
    # A clock that was set back must not keep a backoff waiting for hours.
    attempt.not_before = min(attempt.not_before, now + BACKOFF_MAX_S)
    left = max(0.0, attempt.not_before - now)
    attempt.trouble = f"{_times(attempt)}, next in {left:.0f} s; the node was restarted meanwhile"


def _times(attempt: Attempt) -> str:
    return "restarted once" if attempt.restarts == 1 else f"restarted {attempt.restarts} times"


def word(attempt: Attempt) -> str:
    """Return the attempt's state as the inventory says it: a task that keeps failing is in a crash loop."""
    if attempt.state is State.WAITING and attempt.failures >= _LOOP_FROM:
        return CRASH_LOOP
    return attempt.state.value


def started_at(port: int) -> str:
    """Return how it is said that a task serves, in the reference's words."""
    return f"started at port {port}"


def held(attempt: Attempt) -> InventoryItem:
    """Return what the inventory says of it."""
    why = attempt.trouble if attempt.state is State.WAITING else ""
    if attempt.state is State.SERVING:
        why = started_at(attempt.port)
    return InventoryItem(attempt.key.task_id, attempt.number, word(attempt), attempt.since, why, attempt.image_digest)
