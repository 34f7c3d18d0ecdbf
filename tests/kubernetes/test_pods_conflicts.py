"""A Proplet whose status others write all the time is not written to in a loop without a pause."""

import time
from dataclasses import replace
from typing import cast

import anyio
import pytest

from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import open_api
from proplet.manager.model import Kind, Proplet, Resource
from proplet.manager.pods import FIRST_PAUSE_S, Pods, PodSettings
from proplet.manager.ports import ConflictError
from proplet.manager.store_memory import MemoryStore
from tests.manager.test_deployments import CONNECTION, proplet
from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_manager import GROUP

pytestmark = pytest.mark.anyio

CONFLICTS = 5


class Contended(MemoryStore):
    """Somebody else was first, some times."""

    def __init__(self) -> None:
        super().__init__()
        self.tried: list[float] = []
        self.written = anyio.Event()

    async def record(self, resource: Resource) -> Resource:
        self.tried.append(time.monotonic())
        if len(self.tried) <= CONFLICTS:
            raise ConflictError("somebody else was first")
        self.written.set()
        return await super().record(resource)


async def test_a_conflict_is_tried_again_after_a_pause_that_grows(api_server: ApiServer, namespace: str) -> None:
    store, asked = Contended(), proplet()
    connection = {**CONNECTION, "clientKey": "plain"}
    del connection["clientKeySecretRef"]
    meta = replace(asked.meta, namespace=namespace)
    made = await store.create(Proplet(meta, replace(asked.spec, connection=connection)))
    async with open_api(Access(api_server.kubeconfig)) as api, anyio.create_task_group() as tasks:
        tasks.start_soon(Pods(api, store, PodSettings(GROUP, (namespace,))).run)
        with anyio.fail_after(30):
            await store.written.wait()
        tasks.cancel_scope.cancel()
    # Looks that the new Deployment itself brings come between; without pauses all would be over in no time.
    slow = sorted(b - a for a, b in zip(store.tried, store.tried[1:], strict=False))
    assert slow[-1] >= FIRST_PAUSE_S * 2
    assert len(store.tried) == CONFLICTS + 1
    told = cast("Proplet", await store.get(Kind.PROPLET, made.meta.key))
    assert [c.type for c in told.status.conditions][:2] == ["Ready", "Healthy"]
