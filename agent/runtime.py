"""The adapter behind the port `Runtime`: guests run in worker processes, and nothing they do reaches the agent.

Place in the flow: the shell awaits `run`; orders go to the shared worker, reports come back as outcomes. This module
decides who waits, who is tried again and who is to blame:

* At most `max_running` jobs at a time, first come, first served; jobs without a wall limit (daemons) count apart.
* A worker that dies with one job is that job's doing. With several, nobody knows whose: each is run once more, alone in
  a worker of its own, where only its own doing can end it. A guest that takes no heed of its end (stuck in a call that
  nothing can interrupt) costs its worker; the guest gets its timeout, its neighbours run again.
* Three such deeds and a module is quarantined for a while. A worker comes back at once the first time, then later
  and later.

wasmtime is never imported here. An idle worker is stopped; the next job starts one.
"""

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskGroup

from proplet.agent.ports import (
    Artefact,
    Job,
    ModuleError,
    Modules,
    ModuleWanted,
    Notice,
    Outcome,
    Runtime,
    Sample,
    StartKind,
    StorageError,
    nobody,
)
from proplet.agent.runtime_link import Link, LinkSettings, Ticket
from proplet.agent.runtime_quarantine import Quarantine
from proplet.agent.wire import Reason
from proplet.agent.worker_orders import STALE, Report, Setup

_log = logging.getLogger(__name__)

_MIB: Final = 1024 * 1024
_SOLO_WORKERS: Final = 2
_FAILED_STARTS: Final = 3
_SETTLED_S: Final = 10.0  # a worker that lived this long has no part in the next one's backoff
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 30.0
_STALE_TRIES: Final = 3
_SAMPLE_TIMEOUT_S: Final = 1.0


