"""A whole node as a process of its own, and a peer on the wire that plays its manager."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio

from proplet.agent import codec, wire
from proplet.agent.mqtt import open_link
from proplet.agent.mqtt_model import Connected, Delivery, LinkEvent, MqttSettings
from proplet.agent.ports import Link
from proplet.agent.topics import Route, Topics

ADDITION = bytes.fromhex("0061736d0100000001070160027f7f017f03020100070801046d61696e00000a09010700200020016a0b")
READY_S = 30.0


class NodeEndedError(AssertionError):
    """The process ended where it should have run; holds its exit code and its log."""

    def __init__(self, code: int, log: str) -> None:
        super().__init__(f"the node ended with {code}:\n{log[-4000:]}")
        self.code = code
        self.log = log


class NodeProcess:
    """``proplet up`` with a configuration file; the same directories through every restart."""

    def __init__(self, directory: Path, config: str, environ: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.config = directory / "proplet.toml"
        self.config.write_text(config)
        self.log_path = directory / "log"
        self._environ = dict(environ or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def spawn(self) -> socket.socket:
        """Start the process; returns the socket it tells its state to, as systemd would have it."""
        assert self._process is None
        notify = self.directory / "notify"
        notify.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(str(notify))
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PROPLET_")}
        environ |= {"NOTIFY_SOCKET": str(notify), "XDG_CONFIG_HOME": str(self.directory / "none"), **self._environ}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "proplet.agent", "up", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                cwd=self.directory,
            )
        return listener

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        with self.spawn() as listener:
            assert self._process is not None
            listener.settimeout(0.05)
            deadline = time.monotonic() + READY_S
            while time.monotonic() < deadline:
                code = self._process.poll()
                if code is not None:
                    self._process = None
                    raise NodeEndedError(code, self.log)
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in listener.recv(4096):
                        return
            raise AssertionError(f"the node is not ready after {READY_S} s:\n{self.log[-4000:]}")

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it as a service manager would; returns its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, sig: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(sig)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the node did not end at {sig.name}:\n{self.log[-4000:]}") from None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGKILL)


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
