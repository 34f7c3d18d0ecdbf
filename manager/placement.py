"""Which proplet gets a task, and, where none can, why in words a person can act on.

Among the fitting live proplets the one with the fewest unfinished tasks gets it; ties go round. Pure but for `Fleet`,
which is the controller's picture of the proplets in memory: it counts what has been handed out. No I/O, no clock.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Final

from proplet.manager.model import Proplet, Task, TaskSpec

_NAMED: Final = 3  # how many proplets a message names before it says "and 4 more"


@dataclass(frozen=True, slots=True)
class Peer:
    """A proplet as placement sees it.

    `lost`: it has been away for so long that its tasks are to be placed again. `tells`: it announced that it says what
    it holds (the inventory), so silence about a task means something. `why` says why it is not alive, and does not
    change while it stays away.
    """

    proplet: Proplet
    alive: bool = False
    lost: bool = False
    tells: bool = False
    why: str = ""

    @property
    def id(self) -> str:
        """Its id on the wire."""
        return self.proplet.id


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a task goes; or None and why not. `crowded`: some fit, but have as many tasks as they may."""

    proplet_id: str | None
    message: str = ""
    crowded: bool = False


@dataclass(slots=True)
class Fleet:
    """The proplets, and how much each has to do.

    `connected`: commands can be sent now. `settled`: connected for so long that a proplet not heard of is not there.
    `window`: unfinished tasks a proplet may have; above it tasks wait here: a broker drops what
    it cannot queue.
    """

    window: int = 500
    connected: bool = False
    quiet_until: float = 0.0  # before it (monotonic) nobody is told why a task waits: proplets are about to say hello
    settled: bool = False
    peers: dict[str, Peer] = field(default_factory=dict)
    held: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    resting: dict[str, float] = field(default_factory=dict)  # said it is overloaded: until then, monotonic seconds
    changes: int = 0  # of what is looked at here; while it stays, `fitting` answers the same
    _where: dict[str, str] = field(default_factory=dict)
    _turn: dict[str, int] = field(default_factory=dict)
    _turns: int = 0
    _fitting: dict[object, tuple[str, ...]] = field(default_factory=dict)
    _why: dict[object, str] = field(default_factory=dict)
    _excluded: dict[object, bool] = field(default_factory=dict)

    def show(self, peer: Peer) -> bool:
        """Take over what is known of a proplet now; return whether that is news."""
        known = self.peers.get(peer.id)
        if known == peer:
            return False
        self.peers[peer.id] = peer
        if known is None or _looked_at(known) != _looked_at(peer):
            self._changed()
        return True

    def hide(self, proplet_id: str) -> None:
        """Forget a proplet."""
        if self.peers.pop(proplet_id, None) is not None:
            self._changed()

    def _changed(self) -> None:
        self.changes += 1
        self._forget_answers()

    def _forget_answers(self) -> None:
        self._fitting.clear()
        self._why.clear()
        self._excluded.clear()

    def assign(self, uid: str, proplet_id: str | None) -> None:
        """Note that a task is with a proplet, or (None) with none."""
        before = self._where.get(uid)
        if before == proplet_id:
            return
        if before is not None:
            self.held[before].discard(uid)
            del self._where[uid]
        if proplet_id is not None:
            self.held[proplet_id].add(uid)
            self._where[uid] = proplet_id

    def held_count(self) -> int:
        """How many tasks are with proplets."""
        return len(self._where)

    def gone(self, proplet_id: str) -> bool:
        """Whether tasks with this proplet are to be placed again."""
        peer = self.peers.get(proplet_id)
        return self.settled if peer is None else peer.lost

    def place(self, task: Task, mono: float, avoid: str | None = None) -> Placement:
        """Choose a proplet for the task, not `avoid` if there is another; nothing is reserved until `assign`."""
        fitting = self.fitting(task)
        if not fitting:
            return Placement(None, self.explain(task))
        ready = [p for p in fitting if len(self.held[p]) < self.window and self.resting.get(p, 0.0) <= mono]
        if not ready:
            return Placement(None, f"every fitting proplet has all the tasks it may: {_names(fitting)}", crowded=True)
        chosen = min(ready, key=lambda p: (p == avoid, len(self.held[p]), self._turn.get(p, 0)))
        self._turns += 1
        self._turn[chosen] = self._turns
        return Placement(chosen)

    def fitting(self, task: Task) -> tuple[str, ...]:
        """Return the ids of the live proplets that can have the task; remembered until a proplet changes."""
        key = wants(task)
        found = self._fitting.get(key)
        if found is None:
            found = tuple(i for i, p in self.peers.items() if p.alive and misfit(task, p.proplet) is None)
            if len(self._fitting) > 256:
                self._forget_answers()
            self._fitting[key] = found
        return found

    def excludes(self, task: Task) -> bool:
        """Whether there is a proplet, alive or not, that must not have the task; remembered until one changes."""
        key = wants(task)
        if key not in self._excluded:
            self._excluded[key] = any(misfit(task, peer.proplet) is not None for peer in self.peers.values())
        return self._excluded[key]

    def explain(self, task: Task) -> str:
        """Return why no live proplet can have the task; the same text while nothing changes."""
        key = wants(task)
        if key not in self._why:
            self._why[key] = self._reasons(task)
        return self._why[key]

    def _reasons(self, task: Task) -> str:
        pin = task.spec.selector.proplet_id
        away, misfits = [], defaultdict(list)
        for peer in self.peers.values():
            reason = misfit(task, peer.proplet)
            if reason is None:
                away.append(f"{peer.proplet.meta.name} fits but is offline: {peer.why}")
            elif pin is None or pin in (peer.id, peer.proplet.meta.name):
                misfits[reason].append(peer.proplet.meta.name)
        if not self.peers:
            return "no proplet is known yet: none has announced itself"
        if pin is not None and not away and not misfits:
            return f"the proplet it asks for, {pin}, is not known: it has neither announced itself nor been declared"
        parts = away[:_NAMED]
        if len(away) > _NAMED:
            parts.append(f"{len(away) - _NAMED} more fit but are offline")
        parts += [f"{_names(names)}: {reason}" for reason, names in list(misfits.items())[:_NAMED]]
        return ("no proplet is alive that fits: " if misfits or pin else "no proplet is alive: ") + "; ".join(parts)


