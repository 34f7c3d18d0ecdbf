"""Patience with the storage: nothing is acted upon before it is saved, however long that takes."""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from proplet.agent.ports import StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_FIRST_S = 0.5
_RETRY_MAX_S = 30.0


class Persistence:
    """Saves until it is done. `alive` is told at every refusal: to wait for the storage is to be alive."""

    def __init__(self, alive: Callable[[], None]) -> None:
        self._alive = alive
        self.trouble: str | None = None

    async def done(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what `work` returns, however long the storage refuses."""
        delay, refused = _RETRY_FIRST_S, False
        while True:
            try:
                done = await work()
            except StorageError as error:
                refused = True
                if self.trouble != str(error):
                    self.trouble = str(error)
                    log.error("nothing can be saved, so nothing is accepted: %s", error)  # noqa: TRY400
                self._alive()
                await anyio.sleep(delay)
                delay = min(_RETRY_MAX_S, delay * 2)
            else:
                if refused and self.trouble:  # what was never refused may be a reader, which a full disk does not stop
                    log.warning("the storage works again")
                    self.trouble = None
                return done
