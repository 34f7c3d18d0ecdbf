"""The manager as a whole, as the program opens it."""

import json
from pathlib import Path

import anyio
import pytest

from proplet.agent.mqtt import MqttSettings
from proplet.agent.topics import Topics
from proplet.manager.api import ApiSettings
from proplet.manager.app import ManagerSettings, open_manager
from proplet.manager.model import Key, Kind, Meta, Task, TaskSpec
from proplet.manager.phases import Phase
from tests.support.mosquitto import free_port

pytestmark = pytest.mark.anyio


def settings(tmp_path: Path, **changes: object) -> ManagerSettings:
    mqtt = MqttSettings(f"tcp://127.0.0.1:{free_port()}", "manager", "manager", "secret")
    given = {"mqtt": mqtt, "topics": Topics("d", "c"), "manager_id": "manager", "store": tmp_path / "manager.db"}
    return ManagerSettings(**(given | changes))  # type: ignore[arg-type]


async def get(socket: Path, path: str) -> dict[str, object]:
    async with await anyio.connect_unix(socket) as stream:
        await stream.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        with anyio.fail_after(5):
            async for piece in stream:
                answer += piece
    return json.loads(answer.partition(b"\r\n\r\n")[2])  # type: ignore[no-any-return]


async def test_it_is_ready_without_a_broker_and_serves_the_api(tmp_path: Path) -> None:
    socket = tmp_path / "proplet.sock"
    with anyio.fail_after(10):
        async with open_manager(settings(tmp_path, api=ApiSettings(socket=socket))) as manager:
            assert not manager.connected
            created = await manager.store.create(Task(Meta("add"), TaskSpec(name="add", image_url="r.test/a:1")))
            found = await get(socket, f"/tasks/{created.meta.uid}")
            assert found["state"] == Phase.PENDING.number
            stopped = await manager.control.stop(created.meta.uid)
            assert stopped.status.phase is Phase.INTERRUPTED
    assert not socket.exists()


async def test_finished_tasks_beyond_the_limit_are_forgotten(tmp_path: Path) -> None:
    async with open_manager(settings(tmp_path)) as manager:
        for n in range(5):
            created = await manager.store.create(Task(Meta(f"t-{n}"), TaskSpec(name="add", image_url="r.test/a:1")))
            await manager.control.stop(created.meta.uid)
    async with open_manager(settings(tmp_path, keep_finished=2)) as manager:
        with anyio.fail_after(5):
            while len((await manager.store.list(Kind.TASK)).items) > 2:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert await manager.store.get(Kind.TASK, Key("t-4"))


async def test_a_task_this_version_cannot_run_says_so(tmp_path: Path) -> None:
    async with open_manager(settings(tmp_path)) as manager:
        spec = TaskSpec(name="add", image_url="r.test/a:1", encrypted=True)
        await manager.store.create(Task(Meta("add"), spec))
        with anyio.fail_after(5):
            while True:
                task = await manager.store.get(Kind.TASK, Key("add"))
                assert isinstance(task, Task)
                if task.status.phase is Phase.FAILED:
                    break
                await anyio.sleep(0.01)
        assert "encrypted" in (task.status.error or "")


async def test_a_second_manager_on_the_same_store_is_refused(tmp_path: Path) -> None:
    given = settings(tmp_path)
    async with open_manager(given):
        with pytest.raises(Exception, match=r"(?i)store|lock|use"):
            async with open_manager(given):
                pass
