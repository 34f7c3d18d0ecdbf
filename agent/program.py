"""Guests in the wasmtime program: components that serve HTTP, which no binding of the engine can, or every guest.

Place in the flow: `runtime` hands such jobs over; it finds the same port here. One process per job, supervised like a
worker: nothing of it outlives the agent. A guest that serves gets the port that its task asks for, or fails; or the
first free one of the node's range. Who else wants a port may be quicker: then it is the next.
"""

import errno
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio

from proplet.agent import program_args as args
from proplet.agent import program_flags as flags
from proplet.agent import program_ports as ports
from proplet.agent.ports import Artefact, Job, ModuleError, Notice, Outcome, Output, Sample, nobody
from proplet.agent.program_child import Bounds, ProgramChild
from proplet.agent.program_find import Program, ProgramMissingError, find
from proplet.agent.program_live import Live
from proplet.agent.program_outcome import ended, refused
from proplet.agent.program_settings import ProgramSettings
from proplet.agent.runtime_outcome import unsayable
from proplet.agent.wire import Permissions, Reason

log = logging.getLogger(__name__)


class Programs:
    """The jobs that run in the program. `slots` of those that end by themselves run at once."""

    def __init__(self, settings: ProgramSettings, slots: int) -> None:
        self._settings = settings
        self._slots = anyio.CapacityLimiter(slots)
        self._live: dict[str, Live] = {}
        self._program: Program | None = None
        self._cache_config: Path | None = None
        self._closed = False

    @property
    def runs_all(self) -> bool:
        """Whether every guest is run here."""
        return self._settings.runs_all

    def takes(self, artefact: Artefact) -> bool:
        """Return whether a module is run here."""
        return self._settings.runs_all or artefact.serves_http

    @property
    def pids(self) -> list[int]:
        """The process ids of the programs that run."""
        return [live.child.pid for live in self._live.values() if live.child is not None]

    async def run(self, job: Job, tell: Callable[[Notice], None] = nobody) -> Outcome:
        """Run to its end; as `ports.Runtime.run`."""
        if job.key in self._live:
            raise ValueError(f"a job with the key {job.key!r} is running already")
        if self._closed:
            return Outcome(Reason.INTERRUPTED, error="the node is stopping")
        if (text := _unsayable(job)) is not None:
            return Outcome(Reason.INVALID_ARGUMENTS, error=text)
        live = self._live[job.key] = Live(job, tell, self._settings)
        try:
            return await (self._serve(live) if job.artefact.serves_http else self._run(live))
        except (ports.AddressError, flags.FlagError, ModuleError) as error:
            return Outcome(error.reason, error=str(error))
        except ProgramMissingError as error:
            return Outcome(Reason.NOT_SUPPORTED, error=str(error))
        except OSError as error:
            if error.errno == errno.E2BIG:
                text = "its arguments and environment are more than a program can be given"
                return Outcome(Reason.INVALID_ARGUMENTS, error=text)
            return Outcome(Reason.INTERNAL, error=f"the program cannot be started: {error}")
        finally:
            del self._live[job.key]

    def stop(self, key: str) -> None:
        """End a run soon; as `ports.Runtime.stop`."""
        if (live := self._live.get(key)) is not None:
            live.end(Reason.STOPPED, "stopped before completion")

    def sample(self) -> Mapping[str, Sample]:
        """Return what each of them uses; as `ports.Runtime.sample`."""
        return {key: live.sample() for key, live in self._live.items() if live.child is not None}

    def close(self) -> None:
        """Take no more jobs; those that run learn that they were interrupted."""
        self._closed = True
        for live in self._live.values():
            live.end(Reason.INTERRUPTED, "the node was stopped")

    # --- serving --------------------------------------------------------------------------------------------------

    async def _serve(self, live: Live) -> Outcome:
        if not self._settings.serves:
            text = "it serves HTTP, which [runtime.http] enabled (PROPLET_HTTP_ENABLED) does not allow on this node"
            return Outcome(Reason.PERMISSION_DENIED, error=text)
        serving = sum(other.job.artefact.serves_http for other in self._live.values())
        if serving > self._settings.max_services:
            text = f"{serving - 1} tasks serve HTTP here already, which is [runtime.http] max_services: stop one"
            return Outcome(Reason.OVERLOADED, error=text)
        asked = ports.asked_by(live.job.argv)
        host, port = ports.granted(asked, self._settings.allowed)
        flags.check_directories(live.job.permissions)
        await self._make_ready(live.job)
        if asked.rest:
            text = f"ignored, as the task serves HTTP: {' '.join(asked.rest)}\n"
            live.tell(Output("stderr", text.encode(errors="replace")))
        if port is not None:
            if self._is_ours(port) or not ports.is_free(host, port):
                return Outcome(Reason.PORT_TAKEN, error=_taken(host, port))
            return await self._serve_on(live, host, port)
        allowed = self._settings.allowed
        for port in ports.candidates(allowed, self._taken()):
            if self._is_ours(port) or not ports.is_free(host, port):
                continue
            outcome = await self._serve_on(live, host, port)
            if outcome.reason is not Reason.PORT_TAKEN:
                return outcome
        text = f"no port from {allowed.first} to {allowed.last} is free on {host}: [runtime.http] first_port, last_port"
        return Outcome(Reason.PORT_TAKEN, error=text)

    async def _serve_on(self, live: Live, host: ports.Host, port: int) -> Outcome:
        """Serve there; PORT_TAKEN if somebody was quicker."""
        live.port = port
        invocation = args.serving(live.job, f"{ports.url_host(host)}:{port}", self._terms())
        await self._follow(live, invocation)
        outcome = ended(live)
        if not live.serves and live.ending is None and "os error 98" in live.last_words():
            outcome = Outcome(Reason.PORT_TAKEN, error=_taken(host, port))
        live.port = None
        return outcome

    def _taken(self) -> set[int]:
        return {live.port for live in self._live.values() if live.port is not None}

    def _is_ours(self, port: int) -> bool:
        return port in self._taken()

    # --- running --------------------------------------------------------------------------------------------------

    async def _run(self, live: Live) -> Outcome:
        given = await anyio.to_thread.run_sync(flags.checked, live.job.argv, live.job.permissions)
        flags.check_directories(live.job.permissions)
        await self._make_ready(live.job)
        invocation = args.running(live.job, given, self._terms())
        if live.job.daemon:
            await self._follow(live, invocation)
        else:
            with live.waiting:
                await self._slots.acquire()
            if live.waiting.cancelled_caught:
                return refused(live)
            try:
                await self._follow(live, invocation)
            finally:
                self._slots.release()
        return ended(live)

    # --- both -----------------------------------------------------------------------------------------------------

    async def _follow(self, live: Live, invocation: args.Invocation) -> None:
        if live.ending is not None:
            return
        assert self._program is not None
        command = (*self._program.command, *invocation.arguments)
        await live.follow(ProgramChild(command, invocation.environment, self._bounds(live.job.permissions)))

    def _bounds(self, permissions: Permissions) -> Bounds:
        cache = [] if self._cache_config is None else [str(self._cache_config.parent)]
        return Bounds(
            network=bool(permissions.http or permissions.tcp),
            writable=(*cache, *(grant.host for grant in permissions.dirs if not grant.read_only)),
            protects=any(grant.read_only for grant in permissions.dirs),
            directories=tuple((args.directory(grant), grant.host) for grant in permissions.dirs),
        )

    def _terms(self) -> args.Terms:
        return replace(self._settings.terms, cache_config=self._cache_config)

    async def _make_ready(self, job: Job) -> None:
        """Find the program, its cache and the module; all of it off the event loop.

        Raises:
            ProgramMissingError: there is no program.
            OSError: the cache cannot be made.
        """
        if self._program is None or not self._program.path.is_file():
            self._program = await anyio.to_thread.run_sync(find, self._settings.program)
            log.info("the wasmtime program is %s", self._program.path)
        if self._settings.cache_dir is not None and self._cache_config is None:
            make = partial(_cache_config, self._settings.cache_dir, self._settings.cache_bytes)
            self._cache_config = await anyio.to_thread.run_sync(make)
        await anyio.to_thread.run_sync(_verify, job)


