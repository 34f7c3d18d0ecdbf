"""What the device says of itself: introduction, heartbeat, metrics, progress and output of its tasks.

All of it is telemetry: published when connected, dropped when not; results are the outbox's. Progress is told only to
managers that announced it, and only of tasks that live long enough for somebody to look. What tasks print is in
`log_feed`.
"""

import logging
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import anyio

from proplet.agent import codec, wire
from proplet.agent.events import Outcome, RunKey, StartKind
from proplet.agent.lifecycle import State
from proplet.agent.log_feed import LogFeed, LogSettings, Voice
from proplet.agent.metering import Metering, Tally
from proplet.agent.mqtt_model import MessageTooLargeError, NotConnectedError
from proplet.agent.ports import Link, Runtime, Stage
from proplet.agent.restarts import started_at
from proplet.agent.topics import Route, Topics
from proplet.agent.vitals import Vitals

log = logging.getLogger(__name__)

ANNOUNCED = ("own", "inventory", "logs", "progress")
_PROGRESS_S = 0.1
_AWAY_S = 1.0  # how often it is looked for the broker
_SETTLED_S = 1.0  # how often tasks are looked at of which all have been running for a while


@dataclass(frozen=True, slots=True)
class PresenceSettings:
    """Who the device is on the wire and how often it reports; times in seconds, 0 switches the metrics off."""

    proplet_id: str
    namespace: str = "default"
    qos: int = 1
    heartbeat_s: float = 5.0
    metrics_s: float = 10.0
    description: str | None = None
    tags: tuple[str, ...] = ()
    location: str | None = None
    collect_system_info: bool = True
    logs: LogSettings = field(default_factory=LogSettings)

    @property
    def farewell(self) -> wire.Alive:
        """What the device says when it goes, and its will if it has vanished."""
        return wire.Alive(self.proplet_id, wire.OFFLINE, self.namespace)


@dataclass(slots=True)
class _Live:
    """A task under way, as it is reported."""

    start: wire.Start
    since: float  # monotonic
    stage: str = "preparing"
    progress: Stage | None = None
    told: object = None
    running_since: float = 0.0  # monotonic; 0 is not running
    message: str = ""  # where it serves, for people
    image_digest: str | None = None

    def wants(self, topic: str) -> bool:
        return self.start.ext is not None and topic in self.start.ext.topics


