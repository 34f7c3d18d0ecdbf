"""The contract of stores, for the store over a Kubernetes API; a module that uses it has a fixture `cluster`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import open_api
from proplet.manager.model import Kind, Meta, Task
from proplet.manager.ports import Store
from proplet.manager.store_kubernetes import KubernetesStore, open_kubernetes_store
from tests.manager_store.contract import OpenStore, StoreContract, task
from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_objects import empty


@asynccontextmanager
async def opened(server: ApiServer, **options: Any) -> AsyncIterator[KubernetesStore]:
    """A store of the administrator, up to date."""
    async with (
        open_api(Access(options.pop("kubeconfig", server.kubeconfig))) as api,
        open_kubernetes_store(api, **options) as store,
    ):
        await store.ready()
        yield store


class OverKubernetes(StoreContract):
    """The tests."""

    @pytest.fixture
    def open_store(self, cluster: ApiServer) -> OpenStore:
        empty(cluster)

        @asynccontextmanager
        async def open_it(history: int = 1000) -> AsyncIterator[Store]:
            async with opened(cluster, history=history) as store:
                yield store

        return open_it

    async def test_a_given_uid_is_kept(self, open_store: OpenStore) -> None:
        """It is not, here: the API server gives them."""
        async with open_store() as store:
            made = await store.create(Task(Meta("a", uid="mine"), task().spec))
            assert len(made.meta.uid) == 36
            assert await store.find(Kind.TASK, made.meta.uid) == made
