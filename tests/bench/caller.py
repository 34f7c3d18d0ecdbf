"""A manager on the wire that waits for each answer: starts tasks of any module, and calls latent ones."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from proplet.agent import codec, wire
from tests.bench.nodes import ID, BenchNode
from tests.bench.wire_client import WireClient

_PATIENCE_S = 60.0


class Caller:
    """Made by `open_caller`."""

    def __init__(self, base: str) -> None:
        self.client: WireClient
        self.present = asyncio.Event()
        self._base = base
        self._numbers = itertools.count()
        self._awaited: dict[str, asyncio.Future[dict[str, Any]]] = {}

    async def run(self, task_id: str, module: bytes, *inputs: str, export: str = "main") -> str:
        """Run a task to its end; what it has returned."""
        answer = self._answer(task_id)
        self._start(wire.Start(task_id, export, file=module, inputs=inputs, proplet_id=ID, ext=_TERMS))
        return _results(await asyncio.wait_for(answer, _PATIENCE_S))

    def deploy(self, task_id: str, module: bytes, export: str = "main") -> None:
        """Begin with a latent task. Calls of it wait until it is ready."""
        self._start(wire.Start(task_id, export, file=module, proplet_id=ID, latent=True, ext=_TERMS))

    async def call(self, task_id: str, *inputs: str) -> str:
        """Call a latent task; what it has returned."""
        call = f"call-{next(self._numbers)}"
        answer = self._answer(call)
        self._publish("invoke", codec.encode(wire.Invoke(task_id, call, inputs=inputs, proplet_id=ID)))
        return _results(await asyncio.wait_for(answer, _PATIENCE_S))

    def hello(self, name: str) -> None:
        self._publish("hello", codec.encode(wire.Hello(name)))

    def on_message(self, topic: str, payload: bytes) -> None:
        message = json.loads(payload)
        if topic.endswith("/create"):
            self.present.set()
            return
        waiting = self._awaited.pop(message.get("invocation_id") or message["task_id"], None)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def _start(self, start: wire.Start) -> None:
        self._publish("start", codec.encode(start))

    def _publish(self, what: str, payload: bytes) -> None:
        self.client.publish(f"{self._base}/control/manager/{what}", payload)

    def _answer(self, name: str) -> asyncio.Future[dict[str, Any]]:
        answer = self._awaited[name] = asyncio.get_running_loop().create_future()
        return answer


_TERMS = wire.StartTerms(attempt=1)


def _results(message: dict[str, Any]) -> str:
    if message.get("error"):
        raise RuntimeError(f"{message['task_id']}: {message['error']}")
    return str(message["results"])


@asynccontextmanager
async def open_caller(node: BenchNode) -> AsyncIterator[Caller]:
    """A manager whom the node has heard."""
    base = node.access.base
    caller = Caller(base)
    caller.client = await WireClient.connect(node.access, caller.on_message)
    try:
        await caller.client.subscribe(*(f"{base}/control/proplet/{what}" for what in _HEARD))
        caller.hello(node.access.username)
        await asyncio.wait_for(caller.present.wait(), _PATIENCE_S)
        yield caller
    finally:
        caller.client.close()


_HEARD = ("results", "invoke_results", "create")
