"""Watches go on through what happens to an API server, and end at once when nobody wants them any more."""

import sys
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.streams.text import TextReceiveStream

from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import open_api
from proplet.manager.manifest import GROUPS
from proplet.manager.model import Key, Kind, Resource, Task, TaskStatus
from proplet.manager.ports import ChangeType, GoneError, StoreUnavailableError
from proplet.manager.store_kubernetes import open_kubernetes_store
from proplet.manager.store_kubernetes_document import collection_of
from tests.kubernetes.relay import open_relay
from tests.manager_store.contract import collect, task
from tests.support.kubernetes import ApiServer, open_api_server
from tests.support.kubernetes_objects import empty, install, interrupted, recovered

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]

TASKS = collection_of(Kind.TASK, GROUPS[0])
CHILD = Path(__file__).with_name("watching_child.py")


@pytest.fixture(scope="module")
def running() -> Iterator[ApiServer]:
    """An API server that these tests stop, kill and start."""
    with open_api_server() as server:
        install(server)
        yield server


@pytest.fixture
def server(running: ApiServer) -> ApiServer:
    """It, without any resource."""
    running.start()
    empty(running)
    return running


def apply(server: ApiServer, name: str) -> int:
    """Create a Task as somebody else; return its version."""
    document = {
        "apiVersion": TASKS.api_version,
        "kind": "Task",
        "metadata": {"name": name},
        "spec": {"name": name, "imageUrl": "oci://example.org/add"},
    }
    made = server.call("POST", TASKS.path("default"), document)
    return int(made["metadata"]["resourceVersion"])


async def test_what_others_do_is_told_with_its_version(server: ApiServer) -> None:
    async with open_api(Access(server.kubeconfig)) as api, open_kubernetes_store(api, kinds=[Kind.TASK]) as store:
        since = (await store.list(Kind.TASK)).version
        version = apply(server, "theirs")
        server.kubectl("label", "task", "theirs", "a=b")
        server.kubectl("delete", "task", "theirs")
        added, changed, deleted = await collect(store, Kind.TASK, since, 3)
        assert (added.type, added.version, added.resource.meta.name) == (ChangeType.ADDED, version, "theirs")
        assert (changed.type, changed.resource.meta.labels) == (ChangeType.MODIFIED, {"a": "b"})
        assert (deleted.type, deleted.resource) == (ChangeType.DELETED, changed.resource)
        assert (await store.list(Kind.TASK)).items == ()


async def test_a_watch_whose_connection_is_cut_goes_on_where_it_was(server: ApiServer) -> None:
    async with open_relay(server.port) as relay:
        config = server.kubeconfig.with_name("kubeconfig-relay")
        config.write_text(server.kubeconfig.read_text().replace(f":{server.port}", f":{relay.port}"))
        async with open_api(Access(config)) as api, open_kubernetes_store(api, kinds=[Kind.TASK]) as store:
            since = (await store.list(Kind.TASK)).version
            expected = []
            for number in range(5):
                expected.append(apply(server, f"before-{number}"))
                await relay.cut()
                expected.append(apply(server, f"after-{number}"))
                await relay.opened_again()
            # Nobody had to list again, nothing is missing and nothing is told twice.
            changes = await collect(store, Kind.TASK, since, len(expected))
            assert [(change.type, change.version) for change in changes] == [(ChangeType.ADDED, v) for v in expected]
            assert relay.connections > 5
            for change in changes:
                await store.delete(Kind.TASK, change.resource.meta.key)


