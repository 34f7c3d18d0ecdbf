"""Components that serve HTTP, in the real wasmtime program and asked by real clients."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent.ports import Job, Notice, Outcome, Output, Serving
from proplet.agent.program_args import Terms
from proplet.agent.program_find import find
from proplet.agent.program_ports import Allowed
from proplet.agent.program_runtime import EitherRuntime, ProgramSettings, open_programs
from proplet.agent.wire import DirectoryGrant, Permissions, Reason
from tests.runtime.conftest import Node
from tests.support.no_executable_memory import WRAPPER, is_known_here
from tests.support.ports import free_ports, listening

pytestmark = pytest.mark.anyio

GUEST = "component_http"
MIB = 1024 * 1024


@dataclass
class Service:
    """A guest that is serving, or was."""

    runtime: EitherRuntime
    job: Job
    notices: list[Notice] = field(default_factory=list)
    ended: list[Outcome] = field(default_factory=list)
    heard: anyio.Event = field(default_factory=anyio.Event)

    def hear(self, notice: Notice) -> None:
        self.notices.append(notice)
        self.heard.set()

    @property
    def ports(self) -> list[int]:
        return [notice.port for notice in self.notices if isinstance(notice, Serving)]

    @property
    def port(self) -> int:
        return self.ports[-1]

    def said(self, stream: str) -> bytes:
        return b"".join(n.data for n in self.notices if isinstance(n, Output) and n.stream == stream)

    @property
    def pid(self) -> int:
        (pid,) = self.runtime.programs.pids
        return pid

    async def until(self, seen: Any) -> None:
        with anyio.fail_after(30):
            while not seen():
                self.heard = anyio.Event()
                await self.heard.wait()

    async def ask(self, path: str, body: str | None = None, timeout_s: float = 20) -> tuple[int, str]:
        return await anyio.to_thread.run_sync(_ask, self.port, path, body, timeout_s)

    async def stop(self) -> Outcome:
        self.runtime.stop(self.job.key)
        return await self.end()

    async def end(self) -> Outcome:
        await self.until(lambda: self.ended)
        return self.ended[0]

    async def run(self) -> None:
        self.ended.append(await self.runtime.run(self.job, self.hear))
        self.heard.set()


def _ask(port: int, path: str, body: str | None, timeout_s: float) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST" if body else "GET", path, body)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def machine_code(cache: Path) -> dict[Path, int]:
    """The program's compiled modules, and when each was written."""
    files = (path for path in (cache / "compiled").rglob("*") if path.is_file() and path.stat().st_size > 100_000)
    return {path: path.stat().st_mtime_ns for path in files}


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _ask_in_vain(port: int, path: str) -> None:
    with suppress(OSError, HTTPException):
        _ask(port, path, None, 20)


