"""A broker, an API server that may be killed, a namespace, and managers of it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kubernetes.faults.managers import HASTY, Launch
from tests.support.kubernetes import ApiServer, open_api_server
from tests.support.kubernetes_manager import ManagerProcess, Workspace, install_crds, manager_arguments
from tests.support.mosquitto import MosquittoServer


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[MosquittoServer]:
    """One that notes who connects."""
    server = MosquittoServer(tmp_path / "broker", extra=["connection_messages true"])
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """One that may be killed, for this module: each test leaves it running."""
    with open_api_server() as opened:
        install_crds(opened)
        yield opened


@pytest.fixture
def space(server: ApiServer, request: pytest.FixtureRequest) -> Iterator[Workspace]:
    name = request.node.originalname[:60].replace("_", "-").rstrip("-").lower()
    server.create_namespace(name)
    yield Workspace(server, name)
    server.start()  # whatever the test has done to it
    server.remove_namespace(name)


@pytest.fixture
def launch(tmp_path: Path, broker: MosquittoServer, space: Workspace) -> Iterator[Launch]:
    """Starts managers of the workspace; they end with the test."""
    with ExitStack() as stack:

        def start(name: str = "manager", *more: str, hasty: bool = False) -> ManagerProcess:
            arguments = manager_arguments(
                broker, space.server, f"--namespace={space.namespace}", f"--lease-namespace={space.namespace}", *more
            )
            return stack.enter_context(ManagerProcess(tmp_path / name, arguments, HASTY if hasty else {}))

        yield start
