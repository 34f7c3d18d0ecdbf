"""Delivery of the journal's outbox: every result goes to the broker until it is acknowledged, oldest first.

At least once: what was published and not acknowledged is published again on the next connection; receivers count a
(task, attempt) once.
"""

import logging

import anyio

from proplet.agent.mqtt_model import MessageTooLargeError, NotConnectedError
from proplet.agent.ports import Journal, Link, OutboxRow, StorageError
from proplet.agent.results import shortened
from proplet.agent.topics import Route, Topics

log = logging.getLogger(__name__)

_BATCH = 64
_QUIET_S = 1.0
_RETRY_S = 5.0
# A broker that carries less than we are told ends the connection, and would so again for ever.
_CUT_OFF_MAX = 5
_LARGE_BYTES = 64 * 1024


class Outbox:
    """Publishes what the journal holds as undelivered. `wake` says that there is more, or a connection."""

    def __init__(self, journal: Journal, link: Link, topics: Topics) -> None:
        self._journal = journal
        self._link = link
        self._topics = topics
        self._more = anyio.Event()
        self._after = 0
        self._cut_off: dict[int, int] = {}  # large messages by how many connections ended before they were acknowledged

    def wake(self, *, from_start: bool = False) -> None:
        """Look again; `from_start` for a new connection, where everything undelivered is due."""
        if from_start:
            self._after = 0
        self._more.set()

    async def serve(self) -> None:
        """Deliver until cancelled."""
        while True:
            try:
                delivered = self._link.connected and await self._deliver_batch()
            except StorageError as error:
                log.warning("undelivered results cannot be read: %s", error)
                delivered = False
                await anyio.sleep(_RETRY_S)
            if not delivered:
                await self._rest()

    async def _rest(self) -> None:
        """Wait for work; after a moment of quiet, write down what was acknowledged."""
        with anyio.move_on_after(_QUIET_S):
            await self._more.wait()
        if not self._more.is_set():
            try:
                await self._journal.flush()
            except StorageError as error:
                log.warning("acknowledgements cannot be written, results may be sent again: %s", error)
            await self._more.wait()
        self._more = anyio.Event()

    async def _deliver_batch(self) -> bool:
        """Publish the next rows; return whether there were any and all of them were taken."""
        start = self._after
        rows = await self._journal.pending(start, _BATCH)
        if not rows:
            return False
        done: list[int] = []
        async with anyio.create_task_group() as group:
            for row in rows:
                group.start_soon(self._publish, row, done)
        await self._journal.sent(done)
        if self._after == start:  # else a new connection asked for everything again
            missed = {row.seq for row in rows}.difference(done)
            self._after = min(missed) - 1 if missed else rows[-1].seq
        return len(done) == len(rows)

    async def _publish(self, row: OutboxRow, done: list[int]) -> None:
        topic, payload = self._topics.build(Route(row.route)), row.payload
        if self._cut_off.get(row.seq, 0) >= _CUT_OFF_MAX:
            log.warning(
                "a result is sent without its text: its %d bytes ended %d connections", len(payload), _CUT_OFF_MAX
            )
            payload = shortened(payload)
        try:
            try:
                await self._link.publish(topic, payload, 1)
            except MessageTooLargeError as error:
                log.warning("a result is sent without its text: %s", error)
                await self._link.publish(topic, shortened(payload), 1)
        except NotConnectedError:
            if len(row.payload) > _LARGE_BYTES:
                self._cut_off[row.seq] = self._cut_off.get(row.seq, 0) + 1
            return
        self._cut_off.pop(row.seq, None)
        done.append(row.seq)
