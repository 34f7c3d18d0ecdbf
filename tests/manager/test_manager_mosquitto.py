"""The whole manager against a real mosquitto, with devices scripted at the level of the wire."""

import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from proplet.agent.topics import Route, Topics
from proplet.agent.wire import Alive
from proplet.manager.app import Manager, ManagerSettings, open_manager
from proplet.manager.model import Key, Kind, Meta, PropletSelector, Task, TaskSpec
from proplet.manager.phases import TERMINAL, Phase
from proplet.manager.store_sqlite import open_sqlite_store
from tests.manager.device import Device, plug_in
from tests.manager.fakes import eventually
from tests.manager.manager_child import POLICY
from tests.support.mosquitto import MosquittoServer, mosquitto  # noqa: F401

pytestmark = [pytest.mark.anyio, pytest.mark.mosquitto]

TOPICS = Topics("d", "c")


def manager_settings(server: MosquittoServer, store: Path | None = None) -> ManagerSettings:
    return ManagerSettings(server.link_settings("manager"), TOPICS, "manager", store, policy=POLICY)


async def create(manager: Manager, name: str, **spec: object) -> Task:
    given = {"name": "add", "image_url": "r.test/add:1", "inputs": ("10", "32")} | spec
    task = await manager.store.create(Task(Meta(name), TaskSpec(**given)))  # type: ignore[arg-type]
    assert isinstance(task, Task)
    return task


async def until(manager: Manager, name: str, *phases: Phase, within: float = 20.0) -> Task:
    return await until_it(manager, name, lambda task: task.status.phase in phases, within)


async def until_it(manager: Manager, name: str, condition: Callable[[Task], bool], within: float = 20.0) -> Task:
    with anyio.fail_after(within):
        version = (await manager.store.list(Kind.TASK)).version
        task = await manager.store.get(Kind.TASK, Key(name))
        assert isinstance(task, Task)
        if condition(task):
            return task
        async for change in manager.store.watch(Kind.TASK, version):
            task = change.resource
            if isinstance(task, Task) and task.meta.name == name and condition(task):
                return task
    raise AssertionError("unreachable")


async def test_a_task_runs_on_a_device_over_the_broker(mosquitto: MosquittoServer) -> None:  # noqa: F811
    device = Device("proplet-1", TOPICS)
    async with open_manager(manager_settings(mosquitto)) as manager:
        await create(manager, "add")
        async with plug_in(device, mosquitto.link_settings("proplet-1")):
            done = await until(manager, "add", *TERMINAL)
    assert (done.status.phase, done.status.results, done.status.attempt) == (Phase.COMPLETED, "42", 1)


async def test_repeated_and_reordered_results_count_once(mosquitto: MosquittoServer) -> None:  # noqa: F811
    chance = random.Random(7)
    device = Device("proplet-1", TOPICS, faults=chance, delay=lambda: chance.random() * 0.05)
    async with (
        open_manager(manager_settings(mosquitto)) as manager,
        plug_in(device, mosquitto.link_settings("proplet-1")),
    ):
        for n in range(60):
            await create(manager, f"t-{n}", inputs=(str(n), "1"))
        for n in range(60):
            done = await until(manager, f"t-{n}", *TERMINAL)
            assert (done.status.phase, done.status.results, done.status.attempt) == (Phase.COMPLETED, str(n + 1), 1)
    assert set(device.runs.values()) == {1}


async def test_a_stop_reaches_the_device(mosquitto: MosquittoServer) -> None:  # noqa: F811
    device = Device("proplet-1", TOPICS, delay=lambda: 3600.0)
    async with (
        open_manager(manager_settings(mosquitto)) as manager,
        plug_in(device, mosquitto.link_settings("proplet-1")),
    ):
        task = await create(manager, "add")
        await until(manager, "add", Phase.RUNNING)
        await manager.control.stop(task.id)
        await until(manager, "add", Phase.INTERRUPTED)
    assert device.stopped == [(task.id, 1)]


@pytest.mark.parametrize("with_will", [True, False])
async def test_the_tasks_of_a_device_that_goes_away_run_on_another_one(
    mosquitto: MosquittoServer,  # noqa: F811
    with_will: bool,
) -> None:
    first = Device("proplet-1", TOPICS, delay=lambda: 3600.0)
    second = Device("proplet-2", TOPICS)
    async with open_manager(manager_settings(mosquitto)) as manager:
        async with plug_in(first, mosquitto.link_settings("proplet-1")):
            for n in range(10):
                await create(manager, f"t-{n}", inputs=(str(n),))
            await eventually(lambda: len(first.held) == 10)
            for n in range(10):
                await until(manager, f"t-{n}", Phase.RUNNING)
            if with_will:
                first.say(Route.ALIVE, Alive(first.id, "offline"))
            await eventually(lambda: first.quiet)
        async with plug_in(second, mosquitto.link_settings("proplet-2")):
            for n in range(10):
                done = await until(manager, f"t-{n}", *TERMINAL)
                assert (done.status.phase, done.status.results) == (Phase.COMPLETED, str(n))
                assert (done.status.proplet_id, done.status.attempt) == ("proplet-2", 2)
        # What the first still holds when it is back is stopped: nobody wants it any more.
        async with plug_in(first, mosquitto.link_settings("proplet-1")):
            await eventually(lambda: not first.held)
    assert len(first.stopped) == 10


