"""What a message from the broker means to this device: an event for the core, a call, a question, or nothing.

Place in the flow: the shell hands every delivery over in order; an event comes back once a module in it is kept. Bad
input never leaves here untold: its sender gets a result, or the log a line where nobody can be told.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from proplet.agent import codec, wire
from proplet.agent.events import CommandRefused, Event, StartReceived, StopReceived
from proplet.agent.mqtt_model import Delivery
from proplet.agent.topics import SHARED, Route, Topics

log = logging.getLogger(__name__)


class Interpreter:
    """Reads messages for one device. `keep` stores a module durably and returns its digest."""

    def __init__(
        self,
        topics: Topics,
        proplet_id: str,
        *,
        keep: Callable[[bytes], Awaitable[str]],
        invoke: Callable[[wire.Invoke], None],
        asked: Callable[[], None],
    ) -> None:
        self._topics = topics
        self._proplet_id = proplet_id
        self._keep = keep
        self._invoke = invoke
        self._asked = asked

    async def event_of(self, delivery: Delivery) -> Event | None:
        """Return the event that a message is; None if it is for the core nothing, or concerns nobody here."""
        parsed = self._topics.parse(delivery.topic)
        if parsed is None:
            return None
        route = SHARED.get(parsed.route, parsed.route)
        try:
            message = codec.decode(route, delivery.payload)
        except codec.WireError as error:
            return _refused(route, error)
        match message:
            case wire.Start():
                return await self._started(message, delivery)
            case wire.Stop(task_id, broadcast, proplet_id, ext):
                # The reference names nobody at first and does not look later: another's task is unknown here anyway.
                meant = broadcast or not proplet_id or proplet_id == self._proplet_id
                return StopReceived(task_id, ext.attempt if ext else None) if meant else None
            case wire.Invoke():
                self._invoke(message)
            case wire.Hello():
                self._asked()
        return None

    async def _started(self, start: wire.Start, delivery: Delivery) -> Event | None:
        if not start.broadcast and start.proplet_id and start.proplet_id != self._proplet_id:
            return None  # before its module is kept
        digest = await self._keep(start.file) if start.file else None
        payload_hash = hashlib.sha256(delivery.payload).hexdigest()[:32]
        return StartReceived(replace(start, file=None), digest, payload_hash, delivery.duplicate)


def _refused(route: Route, error: codec.WireError) -> Event | None:
    if error.task_id is None or route is not Route.START:
        text = "a message on %s was refused and its sender cannot be told: %s"
        log.warning(text, route.value, on_one_line(error.detail))
        return None
    return CommandRefused(error.task_id, error.attempt, error.detail)


def on_one_line(text: str) -> str:
    """Return what a peer or a guest said in a form that cannot pass for another line of the log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
