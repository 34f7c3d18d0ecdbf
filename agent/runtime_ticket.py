"""One job on its way through the runtime: where it is, when it has to be gone, what it has said.

Place in the flow: `runtime` makes tickets, queues and links hand them on, links fill in what happens. Used from the
event loop only.
"""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from proplet.agent.ports import Job, ModuleKind, Notice, Outcome, Output, nobody
from proplet.agent.task_logs import DAEMON_BYTES
from proplet.agent.worker_orders import Order

if TYPE_CHECKING:
    from proplet.agent.runtime_link import Link

_FOREVER: Final = float("inf")
_LONG_TEXT: Final = 64 * 1024  # characters; as WAVE text they take a tenth of a second and 20 MB at most
_numbers = itertools.count(1)


@dataclass(slots=True, eq=False)
class Ticket:
    """One job; `done` is set when `outcome` (or `stale`) is there. `link` is the worker that has it.

    `begun_at` is when a worker that was ready had it, 0 before; `suspect` that it may be what ended a
    worker, and is to run alone.
    """

    job: Job
    tell: Callable[[Notice], None] = nobody
    done: asyncio.Event = field(default_factory=asyncio.Event)  # anyio's costs several times as much
    number: int = field(default_factory=lambda: next(_numbers))
    outcome: Outcome | None = None
    stale: str | None = None
    link: "Link | None" = None
    begun_at: float = 0.0
    stop_at: float | None = None
    suspect: bool = False
    patience: asyncio.TimerHandle | None = None
    said: dict[str, bytearray] = field(default_factory=dict)

    @property
    def daemon(self) -> bool:
        """See the job."""
        return self.job.daemon

    @property
    def wants_own(self) -> bool:
        """See the function."""
        return wants_own(self.job)

    @property
    def due(self) -> tuple[float, str]:
        """When it has to be gone, and why; never, while no worker has begun with it."""
        if not self.begun_at:
            return _FOREVER, ""
        wall_s = self.job.limits.wall_s
        wall_at = _FOREVER if wall_s is None else self.begun_at + wall_s
        if self.stop_at is not None and (stop_at := max(self.stop_at, self.begun_at)) < wall_at:
            return stop_at, "stopped"
        return wall_at, "timeout"

    def hear(self, output: Output, *, keep: bool) -> None:
        """Tell what the guest has printed; `keep` it, up to the limit of output, in case that its worker is ended.

        Of a daemon the last is kept, as its worker does.
        """
        if keep:
            kept, limit = self.said.setdefault(output.stream, bytearray()), self.job.limits.output_bytes
            if self.daemon:
                kept += output.data
                del kept[: -min(limit, DAEMON_BYTES) or len(kept)]
            else:
                kept += output.data[: limit - len(kept)]
        self.tell(output)

    def calm(self) -> None:
        """Nobody need look any more whether it has begun: the timer would hold it, and what came out."""
        if self.patience is not None:
            self.patience.cancel()

    def leave(self) -> None:
        """It has lost its worker and waits for the next."""
        self.link, self.begun_at = None, 0.0
        self.said.clear()


def wants_own(job: Job) -> bool:
    """True if a guest gets a worker of its own.

    It can block inside the engine, where only its process's end reaches it; or it is a component that stays. Who has
    directories can open files until its process may open no more, and wait in a pipe. The text of a component's
    arguments is read outside the guest, where none of its limits holds.
    """
    if job.artefact.waits or job.permissions.dirs:
        return True
    return job.artefact.kind is ModuleKind.COMPONENT and (job.daemon or sum(map(len, job.inputs)) > _LONG_TEXT)


def order_of(ticket: Ticket) -> Order:
    """Return what the worker is told."""
    job = ticket.job
    limits, permissions = job.limits, job.permissions
    return Order(
        ticket.number,
        str(job.artefact.path),
        job.artefact.metered,
        job.export,
        list(job.inputs),
        list(job.argv),
        dict(job.env),
        job.stdin,
        [(grant.host, grant.guest, grant.read_only) for grant in permissions.dirs],
        limits.memory_bytes,
        limits.cpu_s,
        limits.wall_s,
        limits.output_bytes,
        limits.stack_bytes,
        limits.fuel,
        # The engine knows all hosts or none.
        http="*" in permissions.http,
        tcp="*" in permissions.tcp,
    )
