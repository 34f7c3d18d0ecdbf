"""What the journal forgets so that it stays small: the bounds of its outbox, and in which order things give way.

First delivered messages beyond the number kept for repeating, then answers to commands that were refused, then the text
of undelivered results (that a task ended stays, its text becomes a line that says so), last whatever is older than
`max_age_s`. Age follows a clock that somebody sets: nothing gets older or younger by it.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proplet.agent.results import shortened

log = logging.getLogger(__name__)

_CLOCK_SET_S = 60.0  # wall and steady clock drift apart by less, unless somebody sets the one


@dataclass(frozen=True, slots=True)
class OutboxBounds:
    """How much the outbox may hold.

    Of the delivered results the newest `keep_sent`, at most `keep_sent_bytes`, stay to be repeated when their start is.
    """

    keep_sent: int = 4096
    keep_sent_bytes: int = 16 * 1024 * 1024
    max_count: int = 20_000
    max_bytes: int = 64 * 1024 * 1024
    max_age_s: float = 7 * 24 * 3600.0


class Sweep:
    """Holds the bounds of one journal's database; the caller owns the transaction and the thread."""

    def __init__(self, db: sqlite3.Connection, bounds: OutboxBounds, clock: Callable[[], float]) -> None:
        self._db = db
        self._bounds = bounds
        self._clock = clock
        self._clocks = clock(), time.monotonic()  # at the last sweep: wall, and one that nobody sets
        self._forgotten: set[int] = set()

    def run(self, *, by_age: bool) -> set[int]:
        """Delete and shorten what is beyond the bounds; return the row ids of the attempts that are forgotten.

        Raises:
            sqlite3.Error: the database refuses.
        """
        self._forgotten = set()
        self._forget_finished()
        if by_age:
            self._drop_old()
        self._hold_outbox_bounds()
        return self._forgotten

    def _forget_finished(self) -> None:
        """Delivered results beyond the bound go, oldest first, and their attempts with them."""
        delivered = self._db.execute(
            "SELECT seq, attempt, length(payload) FROM outbox WHERE sent = 1 ORDER BY seq DESC"
        )
        gone, room = list[tuple[int, int | None]](), self._bounds.keep_sent_bytes
        for nth, (seq, row, size) in enumerate(delivered.fetchall()):
            room -= size
            if nth >= self._bounds.keep_sent or room < 0:
                gone.append((seq, row))
        self._remove(gone)

    def _remove(self, gone: Sequence[tuple[int, int | None]]) -> None:
        """Delete messages and the finished attempts they tell of."""
        self._db.executemany("DELETE FROM outbox WHERE seq = ?", ((seq,) for seq, _ in gone))
        ids = {row for _, row in gone if row is not None}
        self._db.executemany("DELETE FROM attempts WHERE id = ?", ((i,) for i in ids))
        self._forgotten |= ids

    def _drop_old(self) -> None:
        now, max_age_s = self._follow_clock(), self._bounds.max_age_s
        old = self._db.execute(
            "SELECT seq, attempt FROM outbox WHERE sent = 0 AND created_at < ?", (now - max_age_s,)
        ).fetchall()
        if old:
            self._remove(old)
            log.warning("%d undelivered results older than %.0f s were dropped", len(old), max_age_s)

    def _follow_clock(self) -> float:
        """Return the time. If somebody has set the clock, nothing in the outbox is older or younger for it.

        A Raspberry Pi has no clock of its own: it lives in the past until the network tells it the time.
        """
        wall, steady = self._clocks
        now, self._clocks = self._clock(), (self._clock(), time.monotonic())
        ahead = (now - wall) - (self._clocks[1] - steady)
        if ahead > _CLOCK_SET_S:
            self._db.execute(
                "UPDATE outbox SET created_at = created_at + ? WHERE sent = 0 AND created_at <= ?", (ahead, now - ahead)
            )
        elif ahead < -_CLOCK_SET_S:
            self._db.execute("UPDATE outbox SET created_at = ? WHERE sent = 0 AND created_at > ?", (now, now))
        return now

    def _hold_outbox_bounds(self) -> None:
        bounds = self._bounds
        count, size = self._db.execute("SELECT count(*), total(length(payload)) FROM outbox WHERE sent = 0").fetchone()
        if count > bounds.max_count:
            replies = self._db.execute(
                "DELETE FROM outbox WHERE seq IN (SELECT seq FROM outbox WHERE sent = 0 AND attempt IS NULL"
                " ORDER BY seq LIMIT ?)",
                (count - bounds.max_count,),
            )
            log.warning("%d undelivered answers to refused commands were dropped", replies.rowcount)
        if size > bounds.max_bytes:
            self._shorten(size - bounds.max_bytes)

    def _shorten(self, surplus: float) -> None:
        """Undelivered results lose their text, oldest first, until `surplus` bytes are saved."""
        rows = self._db.execute(
            "SELECT seq, payload FROM outbox WHERE sent = 0 AND attempt IS NOT NULL AND length(payload) > 1024"
            " ORDER BY seq"
        ).fetchall()
        for seq, payload in rows:
            if surplus <= 0:
                return
            short = shortened(payload)
            self._db.execute("UPDATE outbox SET payload = ? WHERE seq = ?", (short, seq))
            surplus -= len(payload) - len(short)
            log.warning("the text of an undelivered result (%d bytes) was dropped: the outbox is full", len(payload))
