"""How a run in the wasmtime program ended, put into words."""

import re
import signal
import time
from typing import Final

from proplet.agent.ports import Outcome
from proplet.agent.program_live import Live
from proplet.agent.program_start import REFUSED
from proplet.agent.wire import Reason

_NOTE: Final = "its program's peak, the engine included"
_TRAPPED: Final = 134  # the program's exit status after a trap
_FUEL: Final = "wasm trap: all fuel consumed"
# What the program says when it could not begin, in the order in which it is looked for.
_SAYS: Final = (
    (re.compile(r"unknown import|matching implementation was not found in the linker"), Reason.MISSING_IMPORT),
    (re.compile(r"exceeds memory limits"), Reason.MEMORY_LIMIT),
    (re.compile(r"(?i)no func export named|no exported (func|instance) named"), Reason.UNKNOWN_EXPORT),
    (
        re.compile(
            r"not enough arguments for|invalid digit found|invalid float literal|number too|interpreting parameters"
        ),
        Reason.INVALID_ARGUMENTS,
    ),
)


def refused(live: Live) -> Outcome:
    """Return the outcome of a job that was ended before it began."""
    assert live.ending is not None
    return Outcome(live.ending, error=live.why)


def ended(live: Live) -> Outcome:
    """Return the outcome of a job whose program has ended."""
    if live.code is None:
        return refused(live)
    reason, error = _reason(live)
    stdout, stderr = bytes(live.said["stdout"]), bytes(live.said["stderr"])
    measured = live.measured
    return Outcome(
        reason=reason,
        results="" if live.job.artefact.serves_http else stdout.decode(errors="replace"),
        error=error,
        exit_code=live.code if live.code >= 0 and live.ending is None else None,
        stdout=stdout,
        stderr=stderr,
        cpu_s=measured.cpu_s,
        peak_memory_bytes=measured.peak_bytes,
        run_s=time.monotonic() - live.begun_at,
        start_kind=live.job.artefact.start_kind,
        memory_note=_NOTE if measured.peak_bytes is not None else "not known: the program was gone too soon",
    )


def _reason(live: Live) -> tuple[Reason, str | None]:
    code = live.code or 0
    if live.ending is not None:
        return live.ending, live.why
    if code == 0:
        return Reason.OK, None
    said = live.last_words()
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return Reason.WORKER_CRASHED, f"its program was killed by {name}{': ' if said else ''}{said}"
    text = f"Process exited with status: exit status: {code}, stderr: {said}"  # the reference's words
    if code == REFUSED and not live.serves:
        return Reason.NOT_SUPPORTED, text
    whole = live.tail.decode(errors="replace")
    if code == _TRAPPED and "wasm trap:" in whole:
        return (Reason.CPU_LIMIT if _FUEL in whole else Reason.TRAP), text
    if code == 1 and not live.serves and "Error: " in whole:
        for pattern, reason in _SAYS:
            if pattern.search(whole):
                return reason, text
    return Reason.EXIT_CODE, text
