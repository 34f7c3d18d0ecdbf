"""The store keeps the contract on the definitions as they are shipped: they know every field that we write."""

import pytest

from tests.kubernetes.contract import OverKubernetes
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
