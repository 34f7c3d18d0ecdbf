"""Whether this node takes a start at all: what it cannot do, and how much it holds already. Pure."""

from dataclasses import dataclass

from proplet.agent.attempts import Attempts
from proplet.agent.wire import Start


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """The core's bounds. `max_active` runs are prepared or running at once; `max_accepted` wait beside them.

    `max_daemons` daemons have slots of their own: they would keep all others out for ever. `max_latent` tasks may lie
    ready to be invoked; they take a slot only while their module is prepared.
    `known_attempts` finished attempts are remembered, so that a repeated start is answered and not run again.
    """

    proplet_id: str
    max_active: int = 32
    max_daemons: int = 100
    max_latent: int = 100
    max_accepted: int = 10_000
    known_attempts: int = 4096


def unsupported(start: Start, settings: CoreSettings) -> str | None:
    """Return why this node cannot carry a well-formed start out, or None."""
    if start.encrypted:
        return "encrypted workloads need a trusted execution environment, which this proplet does not support"
    if start.latent and start.daemon:
        return "a daemon runs by itself and a latent task when it is invoked: a task cannot be both"
    if start.daemon and not settings.max_daemons:
        return "this proplet runs no daemons: [runtime] max_daemons is 0"
    if start.latent and not settings.max_latent:
        return "this proplet takes no latent tasks: [runtime] max_latent is 0"
    return None


def crowded(start: Start, settings: CoreSettings, held: Attempts) -> str | None:
    """Return why there is no room for a start beside what is held already, or None."""
    if held.waiting >= settings.max_accepted:
        return f"{held.waiting} tasks wait already; try another proplet, or later"
    if start.latent and held.latent_besides(start.id) >= settings.max_latent:
        return f"{settings.max_latent} latent tasks are here already, which is [runtime] max_latent: stop one"
    return None
