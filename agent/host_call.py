"""Calling into a guest: instantiate, find the entry point, pass arguments, read results, explain what went wrong.

Place in the flow: `host` makes the store and the report around it. What the functions here raise is always
`GuestError`, or the engine's errors for `explain` to translate.
"""

from dataclasses import dataclass
from typing import Final

from wasmtime import ExitTrap, Store, Trap, TrapCode

from proplet.agent import host_ffi, wasi
from proplet.agent.host_engine import Loaded, Signature, stack_class
from proplet.agent.host_output import Capture
from proplet.agent.host_values import ArgumentError, parse_all, show
from proplet.agent.host_watch import Run, note_memory, obey_ticks
from proplet.agent.worker_orders import Order

_FALLBACKS: Final = ("main", "run", "_start")
_INITIALIZE: Final = "_initialize"
_START: Final = "_start"
_NOTHING: Final = Signature((), ())
_TABLE_ELEMENTS: Final = 200_000
_TABLES: Final = 16
_STDERR_LINES: Final = 3
_FRAMES: Final = 3
_NO_FUEL_LIMIT: Final = 2**63 - 1
_TOO_MUCH: Final = ("exceeds memory limits", "exceeds table limits", "resource limit exceeded")
_SHOWN_EXPORTS: Final = 20
# As guests say it that are refused memory: Rust, C, Python, Go.
_OUT_OF_MEMORY: Final = ("memory allocation of", "out of memory", "cannot allocate", "memoryerror")
_LAST_WORDS: Final = 4096


