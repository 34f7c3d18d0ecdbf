"""The journal's bounds on devices that are switched off every night and have no clock of their own."""

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from proplet.agent import codec, wire
from proplet.agent.admission import CoreSettings
from proplet.agent.core import Core
from proplet.agent.events import RunKey, SaveAccepted, SaveOutcome, SaveResend
from proplet.agent.journal import SqliteJournal, open_journal
from proplet.agent.journal_sweep import OutboxBounds
from proplet.agent.lifecycle import State

pytestmark = pytest.mark.anyio

YEARS = 30 * 365 * 86_400.0
BOUNDS = OutboxBounds(keep_sent=10, max_age_s=3600)


@dataclass
class Clock:
    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def outcome(task_id: str, at: float) -> SaveOutcome:
    payload = codec.encode(wire.Result(task_id, "p", task_id))
    return SaveOutcome(RunKey(task_id, 1), State.COMPLETED, at, "hash", "control/proplet/results", payload)


async def undelivered(journal: SqliteJournal) -> list[str]:
    return [codec.decode_as(wire.Result, row.payload).results for row in await journal.pending(0, 10_000)]


async def sweep(journal: SqliteJournal) -> None:
    """Six hundred saves that save nothing."""
    await journal.commit([SaveResend(RunKey("nobody", 1))] * 600)


async def test_a_node_that_never_runs_long_keeps_its_journal_within_its_bounds(tmp_path: Path) -> None:
    for day in range(4):
        async with open_journal(tmp_path / "j.db", BOUNDS) as journal:
            held = await journal.load()
            assert len(held.finished) <= 10
            await journal.commit([outcome(f"t{day}-{n}", time.time()) for n in range(30)])
            await journal.sent([row.seq for row in await journal.pending(0, 1000)])


async def test_results_from_before_the_clock_was_set_are_not_old(tmp_path: Path) -> None:
    clock = Clock(-YEARS)
    async with open_journal(tmp_path / "j.db", BOUNDS, clock) as journal:
        await journal.load()
        await journal.commit([outcome("before", clock())])
        clock.ahead = 0.0
        await journal.commit([outcome("after", clock())])
        await sweep(journal)
        await sweep(journal)
        assert await undelivered(journal) == ["before", "after"]
        clock.ahead = 60 * 50.0
        await sweep(journal)
        assert await undelivered(journal) == ["before", "after"]


async def test_a_clock_that_was_set_back_makes_no_result_last_for_ever(tmp_path: Path) -> None:
    clock = Clock(YEARS)
    async with open_journal(tmp_path / "j.db", BOUNDS, clock) as journal:
        await journal.load()
        await journal.commit([outcome("before", clock())])
        clock.ahead = 0.0
        await journal.commit([outcome("after", clock())])
        await sweep(journal)
        assert await undelivered(journal) == ["before", "after"]
    clock.ahead = 4000.0
    async with open_journal(tmp_path / "j.db", BOUNDS, clock) as journal:
        await journal.load()
        assert await undelivered(journal) == ["before", "after"], "what waits is tried once before it is given up"
        await sweep(journal)
        assert await undelivered(journal) == []


async def test_a_command_of_another_version_ends_its_task_and_not_the_node(tmp_path: Path) -> None:
    start = wire.Start("t", "main", ext=wire.StartTerms(attempt=4, restart_policy=wire.RestartPolicy.ALWAYS))
    async with open_journal(tmp_path / "j.db") as journal:
        await journal.commit([SaveAccepted(RunKey("t", 4), start, "sha256:m", "hash", 1.0)])
    with sqlite3.connect(tmp_path / "j.db") as db:
        db.execute("UPDATE attempts SET start = ?", (b'{"id":"t","name":"main","ext":{"restart_policy":"Sometimes"}}',))
    db.close()
    async with open_journal(tmp_path / "j.db") as journal:
        step = Core(CoreSettings("me")).recover(await journal.load(), 2.0)
        await journal.commit(step.save)
        (row,) = await journal.pending(0, 10)
    result = codec.decode_as(wire.Result, row.payload)
    assert (result.task_id, result.ext.attempt, result.ext.reason) == ("t", 4, wire.Reason.INTERRUPTED)


async def test_large_results_are_read_a_few_at_a_time_and_none_is_missed(tmp_path: Path) -> None:
    text = "x" * 3_000_000
    async with open_journal(tmp_path / "j.db") as journal:
        for n in range(4):
            payload = codec.encode(wire.Result(f"t{n}", "p", text))
            key = RunKey(f"t{n}", 1)
            await journal.commit(
                [SaveOutcome(key, State.COMPLETED, time.time(), "h", "control/proplet/results", payload)]
            )
        seen, after = list[int](), 0
        while rows := await journal.pending(after, 64):
            assert len(rows) <= 2
            seen += [row.seq for row in rows]
            after = rows[-1].seq
        assert len(seen) == 4
        await journal.sent(seen[:3])
        assert [row.seq for row in await journal.pending(0, 64)] == seen[3:], "what is acknowledged takes no room"


async def test_the_bound_of_bytes_holds_after_a_few_large_results(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db", OutboxBounds(max_bytes=1_000_000)) as journal:
        for n in range(8):
            payload = codec.encode(wire.Result(f"t{n}", "p", "x" * 3_000_000))
            key = RunKey(f"t{n}", 1)
            await journal.commit(
                [SaveOutcome(key, State.COMPLETED, time.time(), "h", "control/proplet/results", payload)]
            )
        kept = sum(len(row.payload) for row in await journal.pending(0, 64))
    assert kept < 7_000_000
