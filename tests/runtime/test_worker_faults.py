"""What a worker's death, deafness or refusal does: to the guest that caused it, to its neighbours, to the agent."""

import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent.ports import Outcome
from proplet.agent.runtime_outcome import obituary
from proplet.agent.runtime_ticket import Ticket
from proplet.agent.wire import Reason
from proplet.agent.worker_frames import encode
from proplet.agent.worker_orders import DONE, OUTPUT
from tests.runtime.conftest import open_node

pytestmark = pytest.mark.anyio

_PIDFD_GETFD = 438  # the same number on every machine


async def test_a_worker_killed_while_it_ran_one_guest_fails_it_and_names_the_signal(node: Any) -> None:
    outcomes = await _meanwhile(node, ["loop"], lambda: _kill(node, signal.SIGKILL))
    assert outcomes[0].reason is Reason.WORKER_CRASHED
    assert "SIGKILL" in outcomes[0].error
    assert (await node.run("addition", "main", "1", "2")).results == "3"


async def test_a_worker_that_crashes_is_named_with_its_signal(node: Any) -> None:
    outcomes = await _meanwhile(node, ["loop"], lambda: _kill(node, signal.SIGABRT))
    assert "SIGABRT" in outcomes[0].error


async def test_when_it_ran_several_nobody_is_blamed_and_each_runs_once_more_alone(node: Any) -> None:
    counts = ["400000000", "400000001", "400000002"]
    outcomes = await _meanwhile(node, ["loop"] * 3, lambda: _kill(node, signal.SIGKILL), counts)
    assert [outcome.results for outcome in outcomes] == counts


async def test_a_guest_that_loses_its_second_worker_too_fails(node: Any) -> None:
    async def twice() -> None:
        _kill(node, signal.SIGKILL)
        await node.running("guest-0", "guest-1")
        _kill(node, signal.SIGKILL)

    outcomes = await _meanwhile(node, ["loop", "loop"], twice)
    assert {outcome.reason for outcome in outcomes} == {Reason.WORKER_CRASHED}


async def test_daemons_that_lose_their_worker_all_run_again_in_few_workers(node: Any) -> None:
    keys = [f"daemon-{number}" for number in range(10)]
    async with _daemons(node, keys) as outcomes:
        _kill(node, signal.SIGKILL)
        await node.running(*keys)
        assert len(node.runtime.worker_pids) == 2
        assert outcomes == {}


async def test_of_many_daemons_the_one_that_ends_its_worker_is_found(warm_directory: Path) -> None:
    keys = [f"daemon-{number}" for number in range(10)]
    async with open_node(warm_directory, strikes=1) as node, _daemons(node, keys) as outcomes:
        for _ in range(8):  # its worker ends whenever it runs
            if "daemon-6" in outcomes:
                break
            worker = node.runtime.worker_of("daemon-6")
            os.kill(worker, signal.SIGKILL)
            while node.runtime.worker_of("daemon-6") == worker:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            await node.running(*(set(keys) - outcomes.keys()))
        assert {key: outcome.reason for key, outcome in outcomes.items()} == {"daemon-6": Reason.WORKER_CRASHED}
        assert (await node.run("sleeper", "_start")).reason is Reason.QUARANTINED


async def test_a_stopped_process_is_noticed_and_its_guest_gets_its_timeout(node: Any) -> None:
    outcomes = await _meanwhile(node, ["loop"], lambda: _kill(node, signal.SIGSTOP), wall_s=0.5)
    assert outcomes[0].reason is Reason.TIMEOUT
    assert "worker was killed" in outcomes[0].error
    assert (await node.run("addition", "main", "1", "2")).results == "3"


async def test_a_stop_that_a_stuck_worker_does_not_obey_ends_the_worker(node: Any) -> None:
    def stick_and_stop() -> None:
        _kill(node, signal.SIGSTOP)
        node.runtime.stop("guest-0")

    outcomes = await _meanwhile(node, ["loop"], stick_and_stop)
    assert outcomes[0].reason is Reason.STOPPED


