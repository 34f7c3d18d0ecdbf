"""The agent's side of builder processes: started when needed, used again while warm, killed to cancel.

Place in the flow: `fetch` asks `Builders` for a pull or a compilation and awaits the answer. What the registry, the
compiler or the memory cap did becomes a `ModuleError`; what the disk did, a `StorageError`.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from proplet.agent.memory_room import available_bytes, compile_cap, compile_need
from proplet.agent.ports import ModuleError, Stage, StorageError
from proplet.agent.wire import Reason
from proplet.agent.worker_child import Child, ChildGoneError
from proplet.agent.worker_orders import BUILT, COMPILE, PULL, REFUSED, STAGE, STORAGE

_MIB: Final = 1024 * 1024
# What a builder needs of the environment to reach a registry; a worker gets none of it.
_NETWORK: Final = (
    "HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE DOCKER_CONFIG".split()
)


class Builders:
    """At most so many pulls, and so many compilations, at once; each in a process of its own."""

    def __init__(
        self,
        tasks: TaskGroup,
        *,
        memory_bytes: int,
        compile_timeout_s: float,
        linger_s: float,
        available: Callable[[], int | None] = available_bytes,
    ) -> None:
        """Let each use `memory_bytes`, or three quarters of what is `available` when it starts, if that is less."""
        self._available_bytes = available
        self._tasks = tasks
        self._memory_bytes = memory_bytes
        self._compile_timeout_s = compile_timeout_s
        self._linger_s = linger_s
        self._idle: list[tuple[float, Child]] = []
        self._live: dict[Child, int] = {}  # with what each may use, in bytes
        self.fetched_bytes = 0  # by all pulls, as far as they told
        self._pulls = anyio.Semaphore(4)
        self._compilations = anyio.Semaphore(1)

    @property
    def pids(self) -> list[int]:
        """The process ids of the live builders."""
        return [child.pid for child in self._live if not child.ended]

    async def pull(self, fields: Mapping[str, Any], progress: Callable[[Stage], None]) -> Mapping[str, Any]:
        """Pull an image into the store.

        Raises:
            ModuleError, StorageError: it cannot be had.
        """
        told = 0

        def count(stage: Stage) -> None:
            nonlocal told
            if stage.name == "fetching":
                # Beginning anew, it counts from zero.
                self.fetched_bytes += max(0, stage.bytes_done - told)
                told = stage.bytes_done
            progress(stage)

        async with self._pulls:
            return await self._ask(PULL, fields, count)

    async def compile(self, fields: Mapping[str, Any], progress: Callable[[Stage], None]) -> None:
        """Compile a stored module into the cache.

        Raises:
            ModuleError, StorageError: it cannot be compiled, or not within the limits of memory and time.
        """
        async with self._compilations:
            with anyio.move_on_after(self._compile_timeout_s):
                await self._ask(COMPILE, fields, progress)
                return
        text = f"compiling took longer than {self._compile_timeout_s:g} s and was given up"
        raise ModuleError(Reason.TIMEOUT, text)

    async def aclose(self) -> None:
        """End the idle ones; those at work are ended by cancelling whoever waits for them."""
        while self._idle:
            await self._close(self._idle.pop()[1])

    async def _ask(self, kind: int, fields: Mapping[str, Any], progress: Callable[[Stage], None]) -> Mapping[str, Any]:
        async with self._builder() as child:
            try:
                child.send([[kind, dict(fields)]])
                await child.flush()
                while True:
                    for answer in await child.receive():
                        if answer[0] == BUILT:
                            return dict(answer[1])
                        if answer[0] == REFUSED:
                            raise self._failure(answer, fields, child)
                        if answer[0] == STAGE:
                            progress(Stage(answer[1], answer[2], answer[3]))
            except ChildGoneError:
                await child.wait()
                raise self._death(kind, fields, child) from None

    @asynccontextmanager
    async def _builder(self) -> AsyncIterator[Child]:
        """A builder for one request; after anything but an answer it is killed."""
        child = None
        while self._idle and child is None:
            _, child = self._idle.pop()
            if child.ended:  # while nobody looked: that says nothing about this request
                await self._close(child)
                child = None
        if child is None:
            try:
                cap = compile_cap(self._memory_bytes, self._available_bytes())
                child = Child("proplet.agent.builder", [str(cap)], _network_environment())
                self._live[child] = cap
            except OSError as error:
                raise ModuleError(Reason.INTERNAL, f"no builder process can be started: {error}") from error
        try:
            yield child
        except (ModuleError, StorageError):
            await self._keep(child)
            raise
        except BaseException:
            await self._close(child)
            raise
        await self._keep(child)

    async def _keep(self, child: Child) -> None:
        if child.ended:
            await self._close(child)
            return
        entry = (time.monotonic(), child)
        self._idle.append(entry)
        self._tasks.start_soon(self._retire, entry)

    async def _retire(self, entry: tuple[float, Child]) -> None:
        await anyio.sleep(self._linger_s)
        if entry in self._idle:
            self._idle.remove(entry)
            await self._close(entry[1])

    async def _close(self, child: Child) -> None:
        self._live.pop(child, None)
        child.kill()
        await child.aclose()

    def _failure(self, answer: Sequence[Any], fields: Mapping[str, Any], child: Child) -> ModuleError | StorageError:
        _, reason, message, cause = answer
        if reason == STORAGE:
            return StorageError(message)
        if reason == Reason.MEMORY_LIMIT.value:
            return self._out_of_memory(fields, child)
        return ModuleError(Reason(reason), message, cause)

    def _death(self, kind: int, fields: Mapping[str, Any], child: Child) -> ModuleError:
        said, how = child.last_errors(), child.exit_text()
        if (
            "memory allocation of" in said
            or "MemoryError" in said
            or "SIGKILL" in how
            or "Cannot allocate memory" in said
        ):
            return self._out_of_memory(fields, child, f" (the builder was {how})")
        what = "pulling" if kind == PULL else "compiling"
        last = said.strip().rsplit("\n", 1)[-1][:200]
        reason = Reason.MODULE_UNAVAILABLE if kind == PULL else Reason.INVALID_MODULE
        return ModuleError(reason, f"the builder ended while {what} this module ({how}{': ' if last else ''}{last})")

    def _out_of_memory(self, fields: Mapping[str, Any], child: Child, how: str = "") -> ModuleError:
        cap, size, seen = self._live[child], 0, ""
        with suppress(OSError, KeyError):
            size = Path(fields["wasm"]).stat().st_size
            least, most = compile_need(size)
            seen = f"; modules of its size, {_mib(size)}, were seen to take {_mib(least)} to {_mib(most)}"
        may, remedy = f"the {_mib(cap)} of memory a builder may use", "raise compile_memory in [modules]"
        if cap < self._memory_bytes:
            may, remedy = f"{may} now, three quarters of what is free here", "free memory on this device"
        what = "compiling" if size else "pulling"
        return ModuleError(Reason.MEMORY_LIMIT, f"{what} this module needs more than {may}{how}{seen}: {remedy}")


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB" if size < 10 * _MIB else f"{size // _MIB} MiB"


def _network_environment() -> dict[str, str]:
    import os

    wanted = {*_NETWORK, *(name.lower() for name in _NETWORK)}
    return {name: value for name, value in os.environ.items() if name in wanted}
