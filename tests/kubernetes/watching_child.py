"""A process that watches every kind until its standard input ends."""

import sys
from pathlib import Path

import anyio

from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import open_api
from proplet.manager.store_kubernetes import open_kubernetes_store


async def main() -> None:
    async with open_api(Access(Path(sys.argv[1]))) as api, open_kubernetes_store(api) as store:
        await store.ready()
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


anyio.run(main)