async def test_a_deaf_worker_is_killed_though_no_guest_is_overdue(node: Any) -> None:
    outcomes = await _meanwhile(node, ["sleeper"], lambda: _kill(node, signal.SIGSTOP))
    assert outcomes[0].reason is Reason.WORKER_CRASHED
    assert "did not answer" in outcomes[0].error


@pytest.mark.parametrize(
    "content",
    [
        ["no such reason", ""],
        ["ok", 5],
        ["ok", None, None, None, "text, not bytes"],
        ["trap", "", 5],
        ["ok", "", None, None, b"", b"", "much"],
    ],
)
async def test_a_worker_that_reports_nonsense_is_ended_and_its_run_is_answered(node: Any, content: list[Any]) -> None:
    async def misreport() -> None:
        ticket = node.runtime._by_key["guest-0"]
        _write_as_the_worker(ticket.link.pid, [DONE, [ticket.number, *content]])

    outcomes = await _meanwhile(node, ["loop"], misreport, wall_s=10.0)
    assert outcomes[0].reason is Reason.WORKER_CRASHED
    assert "sent nonsense" in outcomes[0].error
    assert node.runtime._lanes.running == 0, "its slot is free again"
    assert (await node.run("addition", "main", "1", "2")).results == "3"


@pytest.mark.parametrize("message", [[OUTPUT, [1, "stdout", 5, 0, 0]], [OUTPUT, [1]], [DONE, 5], [99, 0], 7, {}])
async def test_a_worker_that_talks_nonsense_is_ended_and_nobody_else(node: Any, message: Any) -> None:
    async def talk() -> None:
        ticket = node.runtime._by_key["guest-0"]
        if message and message != 7 and message[0] == OUTPUT:
            message[1][0] = ticket.number
        _write_as_the_worker(ticket.link.pid, message)

    outcomes = await _meanwhile(node, ["loop"], talk, wall_s=10.0)
    assert outcomes[0].reason is Reason.WORKER_CRASHED
    assert (await node.run("addition", "main", "1", "2")).results == "3"


async def test_a_module_that_costs_three_workers_is_quarantined_and_no_other(warm_directory: Path) -> None:
    async with open_node(warm_directory, quarantine_s=600) as node:
        for _ in range(3):
            outcomes = await _meanwhile(node, ["loop"], lambda: _kill(node, signal.SIGKILL))
            assert outcomes[0].reason is Reason.WORKER_CRASHED
        refused = await node.run("loop")
        assert refused.reason is Reason.QUARANTINED
        assert "3 workers" in refused.error
        assert (await node.run("addition", "main", "1", "2")).results == "3"


async def test_invocations_do_not_wait_for_long_jobs(warm_directory: Path) -> None:
    async with open_node(warm_directory, max_running=2) as node, anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(node.runtime.run, await node.job("sleeper", "_start", key=f"long-{number}"))
        await node.running("long-0", "long-1")
        calls = [await node.job("addition", "main", [str(n), "1"], invoked=True) for n in range(8)]
        with anyio.fail_after(10):
            assert [(await node.runtime.run(call)).results for call in calls] == [str(n + 1) for n in range(8)]
        for number in range(4):
            node.runtime.stop(f"long-{number}")


async def test_an_invocation_that_no_worker_begins_with_is_answered_in_time(warm_directory: Path) -> None:
    async with (
        open_node(warm_directory, max_running=1, patience_s=3) as node,
        anyio.create_task_group() as tasks,
    ):
        for guest, export in (("sleeper", "_start"), ("component_waiting", "sleep")):
            inputs = ["1000000"] if export == "sleep" else []
            tasks.start_soon(node.runtime.run, await node.job(guest, export, inputs, key="long", invoked=True))
            await node.running("long")
            with anyio.fail_after(10):
                refused = await node.runtime.run(await node.job(guest, export, inputs, invoked=True))
            assert refused.reason is Reason.OVERLOADED
            assert refused.error == "no worker was free for it within 3 s: try again later"
            node.runtime.stop("long")
            await node.running()
        assert (await node.run("addition", "main", "1", "2", invoked=True)).results == "3", "its slot is free"
        assert node.runtime._lanes.running == 0


