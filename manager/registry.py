"""Who is there: proplets and their lives, in memory, from heartbeats, wills and discovery.

A heartbeat writes nothing; what is worth a record (`wanted`) changes only with the phase or the description, and
`last_seen` with it, or once in `Policy.last_seen_every_s`. Only proplets are ever proplets: somebody's `offline` never
makes one, and managers' ids are not taken for one. Where unknown ones are not registered (`Membership.register`), one
that announces itself is remembered, but gets no record and no tasks until somebody declares it.

Time is only counted while this manager is connected: when it was deaf, silence says nothing. Loss is decided here, by
`Policy.silence_s` without a heartbeat or `Policy.offline_grace_s` after a will.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from proplet.agent.codec import rfc3339
from proplet.agent.topics import InvalidTopicError, check_level
from proplet.agent.wire import OFFLINE, Alive, Announcement, Discovery, Metadata, PropletMetrics
from proplet.manager import conditions
from proplet.manager.exchange import Moment, Policy
from proplet.manager.membership import Membership, seniority, with_refusal
from proplet.manager.model import DeviceMetrics, Meta, Proplet, PropletPhase, PropletSpec, PropletStatus, Resources
from proplet.manager.placement import Fleet, Peer
from proplet.manager.ports import Liveness

log = logging.getLogger(__name__)

HISTORY: Final = 10
REFUSED: Final = "/"  # before the uid of a record that is refused; no proplet's id has it
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
    metrics: DeviceMetrics | None = None
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))


class Registry:
    """The proplets this manager knows. It keeps `fleet.peers` up to date."""

    def __init__(
        self,
        fleet: Fleet,
        policy: Policy,
        not_proplets: Collection[str] = (),
        membership: Membership | None = None,
        assigned: Callable[[str], int] = lambda _proplet_id: 0,
    ) -> None:
        """`assigned` counts the Tasks that are or were with a proplet and are still there."""
        self._assigned = assigned
        self._fleet = fleet
        self._policy = policy
        self._membership = membership or Membership()
        self._refused: dict[str, Proplet] = {}  # by the uid of their records
        self._ids: dict[str, str] = {}  # by the uid of the record that has them
        self._touched: set[str] = set()
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

    def measured(self, message: PropletMetrics) -> None:
        """What a proplet uses; written down with its next sign of life, never for its own sake."""
        entry, memory = self._entries.get(message.proplet_id), self._memory_of(message.proplet_id)
        if entry is not None:
            used = message.memory_metrics.rss_bytes
            share = round(100_000 * used / memory) if memory else 0
            cpu = round(1000 * message.cpu_metrics.percent)
            entry.metrics = DeviceMetrics(message.timestamp, cpu, share, used)

    def _memory_of(self, proplet_id: str) -> int:
        entry = self._entries.get(proplet_id)
        metadata = (entry.metadata or entry.proplet.status.metadata) if entry is not None else None
        return metadata.total_memory_bytes if metadata is not None else 0

    def _entry(self, proplet_id: str) -> _Entry | None:
        """The entry of a proplet that spoke; None for what is no proplet's id."""
        entry = self._entries.get(proplet_id)
        if entry is not None or proplet_id in self._not_proplets or len(self._entries) >= MAX_PROPLETS:
            return entry
        try:
            check_level(proplet_id, "the proplet id")
        except InvalidTopicError:
            return None
        entry = self._entries[proplet_id] = self._unknown(proplet_id)
        if not self._membership.register:
            log.warning(
                "%r announces itself, but no Proplet has it as the clientId (or entityId) of its connectionConfig: it "
                "gets no tasks until one has (--register makes them)",
                proplet_id,
            )
        return entry

    def _seen(self, entry: _Entry, at: Moment) -> bool:
        entry.seen, entry.seen_wall = at.mono, at.wall
        if entry.alive:
            return False
        entry.offline_at, entry.alive = None, True
        self._show(entry, at)
        return True

    # --- what the store says ------------------------------------------------------------------------------------------

    def has(self, proplet: Proplet) -> bool:
        """Whether this version of the record is known, or a later one."""
        entry, uid = self._entries.get(proplet.id), proplet.meta.uid
        known = self._refused.get(uid)
        if known is None and entry is not None and entry.recorded and entry.proplet.meta.uid == uid:
            known = entry.proplet
        return known is not None and known.meta.version >= proplet.meta.version

    def learn(self, proplet: Proplet, at: Moment) -> bool:
        """A record of it exists, or was changed; return whether that matters for the placement of tasks."""
        uid, news, refused = proplet.meta.uid, False, self.refusal(proplet) is not None
        held = self._ids.get(uid)
        if held is not None and (refused or held != proplet.id):
            self._forget(held)  # its connection names another id now, or it is another manager's
            news, refused = True, self.refusal(proplet) is not None
        if refused:
            self._refuse(proplet)
        else:
            news = self._take(proplet, at) or news
        return self._promote(at) or news

    def _refuse(self, proplet: Proplet) -> None:
        self._refused[proplet.meta.uid] = proplet
        self._touched.add(REFUSED + proplet.meta.uid)

    def _take(self, proplet: Proplet, at: Moment) -> bool:
        uid = proplet.meta.uid
        self._refused.pop(uid, None)
        entry = self._entries.setdefault(proplet.id, _Entry(proplet))
        if entry.recorded and entry.proplet.meta.uid != uid:  # this one was there before
            self._ids.pop(entry.proplet.meta.uid, None)
            rival, entry.proplet = entry.proplet, proplet
            self._refuse(rival)
        entry.proplet, entry.recorded = proplet, True
        self._ids[uid] = proplet.id
        self._touched.add(proplet.id)
        return self._show(entry, at)

    def _promote(self, at: Moment) -> bool:
        """Take those that nothing speaks against any more."""
        news = False
        for other in sorted(self._refused.values(), key=seniority):
            if self.refusal(other) is None:
                news = self._take(other, at) or news
        return news

    def forget(self, proplet: Proplet, at: Moment) -> None:
        """Its record was deleted. A live one is recorded anew with its next heartbeat, where unknown ones are."""
        if self._refused.pop(proplet.meta.uid, None) is None and self._ids.get(proplet.meta.uid) == proplet.id:
            self._forget(proplet.id)
            self._promote(at)

    def touched(self) -> set[str]:
        """Take the ids, or `REFUSED` and the uids, of the records that may have to be written because of others."""
        touched, self._touched = self._touched, set()
        return touched

    def _forget(self, proplet_id: str) -> None:
        entry = self._entries.pop(proplet_id)
        self._ids.pop(entry.proplet.meta.uid, None)
        self._fleet.hide(proplet_id)
        if entry.alive:
            fresh = self._entries[proplet_id] = self._unknown(proplet_id)
            fresh.announced, fresh.metadata = entry.announced, entry.metadata
            fresh.seen, fresh.seen_wall = entry.seen, entry.seen_wall

    def _unknown(self, proplet_id: str) -> _Entry:
        return _Entry(Proplet(Meta(proplet_id, self._membership.namespace), PropletSpec(declared=False)))

    def connection_of(self, proplet_id: str) -> dict[str, Any]:
        """Return the connection for the record of one that nobody declared, where that is not named like it."""
        return self._membership.connection_of(proplet_id)

    def refusal(self, proplet: Proplet) -> tuple[str, str] | None:
        """Return reason and message if this manager cannot work with a declared proplet."""
        entry = self._entries.get(proplet.id)
        holder = entry.proplet if entry is not None and entry.recorded else None
        return self._membership.refusal(proplet, holder)

    def wanted_refusal(self, uid: str, at: Moment) -> Proplet | None:
        """Return a refused proplet with the status that says so; None: it says so already, or another manager's."""
        proplet = self._refused.get(uid)
        refusal = self.refusal(proplet) if proplet is not None else None
        return with_refusal(proplet, *refusal, at.wall) if proplet is not None and refusal is not None else None

    def known(self, proplet_id: str) -> tuple[Proplet, bool] | None:
        """Return the proplet as known and whether it has a record."""
        entry = self._entries.get(proplet_id)
        return None if entry is None else (entry.proplet, entry.recorded)

    def recorded(self) -> list[Proplet]:
        """Return every record that is known, also of those it cannot work with."""
        return [entry.proplet for entry in self._entries.values() if entry.recorded] + list(self._refused.values())

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

    def unwritten(self) -> Iterator[str]:
        """Yield the ids of live proplets whose record is so old that it has to be written that they are still there."""
        if self._policy.last_seen_every_s < math.inf:
            yield from (i for i, entry in self._entries.items() if entry.recorded and self._is_old(entry))

    def _is_old(self, entry: _Entry) -> bool:
        """By the wall clock, so that a manager that restarts does not write all of them at once."""
        away = abs(entry.seen_wall - entry.proplet.status.last_seen)
        return entry.alive and away >= self._policy.last_seen_every_s

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
        if not entry.recorded and not self._membership.register:
            return False
        peer = Peer(self._essence(entry), entry.alive, lost, self._tells(entry), "" if entry.alive else _why(entry))
        return self._fleet.show(peer)

    def _essence(self, entry: _Entry) -> Proplet:
        """The proplet without what is written about it all the time: what placement looks at."""
        proplet = entry.proplet
        status = PropletStatus(metadata=entry.metadata or proplet.status.metadata)
        return replace(proplet, meta=replace(proplet.meta, version=0, updated_at=0.0), status=status)

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
        if entry is None or not (entry.recorded or self._membership.register):
            return None
        status = entry.proplet.status
        wanted = self._wanted(entry, at)
        if wanted == status and entry.recorded and not self._is_old(entry):
            return None
        if wanted.phase is PropletPhase.RUNNING and not entry.alive:
            return None  # it was running before this manager was, and is given time to speak
        wanted = replace(wanted, last_seen=entry.seen_wall or status.last_seen)
        if self._policy.last_seen_every_s == math.inf:
            return wanted  # what changes all the time would be wrong for ever
        metrics = entry.metrics or status.latest_metrics
        return replace(wanted, task_count=self._assigned(proplet_id), latest_metrics=metrics)

    def _wanted(self, entry: _Entry, at: Moment) -> PropletStatus:
        """What is to be written at once when it changes."""
        proplet, phase = entry.proplet, self._phase(entry)
        resources = proplet.spec.resources
        return replace(
            self._status(entry),
            phase=phase,
            alive=phase is PropletPhase.RUNNING,
            conditions=conditions.of_proplet(proplet, phase, _why(entry), at.wall),
            available_resources=resources if resources != Resources() else None,
            observed_generation=proplet.meta.generation,
        )

    def _phase(self, entry: _Entry) -> PropletPhase:
        """One that was not heard of is as it was until it is lost; one that never was is awaited."""
        peer = self._fleet.peers.get(entry.proplet.id)
        if entry.alive:
            return PropletPhase.RUNNING
        if not (entry.seen_wall or entry.proplet.status.last_seen):
            return PropletPhase.INITIALIZING
        if entry.offline_at is not None or (peer is not None and peer.lost):
            return PropletPhase.OFFLINE
        return entry.proplet.status.phase

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
