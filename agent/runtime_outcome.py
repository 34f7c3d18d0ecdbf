"""How a run ended, put into words: from a worker's report, and from what became of the worker itself."""

import time
from typing import Final

from proplet.agent.ports import Job, Outcome, StartKind
from proplet.agent.runtime_ticket import Ticket
from proplet.agent.runtime_watch import Measured
from proplet.agent.wire import Reason
from proplet.agent.worker_orders import Report

SHARED_NOTE: Final = "not known: its worker is shared with others, and the engine does not tell how much was this one's"
UNKNOWN_NOTE: Final = "not known: the engine does not tell it, and the kernel did not tell its worker's"
LOST_NOTE: Final = "not known: its worker was gone before anybody could ask"
OWN_NOTE: Final = "its worker's peak, the engine included: it had the worker to itself"
_MIB: Final = 1024 * 1024


def unsayable(job: Job) -> str | None:
    """Return a text of the job that has no UTF-8, if there is one: a command line's may be any bytes."""
    for text in (job.export, *job.inputs, *job.argv, *job.env, *job.env.values()):
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                return text
    return None


def from_report(job: Job, report: Report, peak_bytes: int | None, *, own: bool) -> Outcome:
    """Return the outcome that a worker reports; `peak_bytes` is the worker's peak where it was the job's `own`."""
    results = report.results
    if results is None:
        output = report.stdout
        if report.reason == Reason.OK.value and report.stderr:
            output += b"\n" + report.stderr
        results = output.decode(errors="replace")
    memory_bytes, note = report.peak_memory_bytes, None
    if memory_bytes is None:
        memory_bytes, note = peak_bytes, _note(peak_bytes, own=own)
    return Outcome(
        reason=Reason(report.reason),
        results=results,
        error=report.error,
        exit_code=report.exit_code,
        stdout=report.stdout,
        stderr=report.stderr,
        cpu_s=report.cpu_s,
        peak_memory_bytes=memory_bytes,
        run_s=report.run_s,
        start_kind=StartKind.HOT if report.hot else job.artefact.start_kind,
        memory_note=note,
        fuel_used=report.fuel_used,
    )


def _note(peak_bytes: int | None, *, own: bool) -> str:
    if not own:
        return SHARED_NOTE
    return UNKNOWN_NOTE if peak_bytes is None else OWN_NOTE


def stopped() -> Outcome:
    """Return the outcome of a job that was ended because somebody asked for it."""
    return Outcome(Reason.STOPPED, error="stopped before completion")


def ended_with_its_worker(ticket: Ticket, why: Reason, measured: Measured) -> Outcome:
    """Return the outcome of a guest that was ended by ending the worker it had to itself."""
    stdout, stderr = (bytes(ticket.said.get(name, b"")) for name in ("stdout", "stderr"))
    return Outcome(
        reason=why,
        results=stdout.decode(errors="replace"),
        error=_why(ticket.job, why, measured),
        stdout=stdout,
        stderr=stderr,
        cpu_s=measured.cpu_s,
        peak_memory_bytes=measured.peak_bytes,
        run_s=time.monotonic() - ticket.begun_at,
        start_kind=ticket.job.artefact.start_kind,
        memory_note=_note(measured.peak_bytes, own=True),
    )


def _why(job: Job, why: Reason, measured: Measured) -> str:
    limits = job.limits
    if why is Reason.TIMEOUT:
        return f"ended after {limits.wall_s or 0:g} s, its limit of time"
    if why is Reason.CPU_LIMIT:
        return f"ended after {limits.cpu_s or 0:g} s of CPU time, its limit"
    if why is Reason.MEMORY_LIMIT:
        held, allowed = (measured.private_bytes or 0) / _MIB, limits.memory_bytes / _MIB
        return (
            f"ended because its worker held {held:.0f} MiB: the guest may have {allowed:.0f} MiB of memory, and what "
            "the engine keeps on its behalf is limited, too"
        )
    return "stopped before completion"


def past(end: str) -> str:
    """Return how a worker ended as the end of a sentence."""
    return f"was {end}" if end.startswith("killed") else end if not end.startswith("exit") else f"ended with {end}"


def obituary(end: str, given: int, *, refused: bool) -> str:
    """Return the log's line on a worker that ended: how, and after how many jobs; `refused`: it could not begin."""
    if refused:
        return f"a worker could not begin: {end}"
    jobs = {0: "any job was", 1: "a job was"}.get(given, f"{given} jobs were")
    return f"a worker {past(end)} {'after' if given else 'before'} {jobs} given to it"