def _unsayable(job: Job) -> str | None:
    """Why a job's texts cannot be given to a program, or None."""
    for text in (job.export, *job.inputs, *job.argv, *job.env, *job.env.values()):
        if "\0" in text:
            return f"{text!r} has a zero byte, which no argument of a program may have"
    for name in job.env:
        if not name or "=" in name:
            return f"{name!r} is no name of an environment variable"
    unknown = unsayable(job)
    return None if unknown is None else f"arguments and environment must be Unicode text, {unknown!r} is none"


def _cache_config(directory: Path, most_bytes: int) -> Path:
    """Make the directory of the program's cache and the file that names it; the program keeps it small by itself.

    What lies there is run as it is, so nobody else may write there, whoever has made it.
    """
    directory = directory.absolute()
    config, compiled = directory / "cache.toml", directory / "compiled"
    for place in (directory, compiled):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.chmod(0o700)
    quoted = str(compiled).replace("\\", "\\\\").replace('"', '\\"')
    config.write_text(f'[cache]\ndirectory = "{quoted}"\nfiles-total-size-soft-limit = "{most_bytes // 1024}Ki"\n')
    return config


def _verify(job: Job) -> None:
    """See that the module is the one that was asked for: the program would take whatever is there."""
    path, digest = job.artefact.wasm, job.artefact.module_digest
    if path is None:
        raise ModuleError(Reason.MODULE_UNAVAILABLE, f"the bytes of {digest} are not in the store any more")
    with path.open("rb") as file:
        found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    if found != digest:
        raise ModuleError(Reason.DIGEST_MISMATCH, f"{path} is damaged: it is {found}")


def _taken(host: ports.Host, port: int) -> str:
    return f"port {port} of {host} is taken: give the task another with --port, or none for one that is free"
