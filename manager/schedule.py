"""When a Task is due: cron's five fields in a time zone. Pure: no clock, moments are epoch seconds.

Fields are minute, hour, day of the month, month, day of the week, with names, ranges, lists and steps; `?` is `*`. The
expression may begin with `TZ=ZONE` or `CRON_TZ=ZONE`. A time that a change to summer time leaves out is due right after
the gap, one that comes twice in autumn is due once, as Debian's cron does it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

_FIELD: Final = re.compile(r"[0-9A-Za-z*/,?#-]+")
_PREFIXES: Final = ("CRON_TZ=", "TZ=")
_SOME_DAY: Final = datetime(2026, 1, 1, tzinfo=UTC)

NO_CRON: Final = (
    "must have cron's five fields, such as */5 * * * *: minute 0-59, hour 0-23, day 1-31, month 1-12 or JAN-DEC, "
    "weekday 0-7 or SUN-SAT"
)
NEVER: Final = "names a day that no month has, so it would never run"
NO_ZONE: Final = "must be a time zone of the IANA database, such as Europe/Paris or UTC"
TWO_ZONES: Final = "names another time zone than timezone does; remove one of the two"


class ScheduleError(ValueError):
    """It is no schedule; the text says what it must be."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule that has been understood."""

    fields: str
    zone: tzinfo

    def after(self, moment: float) -> float | None:
        """Return the first time after `moment`; None: there is none (the clock is beyond the calendar's end)."""
        return next((t for t in self._times(moment, reverse=False) if t > moment), None)

    def latest(self, moment: float) -> float | None:
        """Return the last time at or before `moment`, or None."""
        return next((t for t in self._times(moment + 1.0, reverse=True) if t <= moment), None)

    def names(self, moment: float) -> bool:
        """Whether `moment` is one of its times."""
        return self.latest(moment) == moment

    def _times(self, start: float, *, reverse: bool) -> Iterator[float]:
        try:
            for time in CronSim(self.fields, datetime.fromtimestamp(start, self.zone), reverse=reverse):
                yield time.timestamp()
        except (OverflowError, ValueError, OSError):
            return


def parse(expression: str, timezone: str | None = None) -> Schedule:
    """Return the schedule of a Task's `schedule` and `timezone` (UTC where neither names one).

    Raises:
        ScheduleError: it is none, or never comes.
    """
    found = _parse(expression, timezone or "")
    if isinstance(found, str):
        raise ScheduleError(found)
    return found


def split(expression: str) -> tuple[str, str]:
    """Return the time zone that the expression begins with ("": none), and its fields."""
    first, _, rest = expression.strip().partition(" ")
    for prefix in _PREFIXES:
        if first.startswith(prefix):
            return first.removeprefix(prefix), rest.strip()
    return "", expression.strip()


def bad_fields(expression: str) -> str | None:
    """Return what is wrong with the fields, or None. It says nothing of the time zone."""
    fields = split(expression)[1].split()
    if len(fields) != 5 or not all(map(_FIELD.fullmatch, fields)):
        return NO_CRON
    try:
        return None if next(CronSim(_cronsim(fields), _SOME_DAY), None) else NEVER
    except CronSimError:
        return NEVER if _only_the_day_is_missing(fields) else NO_CRON


def zone_of(name: str) -> tzinfo | None:
    """Return the time zone of this name, UTC for "", None where there is none."""
    if name in ("", "UTC"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


@lru_cache(maxsize=1024)
def _parse(expression: str, timezone: str) -> Schedule | str:
    inside, fields = split(expression)
    if (problem := bad_fields(expression)) is not None:
        return problem
    if inside and timezone and inside != timezone:
        return TWO_ZONES
    zone = zone_of(inside or timezone)
    return NO_ZONE if zone is None else Schedule(_cronsim(fields.split()), zone)


def _cronsim(fields: list[str]) -> str:
    return " ".join("*" if field == "?" else field for field in fields)


def _only_the_day_is_missing(fields: list[str]) -> bool:
    """Whether it would do with all months: it names the 30th of February, say."""
    try:
        CronSim(_cronsim([*fields[:3], "*", fields[4]]), _SOME_DAY)
    except CronSimError:
        return False
    try:
        CronSim(_cronsim(["0", "0", "*", *fields[3:]]), _SOME_DAY)
    except CronSimError:
        return False
    return True
