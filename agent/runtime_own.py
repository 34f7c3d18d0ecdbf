"""Workers of their own: which jobs wait for one, which worker each gets, and how many there are.

Place in the flow: `runtime` puts jobs here that cannot share a worker, and suspects, who have lost a shared one. At
most `most` workers; a job takes a free one that ran its module, or for a short job the one that was free the longest,
or a new one. A daemon gets a new one, for which a free one is ended when there are as many as may be: it stays, and
what others have left behind in a used worker would stay with it. Who finds none waits, in order of arrival; daemons
leave a quarter of the workers to short jobs, invocations go before these, suspects have two workers beyond all.
Decides only: links do.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from proplet.agent.ports import Artefact
from proplet.agent.runtime_link import Link
from proplet.agent.runtime_ticket import Ticket

_SUSPECTS: Final = 2
_FEWEST: Final = 2


@dataclass(slots=True, eq=False)
class _Lane:
    """Jobs of one kind: those that wait, how many may run, and within how many workers."""

    most: int
    workers: int
    waiting: deque[Ticket] = field(default_factory=deque)
    running: set[Ticket] = field(default_factory=set)


class OwnWorkers:
    """The workers that have one job at a time; `open_link` starts one."""

    def __init__(self, most: int, short_most: int, open_link: Callable[[], Link]) -> None:
        most = max(_FEWEST, most)
        self._short = _Lane(min(most, short_most), most)
        self._invoked = _Lane(min(most, short_most), most)
        self._daemons = _Lane(most - max(1, most // 4), most)
        self._suspects = _Lane(_SUSPECTS, most + _SUSPECTS)
        self._lanes = (self._suspects, self._invoked, self._short, self._daemons)
        self._open_link = open_link
        self._links: set[Link] = set()

    def add(self, ticket: Ticket, *, first: bool = False) -> bool:
        """Let a job wait for a worker; `first` if it has waited before. True if it will get one at once."""
        usual = self._daemons if ticket.daemon else self._invoked if ticket.job.invoked else self._short
        lane = self._suspects if ticket.suspect else usual
        lane.waiting.appendleft(ticket) if first else lane.waiting.append(ticket)
        self.dispatch()
        return ticket.link is not None

    def ended(self, ticket: Ticket) -> None:
        """A job is done with its worker, or has lost it."""
        for lane in self._lanes:
            lane.running.discard(ticket)

    def gone(self, link: Link) -> None:
        """A worker has ended."""
        self._links.discard(link)

    def dispatch(self) -> None:
        """Give workers to those who wait and may have one."""
        for lane in self._lanes:
            while lane.waiting and len(lane.running) < lane.most:
                ticket = lane.waiting[0]
                if not ticket.done.is_set():
                    link = self._place(ticket, lane)
                    if link is None:
                        break
                    lane.running.add(ticket)
                    link.give([ticket])
                lane.waiting.popleft()

    def spare(self, artefact: Artefact) -> Link | None:
        """Return the worker that the next short job with a module would get, if it would get one now."""
        free = self._free()
        if (same := next((link for link in free if artefact.module_digest in link.modules), None)) is not None:
            return same
        if free:
            return free[-1]
        return self._start() if len(self._links) < self._short.workers else None

    def _place(self, ticket: Ticket, lane: _Lane) -> Link | None:
        free, digest = self._free(), ticket.job.artefact.module_digest
        if (same := next((link for link in free if digest in link.modules), None)) is not None:
            return same
        room = len(self._links) < lane.workers
        if free and not ticket.daemon:
            return free[0]
        if room:
            return self._start()
        if free and not any(link.closing for link in self._links):
            free[0].retire()  # its end brings us here again
        return None

    def _free(self) -> list[Link]:
        """The workers without a job, least recently used first."""
        return sorted((link for link in self._links if link.free), key=lambda link: link.used_at)

    def _start(self) -> Link:
        link = self._open_link()
        self._links.add(link)
        return link
