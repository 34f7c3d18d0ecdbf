"""The journal keeps what it said it kept, within its bounds, whatever happens to the process or the disk."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proplet.agent import codec, wire
from proplet.agent.events import RunKey, SaveAccepted, SaveOutcome, SaveReply, SaveResend, SaveState
from proplet.agent.journal import SqliteJournal, open_journal
from proplet.agent.journal_sweep import OutboxBounds
from proplet.agent.lifecycle import State
from proplet.agent.ports import StorageError
from tests.support.disks import mounted

pytestmark = pytest.mark.anyio

RESULTS = "control/proplet/results"
KEY = RunKey("t", 1)
START = wire.Start("t", "main", inputs=("10", "32"), ext=wire.StartTerms(attempt=1))


def accepted(key: RunKey = KEY) -> SaveAccepted:
    return SaveAccepted(key, START, "sha256:m", "hash", 100.0)


def outcome(key: RunKey = KEY, text: str = "42", at: float | None = None) -> SaveOutcome:
    payload = codec.encode(wire.Result(key.task_id, "p", text))
    return SaveOutcome(key, State.COMPLETED, time.time() if at is None else at, "hash", RESULTS, payload)


async def payloads(journal: SqliteJournal) -> list[str]:
    return [codec.decode_as(wire.Result, row.payload).results for row in await journal.pending(0, 10_000)]


async def test_what_was_accepted_and_not_finished_is_there_after_a_restart(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db") as journal:
        await journal.commit([accepted(), accepted(RunKey("u", 3))])
        await journal.commit(
            [SaveState(KEY, State.RUNNING, 1.0), SaveState(RunKey("u", 3), State.WAITING, 1.0, 2, 55.0)]
        )
    async with open_journal(tmp_path / "j.db") as journal:
        held = await journal.load()
    first, second = held.unfinished
    assert (first.key, first.start, first.module_digest, first.state) == (KEY, START, "sha256:m", State.RUNNING)
    assert (second.key, second.state, second.restarts, second.not_before) == (RunKey("u", 3), State.WAITING, 2, 55.0)


async def test_a_finished_attempt_is_known_and_its_result_waits_after_a_restart(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db") as journal:
        await journal.commit([accepted(), outcome()])
    async with open_journal(tmp_path / "j.db") as journal:
        held = await journal.load()
        assert (held.unfinished, dict(held.finished)) == ((), {KEY: "hash"})
        assert await payloads(journal) == ["42"]
        assert await journal.unsent_attempts() == [KEY]


async def test_a_result_that_was_acknowledged_is_not_sent_again_but_can_be_repeated(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db") as journal:
        await journal.commit([accepted(), outcome()])
        await journal.sent([row.seq for row in await journal.pending(0, 10)])
        assert await payloads(journal) == []
        await journal.flush()
    async with open_journal(tmp_path / "j.db") as journal:
        await journal.load()
        assert await payloads(journal) == []
        await journal.commit([SaveResend(KEY)])
        assert await payloads(journal) == ["42"]
        await journal.commit([SaveResend(KEY)])
        assert await payloads(journal) == ["42"], "one that waits already is not doubled"


async def test_a_result_acknowledged_a_moment_ago_is_undelivered_no_more(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db") as journal:
        await journal.commit([accepted(), outcome()])
        assert await journal.unsent_attempts() == [KEY]
        await journal.sent([row.seq for row in await journal.pending(0, 10)])
        assert await journal.unsent_attempts() == []


async def test_a_result_acknowledged_a_moment_ago_is_repeated_too(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db") as journal:
        await journal.commit([accepted(), outcome()])
        await journal.sent([row.seq for row in await journal.pending(0, 10)])
        await journal.commit([SaveResend(KEY)])
        assert await payloads(journal) == ["42"]


async def test_a_commit_is_all_or_nothing(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db") as journal:
        with pytest.raises(AssertionError):
            await journal.commit([accepted(), SaveState(RunKey("never seen", 1), State.RUNNING, 1.0)])
        assert (await journal.load()).unfinished == ()
        await journal.commit([accepted()])
        assert len((await journal.load()).unfinished) == 1


async def test_results_are_delivered_in_the_order_they_came_about(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db") as journal:
        keys = [RunKey(f"t{i}", 1) for i in range(20)]
        await journal.commit([accepted(k) for k in keys])
        for key in reversed(keys):
            await journal.commit([outcome(key, key.task_id)])
        rows = await journal.pending(0, 5)
        assert [codec.decode_as(wire.Result, r.payload).results for r in rows] == ["t19", "t18", "t17", "t16", "t15"]
        rest = await journal.pending(rows[-1].seq, 100)
        assert len(rest) == 15


async def test_only_so_many_delivered_results_are_kept_and_their_attempts_are_forgotten(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db", OutboxBounds(keep_sent=10)) as journal:
        for block in range(6):
            keys = [RunKey(f"t{block}-{i}", 1) for i in range(300)]
            await journal.commit([accepted(k) for k in keys])
            await journal.commit([outcome(k) for k in keys])
            await journal.sent([row.seq for row in await journal.pending(0, 1000)])
        await journal.flush()
        await journal.commit([SaveReply(RESULTS, b"{}", 1.0)] * 600)
    async with open_journal(tmp_path / "j.db") as journal:
        assert len((await journal.load()).finished) == 10


async def test_kept_results_are_bounded_by_bytes_too(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db", OutboxBounds(keep_sent_bytes=50_000)) as journal:
        for i in range(8):
            await journal.commit([outcome(RunKey(f"t{i}", 1), "x" * 20_000)])
            await journal.sent([row.seq for row in await journal.pending(0, 1000)])
        await journal.flush()
        await journal.commit([SaveReply(RESULTS, b"{}", time.time())] * 600)
    async with open_journal(tmp_path / "j.db") as journal:
        assert list((await journal.load()).finished) == [RunKey("t6", 1), RunKey("t7", 1)]


async def test_an_outbox_over_its_bytes_drops_the_text_of_results_and_never_that_they_ended(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db", OutboxBounds(max_bytes=100_000)) as journal:
        keys = [RunKey(f"t{i}", 1) for i in range(600)]
        await journal.commit([outcome(k, "x" * 2000) for k in keys])
        texts = await payloads(journal)
    assert len(texts) == 600
    assert "bytes dropped" in texts[0]
    assert texts[-1] == "x" * 2000 or "bytes dropped" in texts[-1]


async def test_answers_to_refused_commands_give_way_first(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db", OutboxBounds(max_count=50)) as journal:
        replies = [
            SaveReply(RESULTS, codec.encode(wire.Result(f"bad{i}", "p", error="no")), time.time()) for i in range(600)
        ]
        await journal.commit([outcome(), *replies])
        rows = await journal.pending(0, 1000)
    assert len(rows) == 50
    assert codec.decode_as(wire.Result, rows[0].payload).results == "42"


async def test_what_nobody_took_for_too_long_is_dropped(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db", OutboxBounds(max_age_s=3600)) as journal:
        old = [outcome(RunKey(f"t{i}", 1), at=time.time() - 7200) for i in range(600)]
        await journal.commit(old)
        await journal.commit([outcome(RunKey("new", 1), "new")] + [SaveResend(RunKey("new", 1))] * 600)
        assert await payloads(journal) == ["new"]


async def test_a_second_node_on_the_same_journal_is_refused_by_name(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.db"):
        with pytest.raises(StorageError, match=r"j\.db is in use by another node"):
            async with open_journal(tmp_path / "j.db"):
                pass


async def test_a_journal_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "j.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    before = (tmp_path / "j.db").read_bytes()
    with pytest.raises(StorageError, match="written by a newer proplet"):
        async with open_journal(tmp_path / "j.db"):
            pass
    assert (tmp_path / "j.db").read_bytes()[100:] == before[100:]


async def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "j.db").write_bytes(b"hello " * 1000)
    with pytest.raises(StorageError, match="damaged"):
        async with open_journal(tmp_path / "j.db"):
            pass
    assert (tmp_path / "j.db").read_bytes() == b"hello " * 1000


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used"):
        async with open_journal(tmp_path / "file" / "j.db"):
            pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one MiB."""
    with mounted(tmp_path / "disk", "size=1m") as disk:
        yield disk


