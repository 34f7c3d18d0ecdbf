"""The agent's loop when messages and outcomes pass each other."""

from pathlib import Path

import anyio
import pytest

from proplet.agent import wire
from proplet.agent.topics import Route
from tests.agent.test_shell import open_agent

pytestmark = pytest.mark.anyio


async def test_a_stop_that_meets_the_ready_module_in_one_turn_leaves_nothing_behind(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        agent.start("warm-up")
        await agent.link.until(lambda: agent.link.all(Route.RESULTS))
        agent.start("t")
        while agent.shell._inbox:  # until the start is being journalled: what comes now waits for the next turn
            await anyio.lowlevel.checkpoint()
        agent.deliver(Route.STOP, wire.Stop("t"))
        results = await agent.link.until(lambda: agent.link.all(Route.RESULTS)[1:])
        assert results[0].ext.reason is wire.Reason.STOPPED
        assert not agent.shell._cancelled
        assert not agent.shell._artefacts
        assert not agent.shell._presence._live
