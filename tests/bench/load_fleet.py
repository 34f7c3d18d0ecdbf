"""Many proplets as one process: they connect, introduce themselves, beat, and answer every start at once.

``python -m tests.bench.load_fleet PARAMETERS``, both ways JSON. Meanwhile tasks are applied at the API at a steady
rate, by a thread; measured is the time from before each request to its start arriving at a proplet.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from proplet.agent import codec, wire
from proplet.agent.client import Client, Target
from tests.bench.nodes import addition_task
from tests.bench.processes import cpu_s, pause, total, wait_for
from tests.bench.wire_client import Access, WireClient
from tests.support.modules import ADDITION_BASE64

_CONNECT_AT_ONCE = 20
_PATIENCE_S = 120.0


class Fleet:
    """The proplets, and when each task's start reached one of them."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.base = "m/local/c/main"
        self.clients: list[tuple[str, WireClient]] = []
        self.arrived: dict[str, float] = {}

    async def connect(self) -> None:
        limit = asyncio.Semaphore(_CONNECT_AT_ONCE)
        names = self.given["passwords"]
        await asyncio.gather(*(self._connect(limit, name, password) for name, password in names.items()))

    async def _connect(self, limit: asyncio.Semaphore, name: str, password: str) -> None:
        base = self.base
        async with limit:
            access = Access(self.given["port"], name, password, base)
            client = await WireClient.connect(access, lambda topic, payload: self._hear(name, client, topic, payload))
            shared = [f"{base}/control/manager/{word}" for word in ("start", "stop", "hello")]
            own = [f"{base}/control/manager/{word}/{name}" for word in ("start", "stop")]
            await client.subscribe(*shared, *own)
            self.clients.append((name, client))
            self._introduce(name, client)

    def _introduce(self, name: str, client: WireClient) -> None:
        ext = wire.Announcement(topics=("own", "inventory"))
        about = wire.Metadata(cpu_arch="arm64", total_memory_bytes=4 * 2**30)
        self._tell(client, "create", wire.Discovery(name, metadata=about, ext=ext))
        self._tell(client, "alive", wire.Alive(name))
        self._tell(client, "inventory", wire.Inventory(name))

    def _tell(self, client: WireClient, word: str, message: Any) -> None:
        client.publish(f"{self.base}/control/proplet/{word}", codec.encode(message))

    def _hear(self, name: str, client: WireClient, topic: str, payload: bytes) -> None:
        now = time.perf_counter()
        if topic.endswith("/hello"):
            self._introduce(name, client)
        if "/manager/start" not in topic:
            return
        start = json.loads(payload)
        if start["proplet_id"] != name:
            return
        self.arrived.setdefault(str(start["inputs"][0]), now)
        done = wire.ResultTerms(attempt=start["ext"]["attempt"], reason=wire.Reason.OK)
        self._tell(client, "results", wire.Result(start["id"], name, "42", ext=done))

    async def beat(self) -> None:
        """Heartbeats, evenly spread over the interval."""
        due = time.monotonic()
        while True:
            for name, client in self.clients:
                if client.lost:
                    raise SystemExit(f"{name} was disconnected: {client.lost}")
                self._tell(client, "alive", wire.Alive(name))
                due += self.given["beat_s"] / len(self.clients)
                if due > time.monotonic():
                    await asyncio.sleep(due - time.monotonic())


class Applier:
    """The person at the API, in a thread."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self._client = Client(Target(socket=Path(given["socket"])))
        self.applied: dict[str, float] = {}
        self.heartbeat_cpu = 0.0

    def run(self) -> None:
        given, pid = self._given, self._given["pid"]
        wait_for(lambda: self._alive() > given["proplets"], _PATIENCE_S, "the manager knows every proplet")
        before, began = total(pid, cpu_s), time.monotonic()
        pause(given["rest_s"])
        self.heartbeat_cpu = (total(pid, cpu_s) - before) / (time.monotonic() - began)
        due = time.monotonic()
        for number in range(given["tasks"]):
            task = addition_task(f"dispatch-{number}", file=ADDITION_BASE64)
            task["spec"]["inputs"] = [number, 0]
            self.applied[str(number)] = time.perf_counter()
            self._client.apply(json.dumps(task))
            due += 1 / given["rate"]
            pause(max(0.0, due - time.monotonic()))
        wait_for(lambda: self._completed() == given["tasks"], _PATIENCE_S, "every task is completed")

    def _alive(self) -> int:
        return len(self._client.list("proplets")["items"])

    def _completed(self) -> int:
        pause(0.5)
        phases = [task["status"].get("phase") for task in self._client.list("tasks")["items"]]
        if "failed" in phases:
            raise RuntimeError("a task has failed")
        return phases.count("completed")


async def run(given: dict[str, Any]) -> dict[str, Any]:
    fleet, applier = Fleet(given), Applier(given)
    began = time.perf_counter()
    await fleet.connect()
    connected_s = time.perf_counter() - began
    beating = asyncio.create_task(fleet.beat())
    applying = asyncio.get_running_loop().run_in_executor(None, applier.run)
    await asyncio.wait({beating, applying}, return_when=asyncio.FIRST_COMPLETED)
    if beating.done():
        beating.result()
    beating.cancel()
    await applying
    took = [at - applier.applied[mark] for mark, at in fleet.arrived.items()]
    return {"took": took, "connected_s": connected_s, "heartbeat_cpu": applier.heartbeat_cpu}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.loads(sys.argv[1])))))
