"""What each part of a node is told: the node's settings turned into every part's own. Pure."""

from proplet.agent import codec
from proplet.agent.admission import CoreSettings
from proplet.agent.config_permissions import ANYWHERE, own_paths
from proplet.agent.config_schema import CeilingsTable, DefaultLimitsTable, Engine, NodeSettings
from proplet.agent.fetch import ModulesSettings
from proplet.agent.grants import AllowedDirectory, Ceiling
from proplet.agent.image_parts import registry_settings, store_directory
from proplet.agent.invocations import InvocationBounds
from proplet.agent.log_feed import LogSettings
from proplet.agent.module_requests import RequestSettings
from proplet.agent.mqtt_model import Will
from proplet.agent.ports import GuestLimits
from proplet.agent.presence import PresenceSettings
from proplet.agent.program_args import Terms
from proplet.agent.program_ports import Allowed
from proplet.agent.program_settings import ProgramSettings
from proplet.agent.runtime import RuntimeSettings
from proplet.agent.runtime_settings import default_own_workers
from proplet.agent.shell import ShellSettings
from proplet.agent.task_logs import LogLimits
from proplet.agent.task_secrets import Vault
from proplet.agent.terms import NodeLimits
from proplet.agent.topics import Route, Topics

WORKER_QUEUE = 4  # runs prepared while all slots are taken, so that a slot is never idle


def subscriptions(topics: Topics, proplet_id: str) -> list[tuple[str, int]]:
    """What a proplet listens to, always at QoS 1: the shared commands, its own, and managers' hellos."""
    shared = [topics.build(r) for r in (Route.START, Route.STOP, Route.INVOKE, Route.HELLO)]
    routes = (Route.OWN_START, Route.OWN_STOP, Route.OWN_INVOKE, Route.OWN_MODULE_CHUNK)
    own = [topics.build(r, proplet_id) for r in routes]
    return [(topic, 1) for topic in shared + own]


def will_of(topics: Topics, presence: PresenceSettings) -> Will:
    """What the broker says for a proplet that has vanished."""
    return Will(topics.build(Route.ALIVE), codec.encode(presence.farewell), 1)


def core_settings(settings: NodeSettings) -> CoreSettings:
    """The core's bounds."""
    running = settings.agent.max_running
    return CoreSettings(
        settings.node.id,
        max_active=running + WORKER_QUEUE,
        max_daemons=settings.runtime.max_daemons,
        max_latent=settings.runtime.max_latent,
        known_attempts=settings.agent.results.count,
    )


def presence_settings(settings: NodeSettings) -> PresenceSettings:
    """Who the device is and how often it reports."""
    node, agent = settings.node, settings.agent
    return PresenceSettings(
        proplet_id=node.id,
        namespace=node.namespace,
        qos=min(1, settings.mqtt.qos),
        heartbeat_s=agent.liveliness_interval_s,
        metrics_s=agent.metrics_interval_s if agent.enable_monitoring else 0.0,
        description=node.description,
        tags=node.tags,
        location=node.location,
        collect_system_info=node.collect_system_info,
        logs=LogSettings(agent.logs.to_journal, log_limits(settings), agent.logs.queue_size_bytes),
    )


def log_limits(settings: NodeSettings) -> LogLimits:
    """How much one task may print."""
    return LogLimits(settings.agent.logs.rate_bytes, settings.agent.logs.burst_bytes)


def runtime_settings(settings: NodeSettings) -> RuntimeSettings:
    """How guests are run."""
    return RuntimeSettings(
        key_dir=settings.node.state_dir / "keys",
        max_running=settings.agent.max_running,
        max_daemons=settings.runtime.max_daemons,
        idle_s=settings.runtime.idle_timeout_s,
        grace_s=settings.runtime.grace_s,
        loaded_bytes=settings.runtime.loaded_size_bytes,
        strikes=settings.runtime.quarantine_after,
        quarantine_s=settings.runtime.quarantine_s,
        engine=settings.runtime.engine.value,
        log_limits=log_limits(settings),
        max_own_workers=settings.runtime.max_own_workers or default_own_workers(),
        own_grace_s=settings.runtime.own_grace_s,
        own_allowance_bytes=settings.runtime.own_allowance_bytes,
    )


