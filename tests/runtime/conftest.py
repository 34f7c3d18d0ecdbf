"""A real runtime and a real module store for each test; what is compiled is shared by all tests of a session."""

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent.engines import CRANELIFT
from proplet.agent.fetch import ModulesSettings, StoredModules, open_modules
from proplet.agent.ports import Artefact, GuestLimits, Job, ModuleWanted, Outcome, Sample
from proplet.agent.runtime import RuntimeSettings, WorkerRuntime, open_runtime
from tests.support.modules import module

_LIMITS = frozenset(GuestLimits.__dataclass_fields__)


@dataclass
class Node:
    """Modules and runtime, and a short way to run a guest of ``tests/modules``."""

    modules: StoredModules
    runtime: WorkerRuntime
    keys: Any = field(default_factory=itertools.count)

    async def artefact(self, guest: str | bytes, *, metered: bool = False) -> Artefact:
        digest = await self.modules.keep(module(guest) if isinstance(guest, str) else guest)
        return await self.modules.prepare(ModuleWanted(digest, metered=metered), lambda _: None)

    async def job(self, guest: str | bytes, export: str = "main", inputs: Sequence[str] = (), **terms: Any) -> Job:
        limits = GuestLimits(**{name: terms.pop(name) for name in list(terms) if name in _LIMITS})
        key = terms.pop("key", None) or f"job-{next(self.keys)}"
        return Job(key, await self.artefact(guest), export, inputs, limits=limits, **terms)

    async def run(self, guest: str | bytes, export: str = "main", *inputs: str, **terms: Any) -> Outcome:
        return await self.runtime.run(await self.job(guest, export, inputs, **terms))

    async def running(self, *keys: str) -> Mapping[str, Sample]:
        """Wait until exactly these runs are live in the workers, and return their samples."""
        with anyio.fail_after(20):
            while set(samples := await self.runtime.sample()) != set(keys):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        return samples


@asynccontextmanager
async def open_node(directory: Path, **settings: Any) -> AsyncIterator[Node]:
    """A node whose store, cache and key are in `directory`; `settings` are the runtime's or the modules', or both's."""
    of_modules = {"engine": settings.get("engine", CRANELIFT)}
    of_modules |= {name: settings.pop(name) for name in ("cache_bytes", "compile_memory_bytes") if name in settings}
    async with AsyncExitStack() as stack:
        modules = await stack.enter_async_context(
            open_modules(ModulesSettings(directory / "store", directory / "cache", directory / "key", **of_modules))
        )
        runtime = await stack.enter_async_context(open_runtime(RuntimeSettings(directory / "key", **settings), modules))
        yield Node(modules, runtime)


@pytest.fixture(scope="session")
def warm_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("node")


@pytest.fixture
async def node(warm_directory: Path) -> AsyncIterator[Node]:
    async with open_node(warm_directory, grace_s=2.0, silence_s=3.0, ping_s=0.5) as opened:
        yield opened
