"""A TCP relay between a client and a server, whose connections can be cut."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketAttribute, SocketStream


class Relay:
    """Forwards what comes to `port` on loopback to another port there."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.connections = 0
        self._target = target
        self._again = anyio.Event()
        self._open: set[SocketStream] = set()

    async def cut(self) -> None:
        """End every connection, as a network that fails does."""
        self._again = anyio.Event()
        for stream in list(self._open):
            await anyio.aclose_forcefully(stream)

    async def opened_again(self) -> None:
        """Wait until there was a new connection after the last cut."""
        with anyio.fail_after(30):
            await self._again.wait()

    async def serve(self, near: SocketStream) -> None:
        self.connections += 1
        async with near, await anyio.connect_tcp("127.0.0.1", self._target) as far:
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
