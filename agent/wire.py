"""Every message of the wire as a frozen value; ``codec`` turns them into bytes and back.

Field names are the wire's own. A field that says *ours* is an extension which peers of the reference ignore. Sizes are
bytes, times are seconds, timestamps are seconds since the Unix epoch (UTC) unless a comment says otherwise.

Source: absmach/propeller, both its eras (ids called domain/client or tenant/entity; the JSON is the same).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from types import MappingProxyType
from typing import Any

NOTHING: Mapping[str, Any] = MappingProxyType({})


def _names(*names: str) -> dict[str, Any]:
    """The names a reader accepts for a field; the first is the one we write."""
    return {"names": names}


def _mapping() -> Any:
    return field(default_factory=dict)


def _attempt() -> Any:
    """An attempt's number, from 0; None from peers that send none."""
    return field(default=None, metadata={"kind": "attempt"})


ID_LENGTH_MAX = 1024  # characters; it is repeated in every message about the task
ATTEMPT_MAX = 2**63 - 1  # the largest integer that a journal's column holds


def check_id(task_id: str) -> None:
    """Raise ValueError where no task can have this id."""
    if not task_id:
        raise ValueError("id is required")
    if len(task_id) > ID_LENGTH_MAX:
        raise ValueError(f"id has {len(task_id)} characters, more than the {ID_LENGTH_MAX} allowed")


def _check_least(values: Mapping[str, float | None]) -> None:
    for name, value in values.items():
        if value is not None and value < 0:
            raise ValueError(f"{name} is {value}, it cannot be negative")


class RestartPolicy(Enum):
    """What follows when a task's guest ends; `NEVER` also means that an interrupted run is reported, not repeated."""

    NEVER = "Never"
    ON_FAILURE = "OnFailure"
    ALWAYS = "Always"


class PullPolicy(Enum):
    """When a registry is asked, with Kubernetes' meaning."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class Reason(Enum):
    """Why a task ended the way it did, for machines; travels in the results' `ext` (ours)."""

    OK = "ok"
    EXIT_CODE = "exit_code"
    TRAP = "trap"
    TIMEOUT = "timeout"
    CPU_LIMIT = "cpu_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    SUPERSEDED = "superseded"
    INVALID_COMMAND = "invalid_command"
    INVALID_MODULE = "invalid_module"
    MISSING_IMPORT = "missing_import"
    UNKNOWN_EXPORT = "unknown_export"
    INVALID_ARGUMENTS = "invalid_arguments"
    MODULE_UNAVAILABLE = "module_unavailable"
    DIGEST_MISMATCH = "digest_mismatch"
    UNTRUSTED = "untrusted"
    NOT_SUPPORTED = "not_supported"
    PERMISSION_DENIED = "permission_denied"
    SECRET_UNAVAILABLE = "secret_unavailable"  # noqa: S105 - a word for what is missing
    WORKER_CRASHED = "worker_crashed"
    QUARANTINED = "quarantined"
    OVERLOADED = "overloaded"
    PORT_TAKEN = "port_taken"
    STORAGE = "storage"
    INTERNAL = "internal"
    LOST = "lost"


# --- what both sides say of themselves ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Announcement:
    """Which of our extensions a peer understands (ours): ``{"v": 1, "encodings": [...], "topics": [...]}``."""

    v: int = 1
    encodings: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metadata:
    """A device as it describes itself at discovery."""

    description: str | None = None
    tags: tuple[str, ...] = ()
    location: str | None = None
    ip: str | None = None
    environment: str = ""
    os: str = ""
    hostname: str | None = None
    cpu_arch: str = ""
    total_memory_bytes: int = 0
    proplet_version: str = ""
    wasm_runtime: str = ""


@dataclass(frozen=True, slots=True)
class Discovery:
    """``control/proplet/create``: a proplet says that it is there. Sent on every connect."""

    proplet_id: str
    namespace: str = "default"
    metadata: Metadata | None = None
    ext: Announcement | None = None


#: The status of a last will, and of a goodbye.
OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class Alive:
    """``control/proplet/alive``: a heartbeat, or, with status ``offline``, somebody's last will."""

    proplet_id: str
    status: str = "alive"
    namespace: str = "default"
    metadata: Metadata | None = None


@dataclass(frozen=True, slots=True)
class Hello:
    """``control/manager/hello`` (ours): a manager has connected; proplets answer with discovery and inventory."""

    manager_id: str
    ext: Announcement | None = None


