"""The controller's sense of time: which task is due when, a sweep every second, news of the fleet but not too often."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

import anyio

from proplet.manager.ports import Clock
from proplet.manager.workqueue import Timers

TICK_S: Final = 1.0
NEWS_EVERY_S: Final = 0.1  # a burst of proplets is one reason to look at waiting tasks, not many
CLOCK_STEP_S: Final = 1.0  # a wall clock that moves by more beside the monotonic one was set


@dataclass(frozen=True, slots=True)
class Beat:
    """What is done when its time has come; all of it at once, from the event loop.

    `due` gets the key of what asked for this time, `sweep` the monotonic time once a second, `news` nothing: the fleet
    has changed. `clock_set`: somebody has set the wall clock.
    """

    due: Callable[[str], None]
    sweep: Callable[[float], None]
    news: Callable[[], None]
    clock_set: Callable[[], None]


class Rhythm:
    """Calls the parts of a beat. `run` does, until it is cancelled; the rest only notes what is to come."""

    def __init__(self, beat: Beat, clock: Clock, monotonic: Clock) -> None:
        self._beat = beat
        self._clock = clock
        self._monotonic = monotonic
        self._timers = Timers()
        self._poke = anyio.Event()
        self._fleet_news = False
        self._news_at = 0.0
        self._clocks_apart = clock() - monotonic()

    def wake(self, key: str, when: float) -> None:
        """Have `key` come due at `when` (monotonic seconds), or before."""
        if self._timers.at(key, when):
            self.nudge()

    def news(self) -> None:
        """The fleet has changed: what waits for a proplet is looked at, soon."""
        if not self._fleet_news:
            self._fleet_news = True
            self._news_at = max(self._monotonic(), self._news_at + NEWS_EVERY_S)
            self.nudge()

    def nudge(self) -> None:
        """What is due may have changed, or the clock was moved by hand: look now."""
        self._poke.set()

    async def run(self) -> NoReturn:
        """Let time pass."""
        swept = 0.0
        while True:
            mono = self._monotonic()
            due = min(self._timers.next(), self._news_at if self._fleet_news else mono + TICK_S, swept + TICK_S)
            with anyio.move_on_after(max(0.0, due - mono)):
                await self._poke.wait()
            if self._poke.is_set():
                self._poke = anyio.Event()
            mono = self._monotonic()
            for key in self._timers.due(mono):
                self._beat.due(key)
            if mono - swept >= TICK_S:
                swept = mono
                self._beat.sweep(mono)
                self._look_at_the_clock(mono)
            if self._fleet_news and mono >= self._news_at:
                self._fleet_news = False
                self._beat.news()

    def _look_at_the_clock(self, mono: float) -> None:
        apart = self._clock() - mono
        if abs(apart - self._clocks_apart) > CLOCK_STEP_S:
            self._beat.clock_set()
        self._clocks_apart = apart
