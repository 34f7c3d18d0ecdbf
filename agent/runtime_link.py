"""One worker as the agent sees it: the jobs it holds, whether it still answers, how it ended.

Place in the flow: `runtime` decides which job goes to which link and what follows when a link is lost; a link only
keeps the child, speaks the protocol and notices when something is wrong. Used from the event loop only.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from proplet.agent.ports import Artefact, Job, Output
from proplet.agent.runtime_nonsense import checked_refusal, checked_samples
from proplet.agent.runtime_ticket import Ticket, order_of
from proplet.agent.runtime_watch import Measured, SharedWatch, Watch
from proplet.agent.wire import Reason
from proplet.agent.worker_child import Child, ChildGoneError
from proplet.agent.worker_orders import (
    DONE,
    FAILED,
    LOAD,
    LOADED,
    OUTPUT,
    PING,
    PONG,
    READY,
    RUN,
    SAMPLE,
    SAMPLED,
    SETUP,
    STOP,
    Report,
    Setup,
)

log = logging.getLogger(__name__)

_LOOK_S: Final = 1.0  # how often a busy link is looked at, and at every moment when a guest has to be gone
_REST_BYTES: Final = 64 * 1024 * 1024  # a worker that still holds more after a job is not used again
_KNOWN_MODULES: Final = 64
_HURRY_S: Final = 0.2  # if the next look is farther away when jobs begin, it comes at once
# Large blocks go back to the system at once. By itself glibc learns to keep them, in as many arenas as there are
# threads: what is left of guests that have ended would look like what the present ones hold.
_ALLOCATOR: Final = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
_requests = itertools.count(1)


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How a worker is started, and how long it may be silent; seconds. The allowances: as `runtime_watch` has them."""

    setup: Setup
    idle_s: float
    grace_s: float
    own_grace_s: float
    ping_s: float
    silence_s: float
    own_allowance_bytes: int
    shared_allowance_bytes: int


