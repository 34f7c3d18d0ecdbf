"""What the agent's shell needs of the outside world, as small protocols; adapters implement them, tests fake them.

Every adapter maps its library's exceptions to the errors named here. Nothing here does I/O.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from proplet.agent.events import Outcome, Recovered, RunKey, Save, StartKind
from proplet.agent.mqtt_model import Delivery
from proplet.agent.wire import Permissions, PullPolicy, Reason

__all__ = [
    "KEPT",
    "Artefact",
    "GuestLimits",
    "Holds",
    "Job",
    "Journal",
    "Link",
    "ModuleError",
    "ModuleKind",
    "ModuleWanted",
    "Modules",
    "Notice",
    "OutboxRow",
    "Outcome",
    "Output",
    "Runtime",
    "Sample",
    "Serving",
    "Stage",
    "StartKind",
    "StorageError",
    "nobody",
]


class StorageError(Exception):
    """The state directory cannot be written or read; the message names the path and what to do."""


class ModuleError(Exception):
    """A module cannot be had or cannot be used; `reason` goes into the result, the message to the person.

    `cause` is what `proplet.oci.errors` calls it, where it comes from there.
    """

    def __init__(self, reason: Reason, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.cause = cause


class ModuleKind(Enum):
    """The two binary formats of WebAssembly, told apart by the layer field of their preamble."""

    CORE = "core"
    COMPONENT = "component"


@dataclass(frozen=True, slots=True)
class ModuleWanted:
    """Which module a task needs: stored bytes by `module_digest`, or an image by `image_url`.

    `metered` compiles it with fuel counting, which a job with a fuel limit needs and every other one pays for.
    `handed_out`: whoever wants it hands out images over MQTT, on the proplet's own topic.
    """

    module_digest: str | None = None
    image_url: str = ""
    image_digest: str | None = None
    pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    metered: bool = False
    handed_out: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Artefact:
    """A module made ready to run: compiled for this machine and authenticated with the device's key.

    Of components, `waits` says that it can block inside the engine, or make it hold much memory, where only the end of
    its process reaches it, and `serves_http` that it exports wasi:http/incoming-handler. `wasm` is the file with its
    own bytes, for programs that compile by themselves; `path` the compiled one.
    """

    module_digest: str
    path: Path
    kind: ModuleKind
    image_digest: str | None = None
    start_kind: StartKind = StartKind.WARM
    fetch_s: float = 0.0
    compile_s: float = 0.0
    metered: bool = False
    waits: bool = False
    serves_http: bool = False
    wasm: Path | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """Progress of a preparation: ``fetching`` (bytes of a total, 0 if unknown), ``verifying``, ``compiling``."""

    name: str
    bytes_done: int = 0
    bytes_total: int = 0


class Modules(Protocol):
    """Where modules come from. Preparing the same module twice at once does the work once."""

    async def keep(self, data: bytes) -> str:
        """Store inline bytes durably and return their digest, ``sha256:<hex>``; a second time it is only looked up.

        Raises:
            StorageError: the disk is full or not writable. Nothing partial stays behind.
        """
        ...

    def ready(self, wanted: ModuleWanted) -> Artefact | None:
        """Return the module if it is at hand right now; None if it has to be prepared."""
        ...

    async def prepare(self, wanted: ModuleWanted, progress: Callable[[Stage], None]) -> Artefact:
        """Fetch, verify and compile; cancelling abandons it without a trace.

        Raises:
            ModuleError: it cannot be had (registry, digest) or is no usable WebAssembly.
            StorageError: the disk is full or not writable.
        """
        ...


#: Holds inline modules from the moment they are kept until the attempts that came with them hold them.
KEPT: Final = "kept"


class Holds(Protocol):
    """Who needs which modules: what somebody holds is not collected."""

    def hold(self, holder: Hashable, *digests: str | None) -> bool:
        """Keep modules and images until `holder` is released; False if one of them is just being removed."""
        ...

    def release(self, holder: Hashable) -> None:
        """`holder` needs nothing any more, if it ever did."""
        ...

    def started(self) -> None:
        """All that was needed when the node started is held now."""
        ...


@dataclass(frozen=True, slots=True)
class GuestLimits:
    """What a run may use, all in force: bytes of linear memory, CPU and wall seconds, bytes of output, stack bytes.

    None for a time means no limit (daemons have no wall limit by default).
    """

    memory_bytes: int = 64 * 1024 * 1024
    cpu_s: float | None = 60.0
    wall_s: float | None = 3600.0
    output_bytes: int = 1024 * 1024
    stack_bytes: int = 512 * 1024
    fuel: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a module. `key` is unique among live runs; `argv` follows the program name for WASI commands.

    `invoked`: somebody waits for the answer of an invocation; it has slots of its own, which no long job keeps.
    `lowered` names the limits that are less than was asked for: the node's ceilings, by their names in its file.
    """

    key: str
    artefact: Artefact
    export: str
    inputs: Sequence[str] = ()
    argv: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold secrets
    limits: GuestLimits = field(default_factory=GuestLimits)
    permissions: Permissions = field(default_factory=Permissions)
    stdin: bytes = b""
    invoked: bool = False
    lowered: frozenset[str] = frozenset()

    @property
    def daemon(self) -> bool:
        """A job without a wall limit: it has slots of its own, or it would keep all others out."""
        return self.limits.wall_s is None


