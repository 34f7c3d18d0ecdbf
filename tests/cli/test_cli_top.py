"""``proplet top`` against a node's API over its socket, and on a terminal."""

import json
import os
import pty
import signal
import time
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from proplet.agent.cli_top import table
from proplet.agent.wire import (
    CpuMetrics,
    MemoryMetrics,
    Metadata,
    MeterTerms,
    PropletMetrics,
    TaskMetrics,
    TaskSample,
)
from proplet.manager.model import Key, Kind, Meta, Proplet, PropletStatus
from proplet.manager.phases import Phase
from proplet.manager.ports import Liveness
from tests.api.fakes import Node
from tests.cli.command import COMMAND, environment, proplet
from tests.cli.test_cli_resources import manifest, record

pytestmark = pytest.mark.anyio


def measured(task: str, attempt: int, at: float, cpu: float, proplet_id: str = "pi-1", **terms: int) -> TaskMetrics:
    ext = MeterTerms(attempt, 1.5, **terms)
    return TaskMetrics(task, proplet_id, TaskSample(cpu, 3 * 65536, uptime_seconds=9), None, at, ext)


@pytest.fixture
async def busy(node: Node, home: Path) -> Node:
    """Two tasks that run, one that is over, and the proplet they are on."""
    assert (await proplet(home, "apply", "-f", "-", stdin=manifest("calm", "hot", "over", "new"))).code == 0
    now = time.time()
    for name, cpu in (("calm", 0.5), ("hot", 97.0), ("over", 50.0)):
        phase = Phase.COMPLETED if name == "over" else Phase.RUNNING
        task = await record(node, name, phase=phase, attempt=2, proplet_id="pi-1", started_at=now - 300)
        old = measured(task.id, 1, now - 60, 33.3)
        node.control.tasks_metrics[task.id] = (old, measured(task.id, 2, now - 3, cpu, restarts=1))
    fresh = await record(node, "new", phase=Phase.RUNNING, attempt=2, proplet_id="pi-1", started_at=now)
    node.control.tasks_metrics[fresh.id] = (measured(fresh.id, 1, now - 60, 33.3),)
    await node.store.create(
        Proplet(Meta("pi-1", uid="u1"), status=PropletStatus(metadata=Metadata(total_memory_bytes=1 << 30)))
    )
    node.control.alive["pi-1"] = Liveness(alive=True, last_seen=now, task_count=3)
    node.control.proplets_metrics["pi-1"] = (
        PropletMetrics("pi-1", timestamp=now - 14, cpu_metrics=CpuMetrics(1.0, 1.0, 10.0)),
        PropletMetrics("pi-1", "default", now - 4, CpuMetrics(5.0, 2.0, 60.0), MemoryMetrics(rss_bytes=1 << 28)),
    )
    return node


def words(line: str) -> list[str]:
    return [word for word in line.split("  ") if word.strip()]


async def test_what_runs_is_shown_who_uses_most_first_with_the_age_of_each_measurement(busy: Node, home: Path) -> None:
    done = await proplet(home, "top")
    assert (done.code, done.err) == (0, "")
    head, *rows = done.out.splitlines()
    assert head.split() == "NAME PROPLET STATE CPU% CPU TIME MEMORY UPTIME RESTARTS INVOCATIONS MEASURED".split()
    assert [row.split()[0] for row in rows] == ["hot", "calm", "new"], "what is over uses nothing"
    assert [word.strip() for word in words(rows[0])][:8] == "hot|pi-1|running|97.0|1.5 s|192 KiB|5m|1".split("|")
    assert rows[0].endswith("s ago")
    assert [word.strip() for word in words(rows[2])][3:6] == ["-", "-", "-"], "an earlier attempt's are not its"


async def test_proplets_are_shown_with_their_own_use_and_their_machines(busy: Node, home: Path) -> None:
    done = await proplet(home, "top", "proplets")
    row = [word.strip() for word in words(done.out.splitlines()[1])]
    assert row[:8] == ["pi-1", "alive", "3", "50.0", "7 s", "256 MiB", "25.0", "60.0"]


async def test_programs_get_it_as_json(busy: Node, home: Path) -> None:
    done = await proplet(home, "top", "-o", "json")
    hot = next(one for one in json.loads(done.out) if one["name"] == "hot")
    assert (hot["attempt"], hot["cpu_percent"], hot["cpu_seconds"], hot["restarts"]) == (2, 97.0, 1.5, 1)
    assert "invocations" not in hot, "it is not latent"


async def test_a_broadcast_task_has_a_line_for_each_proplet_that_measures_it(busy: Node, home: Path) -> None:
    task = await record(busy, "calm", phase=Phase.RUNNING)
    now = time.time()
    both = (measured(task.id, 2, now, 1.0), measured(task.id, 2, now, 2.0, "pi-2"))
    busy.control.tasks_metrics[task.id] = both
    rows = [line.split()[:2] for line in (await proplet(home, "top")).out.splitlines() if line.startswith("calm")]
    assert rows == [["calm", "pi-2"], ["calm", "pi-1"]]


async def test_a_task_stands_where_its_device_says_that_it_does(busy: Node, home: Path) -> None:
    for name, attempt, state in (("hot", 2, "crash_loop"), ("calm", 1, "waiting"), ("new", None, "deployed")):
        task = await busy.store.get(Kind.TASK, Key(name))
        busy.control.tasks_states[task.meta.uid] = {"pi-1": (attempt, state), "pi-2": (2, "serving")}
    rows = {line.split()[0]: line.split()[2] for line in (await proplet(home, "top")).out.splitlines()}
    assert (rows["hot"], rows["new"]) == ("crash_loop", "deployed")
    assert rows["calm"] == "running", "what was said of an earlier attempt is not said of this one"


async def test_describe_tells_what_a_task_that_runs_uses(busy: Node, home: Path) -> None:
    said = (await proplet(home, "describe", "task", "hot")).out
    lines = [line.strip() for line in said.splitlines()]
    assert lines.index("Measured:") > lines.index("Status:")
    assert "CPU Percent:   97.0" in lines
    assert "Memory Bytes:  192 KiB" in lines
    assert "Restarts:      1" in lines
    assert "Measured" not in (await proplet(home, "describe", "task", "over")).out


async def test_where_nothing_runs_that_is_said(node: Node, home: Path) -> None:
    assert await proplet(home, "top") == (0, "no tasks are under way\n", "")
    wrong = await proplet(home, "top", "--interval", "soon")
    assert (wrong.code, wrong.out) == (2, "")


async def test_on_a_terminal_it_goes_on_until_it_is_ended(busy: Node, home: Path) -> None:
    outside, inside = pty.openpty()
    process = await anyio.open_process(
        [COMMAND, "top", "--interval", "100ms"], stdout=inside, stderr=inside, env=environment(home), cwd=home
    )
    os.close(inside)
    try:
        shown = b""
        with anyio.fail_after(30):
            while shown.count(b"\x1b[H\x1b[J") < 3:
                await anyio.wait_readable(outside)
                shown += os.read(outside, 65536)
            assert shown.count(b"hot") >= 2
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.aclose()
        os.close(outside)


def test_names_cannot_steer_the_terminal() -> None:
    (_, row) = table("tasks", [{"name": "a\x1b[2J", "cpu_percent": 1.0}], 0.0)
    assert "\x1b" not in row
