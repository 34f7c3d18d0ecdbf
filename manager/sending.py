"""One command on its way: published, and what became of it noted in the contact."""

import logging
from collections.abc import Callable

from proplet.manager.bus import TooLargeError
from proplet.manager.exchange import Contact, Effect, Handed, Policy, SendStart, Signal, Unsendable
from proplet.manager.ports import Bus, BusError

log = logging.getLogger(__name__)


async def send(
    effect: Effect, contact: Contact, bus: Bus, policy: Policy, mono: Callable[[], float], *, tells: bool
) -> Signal | None:
    """Publish; return what that says about the task. `contact` says when the same is due again.

    `tells`: the proplet confirms what it takes. Of one that does not, the broker's word counts.
    """
    try:
        if isinstance(effect, SendStart):
            await bus.start(effect.proplet_id, effect.command)
        else:
            await bus.stop(effect.proplet_id, effect.command)
    except TooLargeError as error:
        return Unsendable(contact.attempt, str(error))
    except BusError as error:
        log.info("task %s: the command is sent again later: %s", effect.command.id, error)
        contact.unsent(mono())
        return None
    if not isinstance(effect, SendStart):
        contact.stopped(mono(), policy, tells=tells)
        return None
    now = mono()
    if contact.ask_at <= now:  # else the proplet has answered before the broker did
        contact.sent(now, policy, tells=tells)
    return None if tells else Handed(effect.proplet_id, contact.attempt)
