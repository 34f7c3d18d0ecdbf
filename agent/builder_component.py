"""What a component declares, asked of the engine: imports, exported functions with their WIT types, what it needs.

Place in the flow: `builder` asks after the compiler has accepted the component, and puts it into the cache's record.
What the engine cannot describe, or nobody could pass as text, is recorded as unsupported: only calling it is refused.
Source: WebAssembly/component-model, Explainer.md, "Import and export definitions".
"""

from dataclasses import dataclass
from typing import Final

from wasmtime import Engine
from wasmtime import component as engine_types

from proplet.agent import host_ffi, wit
from proplet.agent.component_exports import ASYNCHRONOUS

# Without one of these nothing in the engine waits: clocks only make what `poll` waits for, and the standard streams are
# never empty or full. (A pipe in a granted directory can, as with preview 1.)
_BLOCKING: Final = ("wasi:io/poll@", "wasi:sockets/", "wasi:http/outgoing-handler@")
# Of each the engine makes as many as are asked for, and keeps a hundred thousand: a hundred megabytes of streams.
_HELD: Final = ("wasi:io/streams@", "wasi:filesystem/", "wasi:cli/std", "wasi:cli/terminal-", "wasi:http/types@")
_LARGEST: Final = 5 * wit.LARGEST  # parts of all functions' types together: some 300 KB of record
_HANDLER: Final = "wasi:http/incoming-handler@"
_PRIMITIVES: Final = {
    engine_types.Bool: "bool",
    engine_types.S8: "s8",
    engine_types.S16: "s16",
    engine_types.S32: "s32",
    engine_types.S64: "s64",
    engine_types.U8: "u8",
    engine_types.U16: "u16",
    engine_types.U32: "u32",
    engine_types.U64: "u64",
    engine_types.F32: "f32",
    engine_types.F64: "f64",
    engine_types.Char: "char",
    engine_types.String: "string",
}
_UNSUPPORTED: Final = {
    engine_types.FutureType: "future",
    engine_types.StreamType: "stream",
    engine_types.ErrorContext: "error-context",
}


@dataclass(frozen=True, slots=True)
class Outside:
    """A component's outside. `functions` are the exported ones, by ``name`` or ``instance#name``, as `wit` JSON.

    `waits` as in `ports.Artefact`.
    """

    imports: tuple[str, ...]
    functions: dict[str, wit.Json]
    waits: bool
    serves_http: bool


def described(component: engine_types.Component, engine: Engine) -> Outside:
    """Return what `component` declares."""
    imports = tuple(
        name for name, item in component.type.imports(engine).items() if not isinstance(item.ty, engine_types.ValType)
    )
    functions: dict[str, wit.Json] = {}
    reader = _Reader()
    serves_http = False
    for name, item in component.type.exports(engine).items():
        serves_http |= name.startswith(_HANDLER)
        kind = item.ty
        if isinstance(kind, engine_types.FuncType):
            functions[name] = wit.function_to_json(reader.function(kind))
        elif isinstance(kind, engine_types.ComponentInstanceType):
            for inner, inner_item in kind.exports(engine).items():
                inner_kind = inner_item.ty
                if isinstance(inner_kind, engine_types.FuncType):
                    functions[f"{name}#{inner}"] = wit.function_to_json(reader.function(inner_kind))
    alone = reader.swells or any(name.startswith(_BLOCKING + _HELD) for name in imports)
    return Outside(imports, functions, alone, serves_http)


class _Reader:
    """Reads the types of functions. What they share the engine shows again and again, so their sum is bounded.

    For each function, as its values have to be led by them; and for all, as every worker reads the record. `swells`: a
    result may be a list of what is no number, of which the engine makes more than fifty times as much as the guest has.
    """

    def __init__(self) -> None:
        self.swells = False
        self._left = 0
        self._left_in_all = _LARGEST

    def function(self, kind: engine_types.FuncType) -> wit.Function:
        self._left = wit.LARGEST
        parameters = tuple((name, self.read(part)) for name, part in kind.params)
        if host_ffi.is_asynchronous(kind):
            return wit.Function(parameters, ASYNCHRONOUS)
        result = None if kind.result is None else self.read(kind.result)
        self.swells |= result is not None and _swells(result)
        return wit.Function(parameters, result)

    def read(self, kind: engine_types.ValType) -> wit.Type:
        self._left -= 1
        self._left_in_all -= 1
        if self._left < 0 or self._left_in_all < 0:
            return wit.Unsupported("type of too many parts")
        try:
            return self._read(kind)
        except (wit.WitError, TypeError, RecursionError):  # TypeError: a kind of type that the binding does not know
            return wit.Unsupported("type that is unknown here")

    def _read(self, kind: engine_types.ValType) -> wit.Type:
        if (name := _PRIMITIVES.get(type(kind))) is not None:
            return wit.Primitive(name)
        match kind:
            case engine_types.ListType():
                return wit.ListOf(self.read(kind.element))
            case engine_types.OptionType():
                return wit.OptionOf(self.read(kind.payload))
            case engine_types.ResultType():
                return wit.ResultOf(self._optional(kind.ok), self._optional(kind.err))
            case engine_types.TupleType():
                return wit.TupleOf(tuple(map(self.read, kind.elements)))
            case engine_types.RecordType():
                return wit.RecordOf(tuple((name, self.read(part)) for name, part in kind.fields))
            case engine_types.VariantType():
                return wit.VariantOf(tuple((name, self._optional(part)) for name, part in kind.cases))
            case engine_types.EnumType():
                return wit.EnumOf(tuple(kind.names))
            case engine_types.FlagsType():
                return wit.FlagsOf(tuple(kind.names))
            case engine_types.OwnType() | engine_types.BorrowType():
                return wit.Handle(isinstance(kind, engine_types.OwnType), "resource")
        return wit.Unsupported(_UNSUPPORTED.get(type(kind), "type that is unknown here"))

    def _optional(self, kind: engine_types.ValType | None) -> wit.Type | None:
        return None if kind is None else self.read(kind)


def _swells(kind: wit.Type) -> bool:
    match kind:
        case wit.ListOf(element):
            return not isinstance(element, wit.Primitive) or element.name == "string"
        case wit.OptionOf(some):
            return _swells(some)
        case wit.ResultOf(ok, err):
            return any(part is not None and _swells(part) for part in (ok, err))
        case wit.TupleOf(parts):
            return any(map(_swells, parts))
        case wit.RecordOf(named) | wit.VariantOf(named):
            return any(part is not None and _swells(part) for _, part in named)
        case _:
            return False
