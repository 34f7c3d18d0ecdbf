"""The SQLite store keeps the contract, its file, and its word about durability."""

import os
import random
import resource
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.streams.text import TextReceiveStream

from proplet.manager.model import JobSpec, Key, Kind, Meta, PropellerJob, Task, TaskSpec, TaskStatus
from proplet.manager.phases import Phase
from proplet.manager.ports import GoneError, Store, StoreError, StoreUnavailableError
from proplet.manager.store_sqlite import SqliteStore, open_sqlite_store
from proplet.manager.store_sqlite_file import StoreCorruptError, StoreInUseError
from tests.manager_store.contract import FULL_PROPLET, FULL_TASK, OpenStore, StoreContract, collect, task

pytestmark = pytest.mark.anyio

CHILD = Path(__file__).with_name("writer_child.py")


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        @asynccontextmanager
        async def open_it(history: int = 1000) -> AsyncIterator[Store]:
            async with open_sqlite_store(tmp_path / "store.db", history=history) as store:
                yield store

        return open_it


def written_bytes() -> int:
    """What this process has had written to a disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("write_bytes")))


def modes_in(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}


async def test_everything_is_the_same_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "store.db"
    async with open_sqlite_store(path) as store:
        await store.create(FULL_TASK)
        await store.create(task("other"))
        await store.create(FULL_PROPLET)
        gone = await store.create(task("gone"))
        await store.delete(Kind.TASK, gone.meta.key)
        before = [await store.list(kind) for kind in Kind]
    async with open_sqlite_store(path) as store:
        assert [await store.list(kind) for kind in Kind] == before
        made = await store.create(task("new"))
        assert made.meta.version > before[0].version
        assert [item.meta.name for item in (await store.list(Kind.TASK)).items] == ["full", "other", "new"]


async def test_versions_go_on_after_a_restart_even_when_the_last_change_was_a_deletion(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "store.db") as store:
        await store.create(task())
        await store.delete(Kind.TASK, Key("addition"))
        version = (await store.list(Kind.TASK)).version
    async with open_sqlite_store(tmp_path / "store.db") as store:
        assert (await store.list(Kind.TASK)).version == version
        with pytest.raises(GoneError):
            await collect(store, Kind.TASK, version - 1, 1)


async def test_the_files_are_nobody_elses(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "store.db") as store:
        await store.create(task())
        modes = modes_in(tmp_path)
        assert set(modes.values()) == {0o600}, modes
        assert "store.db-wal" in modes


async def test_the_same_module_is_kept_once_and_goes_with_its_last_task(tmp_path: Path) -> None:
    module = b"\0asm\x01\0\0\0" + random.Random(1).randbytes(300_000)
    path = tmp_path / "store.db"

    def modules() -> int:
        with sqlite3.connect(path) as db:
            (count,) = db.execute("SELECT count(*) FROM files").fetchone()
        db.close()
        return int(count)

    async with open_sqlite_store(path) as store:
        made = [await store.create(task(f"t{n}", file=bytes(bytearray(module)))) for n in range(10)]
        assert len({id(item.spec.file) for item in made}) == 1
        assert modules() == 1
        for item in made[1:]:
            await store.delete(Kind.TASK, item.meta.key)
        assert modules() == 1
        changed = await store.put(replace(made[0], spec=replace(made[0].spec, file=module + b"\0")))
        assert modules() == 1
        await store.delete(Kind.TASK, changed.meta.key)
        assert modules() == 0
        again = await store.create(task("again", file=module))
        assert again.spec.file == module
    async with open_sqlite_store(path) as store:
        reread = await store.get(Kind.TASK, Key("again"))
        assert reread == again


async def test_a_jobs_modules_are_in_memory_once_with_those_of_its_tasks_after_a_restart_too(tmp_path: Path) -> None:
    specs = tuple(TaskSpec(name, file=bytes([0, 97, 115, 109]) + b"x" * 1000) for name in "ab")
    path = tmp_path / "store.db"
    async with open_sqlite_store(path) as store:
        made = await store.create(PropellerJob(Meta("j"), JobSpec("j", tasks=specs)))
        await store.create(task("j-a", file=bytes(bytearray(specs[0].file))))
        assert isinstance(made, PropellerJob)
        assert made.spec.tasks[0].file is made.spec.tasks[1].file
    async with open_sqlite_store(path) as store:
        job, child = await store.get(Kind.JOB, Key("j")), await store.get(Kind.TASK, Key("j-a"))
        assert isinstance(job, PropellerJob)
        assert isinstance(child, Task)
        assert job.spec == made.spec
        assert all(spec.file is child.spec.file for spec in job.spec.tasks)


async def test_a_status_write_does_not_write_the_module_again(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "store.db") as store:
        made = await store.create(task(file=b"\0asm\x01\0\0\0" + bytes(2_000_000)))
        before = (tmp_path / "store.db-wal").stat().st_size
        for attempt in range(1, 21):
            made = await store.record(replace(made, status=TaskStatus(attempt=attempt)))
        assert (tmp_path / "store.db-wal").stat().st_size - before <= 20 * 4200


async def test_an_unchanged_status_writes_nothing(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "store.db") as store:
        made = await store.create(FULL_TASK)
        before = (tmp_path / "store.db-wal").read_bytes()
        for _ in range(50):
            await store.record(made)
        assert (tmp_path / "store.db-wal").read_bytes() == before


async def test_many_writers_share_a_commit(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "store.db") as store:
        before = (tmp_path / "store.db-wal").stat().st_size
        async with anyio.create_task_group() as group:
            for number in range(64):
                group.start_soon(store.create, task(f"t{number}"))
        assert (tmp_path / "store.db-wal").stat().st_size - before < 64 * 3 * 4120 / 4


async def test_a_second_node_on_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_sqlite_store(path):
        with pytest.raises(StoreInUseError, match=rf"store\.db is in use by process {os.getpid()}: stop it"):
            async with open_sqlite_store(path):
                pass
    async with open_sqlite_store(path):
        pass  # free again


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_sqlite_store(path) as store:
        await store.create(task())
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="newer proplet \\(schema 99"):
        async with open_sqlite_store(path):
            pass
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM resources").fetchone() == (1,)
    db.close()


async def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(StoreCorruptError, match="another program"):
        async with open_sqlite_store(path):
            pass


@pytest.mark.parametrize("damage", ["not a database", "pages overwritten", "truncated", "a module's bytes", "a status"])
async def test_a_damaged_file_is_told_with_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "store.db"
    async with open_sqlite_store(path) as store:
        for number in range(300):
            await store.create(task(f"t{number}", inputs=("x" * 200,)))
    match damage:
        case "not a database":
            path.write_bytes(b"something else entirely " * 1000)
        case "pages overwritten":
            content = bytearray(path.read_bytes())
            content[8192:40960] = random.Random(7).randbytes(32768)
            path.write_bytes(content)
        case "truncated":
            os.truncate(path, path.stat().st_size // 2)
        case _:
            with sqlite3.connect(path) as db:
                if damage == "a status":
                    db.execute("UPDATE states SET status = '{\"phase\": 7}' WHERE id = 5")
                else:
                    db.execute("UPDATE files SET content = x'00'")
            db.close()
    with pytest.raises(StoreCorruptError, match=r"store\.db is damaged .*move the file"):
        async with open_sqlite_store(path):
            pass


async def test_a_place_that_cannot_be_written_is_told() -> None:
    with pytest.raises(StoreUnavailableError, match="/proc/proplet"):
        async with open_sqlite_store(Path("/proc/proplet/store.db")):
            pass


@contextmanager
def small_disk(store: SqliteStore, how: str, path: Path) -> Iterator[None]:
    """No more room for the store, in one of three ways."""
    db = store._file._db
    if how == "a file size limit":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("store.db-wal").stat().st_size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    elif how == "read-only":
        db.execute("PRAGMA query_only = 1")
        yield
        db.execute("PRAGMA query_only = 0")
    else:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (before,) = db.execute("PRAGMA max_page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
        yield
        db.execute(f"PRAGMA max_page_count = {before}")


@pytest.mark.parametrize("how", ["a file size limit", "read-only", "full"])
async def test_a_full_or_read_only_disk_loses_nothing(tmp_path: Path, how: str) -> None:
    path = tmp_path / "store.db"
    async with open_sqlite_store(path) as store:
        kept = await store.create(task("kept"))
        listing = await store.list(Kind.TASK)
        with small_disk(store, how, path):
            with pytest.raises(StoreUnavailableError, match=r"store\.db.*(free some space|check the disk)"):
                await store.create(task("too-much", file=b"\0asm" + bytes(500_000)))
            assert await store.list(Kind.TASK) == listing
        after = await store.create(task("after"))
        assert after.meta.version == kept.meta.version + 1
        changed = await store.record(replace(kept, status=TaskStatus(Phase.SCHEDULED)))
    async with open_sqlite_store(path) as store:
        assert (await store.list(Kind.TASK)).items == (changed, after)


async def test_everybody_in_a_failed_commit_is_told_and_nobody_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_sqlite_store(path) as store:
        told: list[str] = []

        async def attempt(number: int) -> None:
            try:
                await store.create(task(f"t{number % 5}"))  # some on top of others
                told.append("made")
            except StoreUnavailableError:
                told.append("unavailable")

        with small_disk(store, "read-only", path):
            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(attempt, number)
        assert told == ["unavailable"] * 10
        assert (await store.list(Kind.TASK)).items == ()


async def test_a_closing_store_finishes_what_was_asked_and_takes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    done: list[str] = []
    async with anyio.create_task_group() as group:
        async with open_sqlite_store(path) as store:

            async def write(name: str) -> None:
                await store.create(task(name))
                done.append(name)

            for number in range(20):
                group.start_soon(write, f"t{number}")
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
        with pytest.raises(StoreUnavailableError, match="closed"):
            await store.create(task("late"))
    async with open_sqlite_store(path) as again:
        assert {item.meta.name for item in (await again.list(Kind.TASK)).items} == set(done)
        assert done


async def test_a_write_in_a_shielded_finalizer_is_done_although_the_node_is_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with anyio.CancelScope() as scope:
        async with open_sqlite_store(path) as store:
            try:
                scope.cancel()
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True), anyio.fail_after(5):
                    await store.create(task("goodbye"))
    async with open_sqlite_store(path) as store:
        assert await store.get(Kind.TASK, Key("goodbye"))


async def test_an_error_of_the_block_comes_out_as_itself(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_sqlite_store(tmp_path / "store.db"):
            raise ZeroDivisionError


@pytest.mark.parametrize("seed", range(4))
async def test_after_kill_9_everything_whose_call_returned_is_there(tmp_path: Path, seed: int) -> None:
    """A child writes and tells what has returned; it is killed at a random moment."""
    path = tmp_path / "store.db"
    chance = random.Random(seed)
    returned: dict[str, int] = {}
    async with await anyio.open_process([sys.executable, str(CHILD), str(path)], stderr=None) as child:
        assert child.stdout is not None
        limit, rest = chance.randrange(50, 1500), ""
        with anyio.fail_after(30):
            async for text in TextReceiveStream(child.stdout):
                lines = (rest + text).split("\n")
                rest = lines.pop()
                for line in lines:
                    name, attempt = line.split()
                    returned[name] = int(attempt)
                if sum(returned.values()) >= limit:
                    child.kill()
        await child.wait()
    assert returned
    async with open_sqlite_store(path) as store:
        found = {item.meta.name: item for item in (await store.list(Kind.TASK)).items}
        for name, attempt in returned.items():
            item = found[name]
            assert isinstance(item, Task)
            assert item.status.attempt >= attempt, f"seed {seed}: {name}"
        await store.create(task("goes-on"))