def _looked_at(peer: Peer) -> object:
    """What placement looks at, and says, of a proplet; how many tasks it has, say, is not among it."""
    meta, status = peer.proplet.meta, peer.proplet.status
    return peer.alive, peer.why, peer.id, meta.key, meta.labels, peer.proplet.spec, status.metadata


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


def wants(task: Task) -> object:
    """Return what placement looks at, as a key: tasks that want the same fit the same proplets."""
    spec, want = task.spec, task.spec.selector
    return (
        task.meta.namespace,
        want.proplet_id,
        _items(want.match_labels),
        want.match_device_types,
        want.match_capabilities,
        spec.preferred_proplet_type,
        spec.resources.cpu,
        spec.resources.memory_bytes,
        _items(spec.resources.custom),
    )


def _items(mapping: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(mapping.items())) if mapping else ()


def misfit(task: Task, proplet: Proplet) -> str | None:
    """Return why the proplet cannot have the task, or None: it can, if it is alive.

    A declared proplet serves its own namespace; one that only announced itself serves all. What a proplet says of
    itself counts beside what is declared: its tags as capabilities, its memory as its memory.
    """
    spec, want, has = task.spec, task.spec.selector, proplet.spec
    if want.proplet_id is not None and want.proplet_id not in (proplet.id, proplet.meta.name):
        return f"the task asks for {want.proplet_id}"
    if has.declared and proplet.meta.namespace != task.meta.namespace:
        return f"it serves the namespace {proplet.meta.namespace}"
    for key, value in want.match_labels.items():
        if proplet.meta.labels.get(key) != value:
            return f"it lacks the label {key}={value}"
    if want.match_device_types and has.device_type not in want.match_device_types:
        return (
            f"its device type is {has.device_type or 'not declared'}, wanted is {' or '.join(want.match_device_types)}"
        )
    metadata = proplet.status.metadata
    abilities = {*has.capabilities, *(metadata.tags if metadata else ())}
    for capability in want.match_capabilities:
        if capability not in abilities:
            return f"it lacks the capability {capability}"
    if spec.preferred_proplet_type not in ("", "any", has.type):
        return f"its type is {has.type}, wanted is {spec.preferred_proplet_type}"
    return _too_small(spec, proplet)


def _too_small(spec: TaskSpec, proplet: Proplet) -> str | None:
    """What it has too little of; what is unknown is taken to suffice."""
    need, has, metadata = spec.resources, proplet.spec.resources, proplet.status.metadata
    if need.cpu is not None and has.cpu is not None and need.cpu > has.cpu:
        return f"it has {has.cpu:g} CPUs, wanted are {need.cpu:g}"
    memory = has.memory_bytes if has.memory_bytes is not None else (metadata.total_memory_bytes if metadata else 0)
    if need.memory_bytes is not None and memory and need.memory_bytes > memory:
        return f"it has {memory >> 20} MiB of memory, wanted are {need.memory_bytes >> 20} MiB"
    for name, amount in need.custom.items():
        if not _covers(has.custom.get(name), amount):
            return f"it has {has.custom.get(name, 'no')} {name}, wanted is {amount}"
    return None


def _covers(has: str | None, need: str) -> bool:
    if has is None:
        return False
    try:
        return Decimal(has) >= Decimal(need)
    except InvalidOperation:
        return has == need