def listeners(port: int) -> list[str]:
    """The addresses on which somebody listens at a port, of the fourth version."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    hosts = [row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]
    return [socket.inet_ntoa(bytes.fromhex(host)[::-1]) for host in hosts]


@asynccontextmanager
async def serving(runtime: EitherRuntime, job: Job) -> AsyncIterator[Service]:
    """A guest that accepts requests; it is stopped at the end."""
    service = Service(runtime, job)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(service.run)
        await service.until(lambda: service.ports or service.ended)
        assert not service.ended, service.ended
        yield service
        runtime.stop(job.key)


@pytest.fixture(scope="session")
def program_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("program")


@pytest.fixture
def settings(program_cache: Path) -> ProgramSettings:
    ports = free_ports(4)
    return ProgramSettings(cache_dir=program_cache, allowed=Allowed(first=ports[0], last=ports[-1]))


@pytest.fixture
async def runtime(node: Node, settings: ProgramSettings) -> AsyncIterator[EitherRuntime]:
    async with open_programs(settings, node.runtime, 4) as opened:
        yield opened


async def service_job(node: Node, **terms: Any) -> Job:
    return await node.job(GUEST, "_start", **{"wall_s": None, "cpu_s": None, **terms})


async def test_a_component_serves_on_the_first_free_port_until_it_is_stopped(
    node: Node, runtime: EitherRuntime, settings: ProgramSettings
) -> None:
    async with serving(runtime, await service_job(node, env={"GREETING": "moin", "LD_PRELOAD": "x"})) as service:
        assert service.ports == [settings.allowed.first]
        assert await service.ask("/") == (200, "hello\n")
        assert await service.ask("/echo", "what I say") == (200, "what I say")
        assert await service.ask("/env/GREETING") == (200, "moin")
        assert await service.ask("/env/LD_PRELOAD") == (200, "x")
        _, environment = await service.ask("/environment")
        names = {line.partition("=")[0] for line in environment.splitlines()}
        assert names <= {"GREETING", "LD_PRELOAD", "INSTANCE_ID"}
        sample = (await runtime.sample())[service.job.key]
        assert sample.memory_bytes > MIB
        assert sample.cpu_s > 0
        pid = service.pid
        outcome = await service.stop()
        assert (outcome.reason, outcome.error) == (Reason.STOPPED, "stopped before completion")
        assert outcome.cpu_s > 0
        assert not exists(pid)


async def test_two_services_have_two_ports_and_a_stopped_ones_is_free_again(
    node: Node, runtime: EitherRuntime, settings: ProgramSettings
) -> None:
    first_port = settings.allowed.first
    async with serving(runtime, await service_job(node)) as first:
        async with serving(runtime, await service_job(node)) as second:
            assert (first.port, second.port) == (first_port, first_port + 1)
            assert (await first.ask("/"))[0] == (await second.ask("/"))[0] == 200
        assert (await first.stop()).reason is Reason.STOPPED
    async with serving(runtime, await service_job(node)) as third:
        assert third.port == first_port


async def test_ports_that_others_have_are_passed_over_until_none_is_left(
    node: Node, runtime: EitherRuntime, settings: ProgramSettings
) -> None:
    first, last = settings.allowed.first, settings.allowed.last
    with listening(first), listening(first + 1):
        async with serving(runtime, await service_job(node)) as service:
            assert service.port == first + 2
        with listening(first + 2), listening(last):
            outcome = await runtime.run(await service_job(node))
            assert outcome.reason is Reason.PORT_TAKEN
            assert f"no port from {first} to {last} is free on 127.0.0.1" in outcome.error


async def test_if_somebody_is_quicker_to_take_a_port_it_is_the_next(
    node: Node, settings: ProgramSettings, tmp_path: Path
) -> None:
    beaten = tmp_path / "beaten"
    beaten.write_text(
        f"""#!/bin/sh
        once={tmp_path}/cache/once  # nowhere else may it write
        [ -e $once ] || {{ touch $once; echo "Error: Address in use (os error 98)" >&2; exit 1; }}
        exec {" ".join(find().command)} "$@"
        """
    )
    beaten.chmod(0o755)
    async with (
        open_programs(replace(settings, program=str(beaten), cache_dir=tmp_path / "cache"), node.runtime, 4) as runtime,
        serving(runtime, await service_job(node)) as service,
    ):
        assert service.port == settings.allowed.first + 1
        assert (await service.ask("/"))[0] == 200


async def test_it_serves_on_an_address_of_the_sixth_version(node: Node, runtime: EitherRuntime) -> None:
    (port,) = free_ports(1)
    async with serving(runtime, await service_job(node, argv=[f"--addr=[::1]:{port}"])) as service:
        assert service.port == port
        with socket.create_connection(("::1", port), timeout=5):
            pass


async def test_requests_beyond_the_most_at_once_wait_for_their_turn(node: Node, settings: ProgramSettings) -> None:
    async with (
        open_programs(replace(settings, terms=Terms(max_requests=1)), node.runtime, 4) as runtime,
        serving(runtime, await service_job(node)) as service,
    ):
        answers = []

        async def ask() -> None:
            answers.append(await service.ask("/sleep/300"))

        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask)
        assert answers == [(200, "slept")] * 3
        assert time.monotonic() - began > 0.9


async def test_a_port_that_is_asked_for_is_had_or_the_task_fails(node: Node, runtime: EitherRuntime) -> None:
    (port,) = free_ports(1)
    for argv in (
        ["--port", str(port)],
        [f"--port={port}"],
        ["--addr", f"0.0.0.0:{port}"],
        [f"--addr=127.0.0.1:{port}"],
    ):
        async with serving(runtime, await service_job(node, argv=argv)) as service:
            assert service.ports == [port]
            outcome = await runtime.run(await service_job(node, argv=argv))
            assert outcome.reason is Reason.PORT_TAKEN
    with listening(port):
        outcome = await runtime.run(await service_job(node, argv=argv))
        assert (outcome.reason, outcome.error) == (
            Reason.PORT_TAKEN,
            f"port {port} of 127.0.0.1 is taken: give the task another with --port, or none for one that is free",
        )


async def test_it_listens_on_this_machine_only_unless_the_node_says_otherwise(
    node: Node, runtime: EitherRuntime, settings: ProgramSettings
) -> None:
    async with serving(
        runtime, await service_job(node, argv=["--addr", f"0.0.0.0:{settings.allowed.first}"])
    ) as service:
        assert listeners(service.port) == ["127.0.0.1"]
    outcome = await runtime.run(await service_job(node, argv=["--addr", "192.0.2.1:9000"]))
    assert outcome.reason is Reason.PERMISSION_DENIED
    assert "[runtime.http] host" in outcome.error
    opened = replace(settings, allowed=replace(settings.allowed, host="0.0.0.0"))
    async with (
        open_programs(opened, node.runtime, 4) as everywhere,
        serving(everywhere, await service_job(node)) as service,
    ):
        assert listeners(service.port) == ["0.0.0.0"]


async def test_a_program_that_is_killed_ends_the_run_which_says_so(node: Node, runtime: EitherRuntime) -> None:
    async with serving(runtime, await service_job(node)) as service:
        await service.ask("/say/this")
        os.kill(service.pid, signal.SIGKILL)
        outcome = await service.end()
        assert outcome.reason is Reason.WORKER_CRASHED
        assert "was killed by SIGKILL" in outcome.error
        assert "muttered this" in outcome.error


async def test_requests_under_way_come_to_their_end_when_it_is_stopped(node: Node, runtime: EitherRuntime) -> None:
    async with serving(runtime, await service_job(node)) as service, anyio.create_task_group() as tasks:
        answers: list[tuple[int, str]] = []

        async def ask() -> None:
            answers.append(await service.ask("/say-and-sleep/500"))

        tasks.start_soon(ask)
        await service.until(lambda: b"sleeps" in service.said("stdout"))
        assert (await service.stop()).reason is Reason.STOPPED
        assert service.ended[0].run_s < 2
        with anyio.fail_after(5):
            while not answers:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert answers == [(200, "slept")]


async def test_one_that_does_not_heed_the_stop_is_killed(node: Node, settings: ProgramSettings) -> None:
    async with (
        open_programs(replace(settings, stop_s=0.3), node.runtime, 4) as runtime,
        serving(runtime, await service_job(node)) as service,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(anyio.to_thread.run_sync, _ask_in_vain, service.port, "/say-and-sleep/20000")
        await service.until(lambda: b"sleeps" in service.said("stdout"))
        began = time.monotonic()
        assert (await service.stop()).reason is Reason.STOPPED
        assert time.monotonic() - began < 3


async def test_what_a_guest_prints_is_told_and_a_flood_costs_it_its_speed_only(
    node: Node, runtime: EitherRuntime
) -> None:
    async with serving(runtime, await service_job(node, output_bytes=50_000)) as service:
        await service.ask("/say/this")
        await service.until(lambda: b"muttered this" in service.said("stderr"))
        assert b"said this" in service.said("stdout")
        assert (await service.ask("/flood/30000"))[0] == 200
        await service.until(lambda: len(service.said("stdout")) > 3_000_000)
        assert (await service.ask("/"))[0] == 200
        outcome = await service.stop()
        assert len(outcome.stdout) == 50_000
        assert b"29999" in outcome.stdout


async def test_a_request_that_takes_too_long_or_too_much_memory_fails_and_the_service_lives(
    node: Node, settings: ProgramSettings
) -> None:
    quick = replace(settings, terms=Terms(request_timeout_s=0.5))
    async with (
        open_programs(quick, node.runtime, 4) as runtime,
        serving(runtime, await service_job(node, memory_bytes=32 * MIB)) as service,
    ):
        for path in ("/spin", "/sleep/60000", "/hold/40/0", "/trap"):
            began = time.monotonic()
            assert (await service.ask(path))[0] == 500, path
            assert time.monotonic() - began < 3, path
            assert await service.ask("/") == (200, "hello\n")


async def test_all_its_requests_together_may_not_take_more_than_its_memory(
    node: Node, settings: ProgramSettings
) -> None:
    async with (
        open_programs(replace(settings, allowance_bytes=16 * MIB), node.runtime, 4) as runtime,
        serving(runtime, await service_job(node, memory_bytes=32 * MIB)) as service,
    ):
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(anyio.to_thread.run_sync, _ask_in_vain, service.port, "/hold/20/5000")
            outcome = await service.end()
        assert outcome.reason is Reason.MEMORY_LIMIT
        assert "may have 32 MiB" in outcome.error
        assert outcome.peak_memory_bytes > 48 * MIB


async def test_limits_of_time_end_a_service(node: Node, runtime: EitherRuntime) -> None:
    async with serving(runtime, await service_job(node, wall_s=0.5)) as service:
        outcome = await service.end()
        assert (outcome.reason, outcome.error) == (Reason.TIMEOUT, "ended after 0.5 s, its limit of time")
    async with serving(runtime, await service_job(node, cpu_s=0.5)) as service, anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, _ask_in_vain, service.port, "/spin")
        outcome = await service.end()
        assert outcome.reason is Reason.CPU_LIMIT


async def test_it_reaches_no_network_unless_it_may(node: Node, runtime: EitherRuntime) -> None:
    async with serving(runtime, await service_job(node)) as other:
        async with serving(runtime, await service_job(node)) as service:
            status, text = await service.ask(f"/fetch/127.0.0.1:{other.port}")
            assert status == 500
            assert "fetched" not in text
        async with serving(runtime, await service_job(node, permissions=Permissions(http=("*",)))) as service:
            assert await service.ask(f"/fetch/127.0.0.1:{other.port}") == (200, "fetched 200")


async def test_it_has_the_directories_it_was_granted(node: Node, runtime: EitherRuntime, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("found")
    writable = Permissions(dirs=(DirectoryGrant(str(tmp_path), "/data", read_only=False),))
    async with serving(runtime, await service_job(node, permissions=writable)) as service:
        assert await service.ask("/read/data/note") == (200, "found")
        assert (await service.ask("/write/data/other"))[0] == 200
        assert (await service.ask("/read/etc/passwd"))[0] == 500
    assert (tmp_path / "other").read_text() == "written"


async def test_a_directory_to_be_read_cannot_be_written(node: Node, runtime: EitherRuntime, tmp_path: Path) -> None:
    for name in ("read", "write"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "note").write_text("found")
    grants = (
        DirectoryGrant(str(tmp_path / "read"), "/read"),
        DirectoryGrant(str(tmp_path / "write"), "/write", read_only=False),
    )
    async with serving(runtime, await service_job(node, permissions=Permissions(dirs=grants))) as service:
        for name in ("read", "write"):
            assert await service.ask(f"/read/{name}/note") == (200, "found")
        for path in ("read/note", "read/other", "write/../read/note"):
            assert (await service.ask(f"/write/{path}"))[0] == 500, path
        assert (await service.ask("/write/write/note"))[0] == 200
    assert {path.name: path.read_text() for path in (tmp_path / "read").iterdir()} == {"note": "found"}
    assert (tmp_path / "write" / "note").read_text() == "written"


async def test_a_link_that_was_put_where_a_directory_was_is_not_followed(
    node: Node, runtime: EitherRuntime, tmp_path: Path
) -> None:
    (tmp_path / "granted").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "granted")
    (tmp_path / "granted" / "below").mkdir()
    for path in (tmp_path / "link", tmp_path / "link" / "below", tmp_path / "nowhere"):
        permissions = Permissions(dirs=(DirectoryGrant(str(path), "/data"),))
        outcome = await runtime.run(await service_job(node, permissions=permissions))
        assert outcome.reason is Reason.NOT_SUPPORTED
        assert f"the directory {path} cannot be opened" in outcome.error


@pytest.mark.skipif(not is_known_here(), reason="Linux before 6.3 has no PR_SET_MDWE")
async def test_byte_code_is_served_where_memory_cannot_become_executable(
    node: Node, settings: ProgramSettings, tmp_path: Path
) -> None:
    restricted = tmp_path / "restricted"
    restricted.write_text(f'#!/bin/sh\nexec {" ".join((*WRAPPER, *find().command))} "$@"\n')
    restricted.chmod(0o755)
    pulley = replace(settings, program=str(restricted), terms=Terms(pulley=True))
    async with (
        open_programs(pulley, node.runtime, 4) as runtime,
        serving(runtime, await service_job(node)) as service,
    ):
        assert await service.ask("/") == (200, "hello\n")
    async with open_programs(replace(pulley, terms=Terms()), node.runtime, 4) as runtime:
        assert (await runtime.run(await service_job(node))).reason is not Reason.OK


async def test_the_second_start_does_not_compile_again(node: Node, settings: ProgramSettings, tmp_path: Path) -> None:
    compiled = []
    async with open_programs(replace(settings, cache_dir=tmp_path / "cache"), node.runtime, 4) as runtime:
        for _ in range(2):
            async with serving(runtime, await service_job(node)) as service:
                assert (await service.ask("/"))[0] == 200
            compiled.append(machine_code(tmp_path / "cache"))
    assert len(compiled[0]) == 1
    assert compiled[1] == compiled[0], "it was written anew"
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


async def test_a_damaged_module_is_not_served(node: Node, runtime: EitherRuntime, tmp_path: Path) -> None:
    job = await service_job(node)
    damaged = tmp_path / "damaged.wasm"
    damaged.write_bytes(job.artefact.wasm.read_bytes() + b"\0")
    outcome = await runtime.run(replace(job, artefact=replace(job.artefact, wasm=damaged)))
    assert outcome.reason is Reason.DIGEST_MISMATCH
    outcome = await runtime.run(replace(job, artefact=replace(job.artefact, wasm=None)))
    assert outcome.reason is Reason.MODULE_UNAVAILABLE


async def test_a_job_that_is_cancelled_leaves_no_program_behind(node: Node, runtime: EitherRuntime) -> None:
    service = Service(runtime, await service_job(node))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(service.run)
        await service.until(lambda: service.ports)
        pid = service.pid
        tasks.cancel_scope.cancel()
    assert not exists(pid)
    assert runtime.programs.pids == []


async def test_a_stop_before_the_program_is_there_is_heeded(node: Node, runtime: EitherRuntime) -> None:
    job = await service_job(node)
    async with anyio.create_task_group() as tasks:
        service = Service(runtime, job)
        tasks.start_soon(service.run)
        await anyio.lowlevel.checkpoint()
        runtime.stop(job.key)
        assert (await service.end()).reason is Reason.STOPPED
    assert service.ports == []


async def test_more_services_than_the_node_has_room_for_are_refused(node: Node, settings: ProgramSettings) -> None:
    async with (
        open_programs(replace(settings, max_services=1), node.runtime, 4) as runtime,
        serving(runtime, await service_job(node)),
    ):
        outcome = await runtime.run(await service_job(node))
        assert outcome.reason is Reason.OVERLOADED
        assert "max_services" in outcome.error
    async with open_programs(replace(settings, serves=False), node.runtime, 4) as runtime:
        assert (await runtime.run(await service_job(node))).reason is Reason.PERMISSION_DENIED


async def test_without_a_program_the_person_is_told_what_to_install(
    node: Node, settings: ProgramSettings, tmp_path: Path
) -> None:
    async with open_programs(replace(settings, program=str(tmp_path / "none")), node.runtime, 4) as runtime:
        outcome = await runtime.run(await service_job(node))
        assert outcome.reason is Reason.NOT_SUPPORTED
        assert "[runtime] program" in outcome.error


async def test_nothing_is_left_when_the_agent_is_killed(tmp_path: Path) -> None:
    agent = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "tests.runtime.serving_child", str(tmp_path), str(free_ports(4)[0])],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with anyio.fail_after(60):
            port, pid = map(int, (await anyio.to_thread.run_sync(agent.stdout.readline)).split())
        assert (await anyio.to_thread.run_sync(_ask, port, "/", None, 10.0))[0] == 200
        agent.kill()
        with anyio.fail_after(10):
            while exists(pid):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        with pytest.raises(ConnectionRefusedError):
            await anyio.to_thread.run_sync(_ask, port, "/", None, 10.0)
    finally:
        agent.kill()
        agent.wait()
        agent.stdout.close()
