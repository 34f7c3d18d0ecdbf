"""A manager in a process of its own, to be killed. ``python -m tests.manager.manager_child STORE ADDRESS PASSWORD``.

Says `ready` when it has opened, and `over` when every task has ended.
"""

import sys
from dataclasses import replace
from pathlib import Path

import anyio

from proplet.agent.mqtt import MqttSettings
from proplet.agent.topics import Topics
from proplet.manager.app import ManagerSettings, open_manager
from proplet.manager.model import Kind, Task
from proplet.manager.phases import TERMINAL
from tests.manager.fakes import FAST

POLICY = replace(FAST, silence_s=3.0, offline_grace_s=1.0, confirm_s=0.5, missing_grace_s=0.2, max_sends=12)


async def main(*given: str) -> None:
    store, address, password = given
    mqtt = MqttSettings(address, "manager", "manager", password, backoff_max_s=0.2)
    settings = ManagerSettings(mqtt, Topics("d", "c"), "manager", Path(store), policy=POLICY)
    async with open_manager(settings) as manager:
        print("ready", flush=True)
        version = -1
        while True:
            listing = await manager.store.list(Kind.TASK)
            if listing.version != version:
                version = listing.version
                if all(isinstance(t, Task) and t.status.phase in TERMINAL for t in listing.items):
                    print("over", flush=True)
            await anyio.sleep(0.02)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
