"""A broker that takes less than the manager sends, and cuts the connection without a word why."""

from dataclasses import replace
from pathlib import Path

import pytest

from proplet.agent.topics import Topics
from proplet.manager.app import open_manager
from proplet.manager.phases import TERMINAL, Phase
from tests.manager.device import Device, plug_in
from tests.manager.test_manager_mosquitto import create, manager_settings, until
from tests.support.mosquitto import MosquittoServer

pytestmark = [pytest.mark.anyio, pytest.mark.mosquitto]


async def test_a_start_that_costs_the_connection_every_time_is_given_up(tmp_path: Path) -> None:
    server = MosquittoServer(tmp_path, max_message_bytes=30_000)
    server.start()
    try:
        settings = manager_settings(server)
        async with open_manager(replace(settings, policy=replace(settings.policy, max_sends=4))) as manager:
            device = Device("proplet-1", Topics("d", "c"))
            async with plug_in(device, server.link_settings("proplet-1")):
                await create(manager, "large", image_url="", file=b"\0asm" + bytes(200_000))
                given_up = await until(manager, "large", *TERMINAL, within=30)
                assert given_up.status.phase is Phase.FAILED
                assert "registry" in (given_up.status.error or "")
                await create(manager, "small")
                assert (await until(manager, "small", *TERMINAL)).status.phase is Phase.COMPLETED
    finally:
        server.stop()
