"""How the runtime runs guests: its settings, with defaults for the machine at hand."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from proplet.agent.engines import CRANELIFT
from proplet.agent.task_logs import LogLimits

_MIB: Final = 1024 * 1024
_OWN_WORKER_BYTES: Final = 16 * _MIB  # 11 MB of a worker's memory are private, and it has a guest


def _default_running() -> int:
    return max(4, 2 * (os.cpu_count() or 1))


def default_own_workers() -> int:
    """Return how many fit into an eighth of this machine's memory: 4 in 512 MB, 8 in 1 GB, never more than 16."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(2, min(16, round(memory / 8 / _OWN_WORKER_BYTES)))


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """How guests are run. Times in seconds, sizes in bytes.

    `key_dir` holds the device's key, as in `fetch.ModulesSettings`. `idle_s`: an unused worker is stopped after it.
    `grace_s`: how long past its end a guest may take to be gone before its worker is killed; `own_grace_s` the same for
    a worker that nobody shares. `silence_s`: how long a worker may be deaf while jobs run. `loaded_bytes`: machine code
    kept loaded. `strikes` workers lost by a module quarantine it for `quarantine_s`. `max_own_workers` are for
    components that cannot share one; such a worker may hold `own_allowance_bytes` beyond its guest's memory limit, a
    shared one the same and `loaded_bytes` beyond its guests' limits.
    An invocation that no worker has begun with after `patience_s` ends with that: who asked waits 30 s.
    `engine` is one of `engines`, and the one that `fetch.ModulesSettings` compiles for. `log_limits`: of what one job
    tells while it runs.
    """

    key_dir: Path
    max_running: int = field(default_factory=_default_running)
    max_daemons: int = 100
    idle_s: float = 60.0
    grace_s: float = 5.0
    ping_s: float = 2.0
    silence_s: float = 10.0
    loaded_bytes: int = 64 * _MIB
    strikes: int = 3
    quarantine_s: float = 600.0
    max_own_workers: int = field(default_factory=default_own_workers)
    own_grace_s: float = 0.2
    patience_s: float = 25.0
    own_allowance_bytes: int = 96 * _MIB
    engine: str = CRANELIFT
    log_limits: LogLimits = field(default_factory=LogLimits)