def _default_running() -> int:
    import os

    return max(4, 2 * (os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """How guests are run. Times in seconds, sizes in bytes.

    `key_dir` holds the device's key, as in `fetch.ModulesSettings`. `idle_s`: an unused worker is stopped after it.
    `grace_s`: how long past its end a guest may take to be gone before its worker is killed. `silence_s`: how long a
    worker may be deaf while jobs run. `loaded_bytes`: machine code kept loaded. `strikes` workers lost by a module
    quarantine it for `quarantine_s`.
    """

    key_dir: Path
    max_running: int = field(default_factory=_default_running)
    max_daemons: int = 100
    idle_s: float = 60.0
    grace_s: float = 5.0
    ping_s: float = 2.0
    silence_s: float = 10.0
    loaded_bytes: int = 64 * _MIB
    strikes: int = 3
    quarantine_s: float = 600.0


@asynccontextmanager
async def open_runtime(settings: RuntimeSettings, modules: Modules | None = None) -> "AsyncIterator[WorkerRuntime]":
    """Yield the runtime; at the end its workers and what they run are killed.

    With `modules`, a compiled module that turns out damaged is made again unnoticed; without, its run fails.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        runtime = WorkerRuntime(settings, modules, tasks)
        try:
            yield runtime
        except Exception as error:  # noqa: BLE001  kept out of the task group, which would wrap it
            failure = error
        finally:
            runtime.close()
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


class WorkerRuntime(Runtime):
    """Made by `open_runtime`."""

    def __init__(self, settings: RuntimeSettings, modules: Modules | None, tasks: TaskGroup) -> None:
        self._settings = settings
        self._modules = modules
        self._tasks = tasks
        self._link_settings = LinkSettings(
            Setup(str(settings.key_dir), settings.loaded_bytes),
            settings.idle_s,
            settings.grace_s,
            settings.ping_s,
            settings.silence_s,
        )
        self._by_key: dict[str, Ticket] = {}
        self._waiting: deque[Ticket] = deque()
        self._waiting_daemons: deque[Ticket] = deque()
        self._suspects: deque[Ticket] = deque()
        self._running = 0
        self._running_daemons = 0
        self._shared: Link | None = None
        self._links: set[Link] = set()
        self._crashes = 0
        self._failed_starts = 0
        self._quarantine = Quarantine(settings.strikes, settings.quarantine_s)
        self._closed = False

    @property
    def slots(self) -> int:
        """How many jobs with a wall limit run at once."""
        return self._settings.max_running

    def warm(self) -> None:
        """Start the shared worker now, so that the next job need not wait for it. It may be stopped as idle again."""
        if self._shared is None and not self._closed:
            self._shared = self._open_link(solo=False)

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the live workers, for measuring them."""
        return [link.pid for link in self._links if link.pid is not None]

    async def run(self, job: Job, tell: Callable[[Notice], None] = nobody) -> Outcome:
        """Run to its end; see the port."""
        if (unsayable := _unsayable(job)) is not None:
            return Outcome(
                Reason.INVALID_ARGUMENTS, error=f"arguments and environment must be Unicode text, {unsayable!r} is none"
            )
        stale = "compiled without fuel counting" if job.limits.fuel is not None and not job.artefact.metered else None
        for _ in range(_STALE_TRIES):
            if stale is not None:
                made = await self._made_again(job)
                if isinstance(made, Outcome):
                    return made
                job = replace(job, artefact=replace(made, image_digest=job.artefact.image_digest))
            if (refused := self._quarantine.refusal(job.artefact.module_digest)) is not None:
                return Outcome(Reason.QUARANTINED, error=refused)
            ticket = await self._through(job, tell)
            if ticket.outcome is not None:
                return ticket.outcome
            stale = ticket.stale
        return Outcome(Reason.INTERNAL, error=f"the compiled module cannot be used: {stale}")

    async def _made_again(self, job: Job) -> Artefact | Outcome:
        """The job's module compiled anew, or for fuel counting, from the bytes in the store."""
        artefact = job.artefact
        if self._modules is None:
            return Outcome(Reason.INTERNAL, error="the compiled module cannot be used as it is: start the task again")
        wanted = ModuleWanted(
            module_digest=artefact.module_digest, metered=artefact.metered or job.limits.fuel is not None
        )
        try:
            return await self._modules.prepare(wanted, lambda _stage: None)
        except ModuleError as error:
            return Outcome(error.reason, error=str(error))
        except StorageError as error:
            return Outcome(Reason.STORAGE, error=str(error))

    def stop(self, key: str) -> None:
        """End a run soon; see the port."""
        ticket = self._by_key.get(key)
        if ticket is None or ticket.done.is_set():
            return
        if ticket.link is not None:
            if ticket.link.stop(ticket):
                return
            self._release(ticket)
        self._end(ticket, Outcome(Reason.STOPPED, error="stopped before completion"))
        self._dispatch()

    async def sample(self) -> Mapping[str, Sample]:
        """Return the live runs' own use; see the port."""
        found: dict[str, Sample] = {}
        for link in list(self._links):
            keys = {ticket.number: ticket.job.key for ticket in link.tickets.values()}
            for number, (cpu_s, memory_bytes, wall_s) in (await link.sample(_SAMPLE_TIMEOUT_S)).items():
                if number in keys:
                    found[keys[number]] = Sample(cpu_s, memory_bytes, wall_s)
        return found

    def close(self) -> None:
        """Take no more jobs; whoever still waits learns that it was interrupted."""
        self._closed = True
        for ticket in list(self._by_key.values()):
            self._end(ticket, Outcome(Reason.INTERRUPTED, error="the node was stopped"))

    async def _through(self, job: Job, tell: Callable[[Notice], None]) -> Ticket:
        if job.key in self._by_key:
            raise ValueError(f"a job with the key {job.key!r} is running already")
        ticket = Ticket(job, tell)
        if self._closed:
            self._end(ticket, Outcome(Reason.INTERRUPTED, error="the node is stopping"))
            return ticket
        self._by_key[job.key] = ticket
        (self._waiting_daemons if ticket.daemon else self._waiting).append(ticket)
        try:
            self._dispatch()
            await ticket.done.wait()
        finally:
            self.stop(job.key)  # does nothing unless we were cancelled
            del self._by_key[job.key]
        return ticket

    def _dispatch(self) -> None:
        """Hand over as many jobs as there are slots, all that go to one worker in one write."""
        batch = _take(self._waiting, self._settings.max_running - self._running)
        self._running += len(batch)
        daemons = _take(self._waiting_daemons, self._settings.max_daemons - self._running_daemons)
        self._running_daemons += len(daemons)
        if batch or daemons:
            if self._shared is None or self._shared.closing:
                self._shared = self._open_link(solo=False)
            self._shared.give(batch + daemons)
        while self._suspects:
            solo = [link for link in self._links if link.solo and not link.closing]
            free = next((link for link in solo if not link.tickets), None)
            if free is None and len(solo) >= _SOLO_WORKERS:
                break
            ticket = self._suspects.popleft()
            if not ticket.done.is_set():
                (free or self._open_link(solo=True)).give([ticket])

    def _open_link(self, *, solo: bool) -> Link:
        link = Link(self._link_settings, self._reported, solo=solo)
        self._links.add(link)
        delay_s = 0.0
        if not solo and self._crashes > 1:
            delay_s = min(_FIRST_BACKOFF_S * 2 ** (self._crashes - 2), _LONGEST_BACKOFF_S)
        self._tasks.start_soon(self._serve, link, delay_s)
        return link

    async def _serve(self, link: Link, delay_s: float) -> None:
        try:
            await link.serve(delay_s)
        finally:
            self._links.discard(link)
        if not self._closed:
            self._lost(link)
            self._dispatch()

    def _reported(self, link: Link, report: Report) -> None:
        ticket = link.tickets.pop(report.number, None)
        if ticket is None:
            return
        self._failed_starts = 0
        self._release(ticket)
        if report.reason == STALE:
            ticket.stale = report.error or "damaged"
            ticket.done.set()
        else:
            self._end(ticket, _outcome(ticket.job, report))
        self._dispatch()

    def _lost(self, link: Link) -> None:
        """Decide what becomes of the jobs of a worker that has ended."""
        tickets = list(link.tickets.values())
        link.tickets.clear()
        if link is self._shared:
            self._shared = None
        if link.was_idle:
            return
        _log.warning("a worker %s after %d jobs were given to it", _past(link.end), link.given)
        for line in link.last_errors.splitlines()[-5:]:
            _log.warning("its last words: %s", line)
        lived_s = time.monotonic() - link.started_at
        if tickets or lived_s < _SETTLED_S:
            self._crashes = self._crashes + 1 if lived_s < _SETTLED_S else 1
        if not link.ready:
            self._start_failed(link, tickets)
            return
        alone = len(tickets) == 1
        for ticket in tickets:
            self._release(ticket)
            if (why := link.offenders.get(ticket.number)) is not None:
                self._quarantine.strike(ticket.job.artefact.module_digest)
                text = "could not be interrupted; its worker was killed"
                self._end(ticket, Outcome(Reason(why), error=f"{text} ({why})"))
            elif ticket.stop_at is not None:
                self._end(ticket, Outcome(Reason.STOPPED, error="stopped before completion"))
            elif link.offenders and not ticket.retried:
                self._again(ticket)
            elif alone or ticket.retried:
                self._quarantine.strike(ticket.job.artefact.module_digest)
                self._end(ticket, Outcome(Reason.WORKER_CRASHED, error=f"the worker that ran it {_past(link.end)}"))
            else:
                self._again(ticket)

    def _start_failed(self, link: Link, tickets: list[Ticket]) -> None:
        self._failed_starts += 1
        for ticket in tickets:
            self._release(ticket)
            if link.refusal is not None or self._failed_starts >= _FAILED_STARTS:
                error = link.refusal or f"the worker cannot be started: it {_past(link.end)}"
                self._end(ticket, Outcome(Reason.INTERNAL, error=error))
            else:
                ticket.link, ticket.sent_at = None, 0.0
                (self._waiting_daemons if ticket.daemon else self._waiting).appendleft(ticket)

    def _again(self, ticket: Ticket) -> None:
        ticket.retried, ticket.link, ticket.sent_at = True, None, 0.0
        self._suspects.append(ticket)

    def _release(self, ticket: Ticket) -> None:
        if ticket.link is None or ticket.link.solo:
            return
        if ticket.daemon:
            self._running_daemons -= 1
        else:
            self._running -= 1

    def _end(self, ticket: Ticket, outcome: Outcome) -> None:
        if ticket.outcome is None:
            ticket.outcome = outcome
            ticket.done.set()


def _unsayable(job: Job) -> str | None:
    """A text of the job that has no UTF-8, if there is one: a command line's may be any bytes."""
    for text in (job.export, *job.inputs, *job.argv, *job.env, *job.env.values()):
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                return text
    return None


def _take(waiting: deque[Ticket], room: int) -> list[Ticket]:
    taken: list[Ticket] = []
    while waiting and len(taken) < room:
        ticket = waiting.popleft()
        if not ticket.done.is_set():
            taken.append(ticket)
    return taken


def _past(end: str) -> str:
    return f"was {end}" if end.startswith("killed") else end if not end.startswith("exit") else f"ended with {end}"


def _outcome(job: Job, report: Report) -> Outcome:
    results = report.results
    if results is None:
        output = report.stdout
        if report.reason == Reason.OK.value and report.stderr:
            output += b"\n" + report.stderr
        results = output.decode(errors="replace")
    return Outcome(
        reason=Reason(report.reason),
        results=results,
        error=report.error,
        exit_code=report.exit_code,
        stdout=report.stdout,
        stderr=report.stderr,
        cpu_s=report.cpu_s,
        peak_memory_bytes=report.peak_memory_bytes,
        run_s=report.run_s,
        start_kind=StartKind.HOT if report.hot else job.artefact.start_kind,
    )
