"""What every store of ours decides alike, pure: versions, conflicts, uids, generations, what is a change.

A `Table` holds the resources as they are durable. A `Draft` over it decides operations in order without touching it;
its writes are applied once they are durable, or dropped.
"""

import uuid
from dataclasses import dataclass, replace
from typing import Any

from proplet.manager.model import Key, Kind, Meta, Resource
from proplet.manager.ports import AlreadyExistsError, Change, ChangeType, ConflictError, NotFoundError

Place = tuple[Kind, Key]


@dataclass(frozen=True, slots=True)
class Create:
    """Add a resource."""

    resource: Resource


@dataclass(frozen=True, slots=True)
class Put:
    """Write meta and spec."""

    resource: Resource


@dataclass(frozen=True, slots=True)
class Record:
    """Write the status."""

    resource: Resource


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove."""

    kind: Kind
    key: Key
    version: int | None = None


Operation = Create | Put | Record | Delete


@dataclass(frozen=True, slots=True)
class Write:
    """One decided change. `operation` says which parts are new, `before` is what it replaces."""

    operation: Operation
    change: Change
    before: Resource | None


class Table:
    """Resources by kind and key, in order of creation, and the revision: the version of the last change."""

    def __init__(self, revision: int = 0) -> None:
        self.revision = revision
        self._rows: dict[Kind, dict[Key, Resource]] = {kind: {} for kind in Kind}
        self._uids: dict[tuple[Kind, str], Key] = {}

    def items(self, kind: Kind) -> tuple[Resource, ...]:
        """Everything of a kind."""
        return tuple(self._rows[kind].values())

    def peek(self, place: Place) -> Resource | None:
        """The resource at a place, or None."""
        return self._rows[place[0]].get(place[1])

    def key_of(self, kind: Kind, uid: str) -> Key | None:
        """The key of the resource with this uid, or None."""
        return self._uids.get((kind, uid))

    def get(self, kind: Kind, key: Key) -> Resource:
        """Return one. Raises NotFoundError."""
        resource = self.peek((kind, key))
        if resource is None:
            raise missing(kind, str(key))
        return resource

    def find(self, kind: Kind, uid: str) -> Resource:
        """Return the one with this uid. Raises NotFoundError."""
        key = self.key_of(kind, uid)
        if key is None:
            raise missing(kind, uid)
        return self.get(kind, key)

    def load(self, resource: Resource) -> None:
        """Take a resource that is durable already."""
        self._rows[resource.kind][resource.meta.key] = resource
        self._uids[resource.kind, resource.meta.uid] = resource.meta.key

    def apply(self, write: Write) -> None:
        """Make a decided change visible."""
        resource = write.change.resource
        self.revision = write.change.version
        if write.change.type is ChangeType.DELETED:
            del self._rows[resource.kind][resource.meta.key]
            del self._uids[resource.kind, resource.meta.uid]
        else:
            self.load(resource)


class Draft:
    """Changes decided over a table and not yet applied to it; each sees those before it."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._rows: dict[Place, Resource | None] = {}
        self._uids: dict[tuple[Kind, str], bool] = {}
        self.revision = table.revision

    def decide(self, operation: Operation, now: float) -> tuple[Resource, Write | None]:
        """Return what the caller gets and the write, None where nothing changes.

        Raises:
            AlreadyExistsError: creating what exists.
            NotFoundError: there is no such resource.
            ConflictError: it was changed since.
        """
        match operation:
            case Create(resource):
                return self._create(operation, resource, now)
            case Put(resource):
                return self._put(operation, resource, now)
            case Record(resource):
                return self._record(operation, resource, now)
            case Delete(kind, key, version):
                return self._delete(operation, kind, key, version, now)

    def _peek(self, place: Place) -> Resource | None:
        return self._rows[place] if place in self._rows else self._table.peek(place)

    def _current(self, place: Place, version: int | None) -> Resource:
        current = self._peek(place)
        if current is None:
            raise missing(place[0], str(place[1]))
        if version is not None and version != current.meta.version:
            raise ConflictError(
                f"{place[0].value} {place[1]} is at version {current.meta.version}, not {version}: read it again"
            )
        return current

    def _create(self, operation: Operation, resource: Resource, now: float) -> tuple[Resource, Write]:
        place = (resource.kind, resource.meta.key)
        if self._peek(place) is not None:
            raise AlreadyExistsError(f"{resource.kind.value} {resource.meta.key} exists")
        uid = resource.meta.uid or str(uuid.uuid4())
        taken = self._uids.get((resource.kind, uid))
        if taken if taken is not None else self._table.key_of(resource.kind, uid) is not None:
            raise AlreadyExistsError(f"a {resource.kind.value} with the uid {uid} exists")
        meta = replace(resource.meta, uid=uid, created_at=now, updated_at=now, generation=1, version=self.revision + 1)
        self._uids[resource.kind, uid] = True
        return self._keep(operation, ChangeType.ADDED, _with(resource, meta=meta), None)

    def _put(self, operation: Operation, given: Resource, now: float) -> tuple[Resource, Write | None]:
        current = self._current((given.kind, given.meta.key), given.meta.version)
        if current.meta.deleted_at and not given.meta.finalizers:
            return self._gone(operation, current)
        respecified = given.spec != current.spec
        if not respecified and _ours(given.meta) == _ours(current.meta):
            return current, None
        meta = replace(
            current.meta,
            labels=given.meta.labels,
            annotations=given.meta.annotations,
            owner=given.meta.owner,
            finalizers=given.meta.finalizers,
            generation=current.meta.generation + respecified,
            updated_at=now,
            version=self.revision + 1,
        )
        return self._keep(operation, ChangeType.MODIFIED, _with(current, meta=meta, spec=given.spec), current)

    def _record(self, operation: Operation, given: Resource, now: float) -> tuple[Resource, Write | None]:
        current = self._current((given.kind, given.meta.key), given.meta.version)
        if given.status == current.status:
            return current, None
        meta = replace(current.meta, updated_at=now, version=self.revision + 1)
        return self._keep(operation, ChangeType.MODIFIED, _with(current, meta=meta, status=given.status), current)

    def _delete(
        self, operation: Operation, kind: Kind, key: Key, version: int | None, now: float
    ) -> tuple[Resource, Write | None]:
        current = self._current((kind, key), version)
        if not current.meta.finalizers:
            return self._gone(operation, current)
        if current.meta.deleted_at:
            return current, None
        meta = replace(current.meta, deleted_at=now, updated_at=now, version=self.revision + 1)
        return self._keep(operation, ChangeType.MODIFIED, _with(current, meta=meta), current)

    def _gone(self, operation: Operation, current: Resource) -> tuple[Resource, Write]:
        self._rows[current.kind, current.meta.key] = None
        self._uids[current.kind, current.meta.uid] = False
        self.revision += 1
        return current, Write(operation, Change(ChangeType.DELETED, current, self.revision), current)

    def _keep(
        self, operation: Operation, kind: ChangeType, resource: Resource, before: Resource | None
    ) -> tuple[Resource, Write]:
        self._rows[resource.kind, resource.meta.key] = resource
        self.revision = resource.meta.version
        return resource, Write(operation, Change(kind, resource, self.revision), before)


def _with(resource: Resource, **parts: Any) -> Resource:
    return replace(resource, **parts)


def _ours(meta: Meta) -> tuple[Any, ...]:
    """What a put may change."""
    return meta.labels, meta.annotations, meta.owner, meta.finalizers


def missing(kind: Kind, name: str) -> NotFoundError:
    """The error for a resource that is not there."""
    return NotFoundError(f"there is no {kind.value} {name}")
