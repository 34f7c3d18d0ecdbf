"""Who is there: proplets and their lives, in memory, from heartbeats, wills and discovery.

A heartbeat writes nothing; what is worth a record (`wanted`) changes only with the phase or the description. Only
proplets are ever proplets: somebody's `offline` never makes one, and managers' ids are not taken for one.

Time is only counted while this manager is connected: when it was deaf, silence says nothing. Loss is decided here, by
`Policy.silence_s` without a heartbeat or `Policy.offline_grace_s` after a will.
"""

import math
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from proplet.agent.codec import rfc3339
from proplet.agent.topics import InvalidTopicError, check_level
from proplet.agent.wire import OFFLINE, Alive, Announcement, Discovery, Metadata
from proplet.manager.exchange import Moment, Policy
from proplet.manager.model import Condition, Meta, Proplet, PropletPhase, PropletSpec, PropletStatus
from proplet.manager.placement import Fleet, Peer
from proplet.manager.ports import Liveness

HISTORY: Final = 10
MAX_PROPLETS: Final = 10_000  # ids are claims that nobody checks here


@dataclass(slots=True)
class _Entry:
    proplet: Proplet
    recorded: bool = False  # there is a record in the store
    seen: float = -math.inf  # monotonic
    seen_wall: float = 0.0
    offline_at: float | None = None  # monotonic; it, or its broker, said so
    alive: bool = False
    announced: Announcement | None = None
    metadata: Metadata | None = None
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))


