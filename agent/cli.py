"""The command ``proplet``: reads its arguments, calls the function that carries them out, tells how it ended.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 no node can be reached; 4 there is no such resource; 5 a wait timed out;
78 the configuration is wrong (sysexits.h); 130 interrupted; 141 the reader of the output went away. ``run`` gives the
guest's own status, 124 when a limit of time ended it, 134 after a trap.

Whatever a person can cause is one line on standard error that says what to do next, never a traceback; with
``PROPLET_DEBUG=1`` the traceback is shown, too. This module and `cli_parser` import nothing that is slow to load.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence

OK, FAILED, USAGE, UNREACHABLE, NOT_FOUND, TIMED_OUT = range(6)
CONFIG, INTERRUPTED, PIPE_CLOSED = 78, 130, 141


class CliError(Exception):
    """A command cannot be carried out; the message is for the person who gave it, `status` becomes the exit code."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command and return its exit code."""
    try:
        from proplet.agent.cli_parser import parse

        _prepare_streams()
        status = _call(parse(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return PIPE_CLOSED
    except OSError as error:
        _discard_output()
        print(f"proplet: error: the output cannot be written: {error.strerror}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _prepare_streams() -> None:
    """Make standard output and error take any text, all of it.

    They may be closed, or in an encoding that lacks a character, or without a buffer (PYTHONUNBUFFERED, as images of
    containers have it): then Python forgets what a write to a pipe left over.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
            if isinstance(stream.buffer, io.RawIOBase):
                encoding, buffered = stream.encoding, io.BufferedWriter(stream.detach())
                setattr(sys, name, io.TextIOWrapper(buffered, encoding, errors="replace", line_buffering=True))


def _discard_output() -> None:
    """Let nobody have what is left: Python flushes once more at its end, and would fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _call(command: Callable[[], int]) -> int:
    try:
        return command()
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except Exception as error:  # noqa: BLE001 - the last line of defence between a person and a traceback
        reason = _reason(error)
        if isinstance(reason, KeyboardInterrupt | BrokenPipeError):
            raise reason from None
        if os.environ.get("PROPLET_DEBUG"):
            import traceback

            traceback.print_exception(error)
        status, message = _explained(reason)
        for line in message.splitlines():
            print(f"proplet: error: {line}", file=sys.stderr)
        return status


def _reason(error: BaseException) -> BaseException:
    """Return what a group of concurrent errors is about: its first leaf (tasks that fail together have one cause)."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _explained(error: BaseException) -> tuple[int, str]:
    if isinstance(error, CliError):
        return error.status, str(error)
    name = type(error).__name__
    if name == "ConfigError":
        return CONFIG, str(error)
    if name in _EXPECTED:
        return FAILED, str(error)
    if isinstance(error, OSError):
        return FAILED, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return FAILED, f"{name}: {error} (this should not happen; PROPLET_DEBUG=1 shows where)"


# By name, because importing the modules that define them would cost every command their time.
_EXPECTED = frozenset({"ServiceError", "DirectoryError", "StorageError", "ModuleError", "NodeError", "AddressError"})
