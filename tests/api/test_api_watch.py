"""Server-sent events over a real socket: order, resuming, leaving, closing, bounds."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import anyio
import pytest

from proplet.manager.api import ApiSettings
from proplet.manager.model import Key, Kind, Meta, Task, TaskSpec
from proplet.manager.store_memory import MemoryStore
from tests.api.fakes import Node, open_node
from tests.api.http import Raw, send
from tests.api.test_api_tasks import is_error

pytestmark = pytest.mark.anyio


class Stream:
    """A reader of one watch."""

    def __init__(self, where: Path, query: str, headers: Mapping[str, str] | None = None) -> None:
        self._raw = Raw(where)
        extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._raw.socket.sendall(f"GET /api/v1/watch?{query} HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode())
        self._lines = self._raw.socket.makefile("rb")

    def _event(self) -> dict[str, Any] | None:
        event: dict[str, Any] = {}
        while line := self._lines.readline():
            text = line.decode().rstrip("\r\n")
            key, colon, value = text.partition(": ")
            if text.startswith(": "):
                event["comment"] = True
            elif colon and key in {"event", "id", "data"}:
                event[key] = value
            elif not text and ("event" in event or "comment" in event):
                return event
        return None

    async def next(self) -> dict[str, Any]:
        """Return the next event."""
        event = await anyio.to_thread.run_sync(self._event)
        assert event is not None, "the stream has ended"
        return event

    async def ends(self) -> bool:
        return await anyio.to_thread.run_sync(self._event) is None

    def close(self) -> None:
        self._lines.close()
        self._raw.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


async def put(node: Node, name: str, value: str = "1") -> Task:
    created = await node.store.create(Task(Meta(name), TaskSpec(name="main", image_url="r/x", inputs=(value,))))
    assert isinstance(created, Task)
    return created


def names(event: dict[str, Any]) -> tuple[str, str]:
    return event["event"], json.loads(event["data"])["object"]["metadata"]["name"]


async def test_a_watch_begins_with_what_there_is_and_goes_on_with_changes(node: Node) -> None:
    task = await put(node, "a")
    with Stream(node.socket, "kind=tasks") as stream:
        first = await stream.next()
        assert names(first) == ("ADDED", "a")
        assert "id" not in first
        synced = await stream.next()
        assert (synced["event"], int(synced["id"])) == ("SYNCED", task.meta.version)
        changed = await node.store.put(replace(task, spec=replace(task.spec, priority=9)))
        event = await stream.next()
        assert (names(event), int(event["id"])) == (("MODIFIED", "a"), changed.meta.version)
        await node.store.delete(Kind.TASK, Key("a"))
        assert names(await stream.next()) == ("DELETED", "a")


async def test_a_watch_resumes_where_it_was_lost_without_gap_or_repetition(node: Node) -> None:
    first, second, third = [await put(node, name) for name in "abc"]
    with Stream(node.socket, f"kind=tasks&since={first.meta.version}") as stream:
        assert names(await stream.next()) == ("ADDED", "b")
    # The header wins over the query, which a browser keeps sending as it was at the beginning.
    seen = {"Last-Event-ID": str(second.meta.version)}
    with Stream(node.socket, f"kind=tasks&since={first.meta.version}", seen) as stream:
        event = await stream.next()
        assert (names(event), int(event["id"])) == (("ADDED", "c"), third.meta.version)


async def test_a_watch_shows_only_what_was_asked_for(node: Node) -> None:
    await put(node, "a")
    with Stream(node.socket, "kind=Task&name=b&namespace=default") as stream:
        assert (await stream.next())["event"] == "SYNCED"
        await put(node, "c")
        await put(node, "b")
        assert names(await stream.next()) == ("ADDED", "b")


async def test_a_watch_of_forgotten_changes_says_gone(settings: ApiSettings) -> None:
    async with open_node(settings, MemoryStore(history=2)) as node:
        for name in "abcdef":
            await put(node, name)
        with Stream(node.socket, "kind=tasks&since=1") as stream:
            event = await stream.next()
            assert (event["event"], json.loads(event["data"])["reason"]) == ("gone", "gone")
            assert await stream.ends()


async def test_a_quiet_watch_says_that_it_is_alive(settings: ApiSettings) -> None:
    async with open_node(replace(settings, heartbeat_s=0.02)) as node:
        with Stream(node.socket, "kind=proplets") as stream:
            assert (await stream.next())["event"] == "SYNCED"
            assert await stream.next() == {"comment": True}


@pytest.mark.parametrize("query", ["", "kind=pods", "kind=tasks&since=-1", "kind=tasks&since=x"])
async def test_a_watch_that_makes_no_sense_is_refused(node: Node, query: str) -> None:
    assert is_error(await send(node.socket, "GET", f"/api/v1/watch?{query}"), 400, "invalid")


async def watchers(node: Node) -> int:
    lines = (await send(node.socket, "GET", "/metrics")).body.decode().splitlines()
    return int(next(line for line in lines if line.startswith("proplet_http_watchers ")).split()[1])


async def test_a_client_that_leaves_is_forgotten(node: Node) -> None:
    with Stream(node.socket, "kind=tasks") as stream:
        await stream.next()
        assert await watchers(node) == 1
    with anyio.fail_after(5):
        while await watchers(node):  # each question is a turn of the loop
            pass


async def test_there_are_only_so_many_watches(settings: ApiSettings) -> None:
    async with open_node(replace(settings, max_watchers=1)) as node:
        with Stream(node.socket, "kind=tasks") as stream:
            await stream.next()
            assert is_error(await send(node.socket, "GET", "/api/v1/watch?kind=tasks"), 503, "too_many_watchers")


async def test_closing_the_api_ends_watches_at_once(settings: ApiSettings) -> None:
    async with open_node(settings) as node:
        stream = Stream(node.socket, "kind=tasks")
        await stream.next()
        before = anyio.current_time()
    assert anyio.current_time() - before < 2
    assert await stream.ends()
    stream.close()


async def change_a_lot(node: Node, task: Task, times: int) -> None:
    for number in range(times):
        written = await node.store.put(replace(task, spec=replace(task.spec, inputs=(f"{number}" * 5000,))))
        assert isinstance(written, Task)
        task = written
        await anyio.lowlevel.checkpoint()


async def test_a_reader_that_does_not_read_blocks_nobody(node: Node) -> None:
    task = await put(node, "a")
    with Stream(node.socket, "kind=tasks") as stream:
        await stream.next()
        await change_a_lot(node, task, 300)
        assert (await send(node.socket, "GET", "/health")).status == 200


async def test_a_reader_that_does_not_read_loses_its_connection(settings: ApiSettings) -> None:
    async with open_node(replace(settings, stall_timeout_s=0.1)) as node:
        task = await put(node, "a")
        with Stream(node.socket, "kind=tasks") as stream:
            await stream.next()
            await change_a_lot(node, task, 300)
            with anyio.fail_after(10):
                while await watchers(node):  # each question is a turn of the loop
                    pass
