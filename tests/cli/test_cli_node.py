"""Whole nodes started by the command: the demo, and ``up`` with tasks applied to it."""

import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import psutil
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.cli.command import COMMAND, environment, proplet
from tests.cli.test_cli_resources import manifest
from tests.support.mosquitto import mosquitto_program

pytestmark = pytest.mark.anyio

ENGINES = [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"]
PATIENCE_S = 60


def have(engine: str) -> None:
    if engine == "mosquitto":
        mosquitto_program()


def of_session(session: int) -> list[str]:
    """Return the command lines of a session's processes."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (ProcessLookupError, psutil.Error):
            continue
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_the_demo_shows_phases_result_and_cost_and_leaves_nothing(home: Path, engine: str) -> None:
    have(engine)
    temporary = home / "tmp"
    temporary.mkdir()
    demo = subprocess.Popen(
        [COMMAND, "demo", "--broker", engine],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home, start_new_session=True,
        env=environment(home, TMPDIR=str(temporary)),
    )  # fmt: skip
    out, err = demo.communicate(timeout=PATIENCE_S)
    assert (demo.returncode, err) == (0, "")
    assert f"ready: broker {engine} at tcp://127.0.0.1:" in out
    assert re.search(r"ready: image 127\.0\.0\.1:[0-9]+/demo/addition:1\n", out)
    order = [
        out.index(word) for word in ("applied task addition: main(10, 32)", "pending", "scheduled on ", "completed")
    ]
    assert order == sorted(order)
    assert "\nresult  42\n" in out
    cost = next(line for line in out.splitlines() if line.startswith("cost"))
    assert all(word in cost for word in ("run ", "fetch ", "compile ", "CPU ", "peak memory ", "(cold start)"))
    assert list(temporary.iterdir()) == []
    assert of_session(demo.pid) == []
    assert not (home / ".local").exists()


def test_a_demo_that_is_interrupted_leaves_nothing_either(home: Path) -> None:
    temporary = home / "tmp"
    temporary.mkdir()
    demo = subprocess.Popen(
        [COMMAND, "demo", "--broker", "amqtt"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home, start_new_session=True,
        env=environment(home, TMPDIR=str(temporary)),
    )  # fmt: skip
    assert demo.stdout is not None
    assert "starting" in demo.stdout.readline()
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=PATIENCE_S)
    assert (demo.returncode, "Traceback" in err) == (130, False)
    assert list(temporary.iterdir()) == []
    assert of_session(demo.pid) == []


@asynccontextmanager
async def node_up(home: Path, *arguments: str, **environ: str) -> AsyncIterator[Process]:
    """Run ``proplet up`` until the context ends; yields when it says that it is ready."""
    env = environment(home, PROPLET_BROKER_PORT="0", PROPLET_BROKER_ENGINE="amqtt", **environ)
    env |= {"PROPLET_BROKER": "true", "PROPLET_MANAGER": "true"}
    async with await anyio.open_process([COMMAND, "up", *arguments], env=env, cwd=home, stdout=None) as process:
        assert process.stderr is not None
        log = BufferedByteReceiveStream(process.stderr)
        try:
            with anyio.fail_after(PATIENCE_S):
                seen = b""
                while b"ready: agent" not in seen:
                    seen = await log.receive_until(b"\n", 65536)
            async with anyio.create_task_group() as group:
                group.start_soon(_drain, log)
                yield process
                group.cancel_scope.cancel()
        finally:
            if process.returncode is None:
                process.terminate()
            with anyio.fail_after(PATIENCE_S, shield=True):
                await process.wait()


async def _drain(log: BufferedByteReceiveStream) -> None:
    while True:
        try:
            await log.receive()
        except anyio.EndOfStream:
            return


async def test_a_node_takes_tasks_tells_of_them_and_ends_well(home: Path) -> None:
    async with node_up(home) as node:
        applied = await proplet(home, "apply", "-f", "-", stdin=manifest("addition"))
        assert applied == (0, "task/addition created\n", "")
        assert await proplet(home, "wait", "addition", "--timeout", "40s") == (0, "task/addition completed\n", "")
        described = await proplet(home, "describe", "task", "addition")
        assert "Results:" in described.out
        assert "42" in described.out
        proplets = (await proplet(home, "get", "proplets")).out.splitlines()
        assert proplets[1].split()[1:5] == ["external", "Running", "True", "0"]
        again = await proplet(home, "start", "addition")
        assert again == (0, "task/addition started\n", "")
        assert (await proplet(home, "wait", "addition", "--for", "finished")).code == 0
        assert (await proplet(home, "delete", "task/addition")).code == 0
        own, of_node, engine = (await proplet(home, "version")).out.splitlines()
        assert (own.split()[1], engine) == (of_node.split()[1], "engine cranelift")
        assert of_node.endswith("(agent, broker, manager)")
        node.terminate()
        with anyio.fail_after(PATIENCE_S):
            assert await node.wait() == 0
    assert (await proplet(home, "get", "tasks")).code == 3


async def test_a_second_node_on_the_same_state_is_refused(home: Path) -> None:
    async with node_up(home) as node:
        second = await proplet(home, "up", environ={"PROPLET_BROKER_PORT": "0"})
        assert second.code == 69
        assert f"another node (process {node.pid}) uses the state directory" in second.err
        assert (await proplet(home, "get", "tasks")).code == 0