@pytest.mark.slow
async def test_nothing_is_lost_when_the_server_is_killed_and_started(server: ApiServer) -> None:
    """The server forgets its recent history with that, so a follower may have to list again, as every follower can."""
    async with open_api(Access(server.kubeconfig)) as api, open_kubernetes_store(api, kinds=[Kind.TASK]) as store:
        await store.ready()
        seen: dict[Key, Resource] = {}
        arrived = anyio.Event()

        async def follow() -> None:
            while True:
                listing = await store.list(Kind.TASK)
                seen.clear()
                seen.update({item.meta.key: item for item in listing.items})
                try:
                    async with aclosing(store.watch(Kind.TASK, listing.version)) as changes:  # type: ignore[type-var]
                        async for change in changes:
                            if change.type is ChangeType.DELETED:
                                del seen[change.resource.meta.key]
                            else:
                                seen[change.resource.meta.key] = change.resource
                            if change.resource.meta.name == "last":
                                arrived.set()
                except GoneError:
                    continue

        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            kept = await store.create(task("kept"))
            for round_ in range(2):
                gone = await store.create(task(f"gone-{round_}"))
                server.kill()
                await interrupted(store)
                # What was read stays readable; what cannot be written says so.
                assert await store.get(Kind.TASK, kept.meta.key) == kept
                with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                    await store.create(task("not-now"))
                server.start()  # in this thread: the server ends with the one that starts it
                apply(server, f"after-{round_}")  # before the watch is back
                server.kubectl("delete", "task", gone.meta.name)
                await recovered(store)
            await store.create(task("last"))
            with anyio.fail_after(60):
                await arrived.wait()
            group.cancel_scope.cancel()
        listing = await store.list(Kind.TASK)
        assert [item.meta.name for item in listing.items] == ["kept", "after-0", "after-1", "last"]
        assert seen == {item.meta.key: item for item in listing.items}
        for item in listing.items:
            await store.delete(Kind.TASK, item.meta.key)


@pytest.mark.slow
async def test_who_follows_from_a_version_that_the_server_forgot_lists_again(server: ApiServer) -> None:
    async with open_api(Access(server.kubeconfig)) as api, open_kubernetes_store(api, kinds=[Kind.TASK]) as store:
        made = await store.create(task("kept"))
        await store.create(task("gone"))
        listing = await store.list(Kind.TASK)
        gone = anyio.Event()

        async def follow() -> None:
            with pytest.raises(GoneError, match="list again"):
                await collect(store, Kind.TASK, listing.version, 1000)
            gone.set()

        def change_behind_its_back() -> None:
            for number in range(3):
                server.call("POST", "/api/v1/namespaces/default/configmaps", {"metadata": {"name": f"n{number}"}})
            server.compact()
            for number in range(3):
                server.call("DELETE", f"/api/v1/namespaces/default/configmaps/n{number}")

        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            change_behind_its_back()
            server.kubectl("delete", "task", "gone")
            await recovered(store)
            with anyio.fail_after(30):
                await gone.wait()
        assert (await store.list(Kind.TASK)).items == (made,)
        await store.delete(Kind.TASK, made.meta.key)


async def test_a_server_that_does_not_answer_does_not_hold_the_store(server: ApiServer) -> None:
    """The watches and a write wait on sockets; closing these is the only thing that ends it."""
    with anyio.fail_after(60):
        async with open_api(Access(server.kubeconfig)) as api, open_kubernetes_store(api) as store:
            await store.ready()
            made = await store.create(task("held"))
            server.pause()
            try:
                with anyio.move_on_after(0.1):
                    await store.record(replace(made, status=TaskStatus(attempt=1)))
                api.close()
            finally:
                server.resume()
    server.kubectl("delete", "task", "held")


@pytest.mark.parametrize("last_word", ["", "pause"])
async def test_a_process_that_watches_ends_when_it_is_asked_to(server: ApiServer, last_word: str) -> None:
    command = [sys.executable, str(CHILD), str(server.kubeconfig)]
    async with await anyio.open_process(command, stderr=None) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        with anyio.fail_after(60):
            assert (await anext(TextReceiveStream(child.stdout))).strip() == "ready"
            if last_word:
                server.pause()
            try:
                await child.stdin.aclose()
                assert await child.wait() == 0
            finally:
                if last_word:
                    server.resume()
                if child.returncode is None:
                    child.kill()


async def test_a_write_is_seen_by_reads_that_follow_it_at_once(server: ApiServer) -> None:
    async with open_api(Access(server.kubeconfig)) as api, open_kubernetes_store(api, kinds=[Kind.TASK]) as store:
        await store.ready()
        for number in range(30):
            made = await store.create(task("mine"))
            assert await store.get(Kind.TASK, Key("mine")) == made
            assert await store.find(Kind.TASK, made.meta.uid) == made
            recorded = await store.record(replace(made, status=TaskStatus(attempt=number + 1)))
            assert await store.get(Kind.TASK, Key("mine")) == recorded
            assert isinstance(recorded, Task)
            assert (await store.list(Kind.TASK)).items == (recorded,)
            await store.delete(Kind.TASK, Key("mine"))
            assert (await store.list(Kind.TASK)).items == ()
