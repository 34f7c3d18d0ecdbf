"""One command on its way: published, and what became of it noted in the contact."""

import logging
from collections.abc import Callable
from typing import Final

from proplet.agent.wire import Start
from proplet.manager.bus import TooLargeError
from proplet.manager.exchange import Contact, Effect, Handed, Policy, SendStart, Signal, Unsendable
from proplet.manager.ports import Bus, BusError

log = logging.getLogger(__name__)

_LARGE: Final = 64 * 1024


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
        return _unsent(effect, contact, policy, mono(), error)
    if not isinstance(effect, SendStart):
        contact.stopped(mono(), policy, tells=tells)
        return None
    now = mono()
    if contact.ask_at <= now:  # else the proplet has answered before the broker did
        contact.sent(now, policy, tells=tells)
    return None if tells else Handed(effect.proplet_id, contact.attempt)


def _unsent(effect: Effect, contact: Contact, policy: Policy, mono: float, error: BusError) -> Signal | None:
    """The broker did not take it. A large start that costs the connection every time is more than this broker takes.

    Brokers of MQTT 3.1.1 have no other way to say so. The larger, the longer the pause: others get through meanwhile.
    """
    size = _size(effect.command) if isinstance(effect, SendStart) else 0
    contact.unsent(mono, policy.confirm_s / 5 * (1 + size / _LARGE))
    if size > _LARGE and contact.broken >= policy.max_sends:
        text = (
            f"the broker did not take its {size} bytes, sent {contact.broken} times ({error}): put the module into a "
        )
        return Unsendable(contact.attempt, f"{text}registry and name it by imageUrl, or have the broker take more")
    log.info("task %s: the command is sent again later: %s", effect.command.id, error)
    return None


def _size(start: Start) -> int:
    return len(start.file or b"") + sum(map(len, start.inputs)) + sum(map(len, start.env.values()))
