"""Which of the two ways a guest runs: in a worker of ours, or in the wasmtime program.

Place in the flow: the shell sees one runtime; this one hands each job to the one that it is for.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from proplet.agent.ports import Job, Notice, Outcome, Runtime, Sample, nobody
from proplet.agent.program import Programs
from proplet.agent.program_settings import ProgramSettings

__all__ = ["EitherRuntime", "ProgramSettings", "open_programs"]


@asynccontextmanager
async def open_programs(settings: ProgramSettings, workers: Runtime, slots: int) -> "AsyncIterator[EitherRuntime]":
    """Yield the runtime that has both; `workers` is the other, and `slots` programs run that end by themselves.

    At the end no new program is started, and whoever still waits for one learns that it was interrupted.
    """
    programs = Programs(settings, slots)
    try:
        yield EitherRuntime(workers, programs)
    finally:
        programs.close()


class EitherRuntime(Runtime):
    """Workers and programs as one runtime."""

    def __init__(self, workers: Runtime, programs: Programs) -> None:
        self.workers = workers
        self.programs = programs

    def warm(self) -> None:
        """Make a worker ready; see the port."""
        if not self.programs.runs_all:
            self.workers.warm()

    async def preload(self, job: Job) -> Outcome | None:
        """Load a module; see the port. The program loads when it starts."""
        return None if self.programs.takes(job.artefact) else await self.workers.preload(job)

    async def run(self, job: Job, tell: Callable[[Notice], None] = nobody) -> Outcome:
        """Run to its end; see the port."""
        runtime: Runtime | Programs = self.programs if self.programs.takes(job.artefact) else self.workers
        return await runtime.run(job, tell)

    def stop(self, key: str) -> None:
        """End a run soon; see the port."""
        self.programs.stop(key)
        self.workers.stop(key)

    async def sample(self) -> Mapping[str, Sample]:
        """Return the live runs' own use by key; see the port."""
        return {**await self.workers.sample(), **self.programs.sample()}
