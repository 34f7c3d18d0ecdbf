"""Whether an API server lives: something came from it lately, or it answers when it is asked.

A server that goes without a word, with its machine or behind a cable that is out, ends no connection. A watch only
listens, and an idle cluster has nothing to tell it for a minute. So what is silent is asked, and only then.
"""

import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio

from proplet.manager.ports import StoreError, StoreUnavailableError


class Pulse:
    """The pulse of one server. `heard` says when something came from it last, `ask` makes it say something.

    A server is asked after half of `timeout_s` seconds without a word, and counts as silent when it leaves that
    question unanswered for the other half; any answer will do. Then, and as often as it is asked in vain, `give_up` is
    called, to end what else waits for it. `heard` tells monotonic seconds.
    """

    def __init__(
        self,
        heard: Callable[[], float],
        ask: Callable[[], Awaitable[object]],
        give_up: Callable[[], None],
        timeout_s: float,
    ) -> None:
        self._heard = heard
        self._ask = ask
        self._give_up = give_up
        self._timeout_s = timeout_s
        self._half_s = timeout_s / 2
        self._asked_at = -math.inf  # when it was asked for the first time after its last word

    @property
    def problem(self) -> StoreUnavailableError | None:
        """Why the server counts as silent, None when it does not.

        Only who was asked can be silent: a process that was frozen has heard nothing, either.
        """
        if self._answered or time.monotonic() - self._asked_at < self._half_s:
            return None
        return StoreUnavailableError(f"nothing was heard of the API server for {self._timeout_s:g} s")

    @property
    def _answered(self) -> bool:
        return self._heard() >= self._asked_at

    async def run(self) -> None:
        """Ask whenever nothing is heard, until cancelled."""
        while True:
            left_s = self._heard() + self._half_s - time.monotonic()
            if left_s > 0:
                await anyio.sleep(left_s)
            else:
                await self._question()

    async def _question(self) -> None:
        if self._answered:
            self._asked_at = time.monotonic()
        with anyio.move_on_after(self._half_s):
            with suppress(StoreError):  # a refusal is an answer, too
                await self._ask()
            if self._answered:
                return
            await anyio.sleep_forever()  # one that cannot be reached is not asked in a loop
        if self.problem is not None:
            self._give_up()