#: The state of an inventory's item whose task has ended: its result was not yet acknowledged by the broker.
FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class InventoryItem:
    """One task a proplet holds, by its own account. `state` is the device's word, `since` an epoch time.

    `message` says to people why it waits. `image_digest` is what its image's name meant when it was resolved.
    """

    id: str
    attempt: int | None = _attempt()
    state: str = ""
    since: float = 0.0
    message: str = ""
    image_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """``control/proplet/inventory`` (ours): every task a proplet has not finished. Sent on connect and on hello."""

    proplet_id: str
    tasks: tuple[InventoryItem, ...] = ()


# --- metrics -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CpuMetrics:
    """CPU of the proplet's processes: seconds used, and `percent` of all the machine's CPUs, 0 to 100."""

    user_seconds: float = 0.0
    system_seconds: float = 0.0
    percent: float = 0.0


@dataclass(frozen=True, slots=True)
class MemoryMetrics:
    """Memory of the proplet's processes, in bytes; the heap fields are the reference's and stay 0 here."""

    rss_bytes: int = 0
    heap_alloc_bytes: int = 0
    heap_sys_bytes: int = 0
    heap_inuse_bytes: int = 0
    container_usage_bytes: int | None = None
    container_limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PropletMetrics:
    """``control/proplet/metrics``. We write the timestamp as an RFC 3339 string; the reference's object is read too."""

    proplet_id: str
    namespace: str = "default"
    timestamp: float = field(default=0.0, metadata={"kind": "timestamp"})
    cpu_metrics: CpuMetrics = field(default_factory=CpuMetrics)
    memory_metrics: MemoryMetrics = field(default_factory=MemoryMetrics)


@dataclass(frozen=True, slots=True)
class TaskSample:
    """One measurement of one task: its own CPU and memory, never those of a process it shares."""

    cpu_percent: float = 0.0
    memory_bytes: int = 0
    memory_percent: float = 0.0
    disk_read_bytes: int = 0
    disk_write_bytes: int = 0
    uptime_seconds: int = 0
    thread_count: int = 0
    file_descriptor_count: int = 0


@dataclass(frozen=True, slots=True)
class TaskAggregate:
    """A task's measurements so far, summed up."""

    avg_cpu_usage: float = 0.0
    max_cpu_usage: float = 0.0
    avg_memory_usage: int = 0
    max_memory_usage: int = 0
    total_disk_read: int = 0
    total_disk_write: int = 0
    sample_count: int = 0


@dataclass(frozen=True, slots=True)
class MeterTerms:
    """``ext`` of a task's metrics (ours): the attempt they are of, and its costs so far, as `Usage` has them.

    `final`: it has ended, and this is its last measurement.
    """

    attempt: int | None = _attempt()
    cpu_seconds: float | None = None
    invocations: int = 0
    restarts: int = 0
    final: bool = False


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """``control/proplet/task_metrics``."""

    task_id: str
    proplet_id: str
    metrics: TaskSample = field(default_factory=TaskSample)
    aggregated: TaskAggregate | None = None
    timestamp: float = field(default=0.0, metadata={"kind": "timestamp"})
    ext: MeterTerms | None = None


@dataclass(frozen=True, slots=True)
class MonitoringProfile:
    """What a task's metrics should hold and how often. `interval` is read as nanoseconds from 1e9 upwards (Go)."""

    enabled: bool = True
    interval: float = field(default=10.0, metadata={"kind": "interval"})
    collect_cpu: bool = field(default=True, metadata=_names("collect_cpu", "collectCpu"))
    collect_memory: bool = field(default=True, metadata=_names("collect_memory", "collectMemory"))
    collect_disk_io: bool = field(default=True, metadata=_names("collect_disk_io", "collectDiskIo"))
    collect_threads: bool = field(default=True, metadata=_names("collect_threads", "collectThreads"))
    collect_file_descriptors: bool = field(
        default=True, metadata=_names("collect_file_descriptors", "collectFileDescriptors")
    )
    export_to_mqtt: bool = field(default=True, metadata=_names("export_to_mqtt", "exportToMqtt"))
    retain_history: bool = field(default=True, metadata=_names("retain_history", "retainHistory"))
    history_size: int = field(default=100, metadata=_names("history_size", "historySize"))


