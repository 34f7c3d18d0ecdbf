"""What the agent and its children say to each other: orders one way, reports the other, as plain tuples.

Place in the flow: `runtime` writes orders, `worker` reads them; `fetch_builders` and `builder` likewise. Nothing here
imports more than the standard library, because the worker's start is on a task's way.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

# Orders: [kind, fields of the tuple]. STOP carries a run's number, PING a number to answer with, SAMPLE and LOAD such a
# number and their content: none, and the path of a module that may be run soon, whether it is metered, the stack bytes.
SETUP, RUN, STOP, PING, SAMPLE, LOAD = range(6)
# Reports likewise. OUTPUT carries a run's number, the name of the stream, the bytes it printed since it was last told,
# and how many lines and bytes after these were too much to tell. SAMPLED and LOADED carry the number and the answer: of
# LOADED nothing, or a reason of `wire.Reason` and a text.
READY, DONE, PONG, SAMPLED, FAILED, OUTPUT, LOADED = range(7)

# Requests to a builder: [kind, fields]. Its answers: [STAGE, name, done, total] any number of times, then
# [BUILT, fields] or [REFUSED, reason, message], the reason being one of `wire.Reason`'s values.
PULL, COMPILE = range(2)
STAGE, BUILT, REFUSED = range(3)
STORAGE: Final = "storage"
INVALID: Final = "invalid_module"

# Where the agent has to act; every other reason is one of `wire.Reason`.
STALE: Final = "stale"


class Setup(NamedTuple):
    """First order: where the device's key is, how many bytes of compiled code stay loaded, which of `engines` runs.

    The last two are `task_logs.LogLimits`.
    """

    key_dir: str
    loaded_bytes: int
    engine: str
    log_rate_bytes: int
    log_burst_bytes: int


class Order(NamedTuple):
    """Run one guest. `dirs` are (host path, guest path, read only); None for a time means no limit.

    `http` and `tcp`: a component may make requests, and connections, to anywhere.
    """

    number: int
    path: str
    metered: bool
    export: str
    inputs: Sequence[str]
    argv: Sequence[str]
    env: Mapping[str, str]
    stdin: bytes
    dirs: Sequence[tuple[str, str, bool]]
    memory_bytes: int
    cpu_s: float | None
    wall_s: float | None
    output_bytes: int
    stack_bytes: int
    fuel: int | None
    http: bool = False
    tcp: bool = False


class Report(NamedTuple):
    """How a run ended. `results` None means: what was printed. `hot`: the module was loaded already.

    `fuel_used` where there was a limit of fuel.
    """

    number: int
    reason: str
    results: str | None = ""
    error: str | None = None
    exit_code: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None
    run_s: float = 0.0
    hot: bool = False
    fuel_used: int | None = None


def order(kind: int, content: Any) -> list[Any]:
    """Return a message of `kind`."""
    return [kind, content]
