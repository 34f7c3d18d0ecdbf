"""A node's API on a real socket."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proplet.manager.api import ApiSettings
from tests.api.fakes import TOKEN, Node, open_node


@pytest.fixture
def socket_path() -> Iterator[Path]:
    # pytest's own directories may be too long for a socket's path.
    with tempfile.TemporaryDirectory(prefix="p-") as directory:
        yield Path(directory) / "proplet.sock"


@pytest.fixture
def settings(socket_path: Path) -> ApiSettings:
    return ApiSettings(socket=socket_path, host="127.0.0.1", port=0, token=TOKEN)


@pytest.fixture
async def node(settings: ApiSettings, anyio_backend: str) -> AsyncIterator[Node]:
    async with open_node(settings) as opened:
        yield opened
