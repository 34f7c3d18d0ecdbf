"""Writes to a store as fast as it can and prints each write that has returned; to be killed."""

import sys
from dataclasses import replace
from pathlib import Path

import anyio

from proplet.manager.model import Meta, Task, TaskSpec
from proplet.manager.store_sqlite import SqliteStore, open_sqlite_store


async def write(store: SqliteStore, writer: int) -> None:
    for number in range(10_000):
        task = await store.create(Task(Meta(f"t{writer}-{number}"), TaskSpec("main", file=b"\0asm" + bytes([writer]))))
        print(task.meta.name, 0, flush=True)
        for attempt in range(1, 4):
            assert isinstance(task, Task)
            task = await store.record(replace(task, status=replace(task.status, attempt=attempt)))
            print(task.meta.name, attempt, flush=True)


async def main(path: Path) -> None:
    async with open_sqlite_store(path) as store, anyio.create_task_group() as group:
        for writer in range(8):
            group.start_soon(write, store, writer)


anyio.run(main, Path(sys.argv[1]))