async def test_an_invocation_is_answered_while_its_worker_comes_back_late(warm_directory: Path) -> None:
    async with open_node(warm_directory, patience_s=0.2) as node:
        node.runtime._crashes = 100  # the next worker starts after seconds
        with anyio.fail_after(5):
            refused = await node.run("addition", "main", "1", "2", invoked=True)
        assert refused.reason is Reason.OVERLOADED
        assert node.runtime._lanes.running == 0


async def test_of_an_answered_invocation_nothing_is_kept(node: Any) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(50):
            call = await node.job("addition", "main", [str(number), "1"], invoked=True)
            tasks.start_soon(node.runtime.run, call)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, Ticket)]


async def test_a_quarantine_ends(warm_directory: Path) -> None:
    async with open_node(warm_directory, strikes=1, quarantine_s=0.2) as node:
        await _meanwhile(node, ["loop"], lambda: _kill(node, signal.SIGKILL))
        assert (await node.run("loop")).reason is Reason.QUARANTINED
        await anyio.sleep(0.25)
        assert (await node.run("loop", wall_s=0.1)).reason is Reason.TIMEOUT


async def test_an_idle_worker_is_stopped_and_the_next_job_starts_one(warm_directory: Path) -> None:
    async with open_node(warm_directory, idle_s=0.2) as node:
        await node.run("addition", "main", "1", "2")
        (first,) = node.runtime.worker_pids
        with anyio.fail_after(10):
            await _gone(first)
        assert (await node.run("addition", "main", "1", "2")).results == "3"
        assert node.runtime.worker_pids != [first]


async def test_no_worker_runs_before_the_first_job_unless_it_is_asked_for(warm_directory: Path) -> None:
    async with open_node(warm_directory) as node:
        assert node.runtime.worker_pids == []
        assert await node.runtime.sample() == {}
        node.runtime.warm()
        with anyio.fail_after(10):
            while not node.runtime.worker_pids:  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_a_worker_that_cannot_work_is_an_outcome_that_says_why(warm_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "cache.key").write_bytes(b"too short")
    async with open_node(warm_directory) as node, open_node(tmp_path / "other") as other:
        job = await node.job("addition", "main", ["1", "2"])
        (tmp_path / "other" / "key").mkdir(exist_ok=True)
        (tmp_path / "other" / "key" / "cache.key").write_bytes(b"too short")
        outcome = await other.runtime.run(job)
        assert outcome.reason is Reason.INTERNAL
        assert "is not a device key" in outcome.error


async def test_the_worker_has_no_secret_of_ours_and_goes_before_the_agent(node: Any) -> None:
    os.environ["PROPLET_CLIENT_KEY"] = "secret"
    try:
        await node.run("addition", "main", "1", "2")
    finally:
        del os.environ["PROPLET_CLIENT_KEY"]
    process = Path(f"/proc/{node.runtime.worker_pids[0]}")
    assert b"PROPLET_" not in (process / "environ").read_bytes()
    assert int((process / "oom_score_adj").read_text()) >= 500


async def test_nothing_of_the_engine_or_the_registry_is_loaded_into_the_agent() -> None:
    code = "import sys, proplet.agent.runtime, proplet.agent.fetch; print(*({'wasmtime', 'oras'} & set(sys.modules)))"
    done = await anyio.run_process([sys.executable, "-c", code])
    assert done.stdout.split() == []


async def test_closing_the_runtime_ends_guests_and_workers(warm_directory: Path) -> None:
    outcomes: list[Outcome] = []
    async with anyio.create_task_group() as tasks:
        async with open_node(warm_directory) as node:
            job = await node.job("loop", key="last")

            async def run() -> None:
                outcomes.append(await node.runtime.run(job))

            tasks.start_soon(run)
            await node.running("last")
            (pid,) = node.runtime.worker_pids
        with anyio.fail_after(10):
            await _gone(pid)
    assert outcomes[0].reason is Reason.INTERRUPTED


