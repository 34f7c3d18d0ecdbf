"""The manager assembled: store, bus, controller, HTTP API, in the order in which they need each other.

What is open is closed in the opposite order: the API first, the store last.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from proplet.agent.mqtt import MqttSettings
from proplet.agent.topics import Topics
from proplet.manager import rules
from proplet.manager.bus import BusSettings, open_bus
from proplet.manager.controller import Controller
from proplet.manager.exchange import Policy
from proplet.manager.model import Kind
from proplet.manager.module_answers import AnswerSettings, Assigned, ModuleAnswers
from proplet.manager.ports import Store, StoreUnavailableError
from proplet.manager.round_starts import RoundStarts
from proplet.manager.seed import apply_directory
from proplet.manager.store_memory import MemoryStore
from proplet.manager.store_retention import prune, weight
from proplet.manager.store_sqlite import open_sqlite_store
from proplet.manager.works import open_works

if TYPE_CHECKING:
    from proplet.manager.api import Api, ApiSettings
    from proplet.manager.api_routes import NodeState

log = logging.getLogger(__name__)

PRUNE_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """What a manager is told.

    Attributes:
        mqtt: the broker, and the manager's identity on it.
        topics: the channel it manages.
        manager_id: its name in the hello; usually the MQTT client id. Never taken for a proplet.
        store: the SQLite file; None keeps everything in memory, and a restart forgets it.
        manifests: directories whose manifests are applied at start.
        api: where the HTTP API listens; None leaves it out.
        policy: waiting times.
        window: unfinished tasks a proplet may have at once.
        keep_finished: finished tasks that are kept; the oldest make room.
        keep_bytes: what results and modules may hold in memory; the oldest finished tasks make room.
        not_proplets: ids that are no proplet's, whatever they claim.
        reply_s: how long the broker may take to acknowledge a command.
        hands_out: which images are handed out to proplets over MQTT; None are none.
    """

    mqtt: MqttSettings
    topics: Topics
    manager_id: str
    store: Path | None = None
    manifests: tuple[Path, ...] = ()
    api: "ApiSettings | None" = None
    policy: Policy = field(default_factory=Policy)
    window: int = 500
    keep_finished: int = 10_000
    keep_bytes: int = 64 * 1024 * 1024
    not_proplets: tuple[str, ...] = ()
    reply_s: float = 20.0
    hands_out: AnswerSettings | None = None


@dataclass(frozen=True, slots=True)
class Manager:
    """A running manager. `api` is None where none was asked for."""

    store: Store
    control: Controller
    api: "Api | None" = None

    @property
    def connected(self) -> bool:
        """Whether it has its broker."""
        return self.control.connected


@asynccontextmanager
async def open_manager(
    settings: ManagerSettings, node: "Callable[[], NodeState] | None" = None
) -> AsyncIterator[Manager]:
    """Run a manager while the context is open; yields when everything stored is known and the API answers.

    It does not wait for the broker. `node` tells the API what the node says of itself; the connection is added here.

    Raises:
        StoreError: the store cannot be opened or read.
        ApiError: the API cannot be opened as configured.
    """
    async with AsyncExitStack() as stack:
        store = await _open_store(settings, stack)
        for directory in settings.manifests:
            await apply_directory(store, directory)
        control = Controller(
            store,
            policy=settings.policy,
            unsupported=rules.unsupported,
            not_proplets=(settings.manager_id, *settings.not_proplets),
            window=settings.window,
        )
        await control.load()
        handing = settings.hands_out is not None
        bus_settings = BusSettings(settings.mqtt, settings.topics, settings.manager_id, settings.reply_s, handing)
        starts = RoundStarts(store, control.hear)
        answers = ModuleAnswers(settings.hands_out, Assigned(control.held_by, control.held_by_others), starts.hear)
        bus = await stack.enter_async_context(open_bus(bus_settings, control.announcement, answers.hear))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(control.run, bus)
        tasks.start_soon(starts.run)
        tasks.start_soon(answers.run, bus)
        tasks.start_soon(_prune_now_and_then, store, settings.keep_finished, settings.keep_bytes)
        stack.callback(tasks.cancel_scope.cancel)
        await stack.enter_async_context(open_works(store, collect_garbage=True))
        api = None
        if settings.api is not None:
            api = await stack.enter_async_context(_serve(settings, store, control, node))
        yield Manager(store, control, api)


async def _open_store(settings: ManagerSettings, stack: AsyncExitStack) -> Store:
    if settings.store is None:
        return MemoryStore()
    return await stack.enter_async_context(open_sqlite_store(settings.store))


@asynccontextmanager
async def _serve(
    settings: ManagerSettings, store: Store, control: Controller, node: "Callable[[], NodeState] | None"
) -> AsyncIterator["Api"]:
    from dataclasses import replace

    from proplet.manager.api import open_api
    from proplet.manager.api_routes import NodeState

    assert settings.api is not None
    started_at = time.time()

    def state() -> NodeState:
        said = node() if node is not None else NodeState("", ("manager",), started_at=started_at)
        return replace(
            said,
            manager_id=settings.manager_id,
            broker_address=said.broker_address or settings.mqtt.address,
            mqtt_connected=control.connected,
        )

    async with open_api(settings.api, store, control, state) as api:
        yield api


async def _prune_now_and_then(store: Store, keep: int, keep_bytes: int) -> None:
    """Keep the store bounded: what has finished long ago is forgotten, a tenth of the bounds at a time or more."""
    tolerated, seen = keep, -1
    while True:
        try:
            gone, listing = 0, await store.list(Kind.TASK)
            if listing.version != seen and (len(listing.items) > tolerated or weight(listing.items) > keep_bytes):
                gone = await prune(store, keep, keep_bytes=keep_bytes - keep_bytes // 10)
            seen = listing.version
            if gone:
                log.info("%d finished tasks were forgotten to make room for later ones", gone)
        except StoreUnavailableError as error:
            log.warning("finished tasks cannot be forgotten now: %s", error)
        tolerated = keep + keep // 10
        await anyio.sleep(PRUNE_EVERY_S)
