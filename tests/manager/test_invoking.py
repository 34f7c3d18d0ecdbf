"""Invocations of latent Tasks by a controller, with scripted proplets."""

from collections.abc import AsyncIterator
from dataclasses import replace

import anyio
import pytest

from proplet.agent.wire import InvokeResult, Progress
from proplet.manager.model import Task
from proplet.manager.phases import Phase
from proplet.manager.ports import BusError, InvocationError, NoAnswerError
from proplet.manager.store_memory import MemoryStore
from tests.manager.fakes import FAST, Node, eventually, open_node

pytestmark = pytest.mark.anyio

PATIENT = replace(FAST, silence_s=60.0, hello_every_s=60.0)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with open_node(MemoryStore(), policy=PATIENT) as node:
        yield node


async def deployed(node: Node, **spec: object) -> Task:
    await node.create("f", latent=True, inputs=("10", "32"), **spec)
    return await node.until("f", lambda t: t.status.phase is Phase.RUNNING)


async def invoke(node: Node, task: Task, *inputs: str, timeout_s: float = 5.0) -> InvokeResult:
    return await node.controller.invoke(task.id, inputs, {}, timeout_s)


async def test_a_latent_task_runs_once_its_proplet_says_that_it_is_ready(node: Node) -> None:
    pi = node.proplet("pi-1", stage="preparing")
    task = await node.create("f", latent=True)
    await eventually(lambda: bool(pi.held))
    pi.inventory()
    await anyio.lowlevel.checkpoint()
    assert (await node.get("f")).status.phase is Phase.SCHEDULED
    pi.say(Progress(pi.id, task.id, 1, "deployed"))
    await node.until("f", lambda t: t.status.phase is Phase.RUNNING)


async def test_an_invocation_goes_to_the_proplet_that_has_the_task(node: Node) -> None:
    node.proplet("pi-1")
    task = await deployed(node)
    assert (await invoke(node, task)).results == "pi-1: 10 32"
    assert (await invoke(node, task, "1", "2")).results == "pi-1: 1 2"


async def test_an_invocation_waits_for_a_task_that_is_not_placed_yet(node: Node) -> None:
    task = await node.create("f", latent=True, inputs=("1",))
    async with anyio.create_task_group() as group:
        answers: list[InvokeResult] = []

        async def ask() -> None:
            answers.append(await invoke(node, task))

        group.start_soon(ask)
        await node.until("f", lambda t: bool(t.status.message))
        node.proplet("pi-1")
    assert [answer.results for answer in answers] == ["pi-1: 1"]


async def test_a_broadcast_task_is_invoked_on_its_proplets_in_turn_and_never_on_a_dead_one(node: Node) -> None:
    proplets = [node.proplet(f"pi-{n}") for n in range(3)]
    task = await deployed(node, broadcast=True)
    await node.until("f", lambda t: all(e["phase"] == "running" for e in t.status.broadcast_results))
    asked = [(await invoke(node, task)).proplet_id for _ in range(6)]
    assert asked[:3] == asked[3:]
    assert set(asked) == {"pi-0", "pi-1", "pi-2"}
    proplets[1].vanish()
    assert "pi-1" not in [(await invoke(node, task)).proplet_id for _ in range(4)]


async def test_a_proplet_that_lost_the_module_is_told_the_start_again_and_the_next_one_is_asked(node: Node) -> None:
    proplets = [node.proplet(f"pi-{n}") for n in range(2)]
    task = await deployed(node, broadcast=True)
    await node.until("f", lambda t: all(e["phase"] == "running" for e in t.status.broadcast_results))
    for proplet in proplets:
        proplet.held.clear()
    starts = len(node.bus.starts)
    assert (await invoke(node, task)).error is None
    told = node.bus.starts[starts:]
    assert {proplet_id for proplet_id, _ in told} == {"pi-0", "pi-1"}
    assert all(start.latent and not start.broadcast for _, start in told)


async def test_an_error_of_the_guest_is_an_answer(node: Node) -> None:
    pi = node.proplet("pi-1", answers=True)
    task = await deployed(node)
    async with anyio.create_task_group() as group:
        found: list[InvokeResult] = []

        async def ask() -> None:
            found.append(await invoke(node, task))

        pi.answers = False
        sent = len(pi.invoked)
        group.start_soon(ask)
        await eventually(lambda: bool(node.controller._invoking._waiters))
        assert len(pi.invoked) == sent
        number = next(iter(node.controller._invoking._waiters))
        pi.say(InvokeResult("another task", number, pi.id, "not this one"))
        pi.say(InvokeResult(task.id, "nobody's", pi.id, "nor this one"))
        pi.say(InvokeResult(task.id, number, pi.id, error="it trapped"))
    assert found[0].error == "it trapped"


async def test_silence_ends_an_invocation_and_leaves_nothing_behind(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await deployed(node)
    pi.answers = False
    with pytest.raises(NoAnswerError, match=r"proplet pi-1 did not answer within 0\.1 s"):
        await invoke(node, task, timeout_s=0.1)
    assert not node.controller._invoking._waiters


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"held": True, "latent": True}, "task f is pending: start it"),
        ({"latent": False}, "task f is not latent"),
    ],
)
async def test_what_cannot_be_invoked_is_refused(node: Node, spec: dict[str, object], told: str) -> None:
    node.proplet("pi-1")
    task = await node.create("f", **spec)
    with pytest.raises(InvocationError, match=told):
        await invoke(node, task)


async def test_a_task_that_finds_no_proplet_says_so_when_the_time_is_over(node: Node) -> None:
    task = await node.create("f", latent=True)
    await node.until("f", lambda t: bool(t.status.message))
    with pytest.raises(InvocationError, match="task f is pending"):
        await invoke(node, task, timeout_s=0.1)


async def test_a_proplet_that_is_away_is_waited_for_and_not_for_long(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await deployed(node)
    pi.vanish()
    with pytest.raises(InvocationError, match="no proplet that has the task is there now") as refused:
        await invoke(node, task)
    assert refused.value.reason == "no_proplet"
    pi.appear()
    assert (await invoke(node, task)).error is None


async def test_a_broker_that_refuses_is_told_at_once(node: Node) -> None:
    node.proplet("pi-1")
    task = await deployed(node)
    node.bus.fail = BusError("not connected")
    with pytest.raises(BusError):
        await invoke(node, task)


async def test_why_a_daemon_waits_is_in_its_message_until_it_runs_again(node: Node) -> None:
    pi = node.proplet("pi-1")
    task = await node.create("d", daemon=True)
    await node.until("d", lambda t: t.status.phase is Phase.RUNNING)
    why = "restarted 5 times, next in 16 s: exit status 1"
    pi.say(Progress(pi.id, task.id, 1, "crash_loop", message=why))
    assert node.controller.task_states(task.id) == {pi.id: (1, "crash_loop")}
    told = await node.until("d", lambda t: t.status.message == why)
    assert told.status.phase is Phase.RUNNING
    (started,) = (c for c in told.status.conditions if c.type == "Started")
    assert started.message == f"External task is running: {why}"
    pi.say(Progress(pi.id, task.id, 1, "running"))
    await node.until("d", lambda t: not t.status.message)
