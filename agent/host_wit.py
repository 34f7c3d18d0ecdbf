"""Values of component functions, between plain Python (`wave_values`) and the engine's C structures; and the call.

Place in the flow: `host_component` calls `call` with arguments that `wave` has checked against their types. The
binding's own conversion loses which case a value is of, checks no ranges, and asks the engine for every type at every
call; this one is led by the types in the cache's record. It is private API, like `host_ffi`.
"""

import ctypes
from ctypes import byref
from typing import Any, Final, assert_never

from wasmtime import WasmtimeError
from wasmtime import _ffi as ffi

from proplet.agent.wave_values import Case, Err, Ok, Some, Value
from proplet.agent.wit import (
    EnumOf,
    FlagsOf,
    Function,
    Handle,
    ListOf,
    OptionOf,
    Primitive,
    RecordOf,
    ResultOf,
    TupleOf,
    Type,
    Unsupported,
    VariantOf,
)

_KINDS: Final = {
    name: getattr(ffi, f"WASMTIME_COMPONENT_{name.upper()}").value
    for name in ["bool", "char", "string", "list", "record", "tuple", "variant", "enum", "option", "result", "flags"]
    + [f"{sign}{bits}" for sign in "su" for bits in (8, 16, 32, 64)]
    + ["f32", "f64"]
}
_COMPOSITES: Final[dict[type, int]] = {
    ListOf: _KINDS["list"],
    RecordOf: _KINDS["record"],
    TupleOf: _KINDS["tuple"],
    VariantOf: _KINDS["variant"],
    EnumOf: _KINDS["enum"],
    OptionOf: _KINDS["option"],
    ResultOf: _KINDS["result"],
    FlagsOf: _KINDS["flags"],
}
_FIELDS: Final = {"bool": "boolean", **{name: name for name in _KINDS if name[1:].isdigit()}}


class AnswerTooLargeError(ValueError):
    """A function's result has more text than the caller can use."""


class _Room:
    """How much text is left to what is lifted, at the least that it can take.

    The engine hands over some 100 MB, of which Python would make many times as much.
    """

    __slots__ = ("_left",)

    def __init__(self, characters: int) -> None:
        self._left = characters

    def take(self, characters: int) -> None:
        """Count at least so many; what is not written, such as an option's none in a record, counts as one."""
        self._left -= characters
        if self._left < 0:
            raise AnswerTooLargeError

    def fits(self, size: int) -> None:
        """See that a string of `size` bytes may be decoded: a character has up to four."""
        if size > 4 * self._left:
            raise AnswerTooLargeError


def call(handle: Any, function: Any, kind: Function, values: list[Value], *, most: int = 2**62) -> Value:
    """Call `function` of the type `kind` and return its result, None where it has none; its text has `most` characters.

    Raises:
        WasmtimeError: what the engine reports.
        AnswerTooLargeError: the result's text certainly has more characters.
    """
    arguments = (ffi.wasmtime_component_val_t * len(values))()
    for slot, (_, part), value in zip(arguments, kind.parameters, values, strict=True):
        _lower(part, value, slot)
    found = ffi.wasmtime_component_val_t()
    count = 0 if kind.result is None else 1
    try:
        error = ffi.wasmtime_component_func_call(
            byref(function), handle, arguments, len(values), byref(found) if count else None, count
        )
    finally:
        for slot in arguments:
            ffi.wasmtime_component_val_delete(byref(slot))
    if error:
        raise WasmtimeError._from_ptr(error)  # noqa: SLF001
    if kind.result is None:
        return None
    try:
        return _lift(kind.result, found, _Room(most))
    finally:
        ffi.wasmtime_component_val_delete(byref(found))


def unspeakable(kind: Type) -> Type | None:
    """Return the part of `kind` that no text can stand for, a handle or what is not supported; None without one."""
    match kind:
        case Handle() | Unsupported():
            return kind
        case ListOf(part) | OptionOf(part):
            return unspeakable(part)
        case ResultOf(ok, err):
            parts: list[Type | None] = [ok, err]
        case TupleOf(inner):
            parts = list(inner)
        case RecordOf(named) | VariantOf(named):
            parts = [part for _, part in named]
        case _:
            parts = []
    found = (unspeakable(part) for part in parts if part is not None)
    return next((part for part in found if part is not None), None)


