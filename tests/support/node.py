"""A whole node as a process of its own, and a peer on the wire that plays its manager."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from proplet.agent import codec, wire
from proplet.agent.mqtt import open_link
from proplet.agent.mqtt_model import Connected, Delivery, LinkEvent, MqttSettings
from proplet.agent.ports import Link
from proplet.agent.topics import Route, Topics
from tests.support.daemon import DaemonProcess

ADDITION = bytes.fromhex("0061736d0100000001070160027f7f017f03020100070801046d61696e00000a09010700200020016a0b")


class NodeProcess(DaemonProcess):
    """``proplet up`` with a configuration file; the same directories through every restart."""

    name = "node"

    def __init__(self, directory: Path, config: str, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(directory, environ)
        self.config = directory / "proplet.toml"
        self.config.write_text(config)

    def command(self) -> Sequence[str]:
        return ["proplet.agent", "up", "--config", str(self.config)]


class Peer:
    """Speaks the wire as a manager does, and remembers everything it heard."""

    def __init__(self, topics: Topics, proplet_id: str) -> None:
        self.topics = topics
        self.proplet_id = proplet_id
        self.heard: list[tuple[Route, Any]] = []
        self._news = anyio.Event()
        self.connected = False
        self.link: Link

    def on_event(self, event: LinkEvent) -> None:
        if isinstance(event, Delivery):
            parsed = self.topics.parse(event.topic)
            assert parsed is not None
            self.heard.append((parsed.route, codec.decode(parsed.route, event.payload)))
            self.link.acknowledge(event)
        else:
            self.connected = isinstance(event, Connected)
        self._news.set()
        self._news = anyio.Event()

    async def until(self, met: Callable[[], Any], within_s: float = 20.0, what: str = "") -> Any:
        """Return what `met` returns once that is true."""
        with anyio.move_on_after(within_s):
            while True:
                found = met()
                if found:
                    return found
                await self._news.wait()
        heard = [m for r, m in self.heard if r not in (Route.ALIVE, Route.METRICS)]
        raise AssertionError(f"not within {within_s} s: {what or met}; heard {heard[-10:]}")

    def all(self, route: Route, task_id: str | None = None) -> list[Any]:
        return [m for r, m in self.heard if r is route and (task_id is None or m.task_id == task_id)]

    async def result(self, task_id: str, within_s: float = 20.0) -> wire.Result:
        """The first result of a task."""
        found = await self.until(lambda: self.all(Route.RESULTS, task_id), within_s, f"a result of {task_id}")
        return found[0]  # type: ignore[no-any-return]

    async def send(self, route: Route, message: Any, *, raw: bytes | None = None) -> None:
        payload = codec.encode(message) if raw is None else raw
        own = self.proplet_id if route.is_own else None
        await self.link.publish(self.topics.build(route, own), payload, 1)

    async def start(self, task_id: str, **more: Any) -> None:
        """Start the addition, or whatever the fields say."""
        fields = {"name": "main", "file": ADDITION, "inputs": ("10", "32"), "proplet_id": self.proplet_id, **more}
        if fields.get("image_url"):
            fields["file"] = None
        fields.setdefault("ext", wire.StartTerms(attempt=1))
        await self.send(Route.START, wire.Start(task_id, **fields))


HEARD = (
    Route.CREATE,
    Route.ALIVE,
    Route.METRICS,
    Route.TASK_METRICS,
    Route.RESULTS,
    Route.INVOKE_RESULTS,
    Route.INVENTORY,
    Route.PROGRESS,
    Route.LOGS,
)


@asynccontextmanager
async def open_peer(settings: MqttSettings, topics: Topics, proplet_id: str) -> AsyncIterator[Peer]:
    """A connected peer."""
    peer = Peer(topics, proplet_id)
    heard = [(topics.build(route), 1) for route in HEARD]
    async with open_link(settings, heard, None, peer.on_event) as peer.link:
        await peer.until(lambda: peer.connected, what="a connection")
        yield peer
