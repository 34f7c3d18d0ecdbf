"""Which resources belong together: works, what they made, and what they name; an index, kept from what a watch tells.

A work is to be looked at when something changes that it made, owns or names. Nothing here searches: what a change costs
does not grow with the number of resources.
"""

from collections.abc import Iterable
from typing import Final, cast

from proplet.manager.job_plan import task_names
from proplet.manager.jobs import ENDED
from proplet.manager.model import WORKS, FederatedJob, Key, Kind, PropellerJob, Resource, Task, TrainingRound
from proplet.manager.participation import name_of
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.work import Related, Work

Place = tuple[Kind, Key]

_OWNERS: Final = {kind.value: kind for kind in WORKS}
OURS: Final = "propeller.propeller."  # how our groups' api versions begin; "" is ours, too


class Kinship:
    """Every Task and every work, who made them, and who names them."""

    def __init__(self) -> None:
        self._all: dict[Place, Resource] = {}
        self._works: dict[str, Place] = {}
        self._children: dict[str, dict[Place, None]] = {}
        self._names: dict[str, tuple[Place, ...]] = {}  # by work: what it names
        self._named: dict[Place, dict[str, None]] = {}  # by what is named: the works

    def at(self, place: Place) -> Resource:
        """Return what is at a place where there is something."""
        return self._all[place]

    def places(self, kind: Kind) -> Iterable[Place]:
        """Where there is something of a kind; a snapshot."""
        return [place for place in self._all if place[0] is kind]

    def works(self) -> Iterable[str]:
        """The uids of all works; a snapshot."""
        return list(self._works)

    def owners(self) -> Iterable[str]:
        """The uids of all that own something; a snapshot."""
        return list(self._children)

    def work(self, uid: str) -> Work | None:
        """Return the work with this uid."""
        place = self._works.get(uid)
        return None if place is None else cast("Work", self._all[place])

    def children(self, uid: str) -> list[Resource]:
        """Return what the resource with this uid made."""
        return [self._all[place] for place in self._children.get(uid, ())]

    def related(self, work: Work) -> Related:
        """Return what a work is decided over."""
        tasks: dict[str, Task] = {}
        rounds: dict[str, TrainingRound] = {}
        made = self._children.get(work.meta.uid, {})
        named = (place for place in self._names.get(work.meta.uid, ()) if place not in made)
        for place in (*made, *named):
            found = self._all.get(place)
            if isinstance(found, Task):
                tasks[found.meta.name] = found
            elif isinstance(found, TrainingRound):
                rounds[found.meta.name] = found
        job = None
        if isinstance(work, TrainingRound):
            job = self._all.get((Kind.FEDERATED_JOB, Key(work.spec.federated_job.name, work.meta.namespace)))
        return Related(tasks, rounds, cast("FederatedJob | None", job))

    # --- news ---------------------------------------------------------------------------------------------------------

    def learn(self, resource: Resource) -> list[str]:
        """Take over a resource as it is now; return the uids of the works to look at, none if it is no news."""
        place = (resource.kind, resource.meta.key)
        before, left = self._all.get(place), list[str]()
        if before is not None:
            if before.meta.version >= resource.meta.version:
                return []
            if before.meta.uid != resource.meta.uid or before.meta.owner != resource.meta.owner:
                left = self._affected(before, place)
                self._drop(before, place)
        self._all[place] = resource
        owner = owner_of(resource)
        if owner is not None:
            self._children.setdefault(owner[1], {})[place] = None
        if resource.kind in WORKS:
            self._works[resource.meta.uid] = place
            self._note_names(cast("Work", resource), cast("Work | None", before))
        return left if _is_the_same(before, resource) else [*left, *self._affected(resource, place)]

    def forget(self, resource: Resource) -> list[str]:
        """It was deleted; return the uids of the works to look at, its own included: its children are orphans."""
        place = (resource.kind, resource.meta.key)
        before = self._all.get(place)
        if before is None or before.meta.uid != resource.meta.uid:
            return []
        affected = self._affected(before, place)
        del self._all[place]
        self._drop(before, place)
        return affected

    def name(self, work: Work, places: Iterable[Place]) -> bool:
        """Have a work looked at when something changes at these places; return whether that is new."""
        uid = work.meta.uid
        known = self._names.get(uid, ())
        new = tuple(place for place in places if place not in known)
        if new:
            self._names[uid] = known + new
        for place in new:
            self._named.setdefault(place, {})[uid] = None
        return bool(new)

    def _affected(self, resource: Resource, place: Place) -> list[str]:
        affected = dict.fromkeys([resource.meta.uid]) if resource.kind in WORKS else {}
        owner = owner_of(resource)
        if owner is not None:
            affected[owner[1]] = None
        return list(affected | self._named.get(place, {}))

    def _drop(self, resource: Resource, place: Place) -> None:
        owner = owner_of(resource)
        if owner is not None and owner[1] in self._children:
            self._children[owner[1]].pop(place, None)
            if not self._children[owner[1]]:
                del self._children[owner[1]]
        if resource.kind in WORKS:
            self._works.pop(resource.meta.uid, None)
            self._unname(resource.meta.uid)

    def _note_names(self, work: Work, before: Work | None) -> None:
        """Note what a work names, until it has ended: then it no longer cares."""
        over = work.status.phase in ENDED
        if before is not None and before.meta.uid == work.meta.uid and not over and before.spec == work.spec:
            return
        self._unname(work.meta.uid)
        names = () if over else tuple(_names_of(work))
        if names:
            self._names[work.meta.uid] = names
        for place in names:
            self._named.setdefault(place, {})[work.meta.uid] = None

    def _unname(self, uid: str) -> None:
        for place in self._names.pop(uid, ()):
            self._named[place].pop(uid, None)
            if not self._named[place]:
                del self._named[place]


def _is_the_same(before: Resource | None, after: Resource) -> bool:
    """Whether nothing has changed about a Task that matters to works: they go by its phase."""
    if not isinstance(before, Task) or not isinstance(after, Task):
        return False
    return before.meta.uid == after.meta.uid and before.meta.owner == after.meta.owner and _step(before) is _step(after)


def _step(task: Task) -> Phase | None:
    """How far a Task is for those who look at it: jobs only ask how it ended, rounds tell each phase."""
    phase, owner = task.status.phase, task.meta.owner
    return phase if phase in TERMINAL or (owner is not None and owner.kind == Kind.ROUND.value) else None


def owner_of(resource: Resource) -> tuple[Kind, str] | None:
    """Return the kind and the uid of the work that a resource was made for."""
    owner = resource.meta.owner
    if owner is None or owner.kind not in _OWNERS or not (not owner.api_version or owner.api_version.startswith(OURS)):
        return None
    return _OWNERS[owner.kind], owner.uid


def _names_of(work: Work) -> Iterable[Place]:
    namespace = work.meta.namespace
    if isinstance(work, PropellerJob):
        for name in dict.fromkeys((*work.spec.task_refs, *task_names(work))):
            yield Kind.TASK, Key(name, namespace)
    elif isinstance(work, TrainingRound):
        yield Kind.FEDERATED_JOB, Key(work.spec.federated_job.name, namespace)
        for participant in work.spec.participants:
            yield Kind.TASK, Key(name_of(work.meta.name, participant), namespace)
