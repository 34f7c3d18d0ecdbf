"""What a store keeps in memory is bounded by bytes, whatever results and modules weigh."""

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from proplet.agent.mqtt import MqttSettings
from proplet.agent.topics import Topics
from proplet.manager.app import ManagerSettings, open_manager
from proplet.manager.model import Kind, Task, TaskStatus
from proplet.manager.phases import Phase
from proplet.manager.ports import Change, ChangeType, GoneError, Store, StoreUnavailableError
from proplet.manager.store_log import ChangeLog
from proplet.manager.store_memory import MemoryStore
from proplet.manager.store_retention import prune, weight
from proplet.manager.store_sqlite import open_sqlite_store
from tests.manager_store.contract import task
from tests.support.mosquitto import free_port

pytestmark = pytest.mark.anyio

KIB = 1024


async def finished(store: Store, name: str, at: float, results: str = "", **spec: object) -> Task:
    made = await store.create(task(name, **spec))
    assert isinstance(made, Task)
    recorded = await store.record(replace(made, status=TaskStatus(Phase.COMPLETED, finished_at=at, results=results)))
    assert isinstance(recorded, Task)
    return recorded


async def names(store: Store) -> list[str]:
    return [item.meta.name for item in (await store.list(Kind.TASK)).items]


def text(number: int) -> str:
    return f"{number:04}" + "x" * (10 * KIB - 4)


async def test_the_longest_finished_tasks_make_room_when_results_are_large() -> None:
    store = MemoryStore()
    for number in range(10):
        await finished(store, f"t{number}", float(number), text(number))
    assert await prune(store, 100, keep_bytes=35 * KIB) == 7
    assert await names(store) == ["t7", "t8", "t9"]
    assert await prune(store, 100, keep_bytes=35 * KIB) == 0


async def test_the_last_finished_task_stays_however_large_it_is() -> None:
    store = MemoryStore()
    for number in range(3):
        await finished(store, f"t{number}", float(number), text(number))
    assert await prune(store, 100, keep_bytes=1) == 2
    assert await names(store) == ["t2"]


async def test_a_module_that_many_tasks_share_weighs_once(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "s.db") as store:
        for number in range(10):
            await finished(store, f"t{number}", float(number), file=bytes(20 * KIB))
        assert weight((await store.list(Kind.TASK)).items) == 20 * KIB
        assert await prune(store, 100, keep_bytes=20 * KIB) == 0


async def test_tasks_that_have_not_finished_are_never_forgotten_for_their_weight() -> None:
    store = MemoryStore()
    for number in range(3):
        await store.create(task(f"p{number}", file=bytes([number]) * 20 * KIB))
    await finished(store, "a", 1.0, text(1))
    await finished(store, "b", 2.0, text(2))
    assert await prune(store, 100, keep_bytes=20 * KIB) == 1
    assert await names(store) == ["p0", "p1", "p2", "b"]


class _Full(MemoryStore):
    async def delete(self, *_: object) -> Task:  # type: ignore[override]
        raise StoreUnavailableError("the disk is full")


async def test_a_store_that_cannot_be_written_says_so_to_who_prunes_it() -> None:
    store = _Full()
    for number in range(3):
        await finished(store, f"t{number}", float(number))
    with pytest.raises(StoreUnavailableError):
        await prune(store, 1)


def change(number: int, results: str) -> Change:
    changed = task(f"t{number}")
    status = TaskStatus(Phase.COMPLETED, results=results)
    return Change(ChangeType.MODIFIED, replace(changed, status=status), number)


async def test_the_history_of_changes_is_bounded_by_what_they_hold() -> None:
    log = ChangeLog(1000, heaviest=35 * KIB)
    for number in range(1, 101):
        log.append(change(number, text(number)))
    with pytest.raises(GoneError):
        await anext(log.follow(96, lambda: 100))
    assert (await anext(log.follow(97, lambda: 100))).version == 98


async def test_one_result_in_many_changes_counts_once_in_the_history() -> None:
    log, shared = ChangeLog(1000, heaviest=35 * KIB), text(0)
    for number in range(1, 101):
        log.append(change(number, shared))
    assert (await anext(log.follow(0, lambda: 100))).version == 1


async def test_a_running_manager_forgets_what_weighs_too_much(tmp_path: Path) -> None:
    mqtt = MqttSettings(f"tcp://127.0.0.1:{free_port()}", "manager", "manager", "secret")
    path = tmp_path / "manager.db"
    async with open_sqlite_store(path) as store:
        for number in range(10):
            await finished(store, f"t{number}", float(number), text(number))
    settings = ManagerSettings(mqtt, Topics("d", "c"), "manager", store=path, keep_bytes=50 * KIB)
    async with open_manager(settings) as manager:
        with anyio.fail_after(5):
            while len(await names(manager.store)) > 5:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert await names(manager.store) == ["t6", "t7", "t8", "t9"]
