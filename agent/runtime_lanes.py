"""Slots in shared workers: which jobs wait for one, and how many of each kind run.

Place in the flow: `runtime` puts jobs here that can share a worker, and hands over whom it may take. Short jobs,
invocations and daemons have slots apart: daemons would keep all others out for ever, and an invocation, for which
somebody waits, is not to wait for long jobs. Decides only.
"""

from collections import deque
from dataclasses import dataclass, field

from proplet.agent.runtime_ticket import Ticket


@dataclass(slots=True)
class _Lane:
    """Jobs of one kind, in order of arrival."""

    most: int
    running: int = 0
    waiting: deque[Ticket] = field(default_factory=deque)


class Lanes:
    """The jobs that share workers. `most` short ones run at once, as many invocations, and `daemons`."""

    def __init__(self, most: int, daemons: int) -> None:
        self._short, self._invoked, self._daemons = _Lane(most), _Lane(most), _Lane(daemons)
        self._all = (self._invoked, self._short, self._daemons)

    @property
    def running(self) -> int:
        """How many have a slot."""
        return sum(lane.running for lane in self._all)

    def add(self, ticket: Ticket, *, first: bool = False) -> None:
        """Let a job wait for a slot; `first` if it has waited before."""
        waiting = self._of(ticket).waiting
        waiting.appendleft(ticket) if first else waiting.append(ticket)

    def take(self) -> list[Ticket]:
        """Return the jobs that may run now: they have their slots."""
        taken: list[Ticket] = []
        for lane in self._all:
            while lane.waiting and lane.running < lane.most:
                ticket = lane.waiting.popleft()
                if not ticket.done.is_set():
                    lane.running += 1
                    taken.append(ticket)
        return taken

    def keep(self, ticket: Ticket) -> None:
        """A job gets its slot again at once."""
        self._of(ticket).running += 1

    def ended(self, ticket: Ticket) -> None:
        """A job needs its slot no more."""
        self._of(ticket).running -= 1

    def _of(self, ticket: Ticket) -> _Lane:
        return self._daemons if ticket.daemon else self._invoked if ticket.job.invoked else self._short
