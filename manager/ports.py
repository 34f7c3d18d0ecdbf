"""What the controller needs of the outside world, as small protocols; stores and the bus implement them.

Optimistic concurrency is in every signature: a write names the version it read, and `ConflictError` means read again.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from proplet.agent.wire import Invoke, Start, Stop
from proplet.manager.model import Key, Kind, Resource


class StoreError(Exception):
    """A store cannot do what it was asked; subclasses say what the caller can do."""


class NotFoundError(StoreError):
    """There is no such resource."""


class AlreadyExistsError(StoreError):
    """A resource of that kind and key exists."""


class ConflictError(StoreError):
    """The resource was changed since it was read: read again and decide again."""


class GoneError(StoreError):
    """The changes since that version are no longer known: list again."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached or written now (disk full, server away); nothing was changed. Try again later."""


class ChangeType(Enum):
    """What happened to a resource."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class Change:
    """One change, with the resource as it is now, or as it was last when deleted. `version` orders all changes."""

    type: ChangeType
    resource: Resource
    version: int


@dataclass(frozen=True, slots=True)
class Listing:
    """All resources of a kind at `version`; watching since it misses nothing."""

    items: tuple[Resource, ...]
    version: int


class Store(Protocol):
    """Durable resources. When a write has returned it survives a power cut (a store that cannot says so)."""

    async def list(self, kind: Kind) -> Listing:
        """Return everything of a kind, in order of creation."""
        ...

    async def get(self, kind: Kind, key: Key) -> Resource:
        """Return one. Raises NotFoundError."""
        ...

    async def find(self, kind: Kind, uid: str) -> Resource:
        """Return the one with this uid. Raises NotFoundError."""
        ...

    async def create(self, resource: Resource) -> Resource:
        """Add a resource; uid (if empty), creation time, version are assigned. Raises AlreadyExistsError."""
        ...

    async def put(self, resource: Resource) -> Resource:
        """Write meta and spec if `resource.meta.version` is still current; the status is left as it is.

        An unchanged spec and meta is no write and no change. Raises ConflictError, NotFoundError.
        """
        ...

    async def record(self, resource: Resource) -> Resource:
        """Write the status if `resource.meta.version` is still current; the spec is left as it is.

        An unchanged status is no write and no change. Raises ConflictError, NotFoundError.
        """
        ...

    async def delete(self, kind: Kind, key: Key, version: int | None = None) -> Resource:
        """Remove it, if still at `version` where one is given; return its last state. Raises NotFoundError, ConflictError."""
        ...

    def watch(self, kind: Kind, since: int) -> AsyncIterator[Change]:
        """Yield every change of a kind after version `since`, in order, for ever. Raises GoneError: list again."""
        ...


class Bus(Protocol):
    """Commands to proplets. Publishing is at least once; it returns when the broker has the message."""

    async def start(self, proplet_id: str | None, command: Start) -> None:
        """Send a start; to one proplet, on its own topic if it announced that, or to all (None). Raises BusError."""
        ...

    async def stop(self, proplet_id: str | None, command: Stop) -> None:
        """Send a stop. Raises BusError."""
        ...

    async def invoke(self, proplet_id: str, command: Invoke) -> None:
        """Send an invocation. Raises BusError."""
        ...


class BusError(Exception):
    """The broker did not take the message (not connected, too large); nothing is known of its delivery."""


Clock = Callable[[], float]
