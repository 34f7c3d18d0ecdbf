"""What guests print while they run, through real workers: told live, bounded, and kept for the outcome."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent.ports import Job, Notice, Outcome, Output
from proplet.agent.task_logs import Cutter, LogLimits
from proplet.agent.wire import Reason
from tests.runtime.conftest import open_node

pytestmark = pytest.mark.anyio

KIB = 1024


class Heard:
    """What one run told, and when its outcome came."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.outcome: Outcome | None = None
        self._news = anyio.Event()

    def tell(self, notice: Notice) -> None:
        assert isinstance(notice, Output)
        assert self.outcome is None
        self.outputs.append(notice)
        self._news.set()
        self._news = anyio.Event()

    def data(self, stream: str = "stdout") -> bytes:
        return b"".join(output.data for output in self.outputs if output.stream == stream)

    @property
    def lost(self) -> tuple[int, int]:
        return sum(o.lost[0] for o in self.outputs), sum(o.lost[1] for o in self.outputs)

    async def until(self, met: Any) -> None:
        with anyio.fail_after(20):
            while not met():
                await self._news.wait()

    async def run(self, node: Any, job: Job) -> Outcome:
        self.outcome = await node.runtime.run(job, self.tell)
        return self.outcome


async def test_a_short_run_tells_nothing_its_outcome_has_all(node: Any) -> None:
    heard = Heard()
    outcome = await heard.run(node, await node.job("printer", "void"))
    assert (heard.outputs, outcome.stdout) == ([], b"hello")


async def test_what_a_run_prints_is_told_while_it_runs_and_all_of_it_before_its_outcome(node: Any) -> None:
    heard = Heard()
    outcome = await heard.run(node, await node.job("counter", "count", ["12", "50"]))
    assert outcome.reason is Reason.OK
    assert len(heard.outputs) > 1
    assert heard.data() == outcome.stdout == b"".join(b"%d\n" % n for n in range(12))
    assert heard.lost == (0, 0)


async def test_a_daemon_is_heard_until_it_is_stopped(node: Any) -> None:
    heard = Heard()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heard.run, node, await node.job("counter", "_start", key="daemon", wall_s=None))
        await heard.until(lambda: b"\n5\n" in heard.data())
        node.runtime.stop("daemon")
    assert heard.outcome is not None
    assert heard.outcome.reason is Reason.STOPPED
    assert heard.outcome.stdout == heard.data()


async def test_a_character_cut_between_two_writes_is_whole_again(node: Any) -> None:
    heard, cutter = Heard(), Cutter()
    outcome = await heard.run(node, await node.job("counter", "halves", ["600"]))
    assert outcome.stderr.decode() == "\u20ac half \u20ac\n"
    assert [output.data[-2:] for output in heard.outputs] == [b"\xe2\x82", b"\xac\n"]
    assert [line for output in heard.outputs for line in cutter.feed(output.data)] == ["\u20ac half \u20ac".encode()]


async def test_of_a_daemon_in_a_worker_of_its_own_the_last_is_kept_though_the_worker_is_killed(node: Any) -> None:
    heard = Heard()
    job = await node.job("counter", "flood", key="own", wall_s=None, cpu_s=None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heard.run, node, replace(job, artefact=replace(job.artefact, waits=True)))
        await heard.until(lambda: len(heard.data()) > 128 * KIB)
        os.kill(node.runtime.worker_of("own"), signal.SIGSTOP)
        node.runtime.stop("own")
    assert heard.outcome is not None
    assert heard.outcome.reason is Reason.STOPPED
    assert heard.outcome.stdout == heard.data()[-64 * KIB :]


async def test_how_much_is_told_is_the_nodes_to_say(warm_directory: Path) -> None:
    heard = Heard()
    async with open_node(warm_directory, log_limits=LogLimits(KIB, 64 * KIB)) as node:
        await heard.run(node, await node.job("counter", "flood", wall_s=1.0))
    assert 64 * KIB <= len(heard.data()) < 72 * KIB
    assert heard.lost[1] > 1024 * KIB


async def test_a_flood_is_bounded_counted_and_does_not_hurt_its_neighbours(node: Any) -> None:
    heard, times = Heard(), []
    async with anyio.create_task_group() as tasks:
        await node.run("addition", "main", "1", "2")
        tasks.start_soon(heard.run, node, await node.job("counter", "flood", key="flood", wall_s=None, cpu_s=None))
        await heard.until(lambda: len(heard.outputs) > 2)
        began, already = time.monotonic(), len(heard.data())
        while time.monotonic() < began + 1.5:
            started = time.monotonic()
            assert (await node.run("addition", "main", "1", "2")).results == "3"
            times.append(time.monotonic() - started)
        told = len(heard.data()) - already
        node.runtime.stop("flood")
    assert told < 2 * 2 * 64 * KIB + 256 * KIB
    lines, size = heard.lost
    assert lines * 64 >= size - 2 * len(heard.outputs) * 64 > 1024 * KIB
    assert heard.outcome is not None
    assert len(heard.outcome.stdout) == 64 * KIB
    assert sorted(times)[len(times) // 2] < 0.05
