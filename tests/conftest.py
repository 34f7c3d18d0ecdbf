"""Settings shared by every test."""

import os

import pytest

# Hypothesis: reproducible in CI, quick on a developer's machine.
from hypothesis import HealthCheck, settings

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
