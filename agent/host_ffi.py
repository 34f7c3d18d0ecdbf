# ruff: noqa: SLF001
"""The few calls into the engine that the binding's public face cannot make, or makes too dearly: all private API.

Place in the flow: `host`, `host_call`, `host_watch` and `wasi` use it. The binding is pinned to one major version, and
`tests/runtime` fails if one of these names goes.
"""

import ctypes
from collections.abc import Callable
from ctypes import byref
from typing import Any, Final

from wasmtime import FuncType, Instance, Linker, Store, Trap, WasiConfig, WasmtimeError, component
from wasmtime import _ffi as ffi

Number = int | float | None
KINDS: Final = {"i32": 0, "i64": 1, "f32": 2, "f64": 3}
_CONTINUE: Final = 0
_NO_FINALIZER: Final = ctypes.cast(0, ctypes.CFUNCTYPE(None, ctypes.c_void_p))
_TICK: Final = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.POINTER(ffi.wasmtime_context_t),
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.POINTER(ffi.wasmtime_update_deadline_kind_t),
)
_MEMORY_NAME: Final = ctypes.create_string_buffer(b"memory")
_ENDED: Final = ctypes.create_string_buffer(b"ended")


def context(store: Store) -> Any:
    """Return the handle of `store` that calls take; valid until it is closed."""
    return store._context()


def export(handle: Any, instance: Instance, name: str) -> Any:
    """Return the union that holds the export `name`, which must exist."""
    encoded = name.encode()
    item = ffi.wasmtime_extern_t()
    buffer = ctypes.create_string_buffer(encoded)
    ffi.wasmtime_instance_export_get(handle, byref(instance._instance), buffer, len(encoded), byref(item))
    return item.of


def call(
    handle: Any, function: Any, parameters: Any, values: list[int | float], results: Any
) -> list[int | float | None]:
    """Call `function` with `values` of the types `parameters`; a result that is no number is None.

    The binding's own ``Func.__call__`` costs 20 microseconds, and fails on vectors after the call was made.

    Raises:
        Trap, WasmtimeError: what the engine reports.
    """
    arguments = (ffi.wasmtime_val_t * len(values))()
    for slot, kind, value in zip(arguments, parameters, values, strict=True):
        slot.kind = KINDS[kind]
        setattr(slot.of, kind, value)
    found = (ffi.wasmtime_val_t * len(results))()
    trap = ctypes.POINTER(ffi.wasm_trap_t)()
    error = ffi.wasmtime_func_call(handle, byref(function), arguments, len(arguments), found, len(found), byref(trap))
    if error:
        raise WasmtimeError._from_ptr(error)
    if trap:
        raise Trap._from_ptr(trap)
    numbers: list[Number] = []
    for slot, kind in zip(found, results, strict=True):
        numbers.append(getattr(slot.of, kind) if kind in KINDS else None)
        if kind not in KINDS:
            ffi.wasmtime_val_unroot(byref(slot))
    return numbers


def is_asynchronous(kind: component.FuncType) -> bool:
    """True for a component's function that is declared ``async``."""
    return bool(ffi.wasmtime_component_func_type_async(kind.ptr()))


def memory_size(handle: Any, memory: Any) -> int:
    """Return the bytes of a linear memory; on the guest's own thread only."""
    return int(ffi.wasmtime_memory_data_size(handle, byref(memory)))


def tick_callback(on_tick: Callable[[Any, int], bool]) -> Any:
    """Return a C callback that lets a guest go on while ``on_tick(context, number)`` is true. It must not raise."""

    def trampoline(handle: Any, number: int | None, delta: Any, kind: Any) -> int:
        if not on_tick(handle, number or 0):
            return ctypes.cast(ffi.wasmtime_error_new(b"cancelled"), ctypes.c_void_p).value or 0
        delta[0] = 1
        kind[0] = _CONTINUE
        return 0

    return _TICK(trampoline)


