"""The adapter behind the port `Runtime`: guests run in worker processes, and nothing they do reaches the agent.

Place in the flow: the shell awaits `run`; orders go to workers, reports come back as outcomes. This module decides who
waits, who is tried again and who is to blame:

* Core modules and components that cannot block share one worker: at most `max_running` jobs at a time, first come,
  first served; invocations, and jobs without a wall limit (daemons), count apart. Components that can block inside the
  engine, and those that stay, get a worker of their own, see `runtime_own`; as do jobs with directories, or with very
  long arguments.
* A worker that dies with one job is that job's doing. With several, nobody knows whose: each is run once more, alone in
  a worker of its own, where only its own doing can end it. Daemons, who would keep those workers, are run again in two
  halves, and in halves of these should one of them lose its worker, too.
* A shared worker that holds more memory than its guests may have together, see `runtime_watch`, is ended; they run
  again as after its death.
* A guest that takes no heed of its end (stuck in a call that nothing can interrupt) costs its worker; the guest gets
  its timeout, its neighbours run again. In a worker of its own that is nobody's loss and no misdeed.
* Three such deeds and a module is quarantined for a while. A worker comes back at once the first time, then later
  and later.

wasmtime is never imported here. An idle worker is stopped; the next job starts one.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import anyio
from anyio.abc import TaskGroup

from proplet.agent.ports import (
    Job,
    Modules,
    Notice,
    Outcome,
    Runtime,
    Sample,
    nobody,
)
from proplet.agent.runtime_lanes import Lanes
from proplet.agent.runtime_link import Link, LinkSettings
from proplet.agent.runtime_nonsense import check
from proplet.agent.runtime_outcome import (
    from_report,
    obituary,
    past,
    stopped,
    unsayable,
)
from proplet.agent.runtime_own import OwnWorkers
from proplet.agent.runtime_quarantine import Quarantine
from proplet.agent.runtime_settings import RuntimeSettings
from proplet.agent.runtime_stale import made_again
from proplet.agent.runtime_ticket import Ticket, wants_own
from proplet.agent.runtime_verdict import verdict
from proplet.agent.wire import Reason
from proplet.agent.worker_orders import STALE, Report, Setup

__all__ = ["RuntimeSettings", "WorkerRuntime", "open_runtime"]

_log = logging.getLogger(__name__)

_FAILED_STARTS: Final = 3
_SETTLED_S: Final = 10.0  # a worker that lived this long has no part in the next one's backoff
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 10.0  # invocations are not waited for any longer than 30 s
_STALE_TRIES: Final = 3
_MOST_SHARED: Final = 8  # among a hundred daemons, so many are needed to find the one that ends its worker
_SAMPLE_TIMEOUT_S: Final = 1.0
_LOAD_TIMEOUT_S: Final = 30.0


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
            Setup(
                str(settings.key_dir),
                settings.loaded_bytes,
                settings.engine,
                settings.log_limits.rate_bytes,
                settings.log_limits.burst_bytes,
            ),
            settings.idle_s,
            settings.grace_s,
            settings.own_grace_s,
            settings.ping_s,
            settings.silence_s,
            settings.own_allowance_bytes,
            settings.own_allowance_bytes + settings.loaded_bytes,
        )
        self._by_key: dict[str, Ticket] = {}
        self._lanes = Lanes(settings.max_running, settings.max_daemons)
        self._shared: Link | None = None
        self._links: set[Link] = set()
        self._crashes = 0
        self._failed_starts = 0
        self._quarantine = Quarantine(settings.strikes, settings.quarantine_s)
        self._own = OwnWorkers(settings.max_own_workers, settings.max_running, lambda: self._open_link(own=True))
        self._closed = False

    @property
    def slots(self) -> int:
        """How many jobs with a wall limit run at once in the shared worker."""
        return self._settings.max_running

    def warm(self) -> None:
        """Start the shared worker now, so that the next job need not wait for it. It may be stopped as idle again."""
        if not self._closed:
            self._open_shared()

    async def preload(self, job: Job) -> Outcome | None:
        """Load a module; see the port."""
        if self._closed:
            return None
        link = self._own.spare(job.artefact) if wants_own(job) else self._open_shared()
        refusal = await link.load(job, _LOAD_TIMEOUT_S) if link else None
        return Outcome(refusal[0], error=refusal[1]) if refusal else None

    def worker_of(self, key: str) -> int | None:
        """The process id of the worker that has a job, for measuring it."""
        ticket = self._by_key.get(key)
        return ticket.link.pid if ticket and ticket.link else None

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the live workers, for measuring them."""
        return [link.pid for link in self._links if link.pid is not None]

    async def run(self, job: Job, tell: Callable[[Notice], None] = nobody) -> Outcome:
        """Run to its end; see the port."""
        if (text := unsayable(job)) is not None:
            return Outcome(
                Reason.INVALID_ARGUMENTS, error=f"arguments and environment must be Unicode text, {text!r} is none"
            )
        stale = "compiled without fuel counting" if job.limits.fuel is not None and not job.artefact.metered else None
        for _ in range(_STALE_TRIES):
            if stale is not None:
                made = await made_again(self._modules, job)
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

    def stop(self, key: str) -> None:
        """End a run soon; see the port."""
        ticket = self._by_key.get(key)
        if ticket is None or ticket.done.is_set():
            return
        if ticket.link is not None:
            if ticket.link.stop(ticket):
                return
            self._release(ticket)
        self._end(ticket, stopped())
        self._dispatch()

    async def sample(self) -> Mapping[str, Sample]:
        """Return the live runs' own use; see the port."""
        found: dict[str, Sample] = {}

        async def ask(link: Link) -> None:
            keys = {ticket.number: ticket.job.key for ticket in link.tickets.values()}
            for number, (cpu_s, memory_bytes, wall_s) in (await link.sample(_SAMPLE_TIMEOUT_S)).items():
                if number in keys:
                    own_bytes = link.private_bytes if memory_bytes is None else memory_bytes
                    found[keys[number]] = Sample(cpu_s, own_bytes, wall_s, link.sole_pid)

        async with anyio.create_task_group() as tasks:
            for link in self._links:
                tasks.start_soon(ask, link)
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
        try:
            if ticket.wants_own:
                self._wait_for_own(ticket)
            else:
                self._lanes.add(ticket)
                self._dispatch()
            self._be_patient(ticket)
            await ticket.done.wait()
        finally:
            self.stop(job.key)  # does nothing unless we were cancelled
            ticket.calm()
            del self._by_key[job.key]
        return ticket

    def _be_patient(self, ticket: Ticket) -> None:
        """Nobody waits long for an invocation: what has not begun in time need not begin at all."""
        if ticket.job.invoked and not ticket.begun_at:
            ticket.calm()
            loop = asyncio.get_running_loop()
            ticket.patience = loop.call_later(self._settings.patience_s, self._give_up, ticket)

    def _give_up(self, ticket: Ticket) -> None:
        if ticket.done.is_set() or ticket.begun_at:
            return
        if ticket.link is not None and not ticket.link.stop(ticket):
            self._release(ticket)
        text = f"no worker was free for it within {self._settings.patience_s:g} s: try again later"
        self._end(ticket, Outcome(Reason.OVERLOADED, error=text))
        self._dispatch()

    def _dispatch(self) -> None:
        """Hand over as many jobs as there are slots, all that go to one worker in one write."""
        if batch := self._lanes.take():
            self._open_shared().give(batch)
        self._own.dispatch()

    def _wait_for_own(self, ticket: Ticket) -> None:
        if not self._own.add(ticket) and ticket.daemon:
            text = "%s waits for a worker of its own: all that daemons may have are taken (max_own_workers is %d)"
            _log.warning(text, ticket.job.key, self._settings.max_own_workers)

    def _open_shared(self) -> Link:
        if self._shared is None or self._shared.closing:
            self._shared = self._open_link(own=False)
        return self._shared

    def _open_link(self, *, own: bool) -> Link:
        link = Link(self._link_settings, self._reported, own=own)
        self._links.add(link)
        delay_s = 0.0
        if not own and self._crashes > 1:
            delay_s = min(_FIRST_BACKOFF_S * 2 ** (self._crashes - 2), _LONGEST_BACKOFF_S)
        self._tasks.start_soon(self._serve, link, delay_s)
        return link

    async def _serve(self, link: Link, delay_s: float) -> None:
        try:
            await link.serve(delay_s)
        finally:
            link.forget()
            self._links.discard(link)
            self._own.gone(link)
        if not self._closed:
            self._lost(link)
            self._dispatch()

    def _reported(self, link: Link, report: Report) -> None:
        ticket = link.tickets.get(report.number)
        if ticket is None:
            return
        check(report)  # while the link has the ticket: with a link that talks nonsense ends all that it has
        self._failed_starts = 0
        if report.reason == STALE:
            ticket.stale = report.error or "damaged"
            ticket.done.set()
        else:
            peak_bytes = link.peak_bytes if report.peak_memory_bytes is None else None
            self._end(ticket, from_report(ticket.job, report, peak_bytes, own=link.own))
        del link.tickets[ticket.number]
        link.job_done()
        self._release(ticket)
        self._dispatch()

    def _lost(self, link: Link) -> None:
        """Decide what becomes of the jobs of a worker that has ended."""
        tickets = list(link.tickets.values())
        link.tickets.clear()
        if link is self._shared:
            self._shared = None
        if link.was_idle:
            return
        ended_by_us = link.own and bool(link.offenders)
        if not ended_by_us:
            self._mourn(link, tickets)
        for ticket in tickets:
            self._release(ticket)
        if not link.ready:
            self._start_failed(link, tickets)
            return
        alone = link.own or len(tickets) == 1
        daemons, innocent = [], []
        for ticket in tickets:
            outcome, misdeed = verdict(ticket, link, alone=alone)
            if misdeed:
                self._quarantine.strike(ticket.job.artefact.module_digest)
            if outcome is not None:
                self._end(ticket, outcome)
            elif link.offenders:
                innocent.append(ticket)
            elif ticket.daemon:
                daemons.append(ticket)
            else:
                ticket.suspect = True
                self._wait_again(ticket)
        self._part(daemons)
        for ticket in reversed(innocent):
            self._wait_again(ticket)

    def _part(self, daemons: list[Ticket]) -> None:
        """Run daemons of a lost worker again, half of them apart: the culprit is alone after a few such deeds.

        They cannot be tried alone as others are: they stay, and each would keep a worker.
        """
        parted = sum(not link.own for link in self._links) < _MOST_SHARED
        middle = (len(daemons) + 1) // 2 if parted else 0
        for part in (daemons[:middle], daemons[middle:]):
            if not part:
                continue
            for ticket in part:
                ticket.leave()
                self._lanes.keep(ticket)
            link = self._open_shared() if part[-1] is daemons[-1] and len(daemons) > 1 else self._open_link(own=False)
            link.give(part)

    def _wait_again(self, ticket: Ticket) -> None:
        """Put a job first in its queue."""
        ticket.leave()
        self._be_patient(ticket)
        if ticket.suspect or ticket.wants_own:
            self._own.add(ticket, first=True)
        else:
            self._lanes.add(ticket, first=True)

    def _mourn(self, link: Link, tickets: list[Ticket]) -> None:
        """Say in the log how a worker ended, and let the next shared one wait if this one's life was short."""
        _log.warning("%s", obituary(link.end, link.given, refused=link.refusal is not None))
        for line in link.last_errors.splitlines()[-5:]:
            _log.warning("its last words: %s", line)
        lived_s = time.monotonic() - link.started_at
        if not link.own and (tickets or lived_s < _SETTLED_S):
            self._crashes = self._crashes + 1 if lived_s < _SETTLED_S else 1

    def _start_failed(self, link: Link, tickets: list[Ticket]) -> None:
        self._failed_starts += 1
        for ticket in tickets:
            if ticket.stop_at is not None:
                self._end(ticket, stopped())
            elif link.refusal is not None or self._failed_starts >= _FAILED_STARTS:
                error = link.refusal or f"the worker cannot be started: it {past(link.end)}"
                self._end(ticket, Outcome(Reason.INTERNAL, error=error))
            else:
                self._wait_again(ticket)

    def _release(self, ticket: Ticket) -> None:
        if ticket.link is None:
            return
        if ticket.link.own:
            self._own.ended(ticket)
        else:
            self._lanes.ended(ticket)
        ticket.link = None

    def _end(self, ticket: Ticket, outcome: Outcome) -> None:
        if ticket.outcome is None:
            ticket.outcome = outcome
            ticket.done.set()
