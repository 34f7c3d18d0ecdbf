"""The terms of a start on this node, seen from its result: real modules in a real worker; only the broker is played."""

from pathlib import Path
from typing import Any

import pytest

from proplet.agent import wire
from proplet.agent.events import RunKey
from proplet.agent.grants import AllowedDirectory, Ceiling, Granted
from proplet.agent.ports import Artefact, GuestLimits, ModuleKind
from proplet.agent.task_secrets import Vault
from proplet.agent.terms import NodeLimits, job_of
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


async def test_a_run_that_ends_at_the_nodes_ceiling_is_told_so_and_the_log_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = NodeLimits(GuestLimits(wall_s=0.2), GuestLimits(wall_s=0.2))
    async with open_agent(tmp_path, limits=limits) as agent:
        for task in ("one", "two"):
            ext = wire.StartTerms(attempt=1, deadline_s=50.0)
            agent.deliver(Route.START, wire.Start(task, "main", file=module("loop"), ext=ext))
        told = await agent.link.until(lambda: len(agent.link.all(Route.RESULTS)) == 2 and agent.link.all(Route.RESULTS))
    assert {result.ext.reason for result in told} == {Reason.TIMEOUT}
    assert all("0.2 s, its limit of time (the most this node allows: [agent.ceilings] wall)" in r.error for r in told)
    assert caplog.text.count("more wall than this node allows") == 1


async def test_a_refused_latent_task_is_not_deployed(tmp_path: Path) -> None:
    async with open_agent(tmp_path) as agent:
        ext = wire.StartTerms(attempt=1, permissions=Permissions(http=("*",)))
        agent.start("t", latent=True, ext=ext)
        said = await agent.link.until(lambda: agent.link.all(Route.RESULTS))
        assert said[0].ext.reason is Reason.PERMISSION_DENIED
        assert "agent.permissions.http" in said[0].error


async def test_a_secret_of_the_device_reaches_the_guest_and_nothing_else_of_the_node(tmp_path: Path) -> None:
    (tmp_path / "secrets/db").mkdir(parents=True)
    (tmp_path / "secrets/db/password").write_text("s3cret\n")
    (tmp_path / "secrets/db/password").chmod(0o600)
    allowed = Ceiling(vault=Vault(("db/*",), tmp_path / "secrets"))
    async with open_agent(tmp_path, permissions=allowed) as agent:
        for number, secret in enumerate(("db/password", "db/missing", "other/password")):
            ext = wire.StartTerms(attempt=1, secrets={"PASSWORD": secret})
            fields = {"inputs": ("environment",), "file": module("component_command"), "ext": ext}
            agent.deliver(Route.START, wire.Start(f"t{number}", "_start", env={"A": "1"}, **fields))
        told = await agent.link.until(lambda: len(agent.link.all(Route.RESULTS)) == 3 and agent.link.all(Route.RESULTS))
    given, missing, other = sorted(told, key=lambda result: result.task_id)
    assert set(given.results.split()) == {"A=1", "PROPLET_ID=me", "PASSWORD=s3cret"}
    assert missing.ext.reason is Reason.SECRET_UNAVAILABLE
    assert other.ext.reason is Reason.PERMISSION_DENIED


def test_what_a_job_shows_of_itself_holds_no_secret(tmp_path: Path) -> None:
    artefact = Artefact("sha256:0", tmp_path, ModuleKind.CORE)
    start = wire.Start("t", "main")
    given = Granted(secrets={"A": "s3cret"})
    job = job_of(RunKey("t", 1), start, artefact, NodeLimits(), given, proplet_id="me")
    assert job.env["A"] == "s3cret"
    assert "s3cret" not in f"{given!r}{job!r}"