class Presence:
    """Publishes the device's telemetry; the shell tells it what its tasks do."""

    def __init__(self, settings: PresenceSettings, topics: Topics, runtime: Runtime, vitals: Vitals) -> None:
        self._settings = settings
        self._topics = topics
        self._vitals = vitals
        self._live: dict[RunKey, _Live] = {}
        self._changed = anyio.Event()
        self.logs = LogFeed(settings.logs, settings.proplet_id)
        self.meters = Metering(settings.proplet_id, runtime, vitals)

    @property
    def proplet_id(self) -> str:
        """The device's id on the wire."""
        return self._settings.proplet_id

    # --- what the shell tells ---------------------------------------------------------------------------------------

    def began(self, key: RunKey, start: wire.Start) -> None:
        """A task's preparation began."""
        self._live[key] = _Live(start, time.monotonic())
        self._changed.set()

    def stage(self, key: RunKey, stage: Stage) -> None:
        """A task's preparation got on."""
        live = self._live.get(key)
        if live:
            live.stage, live.progress = stage.name, stage

    def running(self, key: RunKey, restarts: int = 0, image_digest: str | None = None) -> None:
        """A task's guest runs now, after so many runs before it, out of this image."""
        live = self._live.get(key)
        if live:
            live.image_digest = image_digest
            live.stage, live.progress, live.message = "running", None, ""
            live.running_since = time.monotonic()
            self.meters.began(key, live.start, restarts)

    def serves(self, key: RunKey, port: int) -> None:
        """A task's guest accepts connections now."""
        live = self._live.get(key)
        if live:
            live.stage, live.message = State.SERVING.value, started_at(port)
            self._changed.set()

    def ended(self, key: RunKey, outcome: Outcome | None = None, kind: StartKind | None = None) -> None:
        """A task is under way no more; if it ran, its run, begun as `kind` says, had this outcome."""
        self._live.pop(key, None)
        if outcome is not None:
            self.meters.ended(key, outcome, kind)

    def deployed(self, key: RunKey, start: wire.Start, tally: Tally) -> None:
        """A latent task lies ready to be invoked; `tally` tells what its invocations cost."""
        self._live.pop(key, None)
        self.meters.deployed(key, start, tally)

    def voice(self, key: RunKey, start: wire.Start) -> Voice:
        """Return through which a task's runs say what they print."""
        wanted = start.ext is not None and "logs" in start.ext.topics
        return self.logs.voice(key.task_id, start.attempt, wanted=wanted, shared=start.latent)

    # --- publishing ---------------------------------------------------------------------------------------------------

    async def introduce(self, link: Link, held: tuple[wire.InventoryItem, ...]) -> None:
        """Publish discovery, heartbeat and inventory."""
        ext = wire.Announcement(encodings=("cbor",), topics=ANNOUNCED)
        mine = self._settings
        about = replace(
            self._vitals.metadata(collect_system_info=mine.collect_system_info),
            description=mine.description,
            tags=mine.tags,
            location=mine.location,
        )
        who, where = mine.proplet_id, mine.namespace
        await self.tell(link, Route.CREATE, wire.Discovery(who, where, about, ext))
        await self.tell(link, Route.ALIVE, wire.Alive(who, "alive", where))
        await self.tell(link, Route.INVENTORY, wire.Inventory(who, held))

    async def tell(self, link: Link, route: Route, message: Any, qos: int = 1) -> bool:
        """Publish a message that may be lost; return whether it was taken."""
        try:
            await link.publish(self._topics.build(route), codec.encode(message), qos)
        except (NotConnectedError, MessageTooLargeError) as error:
            log.debug("%s was not published: %s", route.value, error)
            return False
        return True

    async def rests(self, link: Link, key: RunKey, start: wire.Start, stage: str, why: str = "") -> None:
        """Tell those who follow a task where it stands while it does not run."""
        if start.ext is not None and "progress" in start.ext.topics:
            news = wire.Progress(self.proplet_id, key.task_id, start.attempt, stage, at=time.time(), message=why)
            await self.tell(link, Route.PROGRESS, news)

    async def serve(self, link: Link) -> None:
        """Report until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._beat, link, name="heartbeat")
            if self._settings.metrics_s > 0:
                tasks.start_soon(self._measure, link, name="metrics")
            tasks.start_soon(self._follow_tasks, link, name="task progress")
            tasks.start_soon(self.meters.serve, link, partial(self._tell_metrics, link), name="task metrics")
            tasks.start_soon(self.logs.serve, link, partial(self.tell, link, Route.LOGS), name="task logs")

    async def goodbye(self, link: Link) -> None:
        """Say that the device goes, as its will would."""
        await self.tell(link, Route.ALIVE, self._settings.farewell)

    async def _beat(self, link: Link) -> None:
        beat = wire.Alive(self.proplet_id, "alive", self._settings.namespace)
        while True:
            if link.connected:
                await self.tell(link, Route.ALIVE, beat, self._settings.qos)
            await anyio.sleep(self._settings.heartbeat_s)

    async def _measure(self, link: Link) -> None:
        while True:
            cpu, memory = self._vitals.measure()
            message = wire.PropletMetrics(self.proplet_id, self._settings.namespace, time.time(), cpu, memory)
            told = link.connected and await self.tell(link, Route.METRICS, message, self._settings.qos)
            await anyio.sleep(self._settings.metrics_s if told else min(_AWAY_S, self._settings.metrics_s))

    async def _tell_metrics(self, link: Link, metrics: wire.TaskMetrics) -> bool:
        return await self.tell(link, Route.TASK_METRICS, metrics, self._settings.qos)

    async def _follow_tasks(self, link: Link) -> None:
        """While tasks are under way, tell their progress."""
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            while self._live:
                await anyio.sleep(_PROGRESS_S)
                if link.connected:
                    await self._tell_progress(link)
                young = time.monotonic() - 2 * _PROGRESS_S
                if all(0 < live.running_since < young for live in self._live.values()):
                    with anyio.move_on_after(_SETTLED_S):
                        await self._changed.wait()
                self._changed = anyio.Event()

    async def _tell_progress(self, link: Link) -> None:
        old_enough = time.monotonic() - _PROGRESS_S
        for key, live in list(self._live.items()):
            now_told = (live.stage, live.progress, live.message)
            if live.since > old_enough or live.told == now_told or not live.wants("progress"):
                continue
            live.told = now_told
            done, total = (live.progress.bytes_done, live.progress.bytes_total) if live.progress else (0, 0)
            message = wire.Progress(
                self.proplet_id,
                key.task_id,
                live.start.attempt,
                live.stage,
                done,
                total,
                time.time(),
                live.message,
                live.image_digest,
            )
            await self.tell(link, Route.PROGRESS, message, self._settings.qos)