_AGENT = """
import sys, anyio
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.runtime.conftest import open_node
async def main():
    async with open_node(Path({directory!r})) as node:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(node.runtime.run, await node.job("loop", key="k"))
            await node.running("k")
            print(*node.runtime.worker_pids, *node.modules.builder_pids, flush=True)
anyio.run(main)
"""


async def test_an_agent_that_is_killed_leaves_no_worker_and_no_builder(tmp_path: Path) -> None:
    code = _AGENT.format(root=str(Path(__file__).parents[2]), directory=str(tmp_path))
    agent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)  # noqa: ASYNC220
    try:
        assert agent.stdout is not None
        line = await anyio.to_thread.run_sync(agent.stdout.readline)
        children = [int(pid) for pid in line.split()]
        assert len(children) == 2
    finally:
        agent.kill()
        agent.wait()
        agent.stdout.close()
    with anyio.fail_after(5):
        for pid in children:
            await _gone(pid)


@asynccontextmanager
async def _daemons(node: Any, keys: list[str]) -> AsyncIterator[dict[str, Outcome]]:
    """Run sleeping daemons meanwhile, and stop them; those that have ended."""
    outcomes: dict[str, Outcome] = {}

    async def run(key: str) -> None:
        outcomes[key] = await node.run("sleeper", "_start", key=key, wall_s=None)

    async with anyio.create_task_group() as tasks:
        for key in keys:
            tasks.start_soon(run, key)
        await node.running(*keys)
        yield outcomes
        for key in keys:
            node.runtime.stop(key)


async def _meanwhile(
    node: Any, guests: list[str], action: Any, counts: list[str] | None = None, **terms: Any
) -> list[Outcome]:
    """Run the guests, do `action` once all of them are live, and return their outcomes."""
    outcomes: dict[int, Outcome] = {}
    keys = [f"guest-{number}" for number in range(len(guests))]

    async def run(number: int) -> None:
        export, inputs = (
            ("count", [counts[number]]) if counts else ("_start" if guests[number] == "sleeper" else "main", [])
        )
        outcomes[number] = await node.run(guests[number], export, *inputs, key=keys[number], **terms)

    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        for number in range(len(guests)):
            tasks.start_soon(run, number)
        await node.running(*keys)
        if (waiting := action()) is not None:
            await waiting
    assert time.monotonic() - began < 60
    return [outcomes[number] for number in range(len(guests))]


def _write_as_the_worker(pid: int, message: Any) -> None:
    """Write on the worker's own end of its channel, as a guest that has taken the worker over would."""
    (descriptor,) = (int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir() if "socket:" in str(fd.readlink()))
    pidfd = os.pidfd_open(pid)
    taken = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, descriptor, 0)
    os.close(pidfd)
    if taken < 0:
        pytest.skip(f"this kernel gives nobody another's socket: {os.strerror(ctypes.get_errno())}")
    with socket.socket(fileno=taken) as channel:
        channel.sendall(encode([message]))


def _kill(node: Any, number: signal.Signals) -> None:
    for pid in node.runtime.worker_pids:
        os.kill(pid, number)


async def _gone(pid: int) -> None:
    while Path(f"/proc/{pid}/exe").exists() and _state(pid) != "Z":  # noqa: ASYNC110, ASYNC240
        await anyio.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


@pytest.mark.parametrize(
    ("end", "given", "refused", "line"),
    [
        ("killed by SIGKILL", 2, False, "a worker was killed by SIGKILL after 2 jobs were given to it"),
        ("exit status 1", 0, False, "a worker ended with exit status 1 before any job was given to it"),
        ("sent nonsense: x", 1, False, "a worker sent nonsense: x after a job was given to it"),
        ("the WebAssembly engine cannot be used here: no memory", 1, True, "a worker could not begin: the WebAssembly"),
    ],
)
def test_the_log_says_in_a_sentence_how_a_worker_ended(end: str, given: int, *, refused: bool, line: str) -> None:
    assert obituary(end, given, refused=refused).startswith(line)
