"""How guests run in the wasmtime program: its settings, with defaults for the machine at hand."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from proplet.agent.program_args import Terms
from proplet.agent.program_ports import Allowed

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ProgramSettings:
    """How guests run in the program. Times in seconds, sizes in bytes.

    `program` is a path or a name on the PATH; None is the package's, else ``wasmtime``. With `runs_all` it runs every
    guest (the reference's host runtime), else those that serve HTTP. `cache_dir` is ours alone, the program keeps what
    it compiled there. Until a guest serves, the program compiles it: with `compile_bytes`, within `start_s`; from then
    on it may hold `allowance_bytes` beyond what it held then and the guest's limit. `stop_s` is what requests under way
    have to come to their end.
    """

    program: str | None = None
    runs_all: bool = False
    serves: bool = True
    cache_dir: Path | None = None
    cache_bytes: int = 512 * _MIB
    allowed: Allowed = field(default_factory=Allowed)
    terms: Terms = field(default_factory=Terms)
    max_services: int = 16
    start_s: float = 600.0
    stop_s: float = 2.0
    compile_bytes: int = 512 * _MIB
    allowance_bytes: int = 96 * _MIB
