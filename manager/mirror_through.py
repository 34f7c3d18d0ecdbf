"""Pulling what the mirror is asked for and does not have, for repositories that its list allows.

A tag is looked up again after a minute, so that a fleet that starts together costs the registry one question. What is
pulled is served when all of it is in the store, verified and found good by the signature policy: no client gets bytes
that this node would not run. A pull goes on when its client has left; the next one finds it done.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
from anyio.abc import TaskGroup

from proplet.manager.images import ImageError, Images
from proplet.oci.digest import Digest

log = logging.getLogger(__name__)

_REMEMBERED: Final = 1024
_UNDER_WAY: Final = 32
#: What may be over when the same is asked again.
_PASSING: Final = frozenset(
    {
        "registry_unreachable",
        "timeout",
        "rate_limited",
        "registry_error",
        "disk_full",
        "busy",
        "interrupted",
        "internal",
    }
)
_UNTRUSTED: Final = frozenset(
    {
        "invalid_policy",
        "image_denied",
        "signature_missing",
        "signature_invalid",
        "signature_untrusted",
        "signature_expired",
    }
)
PENDING: Final = "pending"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why something could not be pulled, now."""

    reason: str
    message: str

    @property
    def passing(self) -> bool:
        """Whether the store's older answer is better than none."""
        return self.reason in _PASSING or self.reason == PENDING

    @property
    def untrusted(self) -> bool:
        """Whether the signature policy has said no."""
        return self.reason in _UNTRUSTED


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: how long an answer counts, a good one and one that is none, and how long a client waits for a pull."""

    good_s: float = 60.0
    bad_s: float = 10.0
    wait_s: float = 20.0


_Key = tuple[str, str]


class _Flight:
    def __init__(self) -> None:
        self.done = anyio.Event()
        self.trouble: Trouble | None = None


class Through:
    """Made by `open_through`. Repositories are given with their registry; whether they may be pulled is not asked."""

    def __init__(self, images: Images, tasks: TaskGroup, patience: Patience, pulled: Callable[[], None]) -> None:
        self._images = images
        self._tasks = tasks
        self._patience = patience
        self._pulled = pulled
        self._flights: dict[_Key, _Flight] = {}
        self._known: OrderedDict[_Key, tuple[float, Trouble | None]] = OrderedDict()

    async def tag(self, repository: str, tag: str) -> Trouble | None:
        """Look a tag up, and pull what it means."""

        async def pull() -> None:
            await self._images.fetch(f"{repository}:{tag}", policy="Always")

        return await self._have((repository, tag), pull)

    async def digest(self, repository: str, digest: Digest, *, anew: bool = False) -> Trouble | None:
        """Pull a manifest and what it needs; `anew` compares all of it, and mends what is damaged."""

        async def pull() -> None:
            await self._images.fetch(f"{repository}@{digest}", policy="Always" if anew else "IfNotPresent")

        # What was mended may be damaged again: that it was is no answer.
        return await self._have((repository, f"{digest}{' anew' if anew else ''}"), pull, counts=not anew)

    async def signatures(self, repository: str, digest: Digest) -> Trouble | None:
        """Pull the signatures of a manifest, if it has any."""

        async def pull() -> None:
            await self._images.fetch_signatures(f"{repository}@{digest}")

        return await self._have((repository, f"{digest} signatures"), pull)

    async def _have(self, key: _Key, pull: Callable[[], Awaitable[None]], *, counts: bool = True) -> Trouble | None:
        known = self._known.get(key)
        if known is not None:
            good_s = self._patience.good_s if counts else 0.0
            if time.monotonic() - known[0] < (good_s if known[1] is None else self._patience.bad_s):
                return known[1]
        flight = self._flights.get(key)
        if flight is None:
            if len(self._flights) >= _UNDER_WAY:
                return Trouble("busy", "too many images are being pulled: ask again later")
            flight = self._flights[key] = _Flight()
            self._tasks.start_soon(self._fly, key, flight, pull)
        with anyio.move_on_after(self._patience.wait_s):
            await flight.done.wait()
            return flight.trouble
        return Trouble(PENDING, "the image is still being pulled: ask again")

    async def _fly(self, key: _Key, flight: _Flight, pull: Callable[[], Awaitable[None]]) -> None:
        try:
            await pull()
        except ImageError as error:
            flight.trouble = Trouble(error.reason, str(error))
            level = logging.INFO if error.reason == "not_found" else logging.WARNING
            log.log(level, "the mirror could not pull %s: %s", " ".join(key), error)
        finally:
            self._pulled()
            del self._flights[key]
            self._known[key] = (time.monotonic(), flight.trouble)
            self._known.move_to_end(key)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            flight.done.set()


@asynccontextmanager
async def open_through(images: Images, patience: Patience, pulled: Callable[[], None]) -> AsyncIterator[Through]:
    """Yield the way through; `pulled` is called when the store may have changed. At the end nothing is under way."""
    async with anyio.create_task_group() as tasks:
        try:
            yield Through(images, tasks, patience, pulled)
        finally:
            tasks.cancel_scope.cancel()
