"""WASI preview 1 as our guests get it: the engine's own, with three functions of ours in front.

* ``poll_oneoff``: the engine's blocks the thread, and nothing can interrupt a blocking host call. Ours waits on an
  event that a stop or a deadline sets, so a guest that sleeps for a year ends at once.
* ``proc_exit``: the engine's refuses a status of 126 and above; ours takes all.
* standard output and error: into memory, capped; the guest always sees success, what is too much is counted.

Place in the flow: `host` links these into every module that imports WASI. The functions are raw C callbacks: they
return a trap where the binding's own trampoline would have to raise, and it keeps raised exceptions in a global that
threads overwrite for each other. They never raise.
"""

import os
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, Final

from wasmtime import FuncType, Linker, ValType, WasiConfig, WasmtimeError

from proplet.agent import host_ffi
from proplet.agent.host_output import Capture
from proplet.agent.host_watch import Run

MODULE: Final = "wasi_snapshot_preview1"

# WASI preview 1 error numbers.
SUCCESS, EBADF, EFAULT, EINTR, EINVAL, ENOTSUP = 0, 8, 21, 27, 28, 58
_CLOCK, _FD_READ, _FD_WRITE = 0, 1, 2
_REALTIME, _MONOTONIC = 0, 1
_ABSOLUTE = 1
_SUBSCRIPTION, _EVENT = 48, 32
_MOST_SUBSCRIPTIONS: Final = 4096
_SLICE_S: Final = 10.0  # a wait for the wall clock looks at it again that often: somebody may set it
_HANGUP = 1

_current = threading.local()


class ConfigurationError(ValueError):
    """Arguments, environment or directories that no guest can be given."""


def configure(
    argv: Sequence[str],
    env: Mapping[str, str],
    stdin: bytes,
    dirs: Sequence[tuple[str, str, bool]],
    outputs: tuple[Capture, Capture],
) -> WasiConfig:
    """Return what a guest may see. `dirs` are (host path, guest path, read only), `outputs` stdout and stderr.

    Raises:
        ConfigurationError: a NUL or a lone surrogate in a string, an impossible variable name, a missing directory.
    """
    for text in [*argv, *env.keys(), *env.values()]:
        if "\0" in text or (not text.isascii() and not _encodable(text)):
            raise ConfigurationError(f"arguments and environment cannot hold {text!r}")
    for name in env:
        if not name or "=" in name:
            raise ConfigurationError(f"{name!r} is no name for an environment variable")
    config = WasiConfig()
    config.argv = list(argv)
    config.env = list(env.items())
    host_ffi.set_stdin(config, stdin)
    config.stdout_custom = outputs[0].write
    config.stderr_custom = outputs[1].write
    for host, guest, read_only in dirs:
        try:
            with _held(host) as held:
                config.preopen_dir(held, guest, not read_only)
        except (OSError, WasmtimeError) as error:
            raise ConfigurationError(f"the directory {host} cannot be opened for the guest: {error}") from error
    return config


