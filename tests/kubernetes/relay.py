"""A TCP relay between a client and a server, whose connections can be cut, and through which nothing may pass."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.from_thread import BlockingPortal, start_blocking_portal


class Relay:
    """Forwards what comes to `port` on loopback to another port there."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.connections = 0
        self._target = target
        self._again = anyio.Event()
        self._open: set[SocketStream] = set()
        self._passable = anyio.Event()
        self._passable.set()
        self._holding = anyio.Event()

    async def cut(self) -> None:
        """End every connection, as a network that fails does."""
        self._again = anyio.Event()
        for stream in list(self._open):
            await anyio.aclose_forcefully(stream)

    async def opened_again(self) -> None:
        """Wait until there was a new connection after the last cut."""
        with anyio.fail_after(30):
            await self._again.wait()

    async def hold(self) -> None:
        """Let nothing pass any more, and tell nobody: as a network whose cable is out. What is sent waits."""
        self._passable, self._holding = anyio.Event(), anyio.Event()

    async def held(self) -> None:
        """Wait until something was sent that does not pass."""
        with anyio.fail_after(30):
            await self._holding.wait()

    async def release(self) -> None:
        """Let everything pass again, with what has waited."""
        self._passable.set()

    async def serve(self, near: SocketStream) -> None:
        self.connections += 1
        async with near:
            await self._passable.wait()
            async with await anyio.connect_tcp("127.0.0.1", self._target) as far:
                await self._relay(near, far)

    async def _relay(self, near: SocketStream, far: SocketStream) -> None:
        self._open |= {near, far}
        self._again.set()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._forward, near, far, group.cancel_scope)
                group.start_soon(self._forward, far, near, group.cancel_scope)
        finally:
            self._open -= {near, far}

    async def _forward(self, source: SocketStream, to: SocketStream, scope: anyio.CancelScope) -> None:
        try:
            async for data in source:
                self._holding.set()
                await self._passable.wait()
                await to.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def open_relay(target: int) -> AsyncIterator[Relay]:
    """A relay on a free port, until the block ends."""
    relay = Relay(target)
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        relay.port = listener.extra(SocketAttribute.local_port)
        group.start_soon(listener.serve, relay.serve)
        yield relay
        group.cancel_scope.cancel()


class RelayThread:
    """A relay in a thread of its own, for tests without a loop."""

    def __init__(self, relay: Relay, portal: BlockingPortal) -> None:
        self.port = relay.port
        self._relay = relay
        self._portal = portal

    def hold(self) -> None:
        """Let nothing pass any more."""
        self._portal.call(self._relay.hold)

    def cut(self) -> None:
        """End every connection."""
        self._portal.call(self._relay.cut)

    def release(self) -> None:
        """Let everything pass again."""
        self._portal.call(self._relay.release)


@contextmanager
def open_relay_thread(target: int) -> Iterator[RelayThread]:
    """A relay on a free port, until the block ends."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(open_relay(target)) as relay:
        yield RelayThread(relay, portal)