class GuestError(Exception):
    """The run ends with `reason` (one of `wire.Reason`'s values) and this message."""

    def __init__(self, reason: str, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit_code


@dataclass(slots=True)
class Guest:
    """What belongs to one run. `command` is set once the entry point is known, `fuel` when it has that."""

    order: Order
    run: Run
    store: Store
    stdout: Capture
    stderr: Capture
    command: bool = False
    fuel: int | None = None  # its limit, once it has that

    def give_fuel(self) -> None:
        """Let its store, whose engine counts fuel, have what the order says."""
        self.fuel = self.order.fuel
        self.store.set_fuel(_NO_FUEL_LIMIT if self.order.fuel is None else self.order.fuel)

    def fuel_used(self) -> int | None:
        """Return what it has used of the fuel it was given; None if it was given none."""
        return None if self.fuel is None else self.fuel - self.store.get_fuel()


def enter(guest: Guest, loaded: Loaded) -> str | None:
    """Run the guest; return its results as text, or None where its output is its result.

    Raises:
        GuestError: it was refused, or cancelled before it began.
        Trap, WasmtimeError: it ended otherwise than by returning; see `explain`.
    """
    order, store = guest.order, guest.store
    guest.run.memory_bytes = 0  # until it is instantiated
    name, signature = _entry(loaded, order.export)
    guest.command = loaded.uses_wasi and name == _START and signature == _NOTHING
    values: list[int | float] = []
    if not guest.command:
        try:
            values = parse_all(name, order.inputs, signature.parameters)
        except ArgumentError as error:
            raise GuestError("invalid_arguments", str(error)) from None
    store.set_limits(
        memory_size=order.memory_bytes, table_elements=_TABLE_ELEMENTS, instances=1, tables=_TABLES, memories=1
    )
    if order.metered:
        guest.give_fuel()
    if loaded.uses_wasi:
        give_wasi(guest)
    obey_ticks(store, guest.run)
    if guest.run.cancelled is not None:  # before there was a store that could have seen the tick
        raise cancelled(guest)
    guest.run.memory_bytes = None
    instance = loaded.instance_pre.instantiate(store)
    handle = host_ffi.context(store)
    guest.run.memories = [host_ffi.export(handle, instance, memory).memory for memory in loaded.memories]
    note_memory(guest.run, handle)
    if loaded.functions.get(_INITIALIZE) == _NOTHING and name != _INITIALIZE:
        host_ffi.call(handle, host_ffi.export(handle, instance, _INITIALIZE).func, (), [], ())
    function = host_ffi.export(handle, instance, name).func
    found = host_ffi.call(handle, function, signature.parameters, values, signature.results)
    if guest.command or (loaded.uses_wasi and not signature.results):
        return None
    return "\n".join(map(_show, found, signature.results))


def explain(guest: Guest, fault: Exception) -> GuestError | None:
    """Return why the guest ended, given what the engine raised; None if it ended well, by ``proc_exit(0)``."""
    run, order = guest.run, guest.order
    code = fault.code if isinstance(fault, ExitTrap) else run.exit_code
    if code is not None:
        return exited(guest, code) if code else None
    if run.cancelled is not None:
        return cancelled(guest)
    if isinstance(fault, Trap):
        if fault.trap_code == TrapCode.OUT_OF_FUEL:
            return out_of_fuel(guest)
        cause = _trap_text(fault)
        what = f"{cause}{limit_hint(guest, cause)}{said(guest)}"
        return GuestError("trap", f"Failed to call function '{order.export}': {what}")
    message = " ".join(str(fault).split())
    if asks_too_much(message):
        allowed = f"{order.memory_bytes} bytes (limits.memory), {_TABLES} tables of {_TABLE_ELEMENTS} elements together"
        return GuestError("memory_limit", f"{message}; it may have {allowed}")
    return GuestError("trap", f"Failed to call function '{order.export}': {message}")


def out_of_fuel(guest: Guest) -> GuestError:
    """It has used up its fuel."""
    return GuestError("cpu_limit", f"it used up its {guest.order.fuel or 0} units of fuel")


def asks_too_much(message: str) -> bool:
    """Whether the engine's `message` says that a module needs more than its store may have, before it runs."""
    return any(words in message for words in _TOO_MUCH)


def _entry(loaded: Loaded, wanted: str) -> tuple[str, Signature]:
    for name in (wanted, *_FALLBACKS):
        if name in loaded.functions:
            return name, loaded.functions[name]
    names = sorted(loaded.functions)
    listed = ", ".join(names[:_SHOWN_EXPORTS]) or "none"
    more = f" and {len(names) - _SHOWN_EXPORTS} more" if len(names) > _SHOWN_EXPORTS else ""
    tried = ", ".join(dict.fromkeys((wanted, *_FALLBACKS)))
    raise GuestError("unknown_export", f"no function is exported as any of {tried}; exported functions: {listed}{more}")


def give_wasi(guest: Guest) -> None:
    """Configure WASI, of either preview, in the guest's store.

    Raises:
        GuestError: it cannot be given these arguments, variables or directories.
    """
    order, run = guest.order, guest.run
    run.has_stdin = bool(order.stdin)
    run.has_files = bool(order.dirs)
    arguments = [order.export, *order.argv, *(order.inputs if guest.command else ())]
    try:
        config = wasi.configure(arguments, order.env, order.stdin, order.dirs, (guest.stdout, guest.stderr))
    except wasi.ConfigurationError as error:
        raise GuestError("invalid_arguments", str(error)) from error
    run.clock_origin_ns = wasi.clock_origin_ns()
    guest.store.set_wasi(config)


def _show(value: float | None, kind: str) -> str:
    """Vectors and references have no text: an empty line, as the reference does."""
    return "" if value is None else show(value, kind)


def exited(guest: Guest, code: int) -> GuestError:
    """Return the error of a guest that ended itself with `code`."""
    return GuestError("exit_code", f"exit status {code}{said(guest)}", code)


def said(guest: Guest) -> str:
    """Return the last lines that the guest printed to standard error, to be put behind a message."""
    lines = guest.stderr.value().decode(errors="replace").strip().splitlines()[-_STDERR_LINES:]
    return ": " + " | ".join(line.strip()[:200] for line in lines) if lines else ""


def cancelled(guest: Guest) -> GuestError:
    """Return the error of a guest that was ended."""
    order, reason = guest.order, guest.run.cancelled or "stopped"
    if reason == "timeout":
        return GuestError(reason, f"ended after {order.wall_s:g} s, its limit of time")
    if reason == "cpu_limit":
        return GuestError(reason, f"ended after {order.cpu_s:g} s of CPU time, its limit")
    return GuestError(reason, "stopped before completion")


def _trap_text(trap: Trap) -> str:
    message = trap.message.strip()
    cause = message.rsplit("wasm trap:", 1)[-1] if "wasm trap:" in message else message.rsplit("Caused by:", 1)[-1]
    frames = [frame.func_name or f"function {frame.func_index}" for frame in trap.frames]
    if not frames:
        return f"wasm trap: {' '.join(cause.split())}"
    shown = " < ".join(name[:80] for name in frames[:_FRAMES])
    return f"wasm trap: {' '.join(cause.split())} (in {shown}{' < ...' if len(frames) > _FRAMES else ''})"


def limit_hint(guest: Guest, cause: str) -> str:
    """Return which limit likely made the guest trap, or nothing: one that is refused memory traps in its own way."""
    order = guest.order
    if "call stack exhausted" in cause:
        return f"; it may have {stack_class(order.stack_bytes)} bytes of stack (limits.stack)"
    note_memory(guest.run, host_ffi.context(guest.store))
    used, allowed = guest.run.memory_bytes or 0, order.memory_bytes
    if used >= allowed / 2:
        return f"; its memory stood at {used} of the {allowed} bytes allowed (limits.memory)"
    words = guest.stderr.value()[-_LAST_WORDS:].decode(errors="replace").lower()
    if any(sign in words for sign in _OUT_OF_MEMORY):
        return f"; it may have {allowed} bytes of memory (limits.memory)"
    return ""
