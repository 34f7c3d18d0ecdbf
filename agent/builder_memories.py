"""How many linear memories an instance of a component has, counted in its binary.

The engine bounds each memory, not their sum, so the limit of a task is divided by this number. Instantiation in the
component model is static, so it can be counted: which core modules are instantiated, and which components inside.
Source: WebAssembly/component-model, design/mvp/Binary.md.
"""

from typing import Final

from proplet.agent.builder_sections import Reader, sections

UNKNOWN: Final = 8  # where it cannot be counted, a guess on the safe side
_CORE_MEMORIES: Final = 5
_MODULE, _CORE_INSTANCE, _COMPONENT, _INSTANCE, _ALIAS, _IMPORT, _EXPORT = 1, 2, 4, 5, 6, 10, 11
_OF_CORE, _CORE_MODULE = 0x00, 0x11
_SORT_MODULE: Final = (_OF_CORE, _CORE_MODULE)
_SORT_COMPONENT: Final = (0x04, 0)
_OUTER: Final = 0x02
_DEEPEST: Final = 50


class _UncountableError(Exception):
    """A module or component that comes from elsewhere, by an import or out of an instance."""


def memory_count(data: bytes) -> int:
    """Return the number of memories of the valid component `data`; `UNKNOWN` if it cannot be told."""
    try:
        return _Scope(data, None, 0).count
    except (_UncountableError, IndexError, ValueError):
        return UNKNOWN


class _Scope:
    """One component: what its modules and components have, by index, and the sum over what it instantiates."""

    def __init__(self, data: bytes | memoryview, parent: "_Scope | None", depth: int) -> None:
        if depth > _DEEPEST:
            raise _UncountableError
        self.parent = parent
        self.spaces: dict[tuple[int, int], list[int]] = {_SORT_MODULE: [], _SORT_COMPONENT: []}
        self.count = 0
        for section, reader, body in sections(data):
            if section == _MODULE:
                self.spaces[_SORT_MODULE].append(_of_module(body))
            elif section == _COMPONENT:
                self.spaces[_SORT_COMPONENT].append(_Scope(body, self, depth + 1).count)
            elif section in {_CORE_INSTANCE, _INSTANCE}:
                self._instances(reader, _SORT_MODULE if section == _CORE_INSTANCE else _SORT_COMPONENT)
            elif section == _ALIAS:
                for _ in range(reader.unsigned()):
                    self._alias(reader)
            elif section == _IMPORT:
                for _ in range(reader.unsigned()):
                    _extern_name(reader)
                    if _description(reader) in {_SORT_MODULE, _SORT_COMPONENT}:
                        raise _UncountableError
            elif section == _EXPORT:
                for _ in range(reader.unsigned()):
                    self._export(reader)

    def _instances(self, reader: Reader, sort: tuple[int, int]) -> None:
        core = sort == _SORT_MODULE
        for _ in range(reader.unsigned()):
            if reader.byte():  # made of exports that are there already
                for _ in range(reader.unsigned()):
                    reader.name() if core else _extern_name(reader)
                    reader.byte() if core else _sort(reader)
                    reader.unsigned()
                continue
            self.count += self.spaces[sort][reader.unsigned()]
            for _ in range(reader.unsigned()):
                reader.name()
                reader.byte() if core else _sort(reader)
                reader.unsigned()

    def _alias(self, reader: Reader) -> None:
        sort, target = _sort(reader), reader.byte()
        index = reader.unsigned()
        if target != _OUTER:
            reader.name()
            if sort in self.spaces:
                raise _UncountableError
            return
        place = reader.unsigned()
        if sort in self.spaces:
            scope: _Scope | None = self
            for _ in range(index):
                scope = scope.parent if scope else None
            if scope is None:
                raise _UncountableError
            self.spaces[sort].append(scope.spaces[sort][place])

    def _export(self, reader: Reader) -> None:
        _extern_name(reader)
        sort, index = _sort(reader), reader.unsigned()
        if reader.byte():
            _description(reader)
        if sort in self.spaces:
            self.spaces[sort].append(self.spaces[sort][index])


def _of_module(data: memoryview) -> int:
    return sum(reader.unsigned() for section, reader, _ in sections(data) if section == _CORE_MEMORIES)


def _sort(reader: Reader) -> tuple[int, int]:
    kind = reader.byte()
    return kind, reader.byte() if kind == _OF_CORE else 0


def _extern_name(reader: Reader) -> None:
    kind = reader.byte()
    reader.name()
    if kind == 0x02:  # with a suffix of its version
        reader.name()


def _description(reader: Reader) -> tuple[int, int]:
    """Read past the type of an import or export and return its sort."""
    sort = _sort(reader)
    if sort[0] in {0x02, 0x03}:  # the bound of a value or a type: equal to another one, or of a kind
        if sort[0] == 0x02 or reader.byte() == 0:
            reader.unsigned()
    else:
        reader.unsigned()
    return sort
