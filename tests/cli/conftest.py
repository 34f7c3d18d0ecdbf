"""A home of its own for every command, and a node's API to talk to."""

import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proplet.manager.api import ApiSettings
from tests.api.fakes import Node, open_node


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell without job control starts what it puts in the background deaf to SIGINT, and children inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def home() -> Iterator[Path]:
    # pytest's own directories may be too long for a socket's path.
    with tempfile.TemporaryDirectory(prefix="p-") as directory:
        yield Path(directory)


@pytest.fixture
async def node(home: Path, anyio_backend: str) -> AsyncIterator[Node]:
    """A node whose socket is where the command looks for it."""
    (home / "run/proplet").mkdir(parents=True)
    async with open_node(ApiSettings(socket=home / "run/proplet/proplet.sock")) as opened:
        yield opened
