"""The node as a process: its parts put together, in order, and taken apart in the reverse.

The only module that knows all parts. Broker, manager and agent are context managers that yield when they are ready;
nothing waits for a network. `daemon` adds what a process owes its machine.
"""

import fcntl
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from proplet.agent import engines, parts
from proplet.agent.app_metrics import AgentMetrics, Counted, open_metrics
from proplet.agent.config_schema import NodeSettings
from proplet.agent.core import Core
from proplet.agent.failures import NodeError, as_node_errors
from proplet.agent.fetch import open_modules
from proplet.agent.journal import open_journal
from proplet.agent.journal_sweep import OutboxBounds
from proplet.agent.link_parts import link_settings, topics_of
from proplet.agent.module_requests import ModuleRequests
from proplet.agent.module_storing import ModulesOverMqtt
from proplet.agent.mqtt import LinkEvent, open_link
from proplet.agent.ports import Link, StorageError
from proplet.agent.presence import Presence
from proplet.agent.program_runtime import open_programs
from proplet.agent.runtime import open_runtime
from proplet.agent.shell import Shell
from proplet.agent.vitals import Vitals, machine_is_supported

if TYPE_CHECKING:
    from proplet.manager.broker import Broker, Identity

log = logging.getLogger(__name__)

_GOODBYE_S = 2.0


@dataclass(frozen=True, slots=True)
class Node:
    """A running node. `alive` returns once every part has shown that it makes progress."""

    settings: NodeSettings
    broker_address: str
    broker_engine: str | None
    socket_path: Path | None
    mirror_address: str | None  # of the registry that its store is, as image references have it
    alive: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Access:
    """How a part reaches the broker."""

    client_id: str
    username: str
    password: str


