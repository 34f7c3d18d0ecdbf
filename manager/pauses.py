"""How long what has failed is left alone: longer with every failure in a row, until it succeeds or has changed.

Times are monotonic seconds.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

FIRST_S: Final = 1.0
LONGEST_S: Final = 60.0
_DOUBLINGS: Final = 10


@dataclass(slots=True)
class _Pause:
    version: int
    failures: int = 0
    until: float = 0.0


class Pauses:
    """The pauses by key. `spread` returns 0.0 to 1.0: what fails together is not tried again together."""

    def __init__(
        self, *, first_s: float = FIRST_S, longest_s: float = LONGEST_S, spread: Callable[[], float] = random.random
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._spread = spread
        self._pauses: dict[str, _Pause] = {}

    def __len__(self) -> int:
        return len(self._pauses)

    def failed(self, key: str, version: int, mono: float, most_s: float = math.inf) -> float:
        """Return when `key`, which has failed as it is at `version`, is to be tried again: in `most_s` or before."""
        pause = self._pauses.get(key)
        if pause is None or pause.version != version:
            pause = self._pauses[key] = _Pause(version)
        length = min(self._longest_s, self._first_s * 2.0 ** min(pause.failures, _DOUBLINGS))
        pause.failures += 1
        pause.until = mono + min(most_s, length * (0.5 + 0.5 * self._spread()))
        return pause.until

    def left(self, key: str, version: int, mono: float, most_s: float = math.inf) -> float:
        """Return for how many seconds `key` is still left alone; 0.0: it is not. No longer than `most_s` from now."""
        pause = self._pauses.get(key)
        if pause is None or pause.version != version:
            return 0.0
        pause.until = min(pause.until, mono + most_s)
        return max(0.0, pause.until - mono)

    def over(self, key: str) -> None:
        """It has succeeded, or is gone."""
        self._pauses.pop(key, None)
