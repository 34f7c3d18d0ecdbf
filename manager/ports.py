"""What the controller needs of the outside world, as small protocols; stores and the bus implement them.

Optimistic concurrency is in every signature: a write names the version it read, and `ConflictError` means read again.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from proplet.agent.wire import Invoke, InvokeResult, LogLines, PropletMetrics, Start, Stop, TaskMetrics
from proplet.manager.model import Key, Kind, Resource, Task


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


class RefusedError(StoreUnavailableError):
    """The store refuses this very request (a permission, a rule): the same fails until that changes."""


class ResourceTooLargeError(RefusedError):
    """The store takes no resource of this size, now or later: it must be made smaller."""


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
        """Remove it, if still at `version` where one is given; return its last state.

        One with finalizers stays and is marked (`meta.deleted_at`); the put that removes the last of them removes it.
        Raises NotFoundError, ConflictError.
        """
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


@dataclass(frozen=True, slots=True)
class Liveness:
    """What is known of a proplet's life right now. `history` holds its last heartbeats, oldest first, epoch times."""

    alive: bool
    last_seen: float = 0.0
    history: tuple[float, ...] = ()
    task_count: int = 0  # tasks dispatched to it and not finished
    reason: str = ""  # why it is not alive: "no heartbeat for 41 s", "said offline"


@dataclass(frozen=True, slots=True)
class Printed:
    """Output of a task: `number` grows from message to message, `at` is the device's time in epoch seconds."""

    number: int
    at: float
    lines: LogLines


class Control(Protocol):
    """What the controller offers to the HTTP API beyond the store: commands, and what is only in memory.

    Everything else (creating, changing, deleting resources) the API does on the store; the controller sees the changes.
    """

    async def start(self, uid: str) -> Task:
        """Ask for a run: releases a held task, runs a finished one again; of one under way it is no-op.

        Raises:
            NotFoundError: there is no such task.
        """
        ...

    async def stop(self, uid: str) -> Task:
        """Ask for the end of the current run; a pending one becomes `interrupted` at once.

        Raises:
            NotFoundError: there is no such task.
            NotRunningError: it has finished or was never started.
        """
        ...

    async def invoke(self, uid: str, inputs: Sequence[str], env: Mapping[str, str], timeout_s: float) -> InvokeResult:
        """Call a latent task on one of its proplets and return the answer, an error of the guest included.

        Raises:
            NotFoundError: there is no such task.
            InvocationError: it cannot be invoked as it is now.
            NoAnswerError: nobody answered in time.
            BusError: the broker did not take it.
        """
        ...

    def liveness(self, proplet_id: str) -> Liveness:
        """Return what is known of a proplet; not alive with no history for an unknown one."""
        ...

    def proplet_metrics(self, proplet_id: str) -> Sequence[PropletMetrics]:
        """Return a proplet's last metrics, oldest first; bounded, in memory."""
        ...

    def task_metrics(self, uid: str) -> Sequence[TaskMetrics]:
        """Return a task's last metrics, oldest first; bounded, in memory."""
        ...

    def task_states(self, uid: str) -> Mapping[str, tuple[int | None, str]]:
        """Return, by proplet, of which attempt and in what words it last said where a task stands; see `observed`."""
        ...

    def task_logs(self, uid: str, since: int = 0) -> Sequence[Printed]:
        """Return a task's last output after the number `since`, oldest first; bounded, in memory."""
        ...

    async def task_printed(self, uid: str) -> None:
        """Return when there is more output of a task (or none any more)."""
        ...


class EventSink(Protocol):
    """Where a person is told what happened to a resource (Kubernetes' Events)."""

    def emit(self, resource: Resource, reason: str, message: str, *, warning: bool = False) -> None:
        """Tell it; never blocks, never fails. `reason` is a word in camel case, `message` a sentence."""
        ...


class NotRunningError(Exception):
    """The task is not under way, so it cannot be stopped."""


class InvocationError(Exception):
    """The task cannot be invoked as it is now; `reason` is a word for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NoAnswerError(Exception):
    """Nobody answered an invocation in time; it may have run all the same."""


Clock = Callable[[], float]