@contextmanager
def _state_directory(path: Path) -> Iterator[None]:
    """Own the state directory: made 0700 if it is not there, refused while another node has it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NodeError(
            f"the state directory {path} cannot be used ({error.strerror}): give it to this user, or set "
            "[node] state_dir (PROPLET_NODE_STATE_DIR)"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise NodeError(
                f"another node (process {other}) uses the state directory {path}: stop it, or give this one its own "
                "with [node] state_dir (PROPLET_NODE_STATE_DIR)"
            ) from None
        try:
            os.truncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        except OSError as error:
            raise StorageError(f"{path / 'node.lock'} cannot be written: {error.strerror}") from error
        yield
    finally:
        os.close(lock)


@asynccontextmanager
async def open_node(settings: NodeSettings) -> AsyncIterator[Node]:
    """Run a node: broker, manager and agent, as far as each is configured. Yields when all are ready for work.

    Raises:
        NodeError: it cannot run as configured; also later, out of the context, if a part fails for good.
        StorageError: the journal cannot be used.
    """
    if not machine_is_supported():
        raise NodeError("wasmtime has no build for this machine: proplet needs a 64-bit system on x86-64 or ARM")
    async with AsyncExitStack() as stack:
        stack.enter_context(_state_directory(settings.node.state_dir))
        tasks = await stack.enter_async_context(_root())
        identities, broker = await _start_broker(settings, stack, tasks)
        counted = Counted()
        address = settings.mqtt.address
        if address is not None:
            identities = []  # those are of the node's own broker, which then serves only others
        elif broker is not None:
            address = broker.address
        else:
            raise NodeError("no broker: set [mqtt] address, or run one here with a [broker] table")
        socket_path, mirror_address = await _start_manager(
            settings, stack, broker, _access(settings, identities, manager=True), address, counted=counted
        )
        shell = await stack.enter_async_context(_open_agent(settings, address, _access(settings, identities), counted))
        yield Node(
            settings=settings,
            broker_address=address,
            broker_engine=broker.engine if broker else None,
            socket_path=socket_path,
            mirror_address=mirror_address,
            alive=lambda: _proof(shell),
        )


@asynccontextmanager
async def _root() -> AsyncIterator[TaskGroup]:
    """The root task group; leaving it ends what still runs in it."""
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        finally:
            tasks.cancel_scope.cancel()


def _manager_id(settings: NodeSettings) -> str:
    return f"{settings.node.id}-manager"


def _access(settings: NodeSettings, identities: "list[Identity]", manager: bool = False) -> _Access:
    """The identity of the agent, or of the manager. On a foreign broker both have the user the node was given."""
    own = _manager_id(settings) if manager else settings.node.id
    for identity in identities:
        if identity.username == own:
            return _Access(own, own, identity.password)
    key = settings.mqtt.client_key
    return _Access(own, settings.mqtt.client_id or settings.node.id, key.reveal() if key else "")


async def _start_broker(
    settings: NodeSettings, stack: AsyncExitStack, tasks: TaskGroup
) -> "tuple[list[Identity], Broker | None]":
    if settings.broker is None:
        return [], None
    from proplet.manager.broker import (
        BrokerError,
        BrokerSettings,
        CredentialsError,
        TlsFiles,
        load_or_create_identities,
        open_broker,
    )

    given = settings.broker
    directory = settings.node.state_dir / "broker"
    with as_node_errors(BrokerError, CredentialsError, ValueError):
        identities = await anyio.to_thread.run_sync(
            lambda: load_or_create_identities(directory, [settings.node.id, *given.proplets], _manager_id(settings))
        )
        tls = None
        if given.tls_cert_file and given.tls_key_file:
            tls = TlsFiles(given.tls_cert_file, given.tls_key_file)
        wanted = BrokerSettings(
            state_dir=directory,
            domain=settings.mqtt.domain,
            channel=settings.mqtt.channel,
            engine=given.engine.value,
            host=given.host,
            port=given.port,
            tls=tls,
            max_connections=given.max_connections,
            max_message_bytes=given.max_packet_size_bytes,
            max_queued_bytes=given.max_queued_size_bytes,
            max_queued_messages=given.max_queued_messages,
        )
        broker = await stack.enter_async_context(open_broker(wanted, identities))

    async def watch() -> None:
        try:
            await broker.failed()
        except BrokerError as error:
            raise NodeError(str(error)) from error

    tasks.start_soon(watch, name="broker watch")
    log.info("the broker (%s) listens on %s", broker.engine, broker.address)
    return identities, broker


async def _start_manager(
    settings: NodeSettings,
    stack: AsyncExitStack,
    broker: "Broker | None",
    access: _Access,
    address: str,
    *,
    counted: Counted,
) -> tuple[Path | None, str | None]:
    """Run the manager, if there is to be one; return the path of its API's socket, and the address of its mirror."""
    if settings.manager is None:
        return None, None
    mqtt = link_settings(settings, address, access.client_id, access.username, access.password)
    from proplet.agent import app_images
    from proplet.manager.api import ApiError, ApiSettings
    from proplet.manager.api_routes import NodeState
    from proplet.manager.app import ManagerSettings, open_manager
    from proplet.manager.exchange import Policy
    from proplet.manager.ports import StoreError

    given, api = settings.manager, settings.manager.api
    services = ("agent", "broker", "manager") if broker else ("agent", "manager")
    about = NodeState(
        version("proplet"),
        services,
        settings.node.id,
        broker_address=address,
        started_at=time.time(),
        agent_metrics=counted.text,
        engine=settings.runtime.engine.value,
    )
    served = ApiSettings(
        socket=given.socket,
        host=api.host,
        port=api.port,
        token=api.token.reveal() if api.token else "",
        allowed_hosts=api.allowed_hosts,
        allowed_origins=api.allowed_origins,
        tls_certificate=api.tls_cert_file,
        tls_key=api.tls_key_file,
    )
    images, mirror = await stack.enter_async_context(app_images.open_served_images(settings))
    mirror_address, hands_out = mirror.address if mirror else None, app_images.answer_settings(settings, images)
    if settings.kubernetes is not None:
        from proplet.agent.app_cluster import ERRORS, open_cluster, open_local_api

        with as_node_errors(*ERRORS, ApiError):
            reign = await stack.enter_async_context(open_cluster(settings, mqtt, hands_out))
            await stack.enter_async_context(open_local_api(served, reign, about))
        return given.socket, mirror_address
    wanted = ManagerSettings(
        mqtt=mqtt,
        topics=topics_of(settings),
        manager_id=access.client_id,
        store=given.store,
        manifests=(settings.node.manifests_dir,),
        api=served,
        policy=Policy(silence_s=given.liveliness_timeout_s, silent_deadline_s=given.default_deadline_s or math.inf),
        reply_s=given.mqtt_timeout_s,
        hands_out=hands_out,
    )
    with as_node_errors(StoreError, ApiError):
        await stack.enter_async_context(open_manager(wanted, lambda: about))
    return given.socket, mirror_address


