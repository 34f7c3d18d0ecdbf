"""The pages for probes and Prometheus, asked over real sockets."""

import socket

import anyio
import pytest

from proplet.manager.health import Answer, HealthError, Site, metrics_page, open_site
from proplet.manager.measures import BUCKETS, Histogram, MeasuredStore, Measures
from proplet.manager.model import Key, Kind, Meta, Resource, Task, TaskStatus
from proplet.manager.phases import Phase
from proplet.manager.ports import ChangeType, NotFoundError
from proplet.manager.store_memory import MemoryStore

pytestmark = pytest.mark.anyio

PAGES = {
    "/healthz": lambda: Answer("ok\n"),
    "/readyz": lambda: Answer("mqtt: no connection\n", ok=False),
    "/metrics": metrics_page(lambda: "proplet_leader 1\n"),
    "/broken": lambda: Answer(str(1 / 0)),
}


async def ask(port: int, request: bytes) -> bytes:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(request)
        said = b""
        with anyio.fail_after(10):
            try:
                while True:
                    said += await stream.receive()
            except anyio.EndOfStream:
                return said


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_pages_say_what_they_say_and_nothing_else_is_there() -> None:
    async with open_site(Site("127.0.0.1", 0, PAGES)) as port:
        ok = await ask(port, get("/healthz?verbose"))
        assert ok.startswith(b"HTTP/1.1 200 OK\r\n")
        assert ok.endswith(b"\r\n\r\nok\n")
        away = await ask(port, get("/readyz"))
        assert away.startswith(b"HTTP/1.1 503 ")
        assert b"mqtt: no connection" in away
        assert b"text/plain; version=0.0.4" in await ask(port, get("/metrics"))
        assert (await ask(port, get("/healthz", "HEAD"))).endswith(b"\r\n\r\n")
        assert (await ask(port, get("/elsewhere"))).startswith(b"HTTP/1.1 404 ")
        assert (await ask(port, get("/healthz", "POST"))).startswith(b"HTTP/1.1 405 ")
        assert (await ask(port, b"hello\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        broken = await ask(port, get("/broken"))
        assert broken.startswith(b"HTTP/1.1 500 ")
        assert b"ZeroDivision" not in broken


async def test_who_says_nothing_does_not_keep_others_from_asking() -> None:
    async with open_site(Site("127.0.0.1", 0, PAGES)) as port:
        silent = [await anyio.connect_tcp("127.0.0.1", port) for _ in range(8)]
        assert b"200 OK" in await ask(port, get("/healthz"))
        for stream in silent:
            await stream.aclose()


async def test_however_many_only_hold_connections_a_probe_is_answered() -> None:
    # Nobody makes room by going.
    async with open_site(Site("127.0.0.1", 0, PAGES, patience_s=3600.0)) as port:
        silent = [await anyio.connect_tcp("127.0.0.1", port) for _ in range(100)]
        assert b"200 OK" in await ask(port, get("/healthz"))
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await silent[0].receive()
        for stream in silent:
            await stream.aclose()


async def test_a_port_that_is_taken_is_said_with_the_flag_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HealthError, match="choose another --health-probe-bind-address, or 0"):
            async with open_site(Site("127.0.0.1", port, PAGES, setting="--health-probe-bind-address")):
                pass


def task(name: str, phase: Phase, attempt: int = 0) -> Task:
    return Task(Meta(name), status=TaskStatus(phase=phase, attempt=attempt))


async def test_what_passes_through_the_store_is_counted() -> None:
    now, measures = [100.0], Measures()
    store = MeasuredStore(MemoryStore(), measures, lambda: now[0])
    made = await store.create(task("a", Phase.PENDING))
    assert isinstance(made, Task)
    now[0] = 100.03
    await store.record(Task(made.meta, made.spec, TaskStatus(phase=Phase.SCHEDULED, attempt=1)))
    with pytest.raises(NotFoundError):
        await store.get(Kind.TASK, Key("b"))
    lines = list(measures.lines({"proplet_leader": ("Whether.", 1.0)}))
    assert 'proplet_tasks{phase="scheduled"} 1' in lines
    assert 'proplet_tasks{phase="pending"} 0' in lines
    assert 'proplet_dispatch_seconds_bucket{le="0.02"} 0' in lines
    assert 'proplet_dispatch_seconds_bucket{le="0.05"} 1' in lines
    assert "proplet_dispatch_seconds_count 1" in lines
    assert 'proplet_store_errors_total{kind="not_found"} 1' in lines
    assert "proplet_store_writes_total 2" in lines
    assert lines[-1] == "proplet_leader 1"


async def test_tasks_that_are_gone_are_not_counted_any_more() -> None:
    measures, memory = Measures(), MemoryStore()
    store = MeasuredStore(memory, measures)
    await store.create(task("a", Phase.PENDING))
    await memory.delete(Kind.TASK, Key("a"))
    await store.list(Kind.TASK)
    assert (measures.phases, measures.waiting) == ({}, {})


async def test_an_answer_after_the_end_was_told_brings_no_task_back() -> None:
    told = anyio.Event()

    class LateAnswers(MemoryStore):
        async def record(self, resource: Resource) -> Resource:
            recorded = await super().record(resource)
            await self.delete(Kind.TASK, resource.meta.key)
            await told.wait()
            return recorded

    measures, memory = Measures(), LateAnswers()
    store = MeasuredStore(memory, measures)

    async def watch() -> None:
        async for change in store.watch(Kind.TASK, 0):
            if change.type is ChangeType.DELETED:
                told.set()

    made = await store.create(task("a", Phase.PENDING))
    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await store.record(Task(made.meta, status=TaskStatus(phase=Phase.SCHEDULED, attempt=1)))
        group.cancel_scope.cancel()
    assert (measures.phases, measures.waiting) == ({}, {})


@pytest.mark.parametrize("seconds", [0.0, BUCKETS[0], BUCKETS[-1], BUCKETS[-1] + 1])
def test_a_histogram_counts_everything_once(seconds: float) -> None:
    histogram = Histogram()
    histogram.observe(seconds)
    lines = list(histogram.lines("x"))
    assert 'x_bucket{le="+Inf"} 1' in lines
    bounds = [b for b in BUCKETS if seconds <= b]
    assert sum(line.endswith("} 1") for line in lines) == len(bounds) + 1
