"""The control plane's decisions about Tasks, pure: what is known in, what to record and what to do then out.

Level-triggered: `reconcile` looks only at how things are, so listing everything and reconciling reaches the same state
after any error or restart. Signals from proplets are folded in before (`absorb`). The caller records `Decision.status`
with the version it read, and does `Decision.then` only after that.

What it guarantees, if the caller keeps that order:

* the intent to start an attempt is recorded before its start is published, so attempts are never reused;
* only the current attempt's result counts, and only once;
* every phase that is not terminal has a way out that needs nobody's goodwill: silence ends in a loss, a loss in another
  attempt or a final phase.

Never does: I/O, clocks, logging.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from proplet.agent.wire import FederatedUpdate, InventoryItem, Reason, RestartPolicy
from proplet.manager import broadcast, conditions, deletion, outcome, recurrence
from proplet.manager.command import start_of, stop_of
from proplet.manager.exchange import (
    Contact,
    Contacts,
    Decision,
    Effect,
    Ended,
    Handed,
    Holds,
    Lacks,
    Moment,
    Policy,
    SendStart,
    SendStop,
    SessionLost,
    Signal,
    Unsendable,
)
from proplet.manager.model import Task, TaskStatus
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.placement import Fleet
from proplet.manager.workflow import Verdict, judge
from proplet.manager.world import World

UNDER_WAY = frozenset({Phase.SCHEDULED, Phase.RUNNING})
_CROWDED_TELL_S = 10.0  # a task that waits this long for a free place says so in its status
_TELL_EVERY_S = 10.0  # a fleet in motion does not wear the flash with the words for it
_STEPS = 8


def settle(task: Task, signals: Sequence[Signal], contacts: Contacts, world: World, at: Moment) -> Decision:
    """Return what follows from the task as it is and from `signals`, in order: one status to record for all of it."""
    before, then, step, why = task.status, list[Effect](), Decision(), ""
    for signal in signals:
        task = replace(task, status=absorb(task, signal, contacts, world, at))
    for _ in range(_STEPS):
        step = reconcile(task, contacts, world, at)
        then += step.then
        why = step.why or why
        if step.status is None or step.status == task.status:
            break
        task = replace(task, status=step.status)
        world.fleet.assign(task.id, holder(task))
    status = _described(task, before, why, world, at)
    return replace(step, status=status if status != before else None, then=tuple(then))


def _described(task: Task, before: TaskStatus, why: str, world: World, at: Moment) -> TaskStatus:
    """The status with the conditions that say it, where there is anything new to say."""
    status = task.status
    if status == before and not (why and status.phase is Phase.PENDING):
        return status
    shown = conditions.of_task(task, status, why, world.type_of(status.proplet_id), at.wall)
    return replace(status, conditions=shown)


def holder(task: Task) -> str | None:
    """Return the proplet that a task is with, or None."""
    return task.status.proplet_id if task.status.phase in UNDER_WAY else None


def stray(task: Task | None, proplet_id: str, item: InventoryItem) -> bool:
    """Whether what a proplet holds is an attempt of a task of ours that nobody wants any more."""
    if task is None:
        return False
    status = task.status
    if task.spec.broadcast:
        return status.phase not in UNDER_WAY
    if item.attempt is not None and item.attempt != status.attempt:
        return item.attempt < status.attempt
    if status.phase is Phase.PENDING:
        return status.proplet_id != proplet_id
    return status.phase in TERMINAL or status.proplet_id != proplet_id


# --- signals ----------------------------------------------------------------------------------------------------------


def absorb(task: Task, signal: Signal, contacts: Contacts, world: World, at: Moment) -> TaskStatus:
    """Return the task's status after `signal`; what is not about the current attempt changes nothing."""
    if isinstance(signal, Unsendable):
        if task.status.phase in UNDER_WAY and signal.attempt == task.status.attempt:
            return outcome.failed(task.status, Reason.INVALID_COMMAND, signal.message, at.wall)
        return task.status
    if task.spec.broadcast:
        return broadcast.absorb(task, signal, contacts, world, at)
    status, policy = task.status, world.policy
    open_attempt = status.phase in UNDER_WAY or (status.phase is Phase.PENDING and status.proplet_id is not None)
    if not open_attempt or status.proplet_id is None:
        return status
    contact = contact_of(task, status.proplet_id, contacts, world, at)
    match signal:
        case Holds(proplet_id, attempt) if proplet_id == status.proplet_id and attempt in (None, status.attempt):
            contact.hear(at.mono, policy, ended=signal.ended)
            return outcome.held(status, signal, at.wall)
        case Handed(proplet_id, attempt) if proplet_id == status.proplet_id and attempt == status.attempt:
            return outcome.confirmed(status, at.wall) if status.phase is Phase.SCHEDULED else status
        case Lacks(proplet_id) if proplet_id == status.proplet_id and status.phase in UNDER_WAY:
            contact.miss(at.mono, policy)
        case SessionLost() if _may_run_twice(task, world.fleet) and status.phase in UNDER_WAY:
            contact.ask_at = at.mono
        case Ended() if _counts(status, signal):
            if signal.result.ext and signal.result.ext.reason is Reason.OVERLOADED:
                world.fleet.resting[status.proplet_id] = at.mono + policy.overload_rest_s
            return outcome.ended(task, signal.result, policy, at.wall)
        case _:
            pass
    return status