@asynccontextmanager
async def _open_agent(settings: NodeSettings, address: str, access: _Access, counted: Counted) -> AsyncIterator[Shell]:
    """Run the agent. Left, it cancels its work, says goodbye and disconnects; the journal knows what ran."""
    bounds = settings.agent.outbox
    kept = OutboxBounds(
        settings.agent.results.count, max_count=bounds.count, max_bytes=bounds.size_bytes, max_age_s=bounds.age_s
    )
    if (refused := engines.refusal(settings.runtime.engine.value)) is not None:
        log.error("no task can run: %s", refused)
    topics, about = topics_of(settings), parts.presence_settings(settings)
    mqtt = link_settings(settings, address, access.client_id, access.username, access.password)
    requests = ModuleRequests(parts.request_settings(settings), topics, about.proplet_id)
    async with (
        open_modules(
            parts.modules_settings(settings), ModulesOverMqtt(requests, settings.modules.over_mqtt.value), starting=True
        ) as modules,
        open_journal(settings.node.state_dir / "journal.db", kept) as journal,  # closed before its needs are let go
        open_runtime(parts.runtime_settings(settings), modules) as workers,
        open_programs(parts.program_settings(settings), workers, settings.agent.max_running) as runtime,
    ):
        vitals = Vitals(settings.runtime.engine.value, settings.runtime.external)
        presence = Presence(about, topics, runtime, vitals)
        shell = Shell(
            parts.shell_settings(settings),
            Core(parts.core_settings(settings)),
            journal=journal,
            modules=modules,
            runtime=runtime,
            topics=topics,
            presence=presence,
            holds=modules.holds,
        )
        will = parts.will_of(topics, about)

        def hear(event: LinkEvent) -> None:
            if not requests.take(event):
                shell.put(event)

        counted.agent = AgentMetrics(
            presence.meters,
            vitals,
            runtime,
            invoked=lambda: shell.invoked,
            workers=lambda: len(workers.worker_pids),
            fetched_bytes=lambda: modules.fetched_bytes,
        )
        async with (
            open_metrics(settings.agent.metrics_address, counted.agent),
            open_link(mqtt, parts.subscriptions(topics, about.proplet_id), will, hear) as link,
        ):
            requests.open(link)
            try:
                async with _served(shell, link):
                    yield shell
            finally:
                with anyio.move_on_after(_GOODBYE_S, shield=True):
                    await presence.goodbye(link)


@asynccontextmanager
async def _served(shell: Shell, link: Link) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        ready = anyio.Event()
        tasks.start_soon(lambda: shell.serve(link, ready=ready.set), name="shell")
        await ready.wait()
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()


async def _proof(shell: Shell) -> None:
    """Return once the loop has taken a turn. One that waits for a full disk is alive: a restart would not help."""
    if shell.trouble is None:
        await shell.proof_of_life()
