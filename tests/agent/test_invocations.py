"""Invocations through the agent's loop, with its real journal, modules and worker; only the broker is played."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent import wire
from proplet.agent.invocations import InvocationBounds
from proplet.agent.mqtt_model import Connected
from proplet.agent.topics import Route
from tests.agent.test_shell import Agent, open_agent

pytestmark = pytest.mark.anyio


async def deploy(agent: Agent, task_id: str = "f", name: str = "addition", **more: Any) -> None:
    agent.start(task_id, name, latent=True, **more)
    await agent.link.until(lambda: [p for p in agent.link.all(Route.PROGRESS) if p.stage == "deployed"])


def invoke(agent: Agent, call: str, *inputs: str, task_id: str = "f", **more: Any) -> None:
    agent.deliver(Route.INVOKE, wire.Invoke(task_id, call, inputs, proplet_id="me", **more))


async def answers(agent: Agent, count: int) -> dict[str, wire.InvokeResult]:
    found = await agent.link.until(lambda: len(agent.link.all(Route.INVOKE_RESULTS)) >= count)
    assert found
    return {answer.invocation_id: answer for answer in agent.link.all(Route.INVOKE_RESULTS)}


async def test_invocations_run_side_by_side_and_each_is_answered_with_its_own(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        await deploy(agent)
        for n in range(100):
            invoke(agent, f"i{n}", str(n), "1")
        found = await answers(agent, 100)
        assert {call: answer.results for call, answer in found.items()} == {f"i{n}": str(n + 1) for n in range(100)}
        assert not agent.link.all(Route.RESULTS)


async def test_an_invocation_that_is_delivered_twice_runs_once_and_is_answered_twice(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        await deploy(agent)
        invoke(agent, "i1", "1", "2")
        invoke(agent, "i1", "1", "2")  # while it is open
        await answers(agent, 1)
        invoke(agent, "i1", "7", "7")  # a different one under the same name would have another result
        await answers(agent, 2)
        assert [answer.results for answer in agent.link.all(Route.INVOKE_RESULTS)] == ["3", "3"]
        assert agent.link.all(Route.INVOKE_RESULTS)[0] == agent.link.all(Route.INVOKE_RESULTS)[1], "usage included"


async def test_an_invocations_environment_lies_over_the_tasks(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        await deploy(agent, name="echo", inputs=(), env={"A": "task", "B": "task"})
        invoke(agent, "i1", env={"B": "call"})
        answer = (await answers(agent, 1))["i1"]
        assert answer.error is None
        assert set(answer.results.split("\0")) >= {"A=task", "B=call", "PROPLET_ID=me"}


async def test_what_arrives_while_the_module_is_prepared_waits_for_it(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        agent.start("f", latent=True)
        invoke(agent, "i1")
        assert (await answers(agent, 1))["i1"].results == "42"


async def test_what_waits_for_a_module_that_cannot_be_prepared_is_told_why(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        agent.deliver(Route.START, wire.Start("f", "main", image_url="127.0.0.1:1/no/such:1", latent=True))
        invoke(agent, "i1")
        answer = (await answers(agent, 1))["i1"]
        (result,) = await agent.link.until(lambda: agent.link.all(Route.RESULTS))
        assert answer.error == result.error


async def test_a_module_that_cannot_be_loaded_fails_its_deployment_with_the_reason(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        for count, task_id in enumerate(("f", "again"), 1):  # the second time, the module is at hand
            agent.start(task_id, "missing_import", inputs=(), latent=True)
            await agent.link.until(lambda count=count: len(agent.link.all(Route.RESULTS)) == count)
            result = agent.link.all(Route.RESULTS)[-1]
            assert (result.task_id, result.ext.reason) == (task_id, wire.Reason.MISSING_IMPORT)
            assert "nothing here provides the import" in result.error
        assert not agent.shell._jobs


async def test_what_serves_http_is_refused_as_a_latent_task_and_told_what_to_do(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        for count, task_id in enumerate(("f", "again"), 1):
            agent.start(task_id, "component_http", inputs=(), latent=True)
            await agent.link.until(lambda count=count: len(agent.link.all(Route.RESULTS)) == count)
            result = agent.link.all(Route.RESULTS)[-1]
            assert (result.task_id, result.ext.reason) == (task_id, wire.Reason.NOT_SUPPORTED)
            assert result.error == "what serves HTTP cannot be latent: start it as a daemon"
        assert not agent.shell._jobs
        assert not agent.shell._presence._live


async def test_an_export_that_a_component_lacks_is_told_with_the_task(tmp_path: Path) -> None:
    text = "Export 'main' not found in component for task {}; it exports "
    async with open_agent(tmp_path) as agent:
        agent.start("once", "component_exports", inputs=())
        (result,) = await agent.link.until(lambda: agent.link.all(Route.RESULTS))
        assert result.error.startswith(text.format("once"))
        await deploy(agent, name="component_exports", inputs=())
        invoke(agent, "i1")
        assert str((await answers(agent, 1))["i1"].error).startswith(text.format("f"))


async def test_the_first_invocation_finds_the_module_loaded(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        await deploy(agent)
        invoke(agent, "i1")
        usage = (await answers(agent, 1))["i1"].ext.usage  # type: ignore[union-attr]
        assert usage.start_kind == "hot"


async def test_a_stop_ends_the_invocations_of_the_task(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        await deploy(agent, name="loop", inputs=())
        for n in range(3):
            invoke(agent, f"i{n}")
        await agent.link.until(lambda: len(agent.link.acknowledged) == 4)
        agent.deliver(Route.STOP, wire.Stop("f"))
        found = await answers(agent, 3)
        assert {answer.error for answer in found.values()} == {"Task f was stopped before completion"}
        invoke(agent, "late")
        assert "has not been precompiled" in str((await answers(agent, 4))["late"].error)


async def test_more_invocations_than_the_bound_are_refused(tmp_path: Path) -> None:
    async with open_agent(tmp_path, invocations=InvocationBounds(open=2)) as agent:
        await deploy(agent, name="loop", inputs=())
        for n in range(3):
            invoke(agent, f"i{n}")
        refused = (await answers(agent, 1))["i2"]
        assert refused.ext is not None
        assert refused.ext.reason is wire.Reason.OVERLOADED
        assert "try again later" in str(refused.error)


async def test_an_invocations_limits_are_the_tasks(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        terms = wire.StartTerms(attempt=1, topics=("progress",), deadline_s=0.3)
        await deploy(agent, name="loop", inputs=(), ext=terms)
        invoke(agent, "i1")
        answer = (await answers(agent, 1))["i1"]
        assert answer.ext is not None
        assert (answer.ext.reason, answer.ext.attempt) == (wire.Reason.TIMEOUT, 1)


async def test_a_module_that_was_dropped_from_the_cache_is_prepared_again(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        await deploy(agent)
        for compiled in (tmp_path / "cache").rglob("*.cwasm"):
            compiled.unlink()
        invoke(agent, "i1")
        assert (await answers(agent, 1))["i1"].results == "42"


async def test_answers_that_could_not_be_sent_are_sent_when_the_broker_is_back(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        await deploy(
            agent, name="loop", inputs=(), ext=wire.StartTerms(attempt=1, topics=("progress",), deadline_s=0.1)
        )
        invoke(agent, "i1")
        agent.link.connected = False
        with anyio.fail_after(10):
            while not agent.shell._invocations._unsent:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        agent.link.connected = True
        agent.shell.put(Connected(session_present=True))
        assert "i1" in await answers(agent, 1)


async def test_nothing_of_an_invocation_is_left_behind_nor_written_down(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        await deploy(agent)
        before = (tmp_path / "journal.db-wal").stat().st_size
        for n in range(50):
            invoke(agent, f"i{n}")
        await answers(agent, 50)
        assert (tmp_path / "journal.db-wal").stat().st_size == before
        invocations = agent.shell._invocations
        assert (invocations._open_count, invocations._open_bytes, len(invocations._open)) == (0, 0, 0)
        assert not any(deployed.live for deployed in invocations._deployed.values())


async def test_an_invocation_with_an_endless_id_is_not_run_and_its_id_not_kept(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        await deploy(agent)
        invoke(agent, "i" * 1025)
        invoke(agent, "i" * 1024)
        assert list(await answers(agent, 1)) == ["i" * 1024]
        assert len(agent.shell._invocations._answered) == 1


async def test_answers_that_the_broker_does_not_take_do_not_pile_up(tmp_path: Path) -> None:
    async with open_agent(tmp_path, invocations=InvocationBounds(open=4)) as agent:
        await deploy(agent)
        agent.link.held = anyio.Event()
        for n in range(50):
            invoke(agent, f"i{n}", "1", "2")
            invoke(agent, f"unknown{n}", task_id="nobody")
            await anyio.lowlevel.checkpoint()
        await agent.link.until(lambda: len(agent.link.acknowledged) == 101)
        invocations = agent.shell._invocations
        assert invocations._open_count == 4
        assert invocations._sending <= 8
        agent.link.held.set()
        found = await answers(agent, 5)
        assert sum(answer.error is None for answer in found.values()) <= 4
        with anyio.fail_after(10):
            while invocations._sending or invocations._open_count:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        invoke(agent, "again", "1", "2")
        await agent.link.until(lambda: "again" in {a.invocation_id for a in agent.link.all(Route.INVOKE_RESULTS)})


async def test_results_that_wait_to_be_sent_are_bounded_in_bytes(tmp_path: Path) -> None:
    async with open_agent(tmp_path, invocations=InvocationBounds(open_bytes=5000)) as agent:
        await deploy(agent, name="echo", inputs=())
        agent.link.held = anyio.Event()
        for n in range(4):
            invoke(agent, f"i{n}", env={"A": "x" * 700})
        with anyio.fail_after(20):
            while sum(task.spent.runs for task in agent.shell._invocations._deployed.values()) < 4:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        agent.link.held.set()
        found = await answers(agent, 4)
        dropped = [answer for answer in found.values() if answer.error is not None]
        assert 0 < len(dropped) < 4
        assert {answer.results for answer in dropped} == {""}
        assert all("waits to be sent" in str(answer.error) for answer in dropped)


async def test_a_latent_task_is_prepared_again_after_a_restart_without_anybody_asking(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        await deploy(agent)
    async with open_agent(tmp_path) as agent:
        agent.deliver(Route.INVOKE, wire.Invoke("f", "i1"))
        assert (await answers(agent, 1))["i1"].results == "42"
