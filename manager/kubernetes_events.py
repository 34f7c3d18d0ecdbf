"""Kubernetes' Events about our resources: implements `ports.EventSink`. What `kubectl describe` shows at its end.

Events are for people, so the controller never waits for one and never fails over one: they are queued, within a bound,
and sent beside it. The same event again raises the count of the first one, at most every `UPDATE_S`.
"""

import logging
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import anyio

from proplet.manager.kubernetes_api import Collection, Document, KubernetesApi
from proplet.manager.manifest import GROUPS
from proplet.manager.model import Meta, Resource
from proplet.manager.ports import NotFoundError, RefusedError, StoreError

EVENTS: Final = Collection("events.k8s.io", "v1", "events", "Event")
UPDATE_S: Final = 10.0
SERIES_S: Final = 600.0  # the same event later than that is a new one
BURST: Final = 25  # events of one resource at once,
REFILL_S: Final = 30.0  # and how often one more
_KNOWN: Final = 4096
_RETRY_S: Final = 5.0
# The API's limits, in bytes.
_NOTE: Final = 1024
_WORD: Final = 128

log = logging.getLogger(__name__)

_Same = tuple[str, str, str, bool]


@dataclass(slots=True)
class _Series:
    """One event, how often it was told, and what of that the server knows."""

    kind: str
    meta: Meta  # as little as an event says of it: a resource may weigh a megabyte, and be long gone
    reason: str
    message: str
    warning: bool
    first: float  # time of day
    last: float
    heard_at: float  # on the monotonic clock, as the next two
    told_at: float = -math.inf
    count: int = 1
    told: int = 0
    name: str = ""


@dataclass(slots=True)
class _Allowance:
    left: float
    since: float


class KubernetesEvents:
    """Implements `ports.EventSink`; made by `open_kubernetes_events`. `clock` is monotonic, `wall` the time of day."""

    def __init__(
        self,
        api: KubernetesApi,
        instance: str,
        *,
        group: str = GROUPS[0],
        controller: str = "proplet.io/manager",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._instance = instance[:_WORD]
        self._group = group
        self._controller = controller
        self._clock = clock
        self._wall = wall
        self._series: OrderedDict[_Same, _Series] = OrderedDict()  # least recently told first
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()
        self._news = anyio.Event()
        self._sending = anyio.Lock()
        self._failing = False

    def emit(self, resource: Resource, reason: str, message: str, *, warning: bool = False) -> None:
        """Tell it; never blocks, never fails."""
        now = self._clock()
        same = (resource.meta.uid, reason, message, warning)
        series = self._series.get(same)
        if series is not None and now - series.heard_at <= SERIES_S:
            series.count += 1
            series.last, series.heard_at = self._wall(), now
            self._series.move_to_end(same)
        elif self._allowed(resource.meta.uid, now):
            moment = self._wall()
            kind, about = resource.kind.value, _about(resource.meta)
            self._series[same] = _Series(kind, about, reason, message, warning, moment, moment, now)
            self._series.move_to_end(same)
            while len(self._series) > _KNOWN:
                self._series.popitem(last=False)
        else:
            log.debug("too many events of %s, not told: %s: %s", resource.meta.key, reason, message)
            return
        self._news.set()

    def _allowed(self, uid: str, now: float) -> bool:
        allowance = self._allowances.pop(uid, None) or _Allowance(BURST, now)
        self._allowances[uid] = allowance
        while len(self._allowances) > _KNOWN:
            self._allowances.popitem(last=False)
        allowance.left = min(BURST, allowance.left + (now - allowance.since) / REFILL_S)
        allowance.since = now
        if allowance.left < 1:
            return False
        allowance.left -= 1
        return True

    async def serve(self) -> None:
        """Send what is told, until cancelled."""
        while True:
            self._news = anyio.Event()
            try:
                async with self._sending:
                    wait = await self._send_due()
            except StoreError as error:
                self._complain(error)
                await anyio.sleep(_RETRY_S)  # however much is told meanwhile
                continue
            with anyio.move_on_after(wait):
                await self._news.wait()

    async def flush(self) -> None:
        """Send everything now, whether it is time or not; what fails is given up."""
        async with self._sending:
            for series in self._untold():
                try:
                    await self._send(series)
                except RefusedError as error:
                    self._complain(error)
                except StoreError as error:
                    self._complain(error)
                    return

    def _untold(self) -> list[_Series]:
        return [series for series in self._series.values() if series.told < series.count]

    async def _send_due(self) -> float:
        """Send what is due; return in how many seconds something is. Raises StoreError: nothing can be sent now."""
        wait = math.inf
        for series in self._untold():
            left = series.told_at + UPDATE_S - self._clock()
            if left > 0:
                wait = min(wait, left)
                continue
            try:
                await self._send(series)
                self._failing = False
            except RefusedError as error:
                self._complain(error)  # the same event would be refused again
                series.told, series.told_at = series.count, self._clock()
        return wait

    def _complain(self, error: StoreError) -> None:
        if not self._failing:
            log.warning("events cannot be told: %s", error)
        self._failing = True

    async def _send(self, series: _Series) -> None:
        count, namespace = series.count, series.meta.namespace
        if series.name:
            more = {"series": {"count": count, "lastObservedTime": _moment(series.last)}}
            try:
                await self._api.run(self._api.patch, EVENTS, namespace, series.name, more)
            except NotFoundError:
                series.name = ""  # the server keeps events for an hour
        if not series.name:
            name = _name(series.meta.name)
            try:
                await self._api.run(self._api.create, EVENTS, namespace, self._document(series, name, count))
                series.name = name
            except NotFoundError:
                log.debug("the namespace %s is gone", namespace)
        series.told, series.told_at = count, self._clock()

    def _document(self, series: _Series, name: str, count: int) -> Document:
        meta = series.meta
        document: Document = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": name, "namespace": meta.namespace},
            "eventTime": _moment(series.first),
            "type": "Warning" if series.warning else "Normal",
            "reason": _cut(series.reason, _WORD) or "Unknown",
            "action": _cut(series.reason, _WORD) or "Unknown",
            "note": _cut(series.message, _NOTE),
            "reportingController": self._controller,
            "reportingInstance": self._instance,
            "regarding": {
                "apiVersion": f"{self._group}/v1",
                "kind": series.kind,
                "name": meta.name,
                "namespace": meta.namespace,
                "uid": meta.uid,
                "resourceVersion": str(meta.version),
            },
        }
        if count > 1:
            document["series"] = {"count": count, "lastObservedTime": _moment(series.last)}
        return document


@asynccontextmanager
async def open_kubernetes_events(
    api: KubernetesApi, instance: str, *, group: str = GROUPS[0]
) -> AsyncIterator[KubernetesEvents]:
    """Yield a sink; what was told is sent until the block ends. `instance` names this process, as its Lease does."""
    events = KubernetesEvents(api, instance, group=group)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(events.serve)
            yield events
            with anyio.move_on_after(2.0):
                await events.flush()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        raise


def _about(meta: Meta) -> Meta:
    return Meta(meta.name, meta.namespace, meta.uid, version=meta.version)


def _name(of: str) -> str:
    return f"{of[:200].rstrip('-.')}.{secrets.token_hex(8)}"


def _cut(text: str, most: int) -> str:
    """The text within `most` bytes of UTF-8."""
    raw = text.encode("utf-8", "replace")
    return text if len(raw) <= most else raw[: most - 3].decode("utf-8", "ignore") + "…"


def _moment(now: float) -> str:
    """A time as the API's MicroTime has it: always six digits of fraction."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
