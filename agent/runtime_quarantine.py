"""Which modules have cost too many workers, and until when they are not run. Pure but for the monotonic clock."""

import time
from typing import Final

_WINDOW_S: Final = 3600.0  # strikes farther apart than this do not add up


class Quarantine:
    """Strikes by module; `strikes` of them within an hour keep a module out for `quarantine_s` seconds."""

    def __init__(self, strikes: int, quarantine_s: float) -> None:
        self._most = strikes
        self._quarantine_s = quarantine_s
        self._strikes: dict[str, list[float]] = {}

    def strike(self, module_digest: str) -> None:
        """Note that the module cost a worker."""
        now = time.monotonic()
        strikes = self._strikes.setdefault(module_digest, [])
        strikes[:] = [at for at in strikes if now - at < _WINDOW_S] + [now]

    def refusal(self, module_digest: str) -> str | None:
        """Return why the module is not run now, or None; a quarantine that has passed is forgotten."""
        strikes = self._strikes.get(module_digest)
        if not strikes or len(strikes) < self._most:
            return None
        left_s = strikes[-1] + self._quarantine_s - time.monotonic()
        if left_s <= 0:
            del self._strikes[module_digest]
            return None
        return f"the module {module_digest} has cost {len(strikes)} workers and is not run for another {left_s:.0f} s"