def _lower(kind: Type, value: Any, slot: Any) -> None:
    """Write `value`, which is of the type `kind`, into the C structure `slot`."""
    slot.kind = _KINDS[kind.name] if isinstance(kind, Primitive) else _COMPOSITES[type(kind)]
    match kind:
        case Primitive("string"):
            slot.of.string = ffi.str_to_capi(value)
        case Primitive("char"):
            slot.of.character = ord(value)
        case Primitive(name):
            setattr(slot.of, _FIELDS[name], value)
        case EnumOf():
            slot.of.enumeration = ffi.str_to_capi(value)
        case OptionOf(some):
            slot.of.option = None if value is None else _boxed(some, value.value)
        case ResultOf(ok, err):
            slot.of.result.is_ok = isinstance(value, Ok)
            slot.of.result.val = _boxed(ok if isinstance(value, Ok) else err, value.value)
        case VariantOf():
            slot.of.variant.discriminant = ffi.str_to_capi(value.name)
            slot.of.variant.val = _boxed(kind.by_name[value.name], value.payload)
        case _:
            _lower_several(kind, value, slot.of)


def _lower_several(kind: Type, value: Any, of: Any) -> None:
    match kind:
        case ListOf(element):
            ffi.wasmtime_component_vallist_new_uninit(byref(of.list), len(value))
            for at, each in enumerate(value):
                _lower(element, each, of.list.data[at])
        case TupleOf(parts):
            ffi.wasmtime_component_valtuple_new_uninit(byref(of.tuple), len(parts))
            for at, (part, each) in enumerate(zip(parts, value, strict=True)):
                _lower(part, each, of.tuple.data[at])
        case RecordOf(fields):
            ffi.wasmtime_component_valrecord_new_uninit(byref(of.record), len(fields))
            for at, (name, part) in enumerate(fields):
                of.record.data[at].name = ffi.str_to_capi(name)
                _lower(part, value[name], of.record.data[at].val)
        case FlagsOf():
            ffi.wasmtime_component_valflags_new_uninit(byref(of.flags), len(value))
            for at, name in enumerate(value):
                of.flags.data[at] = ffi.str_to_capi(name)


def _boxed(kind: Type | None, value: Any) -> Any:
    """Return `value` as a C structure of its own, nothing where the case has no payload."""
    if kind is None:
        return None
    made = ffi.wasmtime_component_val_t()
    _lower(kind, value, made)
    return ffi.wasmtime_component_val_new(byref(made))


def _lift(kind: Type, slot: Any, room: _Room) -> Value:
    """Return what the C structure `slot`, of the type `kind`, holds."""
    room.take(1)
    match kind:
        case Primitive("string"):
            room.fits(slot.of.string.size)
            text = _text(slot.of.string)
            room.take(len(text))
            return text
        case Primitive("char"):
            return chr(slot.of.character)
        case Primitive(name):
            number: Value = getattr(slot.of, _FIELDS[name])
            return number
        case ListOf(Primitive(name)) if name in _FIELDS:
            room.take(3 * slot.of.list.size)  # with a comma and a blank between them
            field, data = _FIELDS[name], slot.of.list.data
            return [getattr(data[at].of, field) for at in range(slot.of.list.size)]
        case ListOf(element):
            room.take(2 * slot.of.list.size)
            return [_lift(element, slot.of.list.data[at], room) for at in range(slot.of.list.size)]
        case TupleOf(parts):
            return tuple(_lift(part, slot.of.tuple.data[at], room) for at, part in enumerate(parts))
        case RecordOf(fields):
            return {name: _lift(part, slot.of.record.data[at].val, room) for at, (name, part) in enumerate(fields)}
        case FlagsOf():
            return frozenset(_text(slot.of.flags.data[at]) for at in range(slot.of.flags.size))
        case EnumOf():
            return _text(slot.of.enumeration)
        case OptionOf(some):
            return Some(_lift(some, slot.of.option.contents, room)) if slot.of.option else None
        case ResultOf(ok, err):
            held = slot.of.result
            return Ok(_unboxed(ok, held.val, room)) if held.is_ok else Err(_unboxed(err, held.val, room))
        case VariantOf():
            name = _text(slot.of.variant.discriminant)
            return Case(name, _unboxed(kind.by_name[name], slot.of.variant.val, room))
        case Handle() | Unsupported():
            raise TypeError(f"a value of the type {kind} cannot be shown")
        case _:
            assert_never(kind)


def _unboxed(kind: Type | None, pointer: Any, room: _Room) -> Value:
    return None if kind is None else _lift(kind, pointer.contents, room)


def _text(name: Any) -> str:
    return ctypes.string_at(name.data, name.size).decode()
