"""A Task that runs on every proplet at once: who is expected to answer, what each said, when it is over.

The status lists the proplets that were alive when it was dispatched, one entry each; an entry ends with a result, with
the loss of its proplet or, on proplets that tell nothing, after the deadline. It is not placed again elsewhere: every
proplet already has it. Pure, like `core`, which calls it.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from proplet.agent.codec import to_plain
from proplet.agent.wire import Reason
from proplet.manager import outcome
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
    SendStart,
    SendStop,
    SessionLost,
    Signal,
)
from proplet.manager.model import PropletSelector, Task, TaskStatus
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.placement import Fleet
from proplet.manager.world import World

Entry = Mapping[str, Any]
_OVER: Final = frozenset(p.value for p in TERMINAL)


def dispatched(task: Task, fleet: Fleet, at: Moment) -> TaskStatus:
    """The intent to start it on every proplet that fits and is alive."""
    entries = tuple({"proplet_id": p, "phase": Phase.SCHEDULED.value} for p in fleet.fitting(task))
    return replace(outcome.dispatched(task, None, at.wall), broadcast_results=entries)


def to_everybody(task: Task, fleet: Fleet) -> bool:
    """Whether one message on the shared topic will do: it reaches every proplet, so none may be excluded."""
    spec = task.spec
    no_needs = spec.resources.memory_bytes is None and spec.resources.cpu is None and not spec.resources.custom
    anybody = spec.selector == PropletSelector() and spec.preferred_proplet_type in ("", "any") and no_needs
    return anybody and not fleet.excludes(task)


def absorb(task: Task, signal: Signal, contacts: Contacts, world: World, at: Moment) -> TaskStatus:
    """Return the status after a proplet's word about its run."""
    status = task.status
    if status.phase not in (Phase.SCHEDULED, Phase.RUNNING):
        return status
    match signal:
        case Holds(proplet_id, attempt) if attempt in (None, status.attempt):
            if (entry := _open_entry(status, proplet_id)) is not None:
                _contact(task, proplet_id, contacts, world, at).hear(at.mono, world.policy, ended=signal.ended)
                if signal.confirms:
                    status = _with(status, {**entry, "phase": Phase.RUNNING.value})
                    return outcome.confirmed(status, at.wall)
        case Handed(_, attempt) if attempt == status.attempt:
            return outcome.confirmed(status, at.wall)
        case Lacks(proplet_id) if _open_entry(status, proplet_id) is not None:
            _contact(task, proplet_id, contacts, world, at).miss(at.mono, world.policy)
        case SessionLost() if not task.spec.daemon:
            for entry in status.broadcast_results:
                peer = world.fleet.peers.get(entry["proplet_id"])
                if entry["phase"] not in _OVER and peer is not None and not peer.tells:
                    _contact(task, peer.id, contacts, world, at).ask_at = at.mono
        case Ended() if signal.attempt in (None, status.attempt):
            known = any(e["proplet_id"] == signal.result.proplet_id for e in status.broadcast_results)
            if known or signal.result.proplet_id in world.fleet.peers:
                return _with_result(task, signal, at)
        case _:
            pass
    return status


def _with_result(task: Task, signal: Ended, at: Moment) -> TaskStatus:
    """Only the first result of a proplet counts; one that was not expected to answer is welcome, too."""
    status, result = task.status, signal.result
    if any(e["proplet_id"] == result.proplet_id and e["phase"] in _OVER for e in status.broadcast_results):
        return status
    phase = Phase.COMPLETED
    reason = result.ext.reason if result.ext else None
    if result.error:
        gave_up = reason in (Reason.STOPPED, Reason.INTERRUPTED) or (reason is None and status.stop_requested)
        phase = Phase.INTERRUPTED if gave_up else Phase.FAILED
    entry = {"proplet_id": result.proplet_id, "phase": phase.value, "results": outcome.result_text(result)}
    details = {
        "error": result.error or None,
        "reason": reason.value if reason else None,
        "exit_code": result.ext.exit_code if result.ext else None,
        "usage": to_plain(result.ext.usage) if result.ext and result.ext.usage else None,
        "finished_at": at.wall,
    }
    return _with(status, {**entry, **{k: v for k, v in details.items() if v is not None}})


