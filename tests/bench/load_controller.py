"""Tasks per second through the controller and a store, with proplets that answer at once; a process of its own.

``python -m tests.bench.load_controller PARAMETERS``, both ways JSON.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import anyio
import anyio.lowlevel

from proplet.manager.exchange import Policy
from proplet.manager.model import Kind, Meta, Task, TaskSpec
from proplet.manager.phases import TERMINAL
from proplet.manager.store_memory import MemoryStore
from proplet.manager.store_sqlite import open_sqlite_store
from tests.manager.fakes import open_node


async def measure(store, tasks: int, proplets: int) -> float:
    async with open_node(store, policy=Policy()) as node:
        for number in range(proplets):
            node.proplet(f"pi-{number}", instant=True)
        began = time.perf_counter()

        async def create(numbers: range) -> None:
            for n in numbers:
                await store.create(Task(Meta(f"t-{n}"), TaskSpec(name="add", image_url="r.test/a:1")))

        async with anyio.create_task_group() as group:
            for start in range(0, tasks, 200):
                group.start_soon(create, range(start, min(tasks, start + 200)))
        left = tasks
        while left:
            await anyio.sleep(0.05)
            listing = await store.list(Kind.TASK)
            left = sum(1 for t in listing.items if t.status.phase not in TERMINAL)
        return tasks / (time.perf_counter() - began)


async def dispatch(store, proplets: int) -> list[float]:
    """Milliseconds from a task's creation to its start on the bus, with so many proplets heartbeating every 10 s."""
    times = []
    async with open_node(store, policy=Policy()) as node:
        fleet = [node.proplet(f"pi-{number}", instant=True) for number in range(proplets)]

        async def beat() -> None:
            while True:
                for index, device in enumerate(fleet):
                    device.beat()
                    if index % 10 == 9:
                        await anyio.sleep(10 * 10 / proplets)

        async with anyio.create_task_group() as group:
            group.start_soon(beat)
            await anyio.sleep(1.0)
            for n in range(300):
                began, before = time.perf_counter(), len(node.bus.starts)
                await store.create(Task(Meta(f"d-{n}"), TaskSpec(name="add", image_url="r.test/a:1")))
                while len(node.bus.starts) == before:
                    await anyio.lowlevel.checkpoint()
                times.append((time.perf_counter() - began) * 1000)
            group.cancel_scope.cancel()
    return sorted(times)


async def main(tasks: int, proplets: int) -> None:
    memory = await measure(MemoryStore(), tasks, proplets)
    with tempfile.TemporaryDirectory() as directory:
        async with open_sqlite_store(Path(directory) / "manager.db") as store:
            sqlite = await measure(store, tasks, proplets)
    print(json.dumps({"memory": memory, "sqlite": sqlite}))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    anyio.run(main, given["tasks"], given["proplets"])
