"""What many tests of the manager begin with."""

from collections.abc import AsyncIterator

import pytest

from proplet.manager.store_memory import MemoryStore
from tests.manager.fakes import Node, open_node


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with open_node(MemoryStore()) as node:
        yield node
