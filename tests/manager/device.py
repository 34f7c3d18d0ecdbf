"""A device over real MQTT, scripted at the level of the wire: it keeps what it accepted, repeats what it finished."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from proplet.agent.codec import decode, encode
from proplet.agent.mqtt import (
    Connected,
    Delivery,
    Link,
    LinkEvent,
    MqttSettings,
    NotConnectedError,
    Will,
    open_link,
)
from proplet.agent.topics import Route, Topics
from proplet.agent.wire import (
    Alive,
    Discovery,
    Inventory,
    InventoryItem,
    Progress,
    Reason,
    Result,
    ResultTerms,
    Start,
    Stop,
)
from tests.manager.fakes import OURS

Key = tuple[str, int | None]


@dataclass
class Device:
    """Answers a start with the sum of its inputs. `faults` repeats and reorders what it says."""

    id: str
    topics: Topics
    faults: random.Random | None = None
    delay: Callable[[], float] = lambda: 0.0
    held: dict[Key, Start] = field(default_factory=dict)
    done: dict[Key, Result] = field(default_factory=dict)
    runs: dict[Key, int] = field(default_factory=dict)
    stopped: list[Key] = field(default_factory=list)
    _outbox: list[tuple[Route, Any]] = field(default_factory=list)
    _news: anyio.Event = field(default_factory=anyio.Event)

    def say(self, route: Route, message: Any) -> None:
        self._outbox.append((route, message))
        if self.faults is not None and route is Route.RESULTS:
            for _ in range(self.faults.randrange(3)):
                self._outbox.insert(self.faults.randrange(len(self._outbox) + 1), (route, message))
        self._news.set()

    def introduce(self) -> None:
        self.say(Route.CREATE, Discovery(self.id, ext=OURS))
        self.inventory()

    def inventory(self) -> None:
        items = tuple(InventoryItem(uid, attempt, "running") for uid, attempt in self.held)
        self.say(Route.INVENTORY, Inventory(self.id, items))

    def take(self, route: Route, message: Any) -> "Start | None":
        """Take a command; return it if it begins a run."""
        if route is Route.HELLO:
            self.introduce()
        if isinstance(message, Start) and (message.broadcast or message.proplet_id == self.id):
            key = (message.id, message.ext.attempt if message.ext else None)
            if key in self.held:
                self.inventory()
            elif key in self.done:
                self.say(Route.RESULTS, self.done[key])
            else:
                self.held[key] = message
                self.runs[key] = self.runs.get(key, 0) + 1
                self.say(Route.PROGRESS, Progress(self.id, message.id, key[1], "running"))
                return message
        if isinstance(message, Stop):
            for key in [k for k in self.held if k[0] == message.id]:
                if message.ext is None or message.ext.attempt in (None, key[1]):
                    self.stopped.append(key)
                    self.end(key, "", "it was stopped", Reason.STOPPED)
        return None

    def end(self, key: Key, results: str, error: str | None = None, reason: Reason = Reason.OK) -> None:
        if self.held.pop(key, None) is None:
            return
        result = Result(key[0], self.id, results, error, ResultTerms(attempt=key[1], reason=reason))
        self.done[key] = result
        self.say(Route.RESULTS, result)

    @property
    def quiet(self) -> bool:
        """Whether everything it said has arrived."""
        return not self._outbox

    async def run(self, start: Start) -> None:
        await anyio.sleep(self.delay())
        attempt = start.ext.attempt if start.ext else None
        self.end((start.id, attempt), str(sum(int(i) for i in start.inputs)))

    async def deliver(self, link: Link) -> None:
        """Send the outbox, in order, each until the broker has it."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            while self._outbox:
                route, message = self._outbox[0]
                try:
                    await link.publish(self.topics.build(route), encode(message), 1)
                except NotConnectedError:
                    await anyio.sleep(0.05)
                    continue
                self._outbox.remove((route, message))


@asynccontextmanager
async def plug_in(device: Device, settings: MqttSettings, beat_s: float = 0.2) -> AsyncIterator[Link]:
    """Connect the device; leaving it is a power cut as far as its tasks are concerned."""
    topics = device.topics
    routes: list[tuple[Route, str | None]] = [(Route.START, None), (Route.STOP, None), (Route.HELLO, None)]
    routes += [(Route.OWN_START, device.id), (Route.OWN_STOP, device.id)]
    subscriptions = [(topics.build(route, own), 1) for route, own in routes]
    will = Will(topics.build(Route.ALIVE), encode(Alive(device.id, "offline")))
    async with anyio.create_task_group() as tasks:
        opened: list[Link] = []

        def on_event(event: LinkEvent) -> None:
            match event:
                case Connected():
                    device.introduce()
                case Delivery():
                    parsed = topics.parse(event.topic)
                    assert parsed is not None
                    start = device.take(parsed.route, decode(parsed.route, event.payload))
                    if start is not None:
                        tasks.start_soon(device.run, start)
                    opened[0].acknowledge(event)
                case _:
                    pass

        async def beat() -> None:
            while True:
                device.say(Route.ALIVE, Alive(device.id))
                await anyio.sleep(beat_s)

        async with open_link(settings, subscriptions, will, on_event) as link:
            opened.append(link)
            tasks.start_soon(device.deliver, link)
            tasks.start_soon(beat)
            yield link
            tasks.cancel_scope.cancel()