def program_settings(settings: NodeSettings) -> ProgramSettings:
    """How guests are run in the wasmtime program."""
    runtime, http = settings.runtime, settings.runtime.http
    return ProgramSettings(
        program=runtime.external or runtime.program,
        runs_all=runtime.external is not None,
        serves=http.enabled,
        cache_dir=settings.node.cache_dir / "program",
        cache_bytes=settings.modules.cache_size_bytes,
        allowed=Allowed(
            http.host, http.first_port, http.last_port or min(65535, http.first_port + 99), http.least_port
        ),
        terms=Terms(
            pulley=runtime.engine is Engine.PULLEY,
            request_timeout_s=http.request_timeout_s,
            max_requests=http.max_requests,
            max_connections=http.max_connections,
        ),
        max_services=http.max_services,
        start_s=settings.modules.compile_timeout_s,
        compile_bytes=settings.modules.compile_memory_bytes,
        allowance_bytes=runtime.own_allowance_bytes,
    )


def modules_settings(settings: NodeSettings) -> ModulesSettings:
    """Where modules come from and are kept. They are state: tasks start from them without a network."""
    modules = settings.modules
    return ModulesSettings(
        store_dir=store_directory(settings),
        cache_dir=settings.node.cache_dir,
        key_dir=settings.node.state_dir / "keys",
        registry=registry_settings(settings),
        max_module_bytes=modules.max_module_size_bytes,
        cache_bytes=modules.cache_size_bytes,
        store_bytes=modules.store_size_bytes,
        journal=settings.node.state_dir / "journal.db",
        compile_memory_bytes=modules.compile_memory_bytes,
        compile_timeout_s=modules.compile_timeout_s,
        engine=settings.runtime.engine.value,
    )


def request_settings(settings: NodeSettings) -> RequestSettings:
    """How images are asked for over MQTT."""
    return RequestSettings(
        directory=store_directory(settings),
        timeout_s=settings.modules.mqtt_timeout_s,
        max_module_bytes=settings.modules.max_module_size_bytes,
        max_packet_bytes=settings.mqtt.max_packet_size_bytes,
        signatures=settings.modules.signature_policy is not None or settings.modules.signed_only,
    )


def shell_settings(settings: NodeSettings) -> ShellSettings:
    """The node's terms for tasks."""
    return ShellSettings(
        NodeLimits(_limits(settings.agent.limits), _limits(settings.agent.ceilings)),
        ceiling_of(settings),
        pull_policy=settings.modules.pull_policy,
        invocations=InvocationBounds(open=settings.runtime.max_invocations),
    )


def ceiling_of(settings: NodeSettings) -> Ceiling:
    """What tasks may ask for."""
    given, source = settings.agent.permissions, settings.source
    dirs = tuple(
        AllowedDirectory(
            str(allowed.host),
            read_only=allowed.read_only,
            always=allowed.always,
            guest=allowed.guest or "",
            where=source.origins.get(f"agent.permissions.dirs[{number}].host", "the configuration"),
        )
        for number, allowed in enumerate(given.dirs)
    )
    usual = (source.config_dir / "proplet.toml",) if source.config_dir else ()
    file = str(next(iter((*source.files, *usual)), "the configuration file"))
    return Ceiling(
        dirs,
        http=ANYWHERE in given.http,
        tcp=ANYWHERE in given.tcp,
        own=own_paths(settings),
        programs=tuple(name for name in (settings.runtime.program, settings.runtime.external) if name),
        file=file,
        vault=Vault(given.secrets, settings.agent.secrets_dir, source.credentials_dir, file),
    )


def _limits(given: DefaultLimitsTable | CeilingsTable) -> GuestLimits:
    return GuestLimits(
        memory_bytes=given.memory_bytes,
        cpu_s=given.cpu_s,
        wall_s=given.wall_s,
        output_bytes=given.output_bytes,
        stack_bytes=given.stack_bytes,
        fuel=given.fuel,
    )
