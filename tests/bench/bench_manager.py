"""Tasks through the whole manager: SQLite, controller, mosquitto, and devices elsewhere that answer at once.

Run: ``python -m tests.bench.bench_manager [TASKS]``. Prints the throughput of a burst, and the time of single tasks
from their creation to their recorded result.
"""

import sys
import tempfile
import time
from pathlib import Path

import anyio

from proplet.agent.topics import Topics
from proplet.manager.app import ManagerSettings, open_manager
from proplet.manager.model import Kind, Meta, Task, TaskSpec
from proplet.manager.phases import TERMINAL
from tests.manager.device import Device, plug_in
from tests.support.mosquitto import MosquittoServer

TOPICS = Topics("d", "c")


async def be_device(address: str, name: str, password: str) -> None:
    from proplet.agent.mqtt import MqttSettings

    device = Device(name, TOPICS)
    async with plug_in(device, MqttSettings(address, name, name, password), beat_s=5.0):
        await anyio.sleep_forever()


async def main(tasks: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        server = MosquittoServer(Path(directory) / "broker")
        server.start()
        try:
            await _measure(server, Path(directory) / "manager.db", tasks)
        finally:
            server.kill()


async def _measure(server: MosquittoServer, store: Path, tasks: int) -> None:
    settings = ManagerSettings(server.link_settings("manager", max_inflight=100), TOPICS, "manager", store)
    devices = []
    for name in ("proplet-1", "proplet-2"):
        password = server.link_settings(name).password
        command = [sys.executable, "-m", "tests.bench.bench_manager", "device", server.address, name, password]
        devices.append(await anyio.open_process(command, stdout=None, stderr=None))
    try:
        async with open_manager(settings) as manager:
            while sum(manager.control.liveness(n).alive for n in ("proplet-1", "proplet-2")) < 2:  # noqa: ASYNC110
                await anyio.sleep(0.05)
            began, cpu = time.perf_counter(), time.process_time()
            async with anyio.create_task_group() as group:
                for n in range(tasks):
                    task = Task(Meta(f"t-{n}"), TaskSpec(name="add", image_url="r.test/a:1", inputs=("1", "2")))
                    group.start_soon(manager.store.create, task)
            created = time.perf_counter() - began
            while True:
                await anyio.sleep(0.05)
                items = (await manager.store.list(Kind.TASK)).items
                if all(isinstance(t, Task) and t.status.phase in TERMINAL for t in items):
                    break
            took = time.perf_counter() - began
            cpu_ms = (time.process_time() - cpu) / tasks * 1000
            print(f"burst of {tasks}: {tasks / took:.0f} tasks/s (budget 500), {cpu_ms:.2f} ms of CPU per task in the")
            print(f"  manager and its store; created in {created:.2f} s")
            await _singles(manager.store)
    finally:
        for process in devices:
            process.kill()
            await process.aclose()


async def _singles(store) -> None:
    times = []
    for n in range(200):
        began = time.perf_counter()
        task = Task(Meta(f"s-{n}"), TaskSpec(name="add", image_url="r.test/a:1", inputs=("1", "2")))
        created = await store.create(task)
        async for change in store.watch(Kind.TASK, created.meta.version):
            if change.resource.meta.uid == created.meta.uid and change.resource.status.phase in TERMINAL:
                break
        times.append((time.perf_counter() - began) * 1000)
    times.sort()
    print(f"one at a time: p50 {times[100]:.1f} ms, p99 {times[197]:.1f} ms")


if __name__ == "__main__":
    if sys.argv[1:2] == ["device"]:
        anyio.run(be_device, *sys.argv[2:])
    else:
        anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