@dataclass(frozen=True, slots=True)
class Output:
    """What a live run has printed since it was last told; `stream` is stdout or stderr.

    `lost` lines and bytes were printed after that and are not told: they were too many.
    """

    stream: str
    data: bytes
    lost: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Serving:
    """A live run has begun to serve on `port`."""

    port: int


Notice = Output | Serving


def nobody(_notice: Notice) -> None:
    """The listener of a run whose notices nobody wants."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A live run's own use so far; None where the engine cannot tell. `pid`: of a process that it has to itself."""

    cpu_s: float | None = None
    memory_bytes: int | None = None
    wall_s: float = 0.0
    pid: int | None = None


class Runtime(Protocol):
    """Runs guests away from the agent's own process. A guest's fault is an `Outcome`, never an exception."""

    def warm(self) -> None:
        """Make ready to run: a job is about to come. Cheap when ready already, and never necessary."""
        ...

    async def preload(self, job: Job) -> Outcome | None:
        """Load a job's module where it would run, so that its runs find it loaded; return how all would end, or None.

        Promises nothing: None may be because it could not be tried, and a worker that nobody uses is stopped after a
        while; what it had loaded is loaded again by the next job.
        """
        ...

    async def run(self, job: Job, tell: Callable[[Notice], None] = nobody) -> Outcome:
        """Run to its end. Cancelling the call stops the guest. A crashed worker is an outcome, too.

        `tell` hears what happens meanwhile, on the event loop; all of it before the outcome. Short runs tell nothing:
        the outcome has all their output. What was told is in the outcome as well, up to the limit of output.
        """
        ...

    def stop(self, key: str) -> None:
        """End a run soon: its `run` returns with reason STOPPED. Unknown keys are ignored (it has just ended)."""
        ...

    async def sample(self) -> Mapping[str, Sample]:
        """Return the live runs' own use by key; empty when no worker runs."""
        ...


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A message that waits for, or has had, its broker's acknowledgement. `topic` is a route's value."""

    seq: int
    route: str
    payload: bytes


class Journal(Protocol):
    """The device's durable memory. One writer; a second process on the same directory is refused at opening."""

    async def load(self) -> Recovered:
        """Return what was accepted and not finished, and which attempts are known to have ended."""
        ...

    async def commit(self, saves: Sequence[Save]) -> None:
        """Make all of `saves` durable at once (a power cut loses none or all). Raises StorageError."""
        ...

    async def pending(self, after: int, limit: int) -> Sequence[OutboxRow]:
        """Return the oldest unsent rows with a `seq` above `after`."""
        ...

    async def sent(self, seqs: Sequence[int]) -> None:
        """Note that rows were acknowledged; losing this note only sends them again."""
        ...

    async def flush(self) -> None:
        """Write such notes down now; for moments of quiet."""
        ...

    async def unsent_attempts(self) -> Sequence[RunKey]:
        """Return the finished attempts whose result nobody has acknowledged yet."""
        ...


class Link(Protocol):
    """The way to the broker. Connecting again is its own business; what arrives, it tells as events."""

    @property
    def connected(self) -> bool:
        """Whether messages can be published now."""
        ...

    async def publish(self, topic: str, payload: bytes, qos: int) -> None:
        """Publish; at QoS 1 return when the broker has acknowledged.

        Raises:
            NotConnectedError: not connected, or not any more: keep the message.
            MessageTooLargeError: the message can never be sent.
        """
        ...

    def acknowledge(self, delivery: Delivery) -> None:
        """Tell the broker that a delivery is safe here, in order of arrival; an earlier connection's is ignored."""
        ...
