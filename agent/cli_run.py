"""``proplet run``: one module, now, on this machine, without a broker; its result on stdout, its cost on stderr.

The exit status is the guest's own; 0 when a function returned, 124 after a limit of time, 134 after a trap or a limit
of memory or output (what a shell shows for a process that aborted), 1 when there was nothing to run.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio

from proplet.agent import cli_stdin, parts, render
from proplet.agent.cli import FAILED, INTERRUPTED, OK, USAGE, CliError
from proplet.agent.cli_exports import entry, usual
from proplet.agent.cli_serve import served
from proplet.agent.config import read
from proplet.agent.config_schema import NodeSettings
from proplet.agent.config_values import parse_duration, parse_size
from proplet.agent.fetch import open_modules
from proplet.agent.grants import ANYWHERE
from proplet.agent.ports import Artefact, GuestLimits, Job, ModuleError, Modules, ModuleWanted, Outcome, StorageError
from proplet.agent.progress import progress
from proplet.agent.runtime import open_runtime
from proplet.agent.wire import DirectoryGrant, Permissions, Reason

TIME_LIMIT, TRAPPED = 124, 134

_STATUS = {
    Reason.OK: OK,
    Reason.TIMEOUT: TIME_LIMIT,
    Reason.CPU_LIMIT: TIME_LIMIT,
    Reason.TRAP: TRAPPED,
    Reason.MEMORY_LIMIT: TRAPPED,
    Reason.OUTPUT_LIMIT: TRAPPED,
    Reason.STOPPED: INTERRUPTED,
    Reason.INTERRUPTED: INTERRUPTED,
}


def run(options: argparse.Namespace) -> int:
    """Run a module."""
    settings = configured(options)
    data = local_module(options.module)
    limits = _limits(options, settings)
    # The person at the terminal grants by themselves; the node's ceiling is for tasks that others send.
    http = (ANYWHERE,) if options.http else ()
    permissions = Permissions(dirs=tuple(_grant(text) for text in options.dir), http=http)
    env = dict(pair for text in options.env if (pair := _variable(text)) is not None)

    def job(artefact: Artefact, stdin: bytes) -> Job:
        # A command's program name; where it is no export, the usual entry points are taken.
        export, inputs = Path(options.module).name, options.args
        if options.invoke:
            export, inputs = entry(artefact, options.invoke, options.args)
        else:
            usual(artefact)
        return Job(
            key="run",
            artefact=artefact,
            export=export,
            inputs=tuple(inputs),
            env=env,
            limits=limits,
            permissions=permissions,
            stdin=stdin,
        )

    return anyio.run(_run, options, settings, data, job)


async def _run(
    options: argparse.Namespace, settings: NodeSettings, data: bytes | None, job: Callable[[Artefact, bytes], Job]
) -> int:
    began = time.monotonic()
    try:
        own_directory(settings.node.state_dir)
        async with open_modules(parts.modules_settings(settings)) as modules:
            artefact = await prepared(modules, options, data)
            modules.holds.hold("run", artefact.module_digest, artefact.image_digest)
            work = job(artefact, await cli_stdin.given(artefact, asked=options.stdin))
            async with open_runtime(parts.runtime_settings(settings), modules) as runtime:
                if artefact.serves_http and not options.invoke:
                    timed, quiet = options.timeout is not None, options.quiet
                    outcome = await served(settings, runtime, work, timed=timed, quiet=quiet)
                else:
                    outcome = await runtime.run(work)
    except (ModuleError, StorageError) as error:
        raise CliError(str(error)) from error
    _print(outcome)
    if not options.quiet:
        cost = cost_line(artefact, outcome, time.monotonic() - began)
        sys.stderr.write(f"{cost}\n")
    if outcome.error is not None and outcome.reason is not Reason.EXIT_CODE:
        sys.stderr.write(f"proplet: error: {render.one_line(outcome.error)}\n")
    return status_of(outcome)


async def prepared(modules: Modules, options: argparse.Namespace, data: bytes | None) -> Artefact:
    """Return the module that the command line names: `data`, or an image; with progress for who waits."""
    digest = await modules.keep(data) if data is not None else None
    wanted = ModuleWanted(module_digest=digest, image_url="" if digest else options.module)
    with progress(quiet=options.quiet) as told:
        return await modules.prepare(wanted, told)


def status_of(outcome: Outcome) -> int:
    """Return the exit status for how a guest ended."""
    if outcome.exit_code is not None:
        return outcome.exit_code & 0xFF
    return _STATUS.get(outcome.reason, FAILED)


def cost_line(artefact: Artefact, outcome: Outcome, total_s: float) -> str:
    """Return what a run cost, in one line."""
    kind = outcome.start_kind or artefact.start_kind
    parts_of_it = [
        f"fetch {render.duration(artefact.fetch_s)}" if artefact.fetch_s else "",
        f"compile {render.duration(artefact.compile_s)}" if artefact.compile_s else "",
        f"run {render.duration(outcome.run_s)}",
        f"total {render.duration(total_s)} ({kind.value} start)",
        f"CPU {render.duration(outcome.cpu_s)}",
        f"peak memory {render.size(outcome.peak_memory_bytes)}",
    ]
    return ", ".join(part for part in parts_of_it if part)


def _print(outcome: Outcome) -> None:
    """Write what the guest printed where it printed it, and a function's results on stdout."""
    sys.stdout.flush()
    sys.stdout.buffer.write(outcome.stdout)
    sys.stdout.buffer.flush()
    sys.stderr.flush()
    sys.stderr.buffer.write(outcome.stderr)
    sys.stderr.buffer.flush()
    printed = outcome.stdout + (b"\n" + outcome.stderr if outcome.stderr else b"")
    # A command's results are what it printed, and that is there already.
    if outcome.results and outcome.results.encode(errors="replace") not in (printed, outcome.stdout):
        sys.stdout.write(f"{outcome.results}\n")


