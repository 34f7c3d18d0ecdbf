"""What becomes of a job whose worker has ended: is it to blame, or does it run once more?

Place in the flow: `runtime` asks for each job of a lost worker. Decides only.
"""

from proplet.agent.ports import Outcome
from proplet.agent.runtime_link import Link
from proplet.agent.runtime_outcome import LOST_NOTE, SHARED_NOTE, ended_with_its_worker, past, stopped
from proplet.agent.runtime_ticket import Ticket
from proplet.agent.wire import Reason


def verdict(ticket: Ticket, link: Link, *, alone: bool) -> tuple[Outcome | None, bool]:
    """Return how a job of the lost worker `link` ends, None if it runs again; and whether it is a misdeed.

    `alone` if the worker had no other job when it ended.
    """
    why = link.offenders.get(ticket.number)
    if why is not None and link.own:
        reason = Reason(why)
        # What a worker of its own is ended for is nobody's loss; a suspect has cost a shared one before.
        return ended_with_its_worker(ticket, reason, link.measured), ticket.suspect and reason is Reason.MEMORY_LIMIT
    if why is not None:
        error = f"could not be interrupted; its worker was killed ({why})"
        return Outcome(Reason(why), error=error, memory_note=SHARED_NOTE), True
    if ticket.stop_at is not None:
        return stopped(), False
    if link.overfull:
        # Who was there before may have left it. Only a daemon, which is never tried in a worker of its own, is judged
        # by the shared one, if it has been the only one ever.
        sole = ticket.daemon and link.given == 1
        return (ended_with_its_worker(ticket, Reason.MEMORY_LIMIT, link.measured), True) if sole else (None, False)
    if alone and not link.offenders:
        return Outcome(
            Reason.WORKER_CRASHED, error=f"the worker that ran it {past(link.end)}", memory_note=LOST_NOTE
        ), True
    return None, False