@contextmanager
def _held(host: str) -> Iterator[str]:
    """Yield a path that is the directory `host` itself. No link is followed: the path was allowed as it is.

    Another guest that may write above it could otherwise put a link there between the permission and this moment.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    above = os.open("/", flags)
    try:
        for part in PurePath(host).parts[1:]:
            below = os.open(part, flags, dir_fd=above)
            os.close(above)
            above = below
        yield f"/proc/self/fd/{above}"
    finally:
        os.close(above)


def clock_origin_ns() -> int:
    """The host's monotonic time at which the guest's monotonic clock shows 0; call right after `configure`.

    The engine's clock begins with the configuration. A reading after it is never early, so no guest wakes too soon.
    """
    return time.monotonic_ns()


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def enter(run: Run | None) -> None:
    """Name the run whose guest this thread runs next; None when it has ended."""
    _current.run = run


def current() -> Run:
    """Return the run whose guest this thread runs."""
    run: Run = _current.run
    return run


def define(linker: Linker) -> None:
    """Give `linker` all of WASI preview 1."""
    linker.define_wasi()
    linker.allow_shadowing = True
    i32 = ValType.i32()
    host_ffi.define(linker, MODULE, "poll_oneoff", FuncType([i32, i32, i32, i32], [i32]), _POLL_ONEOFF)
    host_ffi.define(linker, MODULE, "proc_exit", FuncType([i32], []), _PROC_EXIT)


def _proc_exit(_caller: Any, arguments: Any) -> None:
    run: Run = _current.run
    run.exit_code = arguments[0].of.i32 & 0xFFFFFFFF


def _poll_oneoff(caller: Any, arguments: Any) -> int | None:
    run: Run = _current.run
    try:
        code = _poll(run, caller, [arguments[index].of.i32 & 0xFFFFFFFF for index in range(4)])
    except Exception:  # noqa: BLE001  an exception cannot cross the guest's frames
        code = EFAULT
    return None if run.cancelled is not None else code


_PROC_EXIT: Final = host_ffi.host_function(_proc_exit)
_POLL_ONEOFF: Final = host_ffi.host_function(_poll_oneoff)


def _poll(run: Run, caller: Any, arguments: Sequence[int]) -> int:
    subscriptions, events, count, count_out = arguments
    if not 0 < count <= _MOST_SUBSCRIPTIONS:
        return EINVAL
    memory = host_ffi.CallerMemory(caller)
    run.memory_bytes = max(run.memory_bytes or 0, memory.size)
    wanted = memory.holds(subscriptions, count * _SUBSCRIPTION)
    if not (wanted and memory.holds(events, count * _EVENT) and memory.holds(count_out, 4)):
        return EFAULT
    data = memory.read(subscriptions, count * _SUBSCRIPTION)
    ready, clocks = _sort(run, [data[at : at + _SUBSCRIPTION] for at in range(0, len(data), _SUBSCRIPTION)])
    while True:
        now = {_REALTIME: time.time_ns(), _MONOTONIC: time.monotonic_ns()}
        ready += [_event(user, SUCCESS, _CLOCK) for user, clock, due in clocks if due <= now[clock]]
        if ready:
            break
        if not run.sleep(min(_remaining_s(due - now[clock], clock) for _, clock, due in clocks)):
            return EINTR
    # The guest's memory cannot have moved: it is its only thread, and that waits here.
    memory.write(events, b"".join(ready))
    memory.write(count_out, struct.pack("<I", len(ready)))
    return SUCCESS


def _remaining_s(nanoseconds: int, clock: int) -> float:
    seconds = nanoseconds / 1e9
    return min(seconds, _SLICE_S) if clock == _REALTIME else min(seconds, 86_400.0)


def _sort(run: Run, subscriptions: Sequence[bytes]) -> tuple[list[bytes], list[tuple[int, int, int]]]:
    """Return the events that are there already, and the clocks to wait for as (user data, clock, due)."""
    ready: list[bytes] = []
    clocks: list[tuple[int, int, int]] = []
    for subscription in subscriptions:
        user, tag = struct.unpack_from("<QB", subscription)
        if tag == _CLOCK:
            clock, timeout, _precision, flags = struct.unpack_from("<I4xQQH", subscription, 16)
            if clock not in {_REALTIME, _MONOTONIC}:
                ready.append(_event(user, ENOTSUP, tag))
                continue
            # Relative times do not follow a wall clock that somebody sets.
            if not flags & _ABSOLUTE:
                clocks.append((user, _MONOTONIC, time.monotonic_ns() + timeout))
            elif clock == _REALTIME:
                clocks.append((user, _REALTIME, timeout))
            else:
                clocks.append((user, _MONOTONIC, run.clock_origin_ns + timeout))
        elif tag in {_FD_READ, _FD_WRITE}:
            (fd,) = struct.unpack_from("<I", subscription, 16)
            ready.append(_file_event(run, user, tag, fd))
        else:
            ready.append(_event(user, EINVAL, tag))
    return ready, clocks


def _file_event(run: Run, user: int, tag: int, fd: int) -> bytes:
    """What is known of a descriptor: standard streams by number; others can only be files, which are always ready."""
    if fd in {0, 1, 2}:
        if (tag == _FD_READ) != (fd == 0):
            return _event(user, EBADF, tag)
        ended = tag == _FD_READ and not run.has_stdin
        return _event(user, SUCCESS, tag, 0 if ended else 1, _HANGUP if ended else 0)
    return _event(user, SUCCESS if run.has_files else EBADF, tag)


def _event(user: int, error: int, tag: int, nbytes: int = 0, flags: int = 0) -> bytes:
    return struct.pack("<QHB5xQH6x", user, error, tag, nbytes, flags)
