"""What is sent besides the commands of tasks under way: the hello, and stops of attempts that nobody wants any more.

A stop that could not be sent is kept, within a bound, until the broker takes it.
"""

import logging
from collections import OrderedDict
from typing import Final, Protocol

import anyio

from proplet.agent.wire import Stop
from proplet.manager.exchange import Policy
from proplet.manager.ports import Bus, BusError

log = logging.getLogger(__name__)

MOST: Final = 10_000


class HelloBus(Bus, Protocol):
    """A bus that can say hello."""

    async def hello(self) -> None:
        """Ask every proplet for discovery and inventory. Raises BusError."""
        ...


class Errands:
    """A short list of messages that wait for the broker."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._up = False
        self._hello_due = False
        self._hello_at = 0.0
        self._stops: OrderedDict[tuple[str, str | None, int | None], Stop] = OrderedDict()
        self._something = anyio.Event()

    def connected(self, *, up: bool) -> None:
        """The broker is there, or away. Everybody is asked on every connect."""
        self._up, self._hello_due = up, up
        self._something.set()

    def stop(self, proplet_id: str | None, command: Stop) -> None:
        """Have a stop sent, once for however often it is asked before that."""
        attempt = command.ext.attempt if command.ext else None
        self._stops[command.id, proplet_id, attempt] = command
        if len(self._stops) > MOST:
            self._stops.popitem(last=False)
        self._something.set()

    def ask(self, mono: float) -> None:
        """Ask everybody what they hold, unless that was done a moment ago."""
        if self._up and mono - self._hello_at >= self._policy.confirm_s:
            self._hello_at, self._hello_due = mono, True
            self._something.set()

    def tick(self, mono: float) -> None:
        """Ask everybody again now and then: an inventory that was lost would otherwise never be missed."""
        if self._hello_at == 0.0:
            self._hello_at = mono
        if self._up and mono - self._hello_at >= self._policy.hello_every_s:
            self._hello_at, self._hello_due = mono, True
        if self._up and (self._hello_due or self._stops):
            self._something.set()

    async def run(self, bus: HelloBus) -> None:
        """Send what there is, for ever."""
        while True:
            await self._something.wait()
            self._something = anyio.Event()
            if not self._up:
                continue
            try:
                if self._hello_due:
                    self._hello_due = False
                    await self._say_hello(bus)
                while self._stops:
                    key, command = next(iter(self._stops.items()))
                    await bus.stop(key[1], command)
                    if self._stops.get(key) is command:
                        del self._stops[key]
            except BusError as error:
                log.info("an errand is done later: %s", error)  # with the next tick, or on reconnect

    async def _say_hello(self, bus: HelloBus) -> None:
        try:
            await bus.hello()
        except BusError:
            self._hello_due = True
            raise
