"""One worker as the agent sees it: the jobs it holds, whether it still answers, how it ended.

Place in the flow: `runtime` decides which job goes to which link and what follows when a link is lost; a link only
keeps the child, speaks the protocol and notices when something is wrong. Used from the event loop only.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from proplet.agent.ports import GuestLimits, Job, Notice, Outcome, Output, nobody
from proplet.agent.worker_child import Child, ChildGoneError
from proplet.agent.worker_orders import (
    DONE,
    FAILED,
    OUTPUT,
    PING,
    PONG,
    READY,
    RUN,
    SAMPLE,
    SAMPLED,
    SETUP,
    STOP,
    Order,
    Report,
    Setup,
)

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.25  # how often a busy link is looked at
_numbers = itertools.count(1)


@dataclass(slots=True, eq=False)
class Ticket:
    """One job on its way through the runtime; `done` is set when `outcome` (or `stale`) is there."""

    job: Job
    tell: Callable[[Notice], None] = nobody
    done: anyio.Event = field(default_factory=anyio.Event)
    number: int = field(default_factory=lambda: next(_numbers))
    outcome: Outcome | None = None
    stale: str | None = None
    link: "Link | None" = None
    sent_at: float = 0.0
    stop_at: float | None = None
    retried: bool = False

    @property
    def daemon(self) -> bool:
        """See the job."""
        return self.job.daemon

    def overdue(self, now: float, grace_s: float) -> str | None:
        """Why it should have ended long ago, or None."""
        if self.stop_at is not None and now > self.stop_at + grace_s:
            return "stopped"
        wall_s = self.job.limits.wall_s
        if wall_s is not None and self.sent_at and now > self.sent_at + wall_s + grace_s:
            return "timeout"
        return None


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How a worker is started and how long it may be silent; seconds."""

    setup: Setup
    idle_s: float
    grace_s: float
    ping_s: float
    silence_s: float


