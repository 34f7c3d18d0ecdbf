"""The agent's loop with its real journal, modules and worker; only the broker is played, to time what arrives."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent import codec, wire
from proplet.agent.admission import CoreSettings
from proplet.agent.core import Core
from proplet.agent.fetch import ModulesSettings, open_modules
from proplet.agent.journal import open_journal
from proplet.agent.mqtt_model import Connected, Delivery, NotConnectedError, Receipt
from proplet.agent.presence import Presence, PresenceSettings
from proplet.agent.runtime import RuntimeSettings, open_runtime
from proplet.agent.shell import Shell, ShellSettings
from proplet.agent.topics import Route, Topics
from proplet.agent.vitals import Vitals
from tests.support.modules import module

pytestmark = pytest.mark.anyio

TOPICS = Topics("d", "c")


@dataclass
class PlayedLink:
    """A link whose other end is the test: it keeps what is published, and notes every acknowledgement."""

    connected: bool = True
    published: list[tuple[Route, Any]] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    news: anyio.Event = field(default_factory=anyio.Event)
    held: anyio.Event | None = None  # until it is set, nothing is taken

    async def publish(self, topic: str, payload: bytes, qos: int) -> None:
        await anyio.lowlevel.checkpoint()
        if self.held is not None:
            await self.held.wait()
        if not self.connected:
            raise NotConnectedError("not connected")
        parsed = TOPICS.parse(topic)
        assert parsed is not None
        self.published.append((parsed.route, codec.decode(parsed.route, payload)))
        self._tell()

    def acknowledge(self, delivery: Delivery) -> None:
        self.acknowledged.append(delivery.receipt.packet_id)
        self._tell()

    def _tell(self) -> None:
        self.news.set()
        self.news = anyio.Event()

    def all(self, route: Route) -> list[Any]:
        return [m for r, m in self.published if r is route]

    async def until(self, met: Callable[[], Any]) -> Any:
        with anyio.fail_after(20):
            while not (found := met()):
                await self.news.wait()
        return found


@dataclass
class Agent:
    shell: Shell
    link: PlayedLink
    packet: int = 0

    def deliver(self, route: Route, message: Any) -> None:
        self.packet += 1
        topic = TOPICS.build(route)
        receipt = Receipt(1, self.packet)
        self.shell.put(Delivery(topic, codec.encode(message), 1, duplicate=False, retained=False, receipt=receipt))

    def start(self, task_id: str, name: str = "addition", **more: Any) -> None:
        fields = {"inputs": ("10", "32"), "ext": wire.StartTerms(attempt=1, topics=("progress",)), **more}
        self.deliver(Route.START, wire.Start(task_id, "main", file=module(name), **fields))


@asynccontextmanager
async def open_agent(directory: Path, **settings: Any) -> AsyncIterator[Agent]:
    link = PlayedLink()
    async with (
        open_journal(directory / "journal.db") as journal,
        open_modules(ModulesSettings(directory / "modules", directory / "cache", directory / "keys")) as modules,
        open_runtime(RuntimeSettings(directory / "keys"), modules) as runtime,
        anyio.create_task_group() as tasks,
    ):
        presence = Presence(PresenceSettings("me", heartbeat_s=0.05), TOPICS, runtime, Vitals())
        shell = Shell(
            ShellSettings(**settings),
            Core(CoreSettings("me")),
            journal=journal,
            modules=modules,
            runtime=runtime,
            topics=TOPICS,
            presence=presence,
        )
        tasks.start_soon(shell.serve, link)
        shell.put(Connected(session_present=False))
        yield Agent(shell, link)
        tasks.cancel_scope.cancel()


async def test_messages_are_acknowledged_in_order_once_they_are_durable(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        for n in range(20):
            agent.start(f"t{n}")
        await agent.link.until(lambda: len(agent.link.all(Route.RESULTS)) == 20)
        assert agent.link.acknowledged == list(range(1, 21))
        assert {r.results for r in agent.link.all(Route.RESULTS)} == {"42"}


async def test_a_stop_in_the_same_breath_as_its_start_leaves_nothing_behind(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        agent.start("warm-up")
        await agent.link.until(lambda: agent.link.all(Route.RESULTS))
        for n in range(10):  # the module is at hand, then not yet
            agent.start(f"t{n}", "addition" if n < 5 else "loop")
            agent.deliver(Route.STOP, wire.Stop(f"t{n}"))
        await agent.link.until(lambda: len(agent.link.all(Route.RESULTS)) == 11)
        reasons = {r.task_id: r.ext.reason for r in agent.link.all(Route.RESULTS) if r.task_id != "warm-up"}
        assert set(reasons.values()) == {wire.Reason.STOPPED}
        beats = len(agent.link.all(Route.ALIVE))
        await agent.link.until(lambda: len(agent.link.all(Route.ALIVE)) > beats + 6)
        assert {p.task_id for p in agent.link.all(Route.PROGRESS)} <= {"warm-up"}, "what is no more is reported"
        assert not agent.shell._jobs
        assert not agent.shell._cancelled
        assert not agent.shell._preparing
        assert not agent.shell._presence._live


async def test_results_that_could_not_be_published_are_published_when_the_broker_is_back(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        agent.start("t1")
        agent.link.connected = False
        await agent.link.until(lambda: agent.link.acknowledged)
        await agent.shell.proof_of_life()
        agent.link.connected = True
        agent.shell.put(Connected(session_present=True))
        await agent.link.until(lambda: agent.link.all(Route.RESULTS))


async def test_a_crowd_that_asks_what_is_held_is_answered_once_or_twice(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        await agent.link.until(lambda: agent.link.all(Route.INVENTORY))
        for _ in range(100):
            agent.deliver(Route.HELLO, wire.Hello("m"))
        await agent.link.until(lambda: len(agent.link.acknowledged) == 100)
        await agent.link.until(lambda: len(agent.link.all(Route.INVENTORY)) >= 2)
        assert len(agent.link.all(Route.INVENTORY)) <= 3