async def test_a_broker_that_restarts_with_nothing_changes_nothing(mosquitto: MosquittoServer) -> None:  # noqa: F811
    chance = random.Random(11)
    device = Device("proplet-1", TOPICS, delay=lambda: chance.random() * 0.6)
    async with (
        open_manager(manager_settings(mosquitto)) as manager,
        plug_in(device, mosquitto.link_settings("proplet-1")),
    ):
        for n in range(40):
            await create(manager, f"t-{n}", inputs=(str(n),))
        for want in (10, 25):
            await eventually(lambda want=want: len(device.done) >= want)
            mosquitto.kill()
            mosquitto.forget()
            mosquitto.start()
        for n in range(40):
            done = await until(manager, f"t-{n}", *TERMINAL)
            assert (done.status.phase, done.status.results) == (Phase.COMPLETED, str(n))
    assert set(device.runs.values()) == {1}


async def test_a_pinned_task_waits_for_its_device_and_says_so(mosquitto: MosquittoServer) -> None:  # noqa: F811
    device, other = Device("proplet-1", TOPICS), Device("proplet-2", TOPICS)
    async with (
        open_manager(manager_settings(mosquitto)) as manager,
        plug_in(other, mosquitto.link_settings("proplet-2")),
    ):
        await create(manager, "add", selector=PropletSelector("proplet-1"))
        await until_it(manager, "add", lambda task: "proplet-1, is not known" in task.status.message)
        async with plug_in(device, mosquitto.link_settings("proplet-1")):
            assert (await until(manager, "add", *TERMINAL)).status.proplet_id == "proplet-1"


# --- a manager that is killed ---------------------------------------------------------------------------------------


class Child:
    """The manager's process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        assert process.stdout is not None
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def says(self, word: str, within: float = 60.0) -> None:
        with anyio.fail_after(within):
            while (await self._lines.receive_until(b"\n", 1000)).decode() != word:
                pass


@asynccontextmanager
async def child(server: MosquittoServer, store: Path) -> AsyncIterator[Child]:
    password = server.link_settings("manager").password
    command = [sys.executable, "-m", "tests.manager.manager_child", str(store), server.address, password]
    process = await anyio.open_process(command, stderr=None)
    try:
        yield Child(process)
    finally:
        process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()


async def test_a_manager_that_is_killed_again_and_again_ends_every_task_once(
    mosquitto: MosquittoServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    chance = random.Random(23)
    store_path, count = tmp_path / "manager.db", 120
    async with open_sqlite_store(store_path) as store:
        for n in range(count):
            spec = TaskSpec(name="add", image_url="r.test/add:1", inputs=(str(n), "1"))
            await store.create(Task(Meta(f"t-{n}"), spec))
    device = Device("proplet-1", TOPICS, faults=chance, delay=lambda: chance.random() * 0.3)
    async with plug_in(device, mosquitto.link_settings("proplet-1")):
        for want in (0, 5, 40, 80, 110):
            async with child(mosquitto, store_path) as manager:
                await manager.says("ready")
                await eventually(lambda want=want: len(device.done) >= want, within=30.0)
            if want == 40:
                mosquitto.kill()
                mosquitto.forget()
                mosquitto.start()
        async with child(mosquitto, store_path) as manager:
            await manager.says("over")
    assert set(device.runs.values()) == {1}
    async with open_sqlite_store(store_path) as store:
        for task in (await store.list(Kind.TASK)).items:
            assert isinstance(task, Task)
            expected = str(int(task.meta.name.removeprefix("t-")) + 1)
            assert (task.status.phase, task.status.results, task.status.attempt) == (Phase.COMPLETED, expected, 1)


async def test_manifests_in_a_directory_are_applied_once(mosquitto: MosquittoServer, tmp_path: Path) -> None:  # noqa: F811
    manifests = tmp_path / "manifests.d"
    manifests.mkdir()
    (manifests / "10-add.yaml").write_text(
        "apiVersion: propeller.propeller.abstractmachines.fr/v1\nkind: Task\nmetadata: {name: add}\n"
        "spec: {name: add, imageUrl: r.test/add:1, inputs: [10, 32]}\n"
    )
    (manifests / "20-broken.yaml").write_text("kind: [\n")
    settings = replace(manager_settings(mosquitto, tmp_path / "manager.db"), manifests=(manifests, tmp_path / "none"))
    device = Device("proplet-1", TOPICS)
    async with plug_in(device, mosquitto.link_settings("proplet-1")):
        for _ in range(2):
            async with open_manager(settings) as manager:
                done = await until(manager, "add", *TERMINAL)
                assert (done.status.results, done.status.attempt) == ("42", 1)
    assert list(device.runs.values()) == [1]
