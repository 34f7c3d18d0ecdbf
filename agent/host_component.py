"""Calling into a component: find the export, read its arguments, instantiate, call, show what it answers.

Place in the flow: as `host_call`, for the other kind of module. `component_exports` says what a name means: the command
(``wasi:cli/run``), whose output is its result, or an exported function, whose arguments and result are WAVE text.
"""

import re
from collections.abc import Sequence
from typing import Final

from proplet.agent import component_exports, host_ffi, host_wit, wave
from proplet.agent.host_call import (
    Guest,
    GuestError,
    asks_too_much,
    cancelled,
    exited,
    give_wasi,
    limit_hint,
    out_of_fuel,
    said,
)
from proplet.agent.host_interfaces import UNDEFINED, LoadedComponent
from proplet.agent.host_watch import obey_ticks
from proplet.agent.wave_values import Err
from proplet.agent.wit import Function, Handle

_INSTANCES: Final = 100
_TABLES: Final = 50
_TABLE_ELEMENTS: Final = 200_000
_FRAMES: Final = 3
_FRAME: Final = re.compile(r"^\s*\d+:\s+0x[0-9a-f]+ - (.+)$", re.MULTILINE)
_TRAPPED: Final = "error while executing"


def enter(guest: Guest, loaded: LoadedComponent) -> str | None:
    """Run the guest; return its result as WAVE text, or None where its output is its result.

    Raises:
        GuestError: it was refused, or cancelled before it began, or its command failed.
        WasmtimeError: it ended otherwise than by returning; see `explain`.
    """
    order, store = guest.order, guest.store
    try:
        name = component_exports.find(loaded.functions, order.export)
    except component_exports.UnknownExportError as error:
        raise GuestError("unknown_export", str(error)) from None
    function = loaded.functions[name]
    guest.command = name.startswith(component_exports.RUN)
    values = [] if guest.command else _arguments(name, function, order.inputs)
    if order.tcp and loaded.uses_sockets:
        raise GuestError(
            "not_supported",
            "this engine cannot open sockets for a component, though the task may: run it with the wasmtime program "
            "as the host runtime (-S inherit-network), or without the permission `tcp`",
        )
    memories = max(loaded.memory_count, 1)
    store.set_limits(
        memory_size=order.memory_bytes // memories,
        table_elements=_TABLE_ELEMENTS,
        instances=_INSTANCES,
        tables=_TABLES,
        memories=memories,
    )
    if order.metered:
        guest.give_fuel()
    if loaded.uses_wasi:
        give_wasi(guest)
        if order.http and loaded.uses_http:
            store.set_wasi_http()
    obey_ticks(store, guest.run)
    if guest.run.cancelled is not None:  # before there was a store that could have seen the tick
        raise cancelled(guest)
    instance = loaded.linker(http=order.http).instantiate(store, loaded.component)
    place, _, inner = name.rpartition("#")
    index = instance.get_export_index(store, place) if place else None
    index = instance.get_export_index(store, inner, index)
    found = None if index is None else instance.get_func(store, index)
    if found is None:
        raise GuestError("internal", f"the export {name} is recorded but not there")
    handle, callee = host_ffi.context(store), host_ffi.component_function(found)
    try:
        value = host_wit.call(handle, callee, function, values, most=order.output_bytes)
    except host_wit.AnswerTooLargeError:
        raise _too_large(guest, "more characters") from None
    if guest.command:
        if isinstance(value, Err):
            raise exited(guest, 1)
        return None
    return _answer(guest, value, function)


def explain(guest: Guest, fault: Exception) -> GuestError | None:
    """Return why the guest ended, given what the engine raised; None if it ended well, by ``exit``."""
    run, order = guest.run, guest.order
    if run.exit_code is not None:
        return exited(guest, run.exit_code) if run.exit_code else None
    if run.cancelled is not None:
        return cancelled(guest)
    # What stands before it are names of functions, which the guest chose.
    frames, _, cause = str(fault).rpartition("Caused by:")
    if "all fuel consumed" in cause:
        return out_of_fuel(guest)
    if "too much data is being copied" in cause:  # what crosses at once is bounded by the engine, some 100 MiB
        return GuestError("output_limit", f"'{order.export}' handed over too much data at once")
    if UNDEFINED in cause:
        return _forbidden(cause.partition(UNDEFINED)[2].partition("`")[0])
    if not frames.startswith(_TRAPPED) and (refused := _refused(guest, " ".join(str(fault).split()))) is not None:
        return refused
    what = _trap_text(frames, cause)
    return GuestError("trap", f"Failed to call function '{order.export}': {what}{limit_hint(guest, what)}{said(guest)}")


def _arguments(name: str, function: Function, inputs: Sequence[str]) -> list[wave.Value]:
    for label, part in (*function.parameters, ("its result", function.result)):
        if part == component_exports.ASYNCHRONOUS:
            raise GuestError("not_supported", f"'{name}' is an async function, and the engine cannot call these yet")
        wrong = None if part is None else host_wit.unspeakable(part)
        if wrong is not None:
            where = label if part is function.result else f"parameter {label}"
            what = "a handle of a resource" if isinstance(wrong, Handle) else "not supported"
            problem = f"{where} is of the type {part}, and {wrong} is {what}"
            raise GuestError("not_supported", f"'{name}' cannot be called with text: {problem}")
    try:
        return wave.parse_all(name, inputs, function)
    except wave.WaveError as error:
        raise GuestError("invalid_arguments", str(error)) from None


def _answer(guest: Guest, value: wave.Value, function: Function) -> str:
    if function.result is None:
        return ""
    text = wave.show(value, function.result)
    if len(text) > guest.order.output_bytes:
        raise _too_large(guest, f"{len(text)} characters, more")
    return text


def _too_large(guest: Guest, how: str) -> GuestError:
    return GuestError("output_limit", f"its answer has {how} than the {guest.order.output_bytes} allowed")


def _refused(guest: Guest, message: str) -> GuestError | None:
    """Return why it could not even be instantiated."""
    if "a matching implementation was not found in the linker" in message:
        return GuestError("missing_import", f"{message}; WASI 0.2 is what is provided here")
    if asks_too_much(message):
        allowed = (
            f"{guest.order.memory_bytes} bytes (limits.memory), {_TABLES} tables of {_TABLE_ELEMENTS} elements each"
        )
        return GuestError("memory_limit", f"{message}; it may have {allowed}")
    return None


def _forbidden(name: str) -> GuestError:
    if name.startswith("wasi:http/"):
        return GuestError(
            "permission_denied",
            f"it called {name} without a permission for outbound HTTP: the task has to ask for it with "
            '`permissions: {http: ["*"]}`, and the node has to allow it; the engine knows all hosts or none',
        )
    return GuestError("missing_import", f"it called {name}, which is not provided here")


def _trap_text(frames: str, cause: str) -> str:
    text = " ".join(cause.rpartition("wasm trap:")[1:] if "wasm trap:" in cause else [cause])
    names = [name.removeprefix("<unknown>!")[:80] for name in _FRAME.findall(frames)]
    if not names:
        return " ".join(text.split())
    shown = " < ".join(names[:_FRAMES])
    return f"{' '.join(text.split())} (in {shown}{' < ...' if len(names) > _FRAMES else ''})"
