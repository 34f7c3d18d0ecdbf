"""The controller on the memory store, with scripted proplets."""

from collections.abc import AsyncIterator

import pytest

from proplet.agent.wire import Reason, RestartPolicy
from proplet.manager.model import PropletSelector
from proplet.manager.phases import Phase
from proplet.manager.store_memory import MemoryStore
from tests.manager.fakes import Node, eventually, open_node

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with open_node(MemoryStore()) as node:
        yield node


async def test_a_task_goes_from_pending_to_completed_with_its_result(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("add", inputs=("10", "32"))
    running = await node.until("add", lambda t: t.status.phase is Phase.RUNNING)
    assert (running.status.attempt, running.status.proplet_id) == (1, "pi-1")
    pi.finish(task.id, "42")
    done = await node.ended("add")
    assert (done.status.phase, done.status.results, done.status.reason) == (Phase.COMPLETED, "42", Reason.OK)
    assert done.status.dispatched_at <= done.status.started_at <= done.status.finished_at
