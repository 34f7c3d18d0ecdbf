"""The store keeps the contract on the definitions as they are shipped: they know every field that we write."""

from dataclasses import replace

import pytest

from tests.kubernetes.contract import OverKubernetes
from tests.manager_store.contract import FULL_PROPLET, FULL_TASK, OpenStore
from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_manager import install_crds
from tests.support.kubernetes_objects import ensure_namespace

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def cluster(api_server: ApiServer) -> ApiServer:
    install_crds(api_server)
    ensure_namespace(api_server, "lab")
    return api_server


class TestKubernetesStore(OverKubernetes):
    """On definitions that let pass what they know."""

    async def test_every_field_comes_back_as_it_was_given(self, open_store: OpenStore) -> None:
        """But for what only a node of its own has: a Proplet that nobody declared."""
        connection = {**FULL_PROPLET.spec.connection, "mqttTimeout": "30s"}  # their default
        declared = replace(FULL_PROPLET.spec, declared=True, connection=connection)
        async with open_store() as store:
            for resource in (FULL_TASK, replace(FULL_PROPLET, spec=declared)):
                made = await store.create(resource)
                assert replace(made, meta=resource.meta) == resource
                assert await store.get(resource.kind, resource.meta.key) == made
