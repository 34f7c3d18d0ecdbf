"""A manager on the wire as a process of its own: starts tasks and times their results.

``python -m tests.bench.load_tasks PARAMETERS``, both ways JSON. At most `window` tasks are under way at once; one
measures latency. Every result must be the right one, or this fails.
"""

import asyncio
import json
import sys
import time
from typing import Any

from proplet.agent import codec, wire
from tests.bench.wire_client import Access, WireClient
from tests.support.modules import ADDITION

PATIENCE_S = 60.0
_MARK = "@@task@@"


class Load:
    """Tasks to start, those under way, and what became of them."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.access = Access(**given["access"])
        self.proplet_id: str = given["proplet_id"]
        images: list[str] = given.get("images", [])
        self.images = images or [""] * given["tasks"]
        self.window: int = given.get("window", 1)
        self.prefix: str = given["prefix"]
        self.template = self._template()
        self.under_way: dict[str, float] = {}
        self.latencies: list[float] = []
        self.stages: list[dict[str, float]] = []
        self.next = 0
        self.present = asyncio.Event()
        self.done = asyncio.Event()
        self.wrong: str | None = None
        self.client: WireClient

    def _template(self) -> tuple[bytes, bytes]:
        """A start's bytes before and after the task's id, written by the product's own codec."""
        inline = not self.images[0]
        start = wire.Start(
            _MARK,
            "main",
            file=ADDITION if inline else None,
            image_url="" if inline else "@@image@@",
            inputs=("10", "32"),
            proplet_id=self.proplet_id,
            ext=wire.StartTerms(attempt=1),
        )
        before, after = codec.encode(start).split(_MARK.encode())
        return before, after

    def start_more(self) -> None:
        topic = f"{self.access.base}/control/manager/start"
        before, after = self.template
        while len(self.under_way) < self.window and self.next < len(self.images):
            task_id = f"{self.prefix}-{self.next}"
            image = self.images[self.next]
            self.next += 1
            tail = after.replace(b"@@image@@", image.encode()) if image else after
            self.under_way[task_id] = time.perf_counter()
            self.client.publish(topic, before + task_id.encode() + tail)

    def on_message(self, topic: str, payload: bytes) -> None:
        now = time.perf_counter()
        message = json.loads(payload)
        if topic.endswith("/create"):
            if message["proplet_id"] == self.proplet_id:
                self.present.set()
            return
        began = self.under_way.pop(message["task_id"], None)
        if began is None:
            return
        if message["results"] != "42":
            self.wrong = f"{message['task_id']}: {message['error'] or message['results']}"
            self.done.set()
        self.latencies.append(now - began)
        if self.images[0]:
            self.stages.append(message["ext"]["usage"]["wall_seconds"])
        if len(self.latencies) == len(self.images):
            self.done.set()
        self.start_more()

    async def run(self) -> dict[str, Any]:
        base = self.access.base
        self.client = await WireClient.connect(self.access, self.on_message)
        await self.client.subscribe(f"{base}/control/proplet/results", f"{base}/control/proplet/create")
        self.client.publish(f"{base}/control/manager/hello", codec.encode(wire.Hello(self.access.username)))
        await asyncio.wait_for(self.present.wait(), PATIENCE_S)
        began = time.perf_counter()
        self.start_more()
        await asyncio.wait_for(self.done.wait(), PATIENCE_S + len(self.images) / 20)
        elapsed = time.perf_counter() - began
        self.client.close()
        if self.wrong:
            raise SystemExit(f"wrong result: {self.wrong}")
        return {"latencies": self.latencies, "elapsed_s": elapsed, "stages": self.stages, "cpu_s": time.process_time()}


def main() -> None:
    load = Load(json.loads(sys.argv[1]))
    print(json.dumps(asyncio.run(load.run())))


if __name__ == "__main__":
    main()
