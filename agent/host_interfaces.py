"""What components import, and what they are given: WASI preview 2 from the engine, with a function of ours in front.

* ``wasi:cli/exit``: the engine's loses the status; ours notes it in the run and ends the guest.
* ``wasi:http``: linked only where the task may use it, else every call traps (`UNDEFINED` is in its text). The
  engine has no list of allowed hosts: it is all or nothing.
* ``wasi:sockets`` is linked, and the engine denies every address to the guest. It has no way to be told otherwise: with
  version 50 its C interface cannot turn TCP on, whatever ``wasi_config_inherit_network`` says.

Place in the flow: `host_engine` loads components, `host_component` instantiates them with `LoadedComponent.linker`.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from wasmtime import Engine
from wasmtime.component import Component, Linker

from proplet.agent import host_ffi, wasi
from proplet.agent.wit import Function

UNDEFINED: Final = "unknown import: `"  # the engine's words when something is called that is only defined as a trap
_HTTP: Final = "wasi:http/"
_SOCKETS: Final = "wasi:sockets/"
_EXIT: Final = "wasi:cli/exit@0.2."
_PACKAGES: Final = ("cli", "clocks", "filesystem", "http", "io", "random", "sockets")
_PROVIDED: Final = tuple(f"wasi:{package}/" for package in _PACKAGES)
_VERSION: Final = "0.2."


@dataclass(slots=True)
class LoadedComponent:
    """One component, ready to be linked and instantiated. `memory_count`: how many linear memories share its limit."""

    engine: Engine
    component: Component
    imports: tuple[str, ...]
    functions: dict[str, Function]
    memory_count: int
    size: int
    _linkers: dict[bool, Linker] = field(default_factory=dict)

    @property
    def has_memory(self) -> bool:
        """False if it certainly has no linear memory."""
        return self.memory_count > 0

    @property
    def uses_wasi(self) -> bool:
        """True if it needs a WASI configuration in its store."""
        return bool(self.imports)

    @property
    def uses_http(self) -> bool:
        """True if it imports ``wasi:http``."""
        return any(name.startswith(_HTTP) for name in self.imports)

    @property
    def uses_sockets(self) -> bool:
        """True if it imports ``wasi:sockets``."""
        return any(name.startswith(_SOCKETS) for name in self.imports)

    def linker(self, *, http: bool) -> Linker:
        """Return what it is given, with outbound HTTP or without."""
        http = http and self.uses_http
        linker = self._linkers.get(http)
        if linker is None:
            linker = self._linkers[http] = self._link(http)
        return linker

    def _link(self, http: bool) -> Linker:
        linker = Linker(self.engine)
        linker.allow_shadowing = True
        linker.add_wasip2()
        if http:
            linker.add_wasi_http()
        with linker.root() as root:
            # By the very version that it imports: the engine prefers that to what is merely compatible.
            for name in self.imports:
                if name.startswith(_EXIT):
                    with root.add_instance(name) as instance:
                        host_ffi.define_in_instance(instance, "exit", _EXIT_STATUS)
                        host_ffi.define_in_instance(instance, "exit-with-code", _EXIT_CODE)
        if self.uses_http and not http:
            linker.define_unknown_imports_as_traps(self.component)
        return linker


def missing(imports: tuple[str, ...]) -> list[str]:
    """Return those of a component's imports that nothing here provides."""
    return [
        name for name in imports if not name.startswith(_PROVIDED) or not name.partition("@")[2].startswith(_VERSION)
    ]


def _exit_status(arguments: Any) -> None:
    wasi.current().exit_code = 0 if arguments[0].of.result.is_ok else 1


def _exit_code(arguments: Any) -> None:
    wasi.current().exit_code = int(arguments[0].of.u8)


_EXIT_STATUS: Final = host_ffi.component_end(_exit_status)
_EXIT_CODE: Final = host_ffi.component_end(_exit_code)