class Link:
    """One worker process, from before its start to after its end. An `own` one has one job at a time.

    `offenders` are those for whom it was ended, and why; `overfull` if it was because all of them held too much.
    """

    def __init__(self, settings: LinkSettings, on_report: Callable[["Link", Report], None], *, own: bool) -> None:
        self.own = own
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
        self.overfull = False
        self.measured = Measured()
        self.modules: set[str] = set()
        self.used_at = 0.0
        self._settings = settings
        self._grace_s = settings.own_grace_s if own else settings.grace_s
        self._on_report = on_report
        self._child: Child | None = None
        self._watch: Watch | None = None  # one of these, while it runs
        self._shared_watch: SharedWatch | None = None
        self._tasks: TaskGroup | None = None
        self._flushing = False
        self._early: list[Any] = []
        self._outgoing: list[Any] = []
        self._busy = anyio.Event()
        self._sooner = anyio.Event()
        self._looks_at = 0.0
        self._heard_at = 0.0
        self._pinged_at = 0.0
        self._asked: dict[int, asyncio.Future[Any]] = {}

    @property
    def pid(self) -> int | None:
        """The worker's process id while it runs."""
        return self._child.pid if self._child else None

    @property
    def sole_pid(self) -> int | None:
        """The same, of a worker that has never had another job than its present one: what it did is this job's."""
        return self.pid if self.own and self.given == 1 else None

    @property
    def free(self) -> bool:
        """True if it has no job and can be given one."""
        return not self.tickets and not self.closing

    @property
    def private_bytes(self) -> int | None:
        """The memory that an own worker holds now."""
        return self._watch.private_bytes if self._watch else None

    @property
    def peak_bytes(self) -> int | None:
        """The peak memory of an own worker during its last job; None where the kernel does not tell."""
        return self._watch.peak_bytes if self._watch else None

    def give(self, tickets: list[Ticket]) -> None:
        """Hand jobs over; before the worker has started they wait here."""
        self.given += len(tickets)
        for ticket in tickets:
            ticket.link = self
            self.tickets[ticket.number] = ticket
            self._note_module(ticket.job.artefact)
        self._busy.set()
        if self._child:
            if self._shared_watch and tickets:
                self._shared_watch.begin([ticket.job for ticket in tickets], self._jobs())
            self._send([[RUN, order_of(ticket)] for ticket in tickets])
            if self.ready:
                self._begin(tickets)

    async def load(self, job: Job, timeout_s: float) -> tuple[Reason, str] | None:
        """Let the worker load a job's module; return why it cannot, None if it can or nobody can tell."""
        self._note_module(job.artefact)
        content = [str(job.artefact.path), job.artefact.metered, job.limits.stack_bytes]
        refusal: tuple[Reason, str] | None = await self._ask(LOAD, content, timeout_s)
        return refusal

    def _note_module(self, artefact: Artefact) -> None:
        if len(self.modules) > _KNOWN_MODULES:
            self.modules.clear()
        self.modules.add(artefact.module_digest)

    def stop(self, ticket: Ticket) -> bool:
        """Ask the worker to end a job; False if it was never handed over: then it has ended now."""
        if self._child is None:
            del self.tickets[ticket.number]
            return False
        if ticket.stop_at is None:
            ticket.stop_at = time.monotonic()
            self._send([[STOP, ticket.number]])
            self._look_by(ticket)
        return True

    def retire(self) -> None:
        """End the worker, which has no job."""
        self.closing = self.was_idle = True
        if self._child:
            self._child.kill()

    def job_done(self) -> None:
        """An own worker's job has ended: it is free for the next, unless it still holds too much."""
        self.used_at = time.monotonic()
        if self.own and (self.private_bytes or 0) > _REST_BYTES:
            self.retire()

    def _begin(self, tickets: list[Ticket]) -> None:
        """The worker is ready, and has `tickets` from now on."""
        now = time.monotonic()
        if self._looks_at > now + _HURRY_S:
            self._sooner.set()
        for ticket in tickets:
            ticket.begun_at = now
            if self._watch:
                self._watch.begin()
            self._look_by(ticket)

    def _look_by(self, ticket: Ticket) -> None:
        if ticket.due[0] + self._grace_s < self._looks_at:
            self._sooner.set()

    async def sample(self, timeout_s: float) -> Mapping[int, Any]:
        """Return what the worker measures of its runs, by number; empty if it does not answer in time."""
        if self._child is None or not self.tickets:
            return {}
        return await self._ask(SAMPLE, None, timeout_s) or {}

    async def _ask(self, kind: int, content: Any, timeout_s: float) -> Any:
        """Return what the worker answers; None if it does not in time, or ends."""
        request, answer = next(_requests), asyncio.get_running_loop().create_future()
        self._asked[request] = answer
        message = [kind, [request, content]]
        try:
            self._send([message]) if self._child else self._early.append(message)
            with anyio.move_on_after(timeout_s):
                return await answer
        finally:
            self._asked.pop(request, None)

    def forget(self) -> None:
        """The worker has ended: nobody need wait for its answers."""
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(None)

    async def serve(self, delay_s: float) -> None:
        """Start the worker after `delay_s` and serve it until it ends; `end` says how it did."""
        await anyio.sleep(delay_s)
        if self.closing:
            return
        try:
            child = Child("proplet.agent.worker", environment=_ALLOCATOR)
        except OSError as error:
            self.end = f"could not be started: {error}"
            return
        self._child = child
        if self.own:
            self._watch = Watch(child.pid, self._settings.own_allowance_bytes)
        else:
            self._shared_watch = SharedWatch(child.pid, self._settings.shared_allowance_bytes)
        self.started_at = self._heard_at = time.monotonic()
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._mind)
                self._send([[SETUP, self._settings.setup], *self._early])
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
            self._child = self._watch = self._shared_watch = None

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
        except Exception as error:  # noqa: BLE001  whatever a worker says must end itself at most
            self.end = f"sent nonsense: {error!r}"

    def _take(self, kind: int, content: Any) -> None:
        if kind == DONE:
            self._on_report(self, Report(*content))
        elif kind == OUTPUT:
            number, stream, data, lines, size = content
            if not (type(stream) is str and type(data) is bytes and type(lines) is type(size) is int):
                raise TypeError("output of another kind")
            if ticket := self.tickets.get(number):
                ticket.hear(Output(stream, data, (lines, size)), keep=self.own)
        elif kind == READY:
            self.ready = True
            self._begin(list(self.tickets.values()))
        elif kind in (SAMPLED, LOADED):
            request, answer = content
            answer = checked_samples(answer) if kind == SAMPLED else checked_refusal(answer)
            if (asked := self._asked.get(request)) is not None and not asked.done():
                asked.set_result(answer)
        elif kind == FAILED:
            self.refusal = str(content)
            self.end = self.refusal
            assert self._child is not None
            self._child.kill()
        elif kind != PONG:
            raise ValueError(f"unknown kind of report {kind!r}")

    async def _mind(self) -> None:
        """End an idle worker, one that is stuck, and one whose guest is to be gone and is not."""
        settings, child = self._settings, self._child
        assert child is not None
        while True:
            if not self.tickets:
                if self._shared_watch and self._shared_watch.worn:
                    self.retire()
                    return
                self._busy = anyio.Event()
                with anyio.move_on_after(settings.idle_s):
                    await self._busy.wait()
                if not self.tickets:
                    self.retire()
                    return
                self._heard_at = time.monotonic()
            await self._pause()
            now = time.monotonic()
            self._find_offenders(now)
            if self._find_excess():
                return
            silent_s = now - self._heard_at
            if self.offenders or (self.tickets and silent_s > settings.silence_s):
                self.end = "did not end a guest" if self.offenders else f"did not answer for {silent_s:.0f} s"
                self.end += " and was killed"
                self.closing = True
                if self._watch:
                    self.measured = self._watch.measured()
                child.kill()
                return
            if self.tickets and silent_s > settings.ping_s and now - self._pinged_at > settings.ping_s:
                self._pinged_at = now
                self._send([[PING, 0]])

    async def _pause(self) -> None:
        """Wait until the next look: soon enough for whoever has to be gone first."""
        now = time.monotonic()
        watch = self._watch or self._shared_watch
        pause_s = min(watch.pause_s if watch else _LOOK_S, self._settings.ping_s)
        due = min((ticket.due[0] for ticket in self.tickets.values()), default=now) + self._grace_s
        self._looks_at = min(now + pause_s, max(due, now))
        self._sooner = anyio.Event()
        with anyio.move_on_after(self._looks_at - now):
            await self._sooner.wait()

    def _find_offenders(self, now: float) -> None:
        for number, ticket in self.tickets.items():
            due, why = ticket.due
            if now > due + self._grace_s:
                self.offenders[number] = why
            elif self._watch and ticket.begun_at and (excess := self._watch.excess(ticket.job.limits)):
                self.offenders[number] = excess

    def _jobs(self) -> list[Job]:
        return [ticket.job for ticket in self.tickets.values()]

    def _find_excess(self) -> bool:
        """End a shared worker whose guests hold too much together; nobody knows which of them."""
        watch, child = self._shared_watch, self._child
        if not (watch and child and self.ready and not self.offenders):
            return False
        if (excess := watch.excess(self._jobs())) is None:
            return False
        self.end = f"{excess} and was killed"
        self.overfull = self.closing = True
        self.measured = watch.measured()
        child.kill()
        return True

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