def follow(task: Task, contacts: Contacts, world: World, at: Moment) -> Decision:
    """What is due for a broadcast task that is under way."""
    status, then, wake = task.status, list[Effect](), math.inf
    waiting = [e for e in status.broadcast_results if e["phase"] not in _OVER]
    if not status.broadcast_results:  # it was dispatched as another kind of task, and changed behind our back
        return Decision(outcome.lost(task, "it became a broadcast after it was dispatched", world.policy, at.wall))
    if not waiting:
        return Decision(_conclude(status, at))
    shared = to_everybody(task, world.fleet) and not status.stop_requested
    if shared:
        ask_at = at.mono if status.phase is Phase.SCHEDULED else math.inf
        everybody = contacts.of(None, status.attempt, at.mono, ask_at=ask_at)
        if world.fleet.connected and everybody.sends == 0 and everybody.ask_at <= at.mono:
            then.append(SendStart(None, start_of(task, None)))
        elif everybody.sends == 0:
            wake = min(wake, everybody.ask_at)
    for entry in waiting:
        proplet_id = entry["proplet_id"]
        contact = _contact(task, proplet_id, contacts, world, at)
        given_up = _given_up(task, proplet_id, contact, world, at)
        if given_up is not None:
            status = _with(status, {**entry, **given_up, "finished_at": at.wall})
        elif world.fleet.connected:
            command, due = _due(task, proplet_id, contact, at)
            wake = min(wake, due)
            if command is not None:
                then.append(command)
        if not world.tells(proplet_id) and not task.spec.lasts:
            wake = min(wake, contact.since + world.deadline(task))
    return Decision(status if status != task.status else None, tuple(then), wake)


def _contact(task: Task, proplet_id: str, contacts: Contacts, world: World, at: Moment) -> Contact:
    """What was said with one of them. On the shared topic it has been told; alone, it is to be told now."""
    if not world.tells(proplet_id):
        ask_at = math.inf if to_everybody(task, world.fleet) or task.status.phase is Phase.RUNNING else at.mono
    elif task.status.phase is Phase.SCHEDULED and not to_everybody(task, world.fleet):
        ask_at = at.mono
    else:
        ask_at = at.mono + world.policy.confirm_s
    return contacts.of(proplet_id, task.status.attempt, at.mono, ask_at=ask_at)


def _given_up(task: Task, proplet_id: str, contact: Contact, world: World, at: Moment) -> dict[str, Any] | None:
    """How an entry ends without a result, or None."""
    tells = world.tells(proplet_id)

    def over(phase: Phase, reason: Reason, text: str) -> dict[str, Any]:
        return {"phase": phase.value, "reason": reason.value, "error": text}

    if task.status.stop_requested:
        if contact.missing and contact.ask_at <= at.mono:
            return over(Phase.INTERRUPTED, Reason.STOPPED, "stopped; it no longer held the task")
        if contact.stops >= (world.policy.max_stops if tells else 1) and contact.stop_at <= at.mono:
            return over(Phase.INTERRUPTED, Reason.STOPPED, "stopped; it did not confirm that")
    if world.fleet.gone(proplet_id):
        phase = Phase.INTERRUPTED if task.status.stop_requested else Phase.FAILED
        return over(phase, Reason.LOST, "it was lost before it answered")
    if contact.sends >= world.policy.max_sends and contact.ask_at <= at.mono:
        return over(Phase.FAILED, Reason.LOST, "it did not confirm the start")
    if not tells and not task.spec.lasts and at.mono >= contact.since + world.deadline(task):
        return over(Phase.FAILED, Reason.TIMEOUT, "it sent no result within the deadline")
    return None


def _due(task: Task, proplet_id: str, contact: Contact, at: Moment) -> tuple[Effect | None, float]:
    """The command that is due for one of them, and else when one will be."""
    status = task.status
    if status.stop_requested:
        if contact.stop_at <= at.mono:
            return SendStop(proplet_id, stop_of(task.id, proplet_id, status.attempt)), math.inf
        return None, min(contact.stop_at, contact.ask_at) if contact.missing else contact.stop_at
    if contact.ask_at <= at.mono:
        return SendStart(proplet_id, start_of(task, proplet_id)), math.inf
    return None, contact.ask_at


def _open_entry(status: TaskStatus, proplet_id: str) -> Entry | None:
    for entry in status.broadcast_results:
        if entry["proplet_id"] == proplet_id and entry["phase"] not in _OVER:
            return entry
    return None


def _with(status: TaskStatus, entry: Entry) -> TaskStatus:
    """The status with one proplet's entry replaced or added."""
    others = list(status.broadcast_results)
    for index, old in enumerate(others):
        if old["proplet_id"] == entry["proplet_id"]:
            others[index] = entry
            break
    else:
        others.append(entry)
    return replace(status, broadcast_results=tuple(others))


def _conclude(status: TaskStatus, at: Moment) -> TaskStatus:
    """All have answered, or will not."""
    entries = status.broadcast_results
    bad = [e for e in entries if e["phase"] != Phase.COMPLETED.value]
    if not bad:
        done = outcome.confirmed(status, at.wall)
        return outcome.succeeded(done, next((e.get("results") for e in entries), None), at.wall)
    if all(e["phase"] == Phase.INTERRUPTED.value for e in bad):
        return outcome.stopped(status, f"stopped on {len(bad)} of {len(entries)} proplets", at.wall)
    first = "; ".join(f"{e['proplet_id']}: {e.get('error', '')}" for e in bad[:3])
    reasons = {e.get("reason") for e in bad}
    reason = Reason(reasons.pop()) if len(reasons) == 1 and None not in reasons else None
    return outcome.failed(status, reason, f"{len(bad)} of {len(entries)} proplets failed: {first}", at.wall)
