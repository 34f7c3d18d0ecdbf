"""A task that only runs costs the agent next to no attention."""

import time
from collections.abc import Callable, Mapping

import anyio
import pytest

from proplet.agent import codec, wire
from proplet.agent.events import Outcome, RunKey
from proplet.agent.mqtt_model import Delivery
from proplet.agent.ports import Job, Notice, Sample, nobody
from proplet.agent.presence import Presence, PresenceSettings
from proplet.agent.topics import Route, Topics
from proplet.agent.vitals import Vitals

pytestmark = pytest.mark.anyio

TOPICS = Topics("d", "c")
KEY = RunKey("t", 1)
START = wire.Start("t", "main", ext=wire.StartTerms(attempt=1, topics=("progress",)))


class IdleRuntime:
    def warm(self) -> None: ...

    async def preload(self, job: Job) -> Outcome | None:
        return None

    async def run(self, job: Job, tell: Callable[[Notice], None] = nobody) -> Outcome:
        raise NotImplementedError

    def stop(self, key: str) -> None: ...

    async def sample(self) -> Mapping[str, Sample]:
        return {}


class WatchedLink:
    """Notes when somebody looks whether it is connected, which is before anything is told."""

    def __init__(self) -> None:
        self.looks: list[float] = []
        self.stages: list[str] = []
        self.news = anyio.Event()

    @property
    def connected(self) -> bool:
        self.looks.append(time.monotonic())
        self._tell()
        return True

    async def publish(self, topic: str, payload: bytes, qos: int) -> None:
        if topic == TOPICS.build(Route.PROGRESS):
            self.stages.append(codec.decode(Route.PROGRESS, payload).stage)
            self._tell()

    def acknowledge(self, delivery: Delivery) -> None: ...

    def _tell(self) -> None:
        self.news.set()
        self.news = anyio.Event()


async def test_tasks_that_only_run_are_looked_at_once_a_second_and_new_ones_are_noticed() -> None:
    settings = PresenceSettings("me", heartbeat_s=3600.0, metrics_s=0.0)
    presence, link = Presence(settings, TOPICS, IdleRuntime(), Vitals()), WatchedLink()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(presence.serve, link)
        presence.began(KEY, START)
        presence.running(KEY)
        with anyio.fail_after(20):
            while link.stages != ["running"] or len(link.looks) < 8:
                await link.news.wait()
            assert link.looks[-1] - link.looks[-3] > 1.8
            presence.began(RunKey("u", 1), START)
            while "preparing" not in link.stages:
                await link.news.wait()
        tasks.cancel_scope.cancel()