def _counts(status: TaskStatus, signal: Ended) -> bool:
    """Whether a result is the current attempt's.

    Peers of the reference send no attempt and, with a federated update, name themselves only inside of it.
    """
    result = signal.result
    sender: str | None = result.proplet_id
    if not sender and signal.attempt is None:
        inside = result.results.proplet_id if isinstance(result.results, FederatedUpdate) else ""
        sender = inside or status.proplet_id
    return sender == status.proplet_id and signal.attempt in (None, status.attempt)


def _may_run_twice(task: Task, fleet: Fleet) -> bool:
    """Whether a proplet that tells nothing may get a start again: it ignores what runs and repeats what has ended."""
    peer = fleet.peers.get(task.status.proplet_id or "")
    never = task.spec.restart_policy is RestartPolicy.NEVER
    return peer is not None and not peer.tells and not task.spec.daemon and not never


def contact_of(task: Task, proplet_id: str, contacts: Contacts, world: World, at: Moment) -> Contact:
    """Return the contact of the current attempt; one that this process did not start is first given time to tell."""
    if task.status.phase is Phase.SCHEDULED:
        ask_at = at.mono
    else:
        peer = world.fleet.peers.get(proplet_id)
        ask_at = at.mono + world.policy.confirm_s * 2 if peer is None or peer.tells else math.inf
    return contacts.of(proplet_id, task.status.attempt, at.mono, ask_at=ask_at)


# --- reconciling ------------------------------------------------------------------------------------------------------


def reconcile(task: Task, contacts: Contacts, world: World, at: Moment) -> Decision:
    """Return the next step for the task as it is now."""
    phase = task.status.phase
    if phase in TERMINAL:
        return _retire(task, at)
    if phase is Phase.PENDING:
        return _admit(task, world, at)
    changed = deletion.asked(task) or recurrence.overrun(task, at)
    if changed is not None:
        return Decision(changed)
    follow = broadcast.follow if task.spec.broadcast else _follow
    step = follow(task, contacts, world, at)
    if step.status is not None:
        return step
    mark, due = deletion.mark(task, world.policy, at)
    return replace(step, mark=mark, wake=min(step.wake, due, recurrence.wake(task, at)))


def _retire(task: Task, at: Moment) -> Decision:
    if deletion.is_marked(task):
        return Decision(mark=False)
    if task.meta.deleted_at:
        return Decision()
    if task.spec.schedule and task.spec.is_recurring:
        return recurrence.again(task, at)
    keep = task.spec.ttl_seconds_after_finished
    if keep is None:
        return Decision()
    left = task.status.finished_at + keep - at.wall
    return Decision(delete=True) if left <= 0 else Decision(wake=at.mono + left)


def _admit(task: Task, world: World, at: Moment) -> Decision:
    """A pending task: may it start, and where?"""
    status, fleet = task.status, world.fleet
    if task.meta.deleted_at:
        return Decision(mark=False) if deletion.is_marked(task) else Decision()
    if status.stop_requested:
        return Decision(outcome.stopped(status, "stopped before it was placed", at.wall))
    if task.spec.held:
        return Decision()
    problem = world.unsupported(task)
    if problem is not None:
        return Decision(outcome.failed(status, Reason.NOT_SUPPORTED, problem, at.wall))
    held_back = _held_back(task, world, at)
    if held_back is not None:
        return held_back
    if not fleet.connected:
        return _wait(task, "NotConnected", "the manager is not connected to its broker", fleet, at)
    expires = recurrence.expires(task, at)
    if task.spec.broadcast:
        if not fleet.fitting(task):
            return _until(_wait(task, "NoProplet", fleet.explain(task), fleet, at), expires)
        return _send_out(task, broadcast.dispatched(task, fleet, at), world, at)
    placement = fleet.place(task, at.mono, avoid=status.proplet_id)
    if placement.proplet_id is None and not placement.crowded:
        return _until(_wait(task, "NoProplet", placement.message, fleet, at), expires)
    if placement.proplet_id is None or world.outranked(task):
        return _until(_queue_up(task, placement.message or "tasks of higher priority come first", at), expires)
    sent = outcome.dispatched(task, placement.proplet_id, at.wall)
    return _send_out(task, replace(sent, assigned_proplet=world.name_of(placement.proplet_id)), world, at)


