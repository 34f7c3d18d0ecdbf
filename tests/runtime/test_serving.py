"""Components that serve HTTP, in the real wasmtime program and asked by real clients."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent.ports import Job, Notice, Outcome, Output, Serving
from proplet.agent.program_args import Terms
from proplet.agent.program_ports import Allowed
from proplet.agent.program_runtime import EitherRuntime, ProgramSettings, open_programs
from proplet.agent.wire import DirectoryGrant, Permissions, Reason
from tests.runtime.conftest import Node

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


def free_ports(count: int) -> range:
    """A range of ports of which each was free a moment ago."""
    for first in range(20000 + os.getpid() % 10000, 60000, count):
        with socket.socket() as probe:
            try:
                for port in range(first, first + count):
                    with socket.socket() as other:
                        other.bind(("127.0.0.1", port))
                probe.bind(("127.0.0.1", first))
            except OSError:
                continue
            return range(first, first + count)
    raise AssertionError("no ports")


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
        assert not Path(f"/proc/{pid}").exists()