class Link:
    """One worker process, from before its start to after its end. `solo` takes one job at a time: a suspect."""

    def __init__(self, settings: LinkSettings, on_report: Callable[["Link", Report], None], *, solo: bool) -> None:
        self.solo = solo
        self.tickets: dict[int, Ticket] = {}
        self.ready = False
        self.closing = False
        self.refusal: str | None = None
        self.end = ""
        self.was_idle = False
        self.last_errors = ""
        self.given = 0
        self.started_at = 0.0
        self.offenders: dict[int, str] = {}
        self._settings = settings
        self._on_report = on_report
        self._child: Child | None = None
        self._tasks: TaskGroup | None = None
        self._flushing = False
        self._outgoing: list[Any] = []
        self._busy = anyio.Event()
        self._heard_at = 0.0
        self._pinged_at = 0.0
        self._samples: dict[int, tuple[anyio.Event, dict[int, Any]]] = {}

    @property
    def pid(self) -> int | None:
        """The worker's process id while it runs."""
        return self._child.pid if self._child else None

    def give(self, tickets: list[Ticket]) -> None:
        """Hand jobs over; before the worker has started they wait here."""
        now = time.monotonic()
        self.given += len(tickets)
        for ticket in tickets:
            ticket.link = self
            ticket.sent_at = now if self._child else 0.0
            self.tickets[ticket.number] = ticket
        self._busy.set()
        if self._child:
            self._send([[RUN, _order(ticket)] for ticket in tickets])

    def stop(self, ticket: Ticket) -> bool:
        """Ask the worker to end a job; False if it was never handed over: then it has ended now."""
        if self._child is None or not ticket.sent_at:
            del self.tickets[ticket.number]
            return False
        if ticket.stop_at is None:
            ticket.stop_at = time.monotonic()
            self._send([[STOP, ticket.number]])
        return True

    async def sample(self, timeout_s: float) -> Mapping[int, Any]:
        """Return what the worker measures of its runs, by number; empty if it does not answer in time."""
        if self._child is None or not self.tickets:
            return {}
        request, event, answer = next(_numbers), anyio.Event(), dict[int, Any]()
        self._samples[request] = event, answer
        try:
            self._send([[SAMPLE, request]])
            with anyio.move_on_after(timeout_s):
                await event.wait()
        finally:
            self._samples.pop(request, None)
        return answer

    async def serve(self, delay_s: float) -> None:
        """Start the worker after `delay_s` and serve it until it ends; `end` says how it did."""
        await anyio.sleep(delay_s)
        try:
            child = Child("proplet.agent.worker")
        except OSError as error:
            self.end = f"could not be started: {error}"
            return
        self._child = child
        self.started_at = self._heard_at = time.monotonic()
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._mind)
                self._send([[SETUP, self._settings.setup]])
                self.given = 0
                self.give(list(self.tickets.values()))
                await self._listen(child)
                self._tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            self.closing = True
            child.kill() if self.tickets else None
            self.last_errors = child.last_errors()
            await child.aclose()
            self.end = self.end or child.exit_text()
            self._child = None

    async def _listen(self, child: Child) -> None:
        try:
            while True:
                messages = await child.receive()
                self._heard_at = time.monotonic()
                for kind, content in messages:
                    self._take(kind, content)
        except ChildGoneError as gone:
            with anyio.move_on_after(1):
                await child.wait()
            if child.killed_by_us or child.exit_text() == "still running":
                self.end = self.end or f"closed its channel ({gone})"
        except (TypeError, ValueError) as error:
            self.end = f"sent nonsense: {error!r}"

    def _take(self, kind: int, content: Any) -> None:
        if kind == DONE:
            self._on_report(self, Report(*content))
        elif kind == OUTPUT:
            number, stream, data = content
            if ticket := self.tickets.get(number):
                ticket.tell(Output(stream, data))
        elif kind == READY:
            self.ready = True
        elif kind == SAMPLED:
            request, answer = content
            if waiting := self._samples.get(request):
                waiting[1].update(answer)
                waiting[0].set()
        elif kind == FAILED:
            self.refusal = str(content)
            self.end = self.refusal
            assert self._child is not None
            self._child.kill()
        elif kind != PONG:
            raise ValueError(f"unknown kind of report {kind!r}")

    async def _mind(self) -> None:
        """End an idle worker, and one that is stuck."""
        settings, child = self._settings, self._child
        assert child is not None
        while True:
            if not self.tickets:
                self._busy = anyio.Event()
                with anyio.move_on_after(settings.idle_s):
                    await self._busy.wait()
                if not self.tickets:
                    self.closing = self.was_idle = True
                    child.kill()
                    return
                self._heard_at = time.monotonic()
            await anyio.sleep(_LOOK_S)
            now = time.monotonic()
            for number, ticket in self.tickets.items():
                if why := ticket.overdue(now, settings.grace_s):
                    self.offenders[number] = why
            silent_s = now - self._heard_at
            if self.offenders or (self.tickets and silent_s > settings.silence_s):
                self.end = "did not end a guest" if self.offenders else f"did not answer for {silent_s:.0f} s"
                self.end += " and was killed"
                self.closing = True
                child.kill()
                return
            if self.tickets and silent_s > settings.ping_s and now - self._pinged_at > settings.ping_s:
                self._pinged_at = now
                self._send([[PING, 0]])

    def _send(self, messages: list[Any]) -> None:
        """Send at the end of this round of the event loop, all in one call: waking the worker is what costs."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._send_all)
        self._outgoing += messages

    def _send_all(self) -> None:
        messages, self._outgoing = self._outgoing, []
        child = self._child
        if child is None:
            return
        try:
            if child.send(messages) or self._flushing or self._tasks is None:
                return
        except ChildGoneError:
            return  # `_listen` finds out how it ended
        except Exception:  # a defect of ours: these jobs would wait for ever, so the worker ends, and they with it
            log.exception("jobs could not be handed to the worker")
            child.kill()
            return
        self._flushing = True
        self._tasks.start_soon(self._flush, child)

    async def _flush(self, child: Child) -> None:
        try:
            await child.flush()
        except ChildGoneError:
            return
        finally:
            self._flushing = False


def _order(ticket: Ticket) -> Order:
    job = ticket.job
    limits: GuestLimits = job.limits
    return Order(
        ticket.number,
        str(job.artefact.path),
        job.artefact.metered,
        job.export,
        list(job.inputs),
        list(job.argv),
        dict(job.env),
        job.stdin,
        [(grant.host, grant.guest, grant.read_only) for grant in job.permissions.dirs],
        limits.memory_bytes,
        limits.cpu_s,
        limits.wall_s,
        limits.output_bytes,
        limits.stack_bytes,
        limits.fuel,
    )