def _held_back(task: Task, world: World, at: Moment) -> Decision | None:
    """Why it is not to start yet, whatever proplets there are; None: it may."""
    status = task.status
    if task.spec.suspend:
        return Decision(replace(status, message="it is suspended until spec.suspend is false"), why="Suspended")
    if task.spec.schedule and (due := recurrence.gate(task, at)) is not None:
        return due
    judgement = judge(task, world.find, world.circle)
    match judgement.verdict:
        case Verdict.WAIT:
            return Decision(replace(status, message=judgement.message), why="WaitingForDependencies")
        case Verdict.SKIP:
            return Decision(outcome.skipped(status, judgement.message, at.wall))
        case Verdict.FAIL:
            return Decision(outcome.failed(status, Reason.INVALID_COMMAND, judgement.message, at.wall))
        case Verdict.RUN:
            pass
    wait = status.not_before - at.wall
    if 0 < wait <= world.policy.backoff_max_s:  # more can only be a clock that was set back
        return Decision(wake=at.mono + wait)
    return None


def _send_out(task: Task, status: TaskStatus, world: World, at: Moment) -> Decision:
    """The intent to start it; what lasts for sure is marked before."""
    if task.spec.lasts and world.policy.finalizers and not deletion.is_marked(task):
        return Decision(mark=True)
    return Decision(replace(status, next_run=recurrence.following(task, at)) if task.spec.schedule else status)


def _queue_up(task: Task, message: str, at: Moment) -> Decision:
    """It waits for room on the proplets that fit."""
    if at.wall - task.meta.created_at <= _CROWDED_TELL_S:
        return Decision(crowded=True)
    return Decision(replace(task.status, message=message), crowded=True, why="NoRoom")


def _until(decision: Decision, expires: float) -> Decision:
    return replace(decision, wake=min(decision.wake, expires))


def _wait(task: Task, why: str, message: str, fleet: Fleet, at: Moment) -> Decision:
    if at.mono < fleet.quiet_until:
        return Decision(wake=fleet.quiet_until, awaiting=True)
    told = task.status.message
    waited = bool(told) and not told.endswith(outcome.PLACED_AGAIN)
    if waited and message != told and 0 <= at.wall - task.meta.updated_at < _TELL_EVERY_S:
        return Decision(wake=at.mono + _TELL_EVERY_S, awaiting=True)
    return Decision(replace(task.status, message=message), awaiting=True, why=why)


def _follow(task: Task, contacts: Contacts, world: World, at: Moment) -> Decision:
    """A task that is with a proplet: is it still, does it know, is it to end?"""
    status, fleet, policy = task.status, world.fleet, world.policy
    proplet_id = status.proplet_id or ""
    peer = fleet.peers.get(proplet_id)
    tells = world.tells(proplet_id)
    if fleet.gone(proplet_id):
        why = peer.why if peer else "nothing was heard of it"
        return Decision(outcome.lost(task, f"proplet {proplet_id} was lost: {why}", policy, at.wall))
    contact = contact_of(task, proplet_id, contacts, world, at)
    if status.stop_requested:
        return _stop(task, contact, policy, at, tells=tells, connected=fleet.connected)
    if not tells and peer is not None and not task.spec.lasts:
        overdue = _overdue(task, contact, world, at)
        if overdue is not None:
            return overdue
    wake = math.inf if tells or task.spec.lasts else contact.since + world.deadline(task)
    if not fleet.connected or contact.ask_at > at.mono:
        return Decision(wake=min(wake, contact.ask_at) if fleet.connected else wake)
    if contact.sends >= policy.max_sends:
        text = f"proplet {proplet_id} did not confirm attempt {status.attempt}, sent {contact.sends} times"
        return Decision(outcome.lost(task, text, policy, at.wall))
    return Decision(then=(SendStart(proplet_id, start_of(task, proplet_id)),), wake=wake)


def _overdue(task: Task, contact: Contact, world: World, at: Moment) -> Decision | None:
    """What becomes of a task with a proplet that never says what it holds, once its deadline is over."""
    status, deadline = task.status, world.deadline(task)
    if at.mono < contact.since + deadline:
        return None
    farewell = (SendStop(status.proplet_id, stop_of(task.id, status.proplet_id, status.attempt), farewell=True),)
    if task.spec.active_deadline_seconds is not None:
        text = f"no result within its deadline of {task.spec.active_deadline_seconds:g} s"
        return Decision(outcome.failed(status, Reason.TIMEOUT, text, at.wall), farewell)
    text = f"proplet {status.proplet_id}, which does not tell what it holds, sent no result for {deadline:g} s"
    return Decision(outcome.lost(task, text, world.policy, at.wall), farewell)


def _stop(task: Task, contact: Contact, policy: Policy, at: Moment, *, tells: bool, connected: bool) -> Decision:
    """Ask until there is an answer; then it is not waited for any longer."""
    status = task.status
    if contact.missing and contact.ask_at <= at.mono:
        return Decision(outcome.stopped(status, f"stopped; proplet {status.proplet_id} no longer held it", at.wall))
    soonest = min(contact.stop_at, contact.ask_at) if contact.missing else contact.stop_at
    if soonest > at.mono or not connected:
        return Decision(wake=soonest if connected else math.inf)
    if contact.stops >= (policy.max_stops if tells else 1):
        text = f"stopped; proplet {status.proplet_id} did not confirm it, asked {contact.stops} times"
        return Decision(outcome.stopped(status, text, at.wall))
    return Decision(then=(SendStop(status.proplet_id, stop_of(task.id, status.proplet_id, status.attempt)),))