class Registry:
    """The proplets this manager knows. It keeps `fleet.peers` up to date."""

    def __init__(self, fleet: Fleet, policy: Policy, not_proplets: Collection[str] = ()) -> None:
        self._fleet = fleet
        self._policy = policy
        self._not_proplets = frozenset(not_proplets)
        self._entries: dict[str, _Entry] = {}
        self._connected_at: float | None = None

    # --- the connection -----------------------------------------------------------------------------------------------

    def connected(self, at: Moment) -> None:
        """Silence counts from now."""
        self._connected_at = at.mono

    def disconnected(self) -> None:
        """Nothing is heard, so silence says nothing."""
        self._connected_at = None

    # --- what is heard ------------------------------------------------------------------------------------------------

    def discovered(self, message: Discovery, at: Moment) -> str | None:
        """A proplet introduces itself; return its id if that is news."""
        entry = self._entry(message.proplet_id)
        if entry is None:
            return None
        before = (entry.announced, entry.metadata)
        entry.announced = message.ext or Announcement(v=0)
        entry.metadata = message.metadata or entry.metadata
        news = self._seen(entry, at)
        if before != (entry.announced, entry.metadata):
            self._show(entry, at)
            return entry.proplet.id
        return entry.proplet.id if news else None

    def heard(self, message: Alive, at: Moment) -> str | None:
        """A heartbeat or a will; return its id if that is news."""
        if message.status == OFFLINE:
            entry = self._entries.get(message.proplet_id)
            if entry is None or entry.offline_at is not None:
                return None
            entry.offline_at, entry.alive = at.mono, False
            self._show(entry, at)
            return entry.proplet.id
        entry = self._entry(message.proplet_id)
        if entry is None:
            return None
        described = message.metadata is not None and message.metadata != entry.metadata
        entry.metadata = message.metadata or entry.metadata
        entry.history.append(at.wall)
        news = self._seen(entry, at)
        if described:
            self._show(entry, at)
        return entry.proplet.id if news or described else None

    def _entry(self, proplet_id: str) -> _Entry | None:
        """The entry of a proplet that spoke; None for what is no proplet's id."""
        entry = self._entries.get(proplet_id)
        if entry is not None or proplet_id in self._not_proplets or len(self._entries) >= MAX_PROPLETS:
            return entry
        try:
            check_level(proplet_id, "the proplet id")
        except InvalidTopicError:
            return None
        entry = self._entries[proplet_id] = _Entry(Proplet(Meta(proplet_id), PropletSpec(declared=False)))
        return entry

    def _seen(self, entry: _Entry, at: Moment) -> bool:
        entry.seen, entry.seen_wall = at.mono, at.wall
        if entry.alive:
            return False
        entry.offline_at, entry.alive = None, True
        self._show(entry, at)
        return True

    # --- what the store says ------------------------------------------------------------------------------------------

    def learn(self, proplet: Proplet, at: Moment) -> None:
        """A record of it exists, or was changed."""
        for other, entry in list(self._entries.items()):
            if other != proplet.id and entry.recorded and entry.proplet.meta.uid == proplet.meta.uid:
                self.forget(other)  # its connection names another id now
        entry = self._entries.setdefault(proplet.id, _Entry(proplet))
        entry.proplet, entry.recorded = proplet, True
        self._show(entry, at)

    def forget(self, proplet_id: str) -> None:
        """Its record was deleted. A live one is recorded anew with its next heartbeat."""
        entry = self._entries.pop(proplet_id, None)
        if entry is None:
            return
        self._fleet.hide(proplet_id)
        if entry.alive:
            fresh = _Entry(Proplet(Meta(proplet_id), PropletSpec(declared=False)))
            fresh.announced, fresh.metadata = entry.announced, entry.metadata
            self._entries[proplet_id] = fresh

    def known(self, proplet_id: str) -> tuple[Proplet, bool] | None:
        """Return the proplet as known and whether it has a record."""
        entry = self._entries.get(proplet_id)
        return None if entry is None else (entry.proplet, entry.recorded)

    # --- time ---------------------------------------------------------------------------------------------------------

    def sweep(self, at: Moment) -> Iterator[str]:
        """Yield the ids of proplets whose life has changed by nothing but time."""
        base = self._connected_at
        if base is None:
            return
        if at.mono - base > self._policy.silence_s:
            self._fleet.settled = True
        for entry in list(self._entries.values()):
            if entry.alive and at.mono - max(entry.seen, base) <= self._policy.silence_s:
                continue  # shown when it was heard
            entry.alive = False
            if self._show(entry, at):
                yield entry.proplet.id

    def _show(self, entry: _Entry, at: Moment) -> bool:
        base, before = self._connected_at, self._fleet.peers.get(entry.proplet.id)
        lost = False
        if not entry.alive:
            if base is None:  # deaf: what was so stays
                lost = before is not None and before.lost
            elif entry.offline_at is not None:
                lost = at.mono - max(entry.offline_at, base) > self._policy.offline_grace_s
            else:
                lost = at.mono - max(entry.seen, base) > self._policy.silence_s
        proplet = replace(entry.proplet, status=self._status(entry))
        peer = Peer(proplet, entry.alive, lost, self._tells(entry), "" if entry.alive else _why(entry))
        return self._fleet.show(peer)

    def _topics(self, entry: _Entry) -> tuple[str, ...]:
        return entry.announced.topics if entry.announced else entry.proplet.status.extensions

    def _tells(self, entry: _Entry) -> bool:
        return "inventory" in self._topics(entry)

    # --- what others ask ----------------------------------------------------------------------------------------------

    def announcement(self, proplet_id: str) -> Announcement | None:
        """Return what a proplet understands: by its own word, else as recorded."""
        entry = self._entries.get(proplet_id)
        if entry is None:
            return None
        recorded = entry.proplet.status
        return entry.announced or Announcement(1, recorded.encodings, recorded.extensions)

    def liveness(self, proplet_id: str, at: Moment) -> Liveness:
        """Return what is known of a proplet's life."""
        entry = self._entries.get(proplet_id)
        if entry is None:
            return Liveness(alive=False, reason="not known")
        reason = ""
        if not entry.alive:
            if entry.offline_at is not None:
                reason = "said offline"
            elif entry.seen > -math.inf:
                reason = f"no heartbeat for {at.mono - entry.seen:.0f} s"
            else:
                reason = "not heard of since this manager started"
        held = len(self._fleet.held.get(proplet_id, ()))
        seen = entry.seen_wall or entry.proplet.status.last_seen
        return Liveness(entry.alive, seen, tuple(entry.history), held, reason)

    def wanted(self, proplet_id: str, at: Moment) -> PropletStatus | None:
        """Return the status that should be recorded, or None: what is recorded will do."""
        entry = self._entries.get(proplet_id)
        if entry is None:
            return None
        status, peer = entry.proplet.status, self._fleet.peers.get(proplet_id)
        phase = status.phase
        if entry.alive:
            phase = PropletPhase.RUNNING
        elif entry.offline_at is not None or (peer is not None and peer.lost):
            phase = PropletPhase.OFFLINE
        wanted = replace(self._status(entry), phase=phase)
        if (wanted.phase, wanted.metadata, wanted.extensions, wanted.encodings) == (
            status.phase,
            status.metadata,
            status.extensions,
            status.encodings,
        ) and entry.recorded:
            return None
        conditions = _conditions(entry.alive, _why(entry), status.conditions, at.wall)
        return replace(wanted, last_seen=entry.seen_wall or status.last_seen, conditions=conditions)

    def _status(self, entry: _Entry) -> PropletStatus:
        status, said = entry.proplet.status, entry.announced
        return replace(
            status,
            metadata=entry.metadata or status.metadata,
            extensions=said.topics if said else status.extensions,
            encodings=said.encodings if said else status.encodings,
        )


def _why(entry: _Entry) -> str:
    """Why it is not alive, in words that stay the same while it is away."""
    seen = entry.seen_wall or entry.proplet.status.last_seen
    if not seen:
        return "it was never heard of"
    last = f"last heard of at {rfc3339(int(seen))[:19]}Z"
    return f"it said offline, {last}" if entry.offline_at is not None else last


def _conditions(alive: bool, why: str, before: tuple[Condition, ...], wall: float) -> tuple[Condition, ...]:
    """The reference operator's conditions of an external proplet, with its reasons."""
    wanted = (
        Condition("Ready", alive, "PropletReady" if alive else "PropletOffline", "" if alive else why, wall),
        Condition("Connected", alive, "PropletOnline" if alive else "PropletOffline", "" if alive else why, wall),
    )
    old = {c.type: c for c in before}
    return tuple(
        replace(c, last_transition_time=old[c.type].last_transition_time)
        if c.type in old and old[c.type].status == c.status
        else c
        for c in wanted
    )
