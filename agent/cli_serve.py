"""``proplet run`` of a component that serves HTTP: it serves, and shows what it prints, until Ctrl-C."""

import sys
from dataclasses import replace

from proplet.agent import parts
from proplet.agent.config_schema import NodeSettings
from proplet.agent.ports import Job, Notice, Outcome, Output, Runtime, Serving
from proplet.agent.program_runtime import open_programs


async def served(settings: NodeSettings, workers: Runtime, job: Job, *, timed: bool, quiet: bool) -> Outcome:
    """Serve until the end; unless `timed`, a person ends it. Its arguments may be ``--addr H:P`` or ``--port N``."""
    limits = job.limits if timed else replace(job.limits, wall_s=None)
    job = replace(job, argv=tuple(job.inputs), inputs=(), limits=replace(limits, cpu_s=None))

    def hear(notice: Notice) -> None:
        match notice:
            case Output(stream, data):
                output = sys.stdout if stream == "stdout" else sys.stderr
                output.buffer.write(data)
                output.flush()
            case Serving(port) if not quiet:
                sys.stderr.write(f"serving on port {port}; Ctrl-C ends it\n")
                sys.stderr.flush()

    programs = replace(parts.program_settings(settings), runs_all=False)
    async with open_programs(programs, workers, 1) as runtime:
        outcome = await runtime.run(job, hear)
    return replace(outcome, stdout=b"", stderr=b"")  # it was shown
