"""The terms of a start on this node, seen from its result: real modules in a real worker; only the broker is played."""

from pathlib import Path
from typing import Any

import pytest

from proplet.agent import wire
from proplet.agent.grants import AllowedDirectory, Ceiling
from proplet.agent.topics import Route
from proplet.agent.wire import DirectoryGrant, Permissions, Reason
from tests.agent.test_shell import Agent, open_agent
from tests.support.modules import module

pytestmark = pytest.mark.anyio


def terms(number: int, *dirs: DirectoryGrant) -> wire.StartTerms:
    return wire.StartTerms(attempt=number, permissions=Permissions(dirs=dirs))


async def result(agent: Agent, task_id: str, export: str, ext: wire.StartTerms) -> Any:
    agent.deliver(Route.START, wire.Start(task_id, export, file=module("files"), ext=ext))
    return await agent.link.until(
        lambda: next((r for r in agent.link.all(Route.RESULTS) if r.task_id == task_id), None)
    )


async def test_a_task_cannot_have_a_directory_that_the_node_does_not_allow(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private/note").write_text("x")
    ask = DirectoryGrant(str(tmp_path / "private"), "/data")
    async with open_agent(tmp_path) as agent:
        said = await result(agent, "t", "read", terms(1, ask))
        assert said.ext.reason is Reason.PERMISSION_DENIED
        assert "agent.permissions.dirs" in said.error


async def test_a_task_reads_and_writes_only_as_it_asked_and_the_node_allows(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/note").write_text("x")
    (tmp_path / "link").symlink_to("shared")
    reads, writes = (DirectoryGrant(str(tmp_path / "link"), "/data", read_only=kind) for kind in (True, False))
    allowed = Ceiling((AllowedDirectory(str(tmp_path / "shared"), read_only=False),))
    async with open_agent(tmp_path, permissions=allowed) as agent:
        assert (await result(agent, "reads", "read", terms(1, reads))).results == "0"
        assert (await result(agent, "asked to read", "create", terms(1, reads))).results != "0"
        assert (await result(agent, "writes", "create", terms(1, writes))).results == "0"


async def test_a_directory_that_every_task_has_needs_no_asking(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/note").write_text("x")
    allowed = Ceiling((AllowedDirectory(str(tmp_path / "shared"), always=True),))
    async with open_agent(tmp_path, permissions=allowed) as agent:
        assert (await result(agent, "t", "read", terms(1))).results == "0"


async def test_a_refused_latent_task_is_not_deployed(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        ext = wire.StartTerms(attempt=1, permissions=Permissions(http=("*",)))
        agent.start("t", latent=True, ext=ext)
        said = await agent.link.until(lambda: agent.link.all(Route.RESULTS))
        assert said[0].ext.reason is Reason.PERMISSION_DENIED
        assert "agent.permissions.http" in said[0].error
