"""Components made on the spot: one that returns what it is given, for any type."""

from proplet.agent.wit import (
    EnumOf,
    FlagsOf,
    Function,
    ListOf,
    OptionOf,
    Primitive,
    RecordOf,
    ResultOf,
    TupleOf,
    Type,
    VariantOf,
)

# A list lies in memory as it was put there, whatever its elements are: address and length go back as they came.
_CORE = """
(core module $m
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 64))
  (func (export "realloc") (param i32 i32 i32 i32) (result i32)
    (global.set $free (i32.and (i32.add (global.get $free) (i32.const 15)) (i32.const -16)))
    (global.get $free)
    (global.set $free (i32.add (global.get $free) (local.get 3)))
    (block $enough
      (loop $more
        (br_if $enough (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
        (drop (memory.grow (i32.const 16)))
        (br $more))))
  (func (export "echo") (param i32 i32) (result i32)
    (i32.store (i32.const 16) (local.get 0))
    (i32.store (i32.const 20) (local.get 1))
    (i32.const 16)))
(core instance $i (instantiate $m))
"""
_LIFT = '(canon lift (core func $i "echo") (memory (core memory $i "memory")) (realloc (core func $i "realloc")))'


def echo(kinds: list[Type]) -> str:
    """Return the text of a component with a function ``echo-N`` for each type, from a list of it to the same list."""
    types = _Types()
    functions = []
    for number, kind in enumerate(kinds):
        name = types.name(ListOf(kind))
        functions.append(f'(func (export "echo-{number}") (param "value" {name}) (result {name}) {_LIFT})')
    return "\n".join(["(component", _CORE, *types.lines, *functions, ")"])


def echo_function(kind: Type) -> Function:
    """The type of a function of `echo`."""
    return Function((("value", ListOf(kind)),), ListOf(kind))


class _Types:
    """Types with their definitions; what has names has to be exported before a function may use it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def name(self, kind: Type) -> str:
        if isinstance(kind, Primitive):
            return kind.name
        text = f"({self._text(kind)})"
        number = len(self.lines)
        line = f"(type $d{number} {text})"
        if isinstance(kind, RecordOf | VariantOf | EnumOf | FlagsOf):
            self.lines.append(f'{line} (export $t{number} "type-{number}" (type $d{number}))')
            return f"$t{number}"
        self.lines.append(line)
        return f"$d{number}"

    def _text(self, kind: Type) -> str:
        match kind:
            case ListOf(element):
                return f"list {self.name(element)}"
            case OptionOf(some):
                return f"option {self.name(some)}"
            case ResultOf(ok, err):
                return f"result{self._optional(ok)}{self._optional(err, 'error ')}"
            case TupleOf(parts):
                return f"tuple {' '.join(map(self.name, parts))}"
            case RecordOf(fields):
                return "record" + "".join(f' (field "{name}" {self.name(part)})' for name, part in fields)
            case VariantOf(cases):
                return "variant" + "".join(f' (case "{name}"{self._optional(part)})' for name, part in cases)
            case EnumOf(names) | FlagsOf(names):
                return ("enum" if isinstance(kind, EnumOf) else "flags") + "".join(f' "{name}"' for name in names)
        raise AssertionError(kind)

    def _optional(self, kind: Type | None, word: str = "") -> str:
        if kind is None:
            return ""
        return f" ({word}{self.name(kind)})" if word else f" {self.name(kind)}"
