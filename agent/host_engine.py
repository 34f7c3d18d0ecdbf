"""Engines, and compiled modules loaded into them: verified, linked, kept while there is room.

Place in the flow: `builder` compiles with `configuration`, `host` runs what `Library` loads. One engine per pair of
metering (fuel) and stack size, since both belong to an engine; the same compiled file serves every stack size.
"""

import contextlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wasmtime import Config, Engine, InstancePre, Linker, Module, WasmtimeError
from wasmtime.component import Component

from proplet.agent import wasi
from proplet.agent.cache import FEATURES, SHORTAGES, Digests, Record, RottenError, discard, verify
from proplet.agent.engines import CRANELIFT, PULLEY
from proplet.agent.host_interfaces import LoadedComponent, missing
from proplet.agent.wit import WitError, function_from_json

KIB: Final = 1024
# The engine aborts the process above its 2 MiB; guest threads get THREAD_STACK so that this much is always there,
# with room for our callbacks when a guest calls them from the end of its own.
STACKS: Final = (64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, 1024 * KIB, 2048 * KIB)
THREAD_STACK: Final = 4 * 1024 * KIB
# Byte code for 64 bits, little-endian: what all processors are that the engine is built for.
_PULLEY_TARGET: Final = "pulley64"


class LoadError(Exception):
    """A module that was compiled but cannot be run here; `reason` is one of `wire.Reason`'s values."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def configuration(*, metered: bool, stack_bytes: int = STACKS[3], engine: str = CRANELIFT) -> Config:
    """Return the engine configuration of design: nothing that a limit could not hold. `engine` is one of `engines`."""
    config = Config()
    if engine == PULLEY:
        config.target = _PULLEY_TARGET
    for name, value in FEATURES.items():
        setattr(config, name, value)
    config.consume_fuel = metered
    config.max_wasm_stack = stack_bytes
    return config


def stack_class(stack_bytes: int) -> int:
    """Return the largest engine stack that is not above `stack_bytes`, and at least the smallest."""
    return max([size for size in STACKS if size <= stack_bytes], default=STACKS[0])


@dataclass(frozen=True, slots=True)
class Signature:
    """The types of an exported function, as their names in the text format."""

    parameters: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(slots=True)
class Loaded:
    """One module, linked and ready to be instantiated."""

    engine: Engine
    instance_pre: InstancePre
    functions: dict[str, Signature]
    memories: tuple[str, ...]
    has_memory: bool
    uses_wasi: bool
    size: int


class Library:
    """The loaded modules of this process, least recently used ones dropped beyond a budget of machine code bytes."""

    def __init__(self, key: bytes, budget_bytes: int, engine: str = CRANELIFT) -> None:
        self._engine_name = engine
        self._key = key
        self._budget = budget_bytes
        self._digests = Digests()
        self._engines: dict[tuple[bool, int], tuple[Engine, Linker]] = {}
        self._loaded: OrderedDict[tuple[str, int], Loaded | LoadedComponent] = OrderedDict()
        self._lock = threading.Lock()

    def tick(self) -> None:
        """Make every guest that computes call back."""
        for engine, _ in list(self._engines.values()):
            engine.increment_epoch()

    def get(self, path: str, *, metered: bool, stack_bytes: int) -> tuple[Loaded | LoadedComponent, bool]:
        """Return the module and whether it was loaded already.

        Raises:
            RottenError: the file is not what this device compiled for this engine; it has to be compiled again.
            LoadError: its imports cannot be provided, or this process is short of something.
        """
        place = (path, stack_class(stack_bytes))
        loaded = self._loaded.get(place)
        if loaded is not None:
            with contextlib.suppress(KeyError):  # dropped this moment; no lock, or a hot run waits for somebody's load
                self._loaded.move_to_end(place)
            return loaded, True
        with self._lock:  # two guests of one module must not verify its file twice; others wait some milliseconds
            if place in self._loaded:
                return self._loaded[place], True
            try:
                loaded = self._load(Path(path), metered, place[1])
            except RottenError:
                discard(Path(path))
                raise
            except OSError as error:
                raise LoadError("internal", f"the worker cannot load {path}: {error.strerror}") from error
            self._loaded[place] = loaded
            while len(self._loaded) > 1 and sum(item.size for item in self._loaded.values()) > self._budget:
                self._loaded.popitem(last=False)
            return loaded, False

    def _load(self, path: Path, metered: bool, stack: int) -> Loaded | LoadedComponent:
        record = verify(path, self._key, self._digests)
        if record.metered != metered:
            raise RottenError(f"{path} was compiled {'with' if record.metered else 'without'} fuel metering")
        engine, linker = self._engine(metered, stack)
        if record.kind == "component":
            return _load_component(engine, path, record)
        try:
            module = Module.deserialize_file(engine, str(path))
        except WasmtimeError as error:
            raise _unusable(path, error) from error
        return Loaded(
            engine=engine,
            instance_pre=_link(linker, module, [(item[0], item[1]) for item in record.imports]),
            functions={name: Signature(tuple(kind[0]), tuple(kind[1])) for name, kind in record.functions.items()},
            memories=tuple(record.memories),
            has_memory=record.has_memory,
            uses_wasi=any(item[0] == wasi.MODULE for item in record.imports),
            size=record.size,
        )

    def _engine(self, metered: bool, stack: int) -> tuple[Engine, Linker]:
        made = self._engines.get((metered, stack))
        if made is None:
            engine = Engine(configuration(metered=metered, stack_bytes=stack, engine=self._engine_name))
            linker = Linker(engine)
            wasi.define(linker)
            made = self._engines[metered, stack] = engine, linker
        return made


def _unusable(path: Path, error: Exception) -> Exception:
    """Return the error of a file that the engine did not take, which may not be the file's fault."""
    if any(f"(os error {number})" in str(error) for number in SHORTAGES):
        return LoadError("internal", f"the worker cannot load {path}: {_first_line(str(error))}")
    return RottenError(f"{path}: {error}")


def _load_component(engine: Engine, path: Path, record: Record) -> LoadedComponent:
    imports = tuple(record.imports)
    if lacking := missing(imports):
        raise LoadError("missing_import", f"it imports {', '.join(lacking[:20])}; only WASI 0.2 is provided here")
    try:
        functions = {name: function_from_json(item) for name, item in record.functions.items()}
        component = Component.deserialize_file(engine, str(path))
    except (WasmtimeError, WitError) as error:
        raise _unusable(path, error) from error
    return LoadedComponent(engine, component, imports, functions, record.memory_count, record.size)


def _link(linker: Linker, module: Module, imports: list[tuple[str, str]]) -> InstancePre:
    try:
        return linker.instantiate_pre(module)
    except WasmtimeError as error:
        message = str(error).strip()
        wanted = [f"{place}::{name}" for place, name in imports if place != wasi.MODULE]
        if "unknown import" in message and wanted:
            raise LoadError("missing_import", f"nothing here provides the import {_named(wanted)}") from error
        raise LoadError("missing_import", _first_line(message)) from error


def _named(imports: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in imports[:5])
    return shown + (f" (and {len(imports) - 5} more)" if len(imports) > 5 else "")


def _first_line(message: str) -> str:
    lines: list[Any] = [line.strip() for line in message.splitlines() if line.strip() and "Caused by" not in line]
    return ": ".join(lines[:2])
