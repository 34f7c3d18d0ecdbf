"""A person at the API as a process of its own: applies tasks and waits until they are completed.

``python -m tests.bench.load_api PARAMETERS``, both ways JSON. `one` tasks one after the other, then `burst` as
fast as it goes: lists of tasks, from several callers at once.
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from proplet.agent.client import Client, Target
from tests.bench.nodes import addition_task
from tests.support.modules import ADDITION_BASE64

_ENDED = ("completed", "failed", "skipped", "interrupted")
_AT_ONCE = 25
_CALLERS = 8
_PATIENCE_S = 120.0


class Follower:
    """Notes when each task ends, from one watch of all of them."""

    def __init__(self, client: Client, since: int) -> None:
        self._ended: dict[str, tuple[float, str]] = {}
        self._news = threading.Condition()
        self._events = client.watch("tasks", since=since)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        for event in self._events:
            if event.object is None:
                continue
            phase, name = event.object.get("status", {}).get("phase"), event.object["metadata"]["name"]
            if phase in _ENDED and name not in self._ended:
                with self._news:
                    self._ended[name] = (time.perf_counter(), phase)
                    self._news.notify_all()

    def ended(self, names: list[str]) -> float:
        """When the last of them had completed."""
        with self._news:
            if not self._news.wait_for(lambda: all(name in self._ended for name in names), _PATIENCE_S):
                raise SystemExit(f"{sum(name not in self._ended for name in names)} of {len(names)} tasks did not end")
        wrong = [name for name in names if self._ended[name][1] != "completed"]
        if wrong:
            raise SystemExit(f"{len(wrong)} tasks ended otherwise: {wrong[0]} {self._ended[wrong[0]][1]}")
        return max(self._ended[name][0] for name in names)


def apply_list(client: Client, names: list[str]) -> None:
    items = [addition_task(name, file=ADDITION_BASE64) for name in names]
    client.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def main() -> None:
    given: dict[str, Any] = json.loads(sys.argv[1])
    client = Client(Target(socket=Path(given["socket"])))
    follower = Follower(client, client.list("tasks")["version"])
    latencies = []
    for number in range(given["one"]):
        name, began = f"{given['prefix']}-one-{number}", time.perf_counter()
        client.apply(json.dumps(addition_task(name, file=ADDITION_BASE64)))
        latencies.append(follower.ended([name]) - began)
    names = [f"{given['prefix']}-burst-{number}" for number in range(given["burst"])]
    began = time.perf_counter()
    with ThreadPoolExecutor(_CALLERS) as callers:
        list(callers.map(lambda at: apply_list(client, names[at : at + _AT_ONCE]), range(0, len(names), _AT_ONCE)))
    applied = time.perf_counter() - began
    elapsed = follower.ended(names) - began if names else 0.0
    print(json.dumps({"latencies": latencies, "elapsed_s": elapsed, "applied_s": applied}))


if __name__ == "__main__":
    main()
