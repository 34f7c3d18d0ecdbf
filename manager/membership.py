"""Which proplets are a manager's, and what is said to those that it cannot work with. Pure."""

from dataclasses import dataclass, replace
from typing import Any

from proplet.manager import conditions
from proplet.manager.model import Proplet, PropletPhase


@dataclass(frozen=True, slots=True)
class Membership:
    """Which proplets are this manager's.

    `register`: one that nobody declared gets a record in `namespace` when it announces itself, and serves every
    namespace. `channel`: the domain and channel this manager listens on; a declared proplet that is on another one
    cannot be heard here, and is told so. None takes all.
    """

    register: bool = True
    namespace: str = "default"
    channel: tuple[str, str] | None = None

    def connection_of(self, proplet_id: str) -> dict[str, Any]:
        """Return the connection of one that nobody declared and whose record is not named like it.

        In a cluster a connection has to be whole. The key is the device's own business: the Secret need not be there.
        """
        if self.channel is None:
            return {"entityId": proplet_id}
        domain, channel = self.channel
        key = {"name": "unknown", "key": "unknown", "optional": True}
        return {"domainId": domain, "channelId": channel, "clientId": proplet_id, "clientKeySecretRef": key}

    def refusal(self, proplet: Proplet, holder: Proplet | None) -> tuple[str, str] | None:
        """Return reason and message if a declared proplet cannot be worked with, None if it can.

        `holder` is the record that has its client id now. The elder of two has it, for all managers alike.
        """
        connection, channel = proplet.spec.connection, self.channel
        if channel is not None and connection:
            domain = connection.get("domainId") or connection.get("tenantId") or channel[0]
            wanted = (domain, connection.get("channelId") or channel[1])
            if wanted != channel:
                names = f"its connectionConfig names the domain {wanted[0]} and the channel {wanted[1]}"
                listens = f"this manager listens on the domain {channel[0]} and the channel {channel[1]}"
                return conditions.OTHER_CHANNEL, f"{names}; {listens}"
        if holder is None or holder.meta.uid == proplet.meta.uid or seniority(proplet) < seniority(holder):
            return None
        return conditions.DUPLICATE_IDENTITY, f"{proplet.id} is the client id of the Proplet {holder.meta.key}, too"


def with_refusal(proplet: Proplet, reason: str, message: str, wall: float) -> Proplet | None:
    """Return a refused proplet with the status that says so; None: it says so already, or its own manager's word."""
    status, generation = proplet.status, proplet.meta.generation
    ready = next((one for one in status.conditions if one.type == conditions.READY), None)
    said = ready is not None and ready.reason not in conditions.REFUSALS and status.observed_generation == generation
    if said and reason == conditions.OTHER_CHANNEL:
        return None
    told = replace(
        status,
        phase=PropletPhase.INITIALIZING,
        alive=False,
        conditions=conditions.refused(proplet, reason, message, wall),
        observed_generation=generation,
    )
    return None if told == status else replace(proplet, status=told)


def seniority(proplet: Proplet) -> tuple[float, str, str]:
    """Return who was there first, as an order."""
    return proplet.meta.created_at, proplet.meta.namespace, proplet.meta.name
