"""Several stores and other programs write the same resources at once: everybody ends with what the server has."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace

import anyio
import pytest
from anyio import to_thread

from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import open_api
from proplet.manager.manifest import GROUPS
from proplet.manager.model import Key, Kind, Meta, Resource, Task
from proplet.manager.ports import AlreadyExistsError, ChangeType, ConflictError, GoneError, NotFoundError
from proplet.manager.store_kubernetes import KubernetesStore, open_kubernetes_store
from proplet.manager.store_kubernetes_document import collection_of, read
from tests.manager_store.contract import task
from tests.support.kubernetes import MERGE_PATCH, ApiError, ApiServer
from tests.support.kubernetes_objects import install

pytestmark = pytest.mark.anyio

TASKS = collection_of(Kind.TASK, GROUPS[0])
NAMES = ("a", "b", "c")
ROUNDS = 40


@pytest.fixture
def namespaces(api_server: ApiServer, namespace: str) -> Iterator[tuple[str, str]]:
    install(api_server, Kind.TASK)
    api_server.create_namespace(f"{namespace}-b")
    yield namespace, f"{namespace}-b"
    api_server.remove_namespace(f"{namespace}-b")


@asynccontextmanager
async def opened(server: ApiServer, namespaces: tuple[str, ...]) -> AsyncIterator[KubernetesStore]:
    async with (
        open_api(Access(server.kubeconfig)) as api,
        open_kubernetes_store(api, kinds=[Kind.TASK], namespaces=namespaces) as store,
    ):
        await store.ready()
        yield store


async def write(store: KubernetesStore, key: Key, dice: random.Random) -> None:
    """Do one thing to a resource; our own writes are never unseen by our own reads."""
    try:
        match dice.randrange(4):
            case 0:
                made: Resource = await store.create(Task(Meta(key.name, key.namespace), task().spec))
            case 1:
                made = await store.get(Kind.TASK, key)
                assert isinstance(made, Task)
                made = await store.record(replace(made, status=replace(made.status, attempt=made.status.attempt + 1)))
            case 2:
                made = await store.get(Kind.TASK, key)
                assert isinstance(made, Task)
                made = await store.put(replace(made, spec=replace(made.spec, priority=dice.randrange(100))))
            case _:
                await store.delete(Kind.TASK, key)
                return
        with suppress(NotFoundError):  # another has deleted it
            assert (await store.get(Kind.TASK, key)).meta.version >= made.meta.version
    except (AlreadyExistsError, ConflictError, NotFoundError):
        pass


def write_as_another(server: ApiServer, key: Key, dice: random.Random) -> None:
    try:
        if dice.randrange(3) == 0:
            server.call("DELETE", TASKS.path(key.namespace, key.name))
        else:
            change = {"metadata": {"labels": {"n": str(dice.randrange(1000))}}}
            server.call("PATCH", TASKS.path(key.namespace, key.name), change, content_type=MERGE_PATCH)
    except ApiError as refused:
        if refused.status not in (404, 409):
            raise


async def follow(store: KubernetesStore, last: Key, started: anyio.Event) -> dict[Key, Resource]:
    """List and watch as a controller does, until `last` comes; versions only grow, additions are only new."""
    while True:
        listing = await store.list(Kind.TASK)
        state = {item.meta.key: item for item in listing.items}
        version = listing.version
        started.set()
        try:
            async with aclosing(store.watch(Kind.TASK, version)) as changes:  # type: ignore[type-var]
                async for change in changes:
                    assert change.version > version
                    version = change.version
                    key = change.resource.meta.key
                    if change.type is ChangeType.DELETED:
                        assert state.pop(key).meta.uid == change.resource.meta.uid
                    else:
                        assert (change.type is ChangeType.ADDED) == (key not in state)
                        state[key] = change.resource
                    if key == last:
                        return state
        except GoneError:
            continue


@pytest.mark.parametrize("everywhere", [True, False], ids=["cluster-wide", "namespaced"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_everybody_ends_with_the_servers_state(
    api_server: ApiServer, namespaces: tuple[str, str], everywhere: bool, seed: int
) -> None:
    dice = random.Random(seed)
    keys = [Key(name, namespace) for name in NAMES for namespace in namespaces]
    last = Key("last", namespaces[1])
    states: list[dict[Key, Resource]] = []
    async with AsyncExitStack() as stack:
        watched = () if everywhere else namespaces
        stores = [await stack.enter_async_context(opened(api_server, watched)) for _ in range(2)]

        async def keep(store: KubernetesStore, started: anyio.Event) -> None:
            states.append(await follow(store, last, started))

        async with anyio.create_task_group() as followers:
            for store in stores:
                started = anyio.Event()
                followers.start_soon(keep, store, started)
                await started.wait()
            async with anyio.create_task_group() as writers:
                for _ in range(ROUNDS):
                    for store in stores:
                        writers.start_soon(write, store, dice.choice(keys), dice)
                    await to_thread.run_sync(write_as_another, api_server, dice.choice(keys), dice)
            with anyio.fail_after(30):
                await stores[0].create(Task(Meta(last.name, last.namespace), task().spec))
        listings = [(await store.list(Kind.TASK)).items for store in stores]
    truth = {
        found.meta.key: found
        for namespace in namespaces
        for document in api_server.call("GET", TASKS.path(namespace))["items"]
        for found in [read(document, TASKS)]
    }
    if not everywhere:  # the last word of one namespace is not that of the other
        states = [{key: item for key, item in state.items() if key.namespace == last.namespace} for state in states]
        assert all({i.meta.key: i for i in items if i.meta.namespace in namespaces} == truth for items in listings)
        truth = {key: item for key, item in truth.items() if key.namespace == last.namespace}
    states = [{key: item for key, item in state.items() if key.namespace in namespaces} for state in states]
    assert states == [truth, truth]