def local_module(name: str) -> bytes | None:
    """Return a local module's bytes; None when `name` is an image."""
    if name.startswith("https://"):  # ends in .wasm, as a file does
        return None
    path = Path(name)
    if path.suffix == ".wat":
        raise CliError(f"{name} is WebAssembly as text: compile it first (wat2wasm {name})", USAGE)
    if not (path.suffix == ".wasm" or name.startswith((".", "/", "~")) or path.is_file()):
        if "/" not in name:
            raise CliError(f"{name}: no such file here; an image has its registry in front, such as ghcr.io/org/{name}")
        return None
    try:
        return path.expanduser().read_bytes()
    except (OSError, RuntimeError) as error:
        raise CliError(f"{name}: {getattr(error, 'strerror', None) or error}") from error


def _limits(options: argparse.Namespace, settings: NodeSettings) -> GuestLimits:
    """Return the node's default limits, changed as the flags say; a longer time includes the CPU's."""
    given = settings.agent.limits
    wall_s, cpu_s, memory = given.wall_s, given.cpu_s, given.memory_bytes
    try:
        if options.timeout:
            wall_s = parse_duration(options.timeout)
            cpu_s = None if cpu_s is None else max(cpu_s, wall_s)
        if options.memory:
            memory = parse_size(options.memory)
    except ValueError as error:
        raise CliError(str(error), USAGE) from error
    return GuestLimits(memory, cpu_s, wall_s, given.output_bytes, given.stack_bytes, given.fuel)


def _grant(text: str) -> DirectoryGrant:
    host, separator, guest = text.partition("::")
    guest, mode = (guest.removesuffix("::ro"), True) if guest.endswith("::ro") else (guest, False)
    if not host or (separator and not guest):
        raise CliError(f"--dir {text}: write HOST::GUEST, or HOST::GUEST::ro to forbid writing", USAGE)
    if not Path(host).is_dir():
        raise CliError(f"--dir {text}: {host} is no directory here")
    # The worker follows no link.
    return DirectoryGrant(str(Path(host).resolve()), guest or host, read_only=mode)


def _variable(text: str) -> tuple[str, str] | None:
    """Return name and value; of a name alone, this command's own value, and None if there is none."""
    name, separator, value = text.partition("=")
    if not name:
        raise CliError(f"--env {text}: write NAME=VALUE, or NAME for the value it has here", USAGE)
    if not separator:
        return (name, os.environ[name]) if name in os.environ else None
    return name, value


def configured(options: argparse.Namespace) -> NodeSettings:
    """Return the settings for a command that works by itself, without a broker; all warnings go to the terminal."""
    loaded = read(Path(options.config) if options.config else None, alone=True)
    for warning in loaded.warnings if options.config else ():
        sys.stderr.write(f"proplet: warning: {warning}\n")
    # Those that are only logged, too, in the form that all lines have.
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(logging.Formatter("proplet: warning: %(message)s"))
    return loaded.settings


def own_directory(path: Path) -> None:
    """Make the state directory, readable for its owner only. Raises StorageError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; PROPLET_NODE_STATE_DIR names another place") from error