# --- commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """What one task may use (ours). None means the node's default; the node's ceiling holds in any case."""

    memory_bytes: int | None = None
    cpu_s: float | None = None
    output_bytes: int | None = None
    stack_bytes: int | None = None
    fuel: int | None = None

    def check(self) -> None:
        """Raise ValueError for a limit below zero: an engine would take it for no limit."""
        _check_least({f"ext.limits.{f.name}": getattr(self, f.name) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class DirectoryGrant:
    """A directory a task asks for: `host` path, path inside the `guest`, writable or not."""

    host: str
    guest: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a task asks for (ours); the grant is the intersection with the node's ceiling."""

    dirs: tuple[DirectoryGrant, ...] = ()
    http: tuple[str, ...] = ()
    tcp: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StartTerms:
    """``ext`` of a start (ours): the attempt it is, and its run-time terms. `deadline_s` is its wall time."""

    v: int = 1
    encodings: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    attempt: int | None = _attempt()
    deadline_s: float | None = None
    restart_policy: RestartPolicy | None = None
    backoff_limit: int | None = None
    pull_policy: PullPolicy | None = None
    image_digest: str | None = None
    limits: Limits = field(default_factory=Limits)
    permissions: Permissions = field(default_factory=Permissions)
    secrets: Mapping[str, str] = _mapping()

    def check(self) -> None:
        """Raise ValueError where a number is out of its range."""
        _check_least({"ext.deadline_s": self.deadline_s, "ext.backoff_limit": self.backoff_limit})
        self.limits.check()


@dataclass(frozen=True, slots=True)
class Start:
    """``control/manager/start``: run this module. `name` is the export to call; `file` wins over `image_url`."""

    id: str
    name: str
    state: int = 0
    file: bytes | None = None
    image_url: str = ""
    inputs: tuple[str, ...] = field(default=(), metadata={"kind": "scalars"})
    cli_args: tuple[str, ...] = ()
    env: Mapping[str, str] = _mapping()
    daemon: bool = False
    monitoring_profile: MonitoringProfile | None = field(
        default=None, metadata=_names("monitoring_profile", "monitoringProfile")
    )
    encrypted: bool = False
    kbs_resource_path: str | None = None
    mode: str | None = None
    proplet_id: str | None = None
    broadcast: bool = False
    hal_storage_path: str | None = None
    latent: bool = False
    ext: StartTerms | None = None

    @property
    def attempt(self) -> int | None:
        """The attempt it is; None from peers that count none."""
        return self.ext.attempt if self.ext else None

    def check(self) -> None:
        """Raise ValueError with the reference's text where the command cannot be carried out."""
        check_id(self.id)
        if not self.name:
            raise ValueError("name is required")
        if self.encrypted and self.file:
            raise ValueError("encrypted workloads should only use image_url, not file")
        if self.encrypted and not self.image_url:
            raise ValueError("image_url is required for encrypted workloads")
        if not self.file and not self.image_url:
            raise ValueError("either file or image_url must be provided")
        if self.ext is not None:
            self.ext.check()


@dataclass(frozen=True, slots=True)
class StopTerms:
    """``ext`` of a stop (ours): which attempt is meant; absent, the current one."""

    attempt: int | None = _attempt()


@dataclass(frozen=True, slots=True)
class Stop:
    """``control/manager/stop``."""

    id: str
    broadcast: bool = False
    proplet_id: str | None = None
    ext: StopTerms | None = None

    def check(self) -> None:
        """Raise ValueError where the command cannot be carried out."""
        check_id(self.id)


@dataclass(frozen=True, slots=True)
class Invoke:
    """``control/manager/invoke``: call a latent task."""

    id: str
    invocation_id: str = ""
    inputs: tuple[str, ...] = field(default=(), metadata={"kind": "scalars"})
    env: Mapping[str, str] = _mapping()
    proplet_id: str | None = None
    broadcast: bool = False

    def check(self) -> None:
        """Raise ValueError where the command cannot be carried out."""
        check_id(self.id)
        if len(self.invocation_id) > ID_LENGTH_MAX:
            size = len(self.invocation_id)
            raise ValueError(f"invocation_id has {size} characters, more than the {ID_LENGTH_MAX} allowed")


# --- outcomes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Usage:
    """What one attempt cost, in all its runs. What was not measured is None, never a shared process's number."""

    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    wall_seconds: Mapping[str, float] = _mapping()  # per stage, see `proplet.agent.stages`
    start_kind: str | None = None  # cold, warm or hot
    memory_note: str | None = None  # whose peak that is where it is not the guest's memory alone; why there is none
    fuel_used: int | None = None  # where there was a limit of fuel
    invocations: int = 0  # of a latent task, whose costs the others then are
    restarts: int = 0  # all runs' costs are counted


@dataclass(frozen=True, slots=True)
class ResultTerms:
    """``ext`` of a result (ours)."""

    attempt: int | None = _attempt()
    reason: Reason | None = field(default=None, metadata={"kind": "reason"})
    exit_code: int | None = None
    image_digest: str | None = None
    usage: Usage | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class FederatedUpdate:
    """The `results` object of a federated round (the reference's FL variant)."""

    task_id: str
    round_id: str
    proplet_id: str = ""
    num_samples: int = 1
    update_b64: bytes = b""
    format: str = "f32-delta"
    metrics: Mapping[str, Any] = _mapping()


@dataclass(frozen=True, slots=True)
class Result:
    """``control/proplet/results``: a task ended. `error` is None on success; `results` is text, or a round's update."""

    task_id: str
    proplet_id: str = ""
    results: str | FederatedUpdate = field(default="", metadata={"kind": "results"})
    error: str | None = None
    ext: ResultTerms | None = None


@dataclass(frozen=True, slots=True)
class InvokeResult:
    """``control/proplet/invoke_results``."""

    task_id: str
    invocation_id: str = ""
    proplet_id: str = ""
    results: str = field(default="", metadata={"kind": "text"})
    error: str | None = None
    ext: ResultTerms | None = None


# --- modules over MQTT, federated rounds, logs ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModuleTerms:
    """``ext`` of a request for a module, on a proplet's own topic (ours): which pieces of what, and how to send them.

    `id` names the request in its answers. `content` is what an answer named, with which the pieces from `first` on are
    then of the same bytes; `chunk_bytes` is the most that a piece may have. `signatures`: they are needed, too.
    """

    v: int = 1
    id: str = ""
    digest: str | None = None  # of the image, where it is pinned
    pull_policy: PullPolicy | None = None
    encodings: tuple[str, ...] = ()
    chunk_bytes: int = 0
    content: str = ""
    first: int = 0
    count: int = 0
    signatures: bool = False


@dataclass(frozen=True, slots=True)
class ModuleRequest:
    """``registry/proplet``: send me this image. Peers of the reference send no `ext` and get all of its module."""

    app_name: str
    ext: ModuleTerms | None = None


@dataclass(frozen=True, slots=True)
class ModuleBlob:
    """One blob of an image that is sent in pieces: they hold the blobs one after the other."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class ModuleEntry:
    """A name that the receiver's store gives to one of the blobs: a signature's, see `proplet.oci.signatures`."""

    name: str
    digest: str
    size: int
    media_type: str = ""
    annotations: Mapping[str, str] = _mapping()


@dataclass(frozen=True, slots=True)
class ModuleImage:
    """What the pieces are together: manifests, configuration, signatures, and the layer with the module at the end.

    `digest` is of the manifest or index that the image's name means.
    """

    digest: str
    blobs: tuple[ModuleBlob, ...] = ()
    entries: tuple[ModuleEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkTerms:
    """``ext`` of a piece on a proplet's own topic (ours). `note` says that there are no pieces yet, and why."""

    id: str = ""
    content: str = ""
    image: ModuleImage | None = None  # in the first answer to a request that names no content
    note: str = ""


@dataclass(frozen=True, slots=True)
class ModuleChunk:
    """``registry/server``: one piece, counted from 0. `error` (ours) says that there will be none."""

    app_name: str
    chunk_idx: int = 0
    total_chunks: int = 0
    data: bytes = b""
    error: str | None = None
    ext: ChunkTerms | None = None


@dataclass(frozen=True, slots=True)
class ModuleRefusal:
    """``registry/server``: a chunk that has nothing but its `error`; read as `ModuleChunk`.

    Without the other fields a worker of the reference takes it for no chunk and drops it. A chunk with a total of 0
    would begin a set that accepts no other total for minutes.
    """

    app_name: str
    error: str
    ext: ChunkTerms | None = None


@dataclass(frozen=True, slots=True)
class RoundStart:
    """``fl/rounds/start``. Managers of the reference send the first five; 0 and "" are unstated."""

    round_id: str
    model_uri: str = ""
    task_wasm_image: str = ""
    participants: tuple[str, ...] = ()  # proplet ids
    hyperparams: Mapping[str, Any] = _mapping()
    experiment_id: str = ""
    k_of_n: int = 0
    timeout_seconds: int = 0


@dataclass(frozen=True, slots=True)
class LogLines:
    """``control/proplet/logs`` (ours): output of one task, `stream` being stdout or stderr.

    `at` is when the first line was printed, by the device's clock in epoch seconds; 0 is unknown.
    """

    proplet_id: str
    task_id: str
    attempt: int | None = _attempt()
    stream: str = "stdout"
    lines: tuple[str, ...] = ()
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """``control/proplet/progress`` (ours): a task's stage changed, or bytes arrived. `bytes_total` 0 is unknown.

    `message` says to people why it waits. `image_digest`: as in `InventoryItem`.
    """

    proplet_id: str
    task_id: str
    attempt: int | None = _attempt()
    stage: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    at: float = 0.0
    message: str = ""
    image_digest: str | None = None


Message = (
    Discovery
    | Alive
    | Hello
    | Inventory
    | PropletMetrics
    | TaskMetrics
    | Start
    | Stop
    | Invoke
    | Result
    | InvokeResult
    | ModuleRequest
    | ModuleChunk
    | ModuleRefusal
    | RoundStart
    | FederatedUpdate
    | LogLines
    | Progress
)
