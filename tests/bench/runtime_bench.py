"""A runtime without a node: its modules, and jobs that it runs."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proplet.agent.fetch import ModulesSettings, StoredModules, open_modules
from proplet.agent.ports import Artefact, GuestLimits, Job, ModuleWanted, Outcome
from proplet.agent.runtime import RuntimeSettings, WorkerRuntime, open_runtime
from proplet.agent.wire import Reason
from tests.bench.rows import MIB

RUNNING = 16  # as a node is configured by default


@dataclass
class Bench:
    """Made by `open_bench`."""

    modules: StoredModules
    runtime: WorkerRuntime
    keys: Any = field(default_factory=itertools.count)

    async def artefact(self, data: bytes) -> Artefact:
        return await self.prepared(await self.modules.keep(data))

    async def prepared(self, digest: str) -> Artefact:
        return await self.modules.prepare(ModuleWanted(digest), lambda _stage: None)

    async def run(self, artefact: Artefact, export: str, *inputs: str, **more: Any) -> Outcome:
        """As an invocation is run, unless it is told otherwise."""
        fields = {"limits": GuestLimits(wall_s=60.0), "invoked": True, **more}
        return await self.runtime.run(Job(f"job-{next(self.keys)}", artefact, export, inputs, **fields))

    async def stay(self, artefact: Artefact, export: str, *inputs: str) -> Outcome:
        """As a daemon is run."""
        return await self.run(artefact, export, *inputs, limits=GuestLimits(wall_s=None), invoked=False)

    async def well(self, artefact: Artefact, export: str, inputs: Sequence[str], argv: Sequence[str]) -> None:
        """Run what has to end well."""
        outcome = await self.run(artefact, export, *inputs, argv=argv)
        assert outcome.reason is Reason.OK, outcome


@asynccontextmanager
async def open_bench(directory: Path, loaded_bytes: int = 64 * MIB) -> AsyncIterator[Bench]:
    """What was compiled in `directory` before is there again; no worker is."""
    async with AsyncExitStack() as stack:
        settings = ModulesSettings(directory / "store", directory / "cache", directory / "key")
        modules = await stack.enter_async_context(open_modules(settings))
        runtime_settings = RuntimeSettings(directory / "key", max_running=RUNNING, loaded_bytes=loaded_bytes)
        runtime = await stack.enter_async_context(open_runtime(runtime_settings, modules))
        yield Bench(modules, runtime)