async def test_a_full_disk_is_said_so_loses_nothing_and_work_goes_on_when_there_is_room(small_disk: Path) -> None:
    filler = small_disk / "filler"
    async with open_journal(small_disk / "j.db") as journal:
        await journal.commit([accepted()])
        filler.write_bytes(b"x" * 700_000)
        big = outcome(RunKey("big", 1), "y" * 400_000)
        with pytest.raises(StorageError, match="full"):
            await journal.commit([outcome(), big])
        assert await payloads(journal) == []
        filler.unlink()
        await journal.commit([outcome(), big])
    async with open_journal(small_disk / "j.db") as journal:
        assert set((await journal.load()).finished) == {KEY, RunKey("big", 1)}


WRITER = """
import anyio, itertools, sys
from pathlib import Path
from proplet.agent import wire
from proplet.agent.events import *
from proplet.agent.journal import open_journal
from proplet.agent.lifecycle import State

async def main():
    async with open_journal(Path(sys.argv[1])) as journal:
        await journal.load()
        for n in itertools.count():
            key = RunKey(f"t{n}", 1)
            await journal.commit([SaveAccepted(key, wire.Start(key.task_id, "main"), None, "h", 1.0)])
            print(f"accepted {n}", flush=True)
            await journal.commit([SaveOutcome(key, State.COMPLETED, 2.0, "h", "control/proplet/results", b"{}")])
            print(f"finished {n}", flush=True)

anyio.run(main)
"""


def said_before_it_was_killed(path: Path, after: int) -> list[str]:
    """Let a process write until it has said so many lines, kill it, return all it said."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(after)]
        writer.send_signal(signal.SIGKILL)
        return said + writer.stdout.readlines()


@pytest.mark.parametrize("after", [1, 7, 40])
async def test_everything_it_said_it_kept_is_there_after_a_kill(tmp_path: Path, after: int) -> None:
    path = tmp_path / "j.db"
    said = said_before_it_was_killed(path, after)
    async with open_journal(path) as journal:
        held = await journal.load()
    finished = {f"t{line.split()[1]}" for line in said if line.startswith("finished")}
    begun = {f"t{line.split()[1]}" for line in said if line.startswith("accepted")}
    known = {k.task_id for k in held.finished}
    assert finished <= known
    assert begun <= known | {a.key.task_id for a in held.unfinished}


async def test_what_an_image_was_is_known_after_a_restart_and_not_forgotten_by_a_later_state(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with open_journal(path) as journal:
        await journal.commit([accepted(), SaveState(KEY, State.RUNNING, 1.0, image_digest="sha256:i")])
        await journal.commit([SaveState(KEY, State.WAITING, 2.0, 1, 5.0)])
    async with open_journal(path) as journal:
        (row,) = (await journal.load()).unfinished
        assert (row.state, row.image_digest) == (State.WAITING, "sha256:i")


async def test_a_journal_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with open_journal(path) as journal:
        await journal.commit([accepted()])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("ALTER TABLE attempts DROP COLUMN image_digest")
        db.execute("PRAGMA user_version=1")
    async with open_journal(path) as journal:
        (row,) = (await journal.load()).unfinished
        assert (row.key, row.image_digest) == (KEY, None)
