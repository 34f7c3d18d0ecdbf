"""Terms beyond every clock, builders that died while nobody looked, defects of ours: each is one task's matter."""

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent.ports import ModuleError, ModuleWanted, Stage
from proplet.agent.wire import Reason
from tests.runtime.conftest import open_node
from tests.support.modules import module

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("forever", [1e10, 1e300])
async def test_a_deadline_beyond_every_clock_does_not_take_the_others_deadlines_away(node: Any, forever: float) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: node.run("loop", key="endless", wall_s=forever, cpu_s=None))
        await node.running("endless")
        before = node.runtime.worker_pids
        outcome = await node.run("loop", wall_s=0.2, cpu_s=None)
        assert (outcome.reason, outcome.error) == (Reason.TIMEOUT, "ended after 0.2 s, its limit of time")
        assert node.runtime.worker_pids == before, "the worker had to be killed"
        node.runtime.stop("endless")


async def test_a_builder_that_died_idle_fails_nobodys_module(tmp_path: Path) -> None:
    async with open_node(tmp_path) as node:
        await node.artefact("addition")
        (idle,) = node.modules.builder_pids
        os.kill(idle, signal.SIGKILL)
        with anyio.fail_after(10):
            while idle in node.modules.builder_pids:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        await node.artefact("echo")


async def test_a_defect_while_a_module_is_made_fails_that_module_and_not_the_node(tmp_path: Path) -> None:
    def defect(_: Stage) -> None:
        raise ZeroDivisionError

    async with open_node(tmp_path) as node:
        digest = await node.modules.keep(module("addition"))
        with pytest.raises(ModuleError) as caught:
            await node.modules.prepare(ModuleWanted(digest), defect)
        assert caught.value.reason is Reason.INTERNAL
        assert (await node.run("addition", "main", "1", "2")).results == "3"


@pytest.mark.parametrize("terms", [{"argv": ["\udcff"]}, {"env": {"A": "\udcff"}}, {"inputs": ["\udcff"]}])
async def test_text_that_cannot_be_written_is_refused_before_a_worker_hears_of_it(node: Any, terms: Any) -> None:
    outcome = await node.runtime.run(await node.job("echo", **terms))
    assert outcome.reason is Reason.INVALID_ARGUMENTS
    assert "'\\udcff'" in outcome.error
