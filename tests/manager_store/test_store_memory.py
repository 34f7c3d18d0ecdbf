"""The memory store keeps the contract."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proplet.manager.ports import Store
from proplet.manager.store_memory import MemoryStore
from tests.manager_store.contract import OpenStore, StoreContract

pytestmark = pytest.mark.anyio


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def open_store(self) -> OpenStore:
        @asynccontextmanager
        async def open_it(history: int = 1000) -> AsyncIterator[Store]:
            yield MemoryStore(history=history)

        return open_it