def obey_ticks(store: Store, callback: Any, number: int) -> None:
    """Make `store` call back with `number` at the engine's next tick, and at every one after it."""
    ffi.wasmtime_store_epoch_deadline_callback(store.ptr(), callback, number, _NO_FINALIZER)
    store.set_epoch_deadline(1)


def host_function(function: Callable[[Any, Any], int | None]) -> Any:
    """Return a C callback around ``function(caller, arguments)``: the i32 it returns, or None to end the guest.

    The binding's trampoline would have to be left by an exception, and it keeps that in a global which threads
    overwrite for each other. `function` must not raise, and returns 0 where the import has no result.
    """

    def trampoline(_env: Any, caller: Any, arguments: Any, _count: int, results: Any, result_count: int) -> int:
        code = function(caller, arguments)
        if code is None:
            return ctypes.cast(ffi.wasmtime_trap_new(_ENDED, len(_ENDED.value)), ctypes.c_void_p).value or 0
        if result_count:
            results[0].kind = KINDS["i32"]
            results[0].of.i32 = code
        return 0

    return ffi.wasmtime_func_callback_t(trampoline)


def define(linker: Linker, module: str, name: str, kind: FuncType, callback: Any) -> None:
    """Define a host function in `linker`; the caller keeps `callback` alive."""
    module_name, function_name = (ctypes.create_string_buffer(text.encode()) for text in (module, name))
    error = ffi.wasmtime_linker_define_func(
        linker.ptr(), module_name, len(module), function_name, len(name), kind.ptr(), callback, 0, _NO_FINALIZER
    )
    if error:
        raise WasmtimeError._from_ptr(error)


def component_end(note: Callable[[Any], None]) -> Any:
    """Return a C callback for a component's import: it tells ``note(arguments)``, which must not raise, and ends it."""

    def trampoline(
        _data: Any, _context: Any, _kind: Any, arguments: Any, _count: int, _results: Any, _result_count: int
    ) -> int:
        note(arguments)
        return ctypes.cast(ffi.wasmtime_error_new(b"ended"), ctypes.c_void_p).value or 0

    return ffi.wasmtime_component_func_callback_t(trampoline)


def define_in_instance(instance: component.LinkerInstance, name: str, callback: Any) -> None:
    """Define a component's host function in `instance`; the caller keeps `callback` alive."""
    buffer = ctypes.create_string_buffer(name.encode())
    error = ffi.wasmtime_component_linker_instance_add_func(
        instance.ptr(), buffer, len(buffer.value), callback, 0, _NO_FINALIZER
    )
    if error:
        raise WasmtimeError._from_ptr(error)


def component_function(function: component.Func) -> Any:
    """Return the C structure that `host_wit.call` takes."""
    return function._func


def set_stdin(config: WasiConfig, data: bytes) -> None:
    """Let the guest read `data`, then end of file."""
    vector = ffi.bytes_to_capi(data) if data else ffi.wasm_byte_vec_t()
    ffi.wasi_config_set_stdin_bytes(config.ptr(), byref(vector))


class CallerMemory:
    """The memory of the guest that calls a host function, exported as ``memory``."""

    def __init__(self, caller: Any) -> None:
        """Find it.

        Raises:
            ValueError: the guest exports none.
        """
        item = ffi.wasmtime_extern_t()
        found = ffi.wasmtime_caller_export_get(caller, _MEMORY_NAME, len(_MEMORY_NAME.value), byref(item))
        if not found or int(item.kind) != ffi.WASMTIME_EXTERN_MEMORY.value:
            raise ValueError("the guest exports no memory")
        handle = ffi.wasmtime_caller_context(caller)
        self.size = memory_size(handle, item.of.memory)
        self._base = ctypes.cast(ffi.wasmtime_memory_data(handle, byref(item.of.memory)), ctypes.c_void_p).value or 0

    def holds(self, address: int, length: int) -> bool:
        """True if all of the range is inside; check before `read` and `write`."""
        return address + length <= self.size

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of a range."""
        return ctypes.string_at(self._base + address, length)

    def write(self, address: int, data: bytes) -> None:
        """Overwrite a range."""
        ctypes.memmove(self._base + address, data, len(data))
