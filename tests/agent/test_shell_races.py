"""The agent's loop when messages and outcomes pass each other."""

import logging
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from proplet.agent import codec, wire
from proplet.agent.events import Save
from proplet.agent.mqtt_model import Delivery, Receipt
from proplet.agent.ports import StorageError
from proplet.agent.topics import Route
from tests.agent.test_shell import TOPICS, Agent, open_agent

pytestmark = pytest.mark.anyio


async def test_a_stop_that_meets_the_ready_module_in_one_turn_leaves_nothing_behind(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        agent.start("warm-up", "loop", inputs=())
        await agent.link.until(lambda: agent.link.all(Route.PROGRESS))
        agent.deliver(Route.STOP, wire.Stop("warm-up"))
        await agent.link.until(lambda: agent.link.all(Route.RESULTS))
        agent.start("t", "loop", inputs=())
        while agent.shell._inbox:  # until the start is being journalled: what comes now waits for the next turn
            await anyio.lowlevel.checkpoint()
        agent.deliver(Route.STOP, wire.Stop("t"))
        results = await agent.link.until(lambda: agent.link.all(Route.RESULTS)[1:])
        assert results[0].ext.reason is wire.Reason.STOPPED
        assert not agent.shell._cancelled
        assert not agent.shell._jobs
        assert not agent.shell._presence._live


class FullDisk:
    """A journal that can be read and not be written, before the real one."""

    def __init__(self, agent: Agent) -> None:
        self._journal = agent.shell._journal
        self.refused = anyio.Event()
        agent.shell._journal = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> object:
        return getattr(self._journal, name)

    async def commit(self, saves: Sequence[Save]) -> None:
        self.refused.set()
        raise StorageError("the disk is full")


async def test_a_loop_that_waits_for_a_full_disk_is_alive_and_reading_does_not_make_it_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_agent(tmp_path) as agent:
        await agent.link.until(lambda: agent.link.all(Route.INVENTORY))
        disk = FullDisk(agent)
        agent.start("t")
        with anyio.fail_after(10):
            await agent.shell.proof_of_life()  # asked before the disk was full, answered after
            await disk.refused.wait()
            told = len(agent.link.all(Route.INVENTORY))
            agent.shell._asked.set()  # the answer is read from the journal, and that works
            await agent.link.until(lambda: len(agent.link.all(Route.INVENTORY)) > told)
        assert agent.shell.trouble == "the disk is full"
        assert "works again" not in caplog.text


async def test_what_a_peer_says_cannot_pass_for_a_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_agent(tmp_path) as agent:
        raw = codec.encode(wire.Start("a\nforged \x1b[2J", "", file=b"x"))
        told = b'{"id": "", "name": "main", "env": {"c\\nforged": 1}}'
        for packet, payload in enumerate((raw, told), 1):
            topic, receipt = TOPICS.build(Route.START), Receipt(1, packet)
            agent.shell.put(Delivery(topic, payload, 1, duplicate=False, retained=False, receipt=receipt))
        await agent.link.until(lambda: len(agent.link.acknowledged) == 2)
        await agent.shell.proof_of_life()
    said = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(said) == 2
    assert all(line.isprintable() for line in said)
    assert "env.c\\nforged must be a string" in said[0]
    assert said[1].startswith("task a\\nforged \\x1b[2J: a command was refused")
