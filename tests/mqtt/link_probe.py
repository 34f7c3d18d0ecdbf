"""What a test sees of a link: its events, waited for with a deadline."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from proplet.agent.mqtt import Connected, Delivery, Disconnected, Link, LinkEvent, MqttSettings, Will, open_link

Event = TypeVar("Event", Connected, Delivery, Disconnected)
DEADLINE_S = 15


class Probe:
    """Collects a link's events; `acknowledging` does so at once."""

    def __init__(self, *, acknowledging: bool = False) -> None:
        self.link: Link
        self.events: list[LinkEvent] = []
        self._acknowledging = acknowledging
        self._news = anyio.Event()

    def __call__(self, event: LinkEvent) -> None:
        self.events.append(event)
        if self._acknowledging and isinstance(event, Delivery):
            self.link.acknowledge(event)
        self._news.set()
        self._news = anyio.Event()

    def all(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    async def count(self, kind: type[Event], number: int) -> list[Event]:
        """Wait until `number` events of `kind` have come."""
        await self.until(lambda: len(self.all(kind)) >= number)
        return self.all(kind)

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(DEADLINE_S):
            while not condition():
                await self._news.wait()


@asynccontextmanager
async def linked(
    settings: MqttSettings,
    subscriptions: Sequence[tuple[str, int]] = (),
    will: Will | None = None,
    *,
    acknowledging: bool = False,
    connected: bool = True,
) -> AsyncIterator[Probe]:
    """A link and its probe, connected unless told otherwise."""
    probe = Probe(acknowledging=acknowledging)
    async with open_link(settings, subscriptions, will, probe) as link:
        probe.link = link
        if connected:
            await probe.count(Connected, 1)
        yield probe
