"""Settings shared by every test."""

import os
import secrets
from collections import Counter
from collections.abc import Iterator

import pytest

# Hypothesis: reproducible in CI, quick on a developer's machine.
from hypothesis import HealthCheck, settings

from tests.support.kubernetes import ApiServer, open_api_server

settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("default")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_settings_of_the_developers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not see the PROPLET_* variables of whoever runs them."""
    for name in list(os.environ):
        if name.startswith(("PROPLET_", "MANAGER_", "PROXY_")):
            monkeypatch.delenv(name)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses a Kubernetes API server; where several workers share the tests, begin with what takes longest."""
    for item in items:
        if {"api_server", "private_api_server"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("kubernetes")
    if hasattr(config, "workerinput"):  # pytest-xdist's
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])  # stable: a module's tests keep their order


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """A Kubernetes API server for all tests; what is not in a namespace, a test removes itself."""
    with open_api_server() as server:
        yield server


@pytest.fixture
def private_api_server() -> Iterator[ApiServer]:
    """A Kubernetes API server for one test, which may kill it."""
    with open_api_server() as server:
        yield server


@pytest.fixture
def namespace(api_server: ApiServer) -> Iterator[str]:
    """A new namespace of `api_server`; removed with all that is in it."""
    name = f"test-{secrets.token_hex(4)}"
    api_server.create_namespace(name)
    yield name
    api_server.remove_namespace(name)
