"""The store over a Kubernetes API keeps the contract, and what else it says of itself."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import open_api
from proplet.manager.model import Key, Kind, Meta, Task
from proplet.manager.ports import Store
from proplet.manager.store_kubernetes import open_kubernetes_store
from tests.manager_store.contract import OpenStore, StoreContract, task
from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_objects import empty, ensure_namespace, install

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def cluster(api_server: ApiServer) -> ApiServer:
    install(api_server)
    ensure_namespace(api_server, "lab")
    return api_server


class TestKubernetesStore(StoreContract):
    @pytest.fixture
    def open_store(self, cluster: ApiServer) -> OpenStore:
        empty(cluster)

        @asynccontextmanager
        async def open_it(history: int = 1000) -> AsyncIterator[Store]:
            async with (
                open_api(Access(cluster.kubeconfig)) as api,
                open_kubernetes_store(api, history=history) as store,
            ):
                await store.ready()
                yield store

        return open_it
