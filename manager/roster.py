"""The proplets' records: kept in step with the registry, and the registry with them.

Place in the flow: what proplets say -> `Registry` -> news -> here, written down if it is worth it. Records that others
change (labels, a declared description) come back by watching.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final, cast

import anyio

from proplet.agent.wire import Alive, Discovery, PropletMetrics
from proplet.manager.announcer import Announcer
from proplet.manager.exchange import Moment
from proplet.manager.following import follow
from proplet.manager.model import Key, Kind, Meta, Proplet, PropletSpec
from proplet.manager.participation import name_of
from proplet.manager.ports import (
    AlreadyExistsError,
    Change,
    ChangeType,
    ConflictError,
    NotFoundError,
    RefusedError,
    Store,
    StoreUnavailableError,
)
from proplet.manager.registry import REFUSED, Registry
from proplet.manager.workqueue import WorkQueue

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0
AGAIN_S: Final = 30.0  # after the store has refused a record itself: the same fails until something else changes
WRITERS: Final = 8  # a whole fleet that comes back at once shares commits


class Roster:
    """The loop over Proplets. `on_news` is told the id of every proplet of which something has changed."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        now: Callable[[], Moment],
        on_news: Callable[[str], None],
        announcer: Announcer,
    ) -> None:
        self._store = store
        self._registry = registry
        self._now = now
        self._on_news = on_news
        self._announcer = announcer
        self._queue = WorkQueue()
        self._resting: dict[str, float] = {}  # until when what was refused is not tried again
        self._version = 0

    @property
    def idle(self) -> bool:
        """Whether everything worth writing down has been."""
        return self._queue.idle

    async def load(self) -> None:
        """Take over every record there is. Raises StoreError."""
        before = self._registry.recorded()  # what is made while it is listed may be missing there
        listing = await self._store.list(Kind.PROPLET)
        there = {proplet.meta.uid for proplet in listing.items}
        for known in before:
            if known.meta.uid not in there:
                self._forget(known)
        for proplet in listing.items:
            self._learn(cast("Proplet", proplet))
        self._version = listing.version

    async def run(self) -> None:
        """Keep records and registry in step, for ever."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow, self._store, Kind.PROPLET, lambda: self._version, self._on_change, self.load)
            for _ in range(WRITERS):
                tasks.start_soon(self._write)

    # --- what is heard ------------------------------------------------------------------------------------------------

    def discovered(self, message: Discovery) -> None:
        """A proplet introduced itself."""
        self._news(self._registry.discovered(message, self._now()))

    def heard(self, message: Alive) -> None:
        """A heartbeat or a will."""
        self._news(self._registry.heard(message, self._now()))

    def measured(self, message: PropletMetrics) -> None:
        """What a proplet uses."""
        self._registry.measured(message)

    def sweep(self) -> None:
        """Time has passed."""
        for proplet_id in self._registry.sweep(self._now()):
            self._news(proplet_id)
        for proplet_id in self._registry.unwritten():
            self._queue.add(proplet_id)
        mono = self._now().mono
        for key in [key for key, until in self._resting.items() if until <= mono]:
            del self._resting[key]
            self._queue.add(key)

    def _news(self, proplet_id: str | None) -> None:
        if proplet_id is not None:
            self._queue.add(proplet_id)
            self._on_news(proplet_id)

    # --- records ------------------------------------------------------------------------------------------------------

    def _on_change(self, change: Change) -> None:
        self._version = change.version
        proplet = cast("Proplet", change.resource)
        if change.type is ChangeType.DELETED:
            self._forget(proplet)
        else:
            self._learn(proplet)

    def _learn(self, proplet: Proplet) -> None:
        if self._registry.has(proplet):
            return
        if self._registry.learn(proplet, self._now()):
            self._on_news(proplet.id)
        self._look_at_others()

    def _forget(self, proplet: Proplet) -> None:
        self._registry.forget(proplet, self._now())
        self._on_news(proplet.id)
        self._look_at_others()

    def _look_at_others(self) -> None:
        for key in self._registry.touched():
            self._queue.add(key)

    async def _write(self) -> None:
        while True:
            proplet_id = await self._queue.take()
            try:
                if proplet_id not in self._resting:
                    await self._record(proplet_id)
            except RefusedError as error:
                log.warning("proplet %s cannot be recorded: %s", proplet_id, error)
                self._resting[proplet_id] = self._now().mono + AGAIN_S  # a sweep brings it here again
            except StoreUnavailableError as error:
                log.warning("proplet %s cannot be recorded now: %s", proplet_id, error)
                self._queue.add(proplet_id)
                await anyio.sleep(RETRY_S)
            finally:
                self._queue.done(proplet_id)

    async def _record(self, key: str) -> None:
        if key.startswith(REFUSED):
            refused = self._registry.wanted_refusal(key.removeprefix(REFUSED), self._now())
            if refused is not None:
                await self._save(refused, recorded=True)
            return
        wanted, known = self._registry.wanted(key, self._now()), self._registry.known(key)
        if wanted is not None and known is not None:
            proplet, recorded = known
            await self._save(replace(proplet, status=wanted), recorded=recorded)

    async def _save(self, proplet: Proplet, *, recorded: bool) -> None:
        # Before the write: the watch may tell of it before it returns.
        before = self._registry.known(proplet.id) if recorded else None
        try:
            written = cast("Proplet", await (self._store.record if recorded else self._store.create)(proplet))
        except ConflictError:
            await self._read_again(proplet.meta.key)
        except NotFoundError:
            self._forget(proplet)
        except AlreadyExistsError:
            await self._another_has_its_name(proplet)
        except RefusedError:
            if recorded or name_of(proplet.meta.name) == proplet.meta.name:
                raise
            await self._under_another_name(proplet)
        else:
            self._registry.learn(written, self._now())
            self._announcer.proplet(before[0] if before is not None else None, written)
            if not recorded:
                log.info("proplet %s is new here", proplet.id)

    async def _read_again(self, key: Key) -> None:
        with suppress(NotFoundError):  # the watch says so, too
            self._learn(cast("Proplet", await self._store.get(Kind.PROPLET, key)))

    async def _another_has_its_name(self, proplet: Proplet) -> None:
        """Either it is the same one, recorded meanwhile, or a declared one is named like this one's id."""
        other = cast("Proplet", await self._store.get(Kind.PROPLET, proplet.meta.key))
        if other.id == proplet.id:
            self._learn(other)
            return
        await self._under_another_name(proplet)

    async def _under_another_name(self, proplet: Proplet) -> None:
        """Record one that announced itself, and whose id is the name of another, or none at all in a cluster."""
        spec = PropletSpec(declared=False, connection=self._registry.connection_of(proplet.id))
        meta = Meta(name_of("discovered", proplet.id), proplet.meta.namespace)
        try:
            created = await self._store.create(Proplet(meta, spec, proplet.status))
        except AlreadyExistsError:
            created = await self._store.get(Kind.PROPLET, meta.key)
        self._registry.learn(cast("Proplet", created), self._now())
