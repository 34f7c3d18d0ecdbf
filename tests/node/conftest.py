"""An agent as a process of its own, on a real mosquitto, and a peer that plays its manager."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proplet.agent import wire
from proplet.agent.topics import Route, Topics
from tests.support.mosquitto import CHANNEL, DOMAIN, MANAGER, PROPLET, MosquittoServer, mosquitto  # noqa: F401
from tests.support.node import NodeProcess, Peer, open_peer

CONFIG = """
[node]
id = "{id}"
state_dir = "state"
cache_dir = "cache"
runtime_dir = "run"
[mqtt]
address = "{address}"
domain = "{domain}"
channel = "{channel}"
client_key = "{key}"
[agent]
liveliness_interval = "1s"
metrics_interval = "1s"
"""


def agent_config(server: MosquittoServer) -> str:
    return CONFIG.format(
        id=PROPLET.username, address=server.address, domain=DOMAIN, channel=CHANNEL, key=PROPLET.password
    )


@pytest.fixture
def agent(tmp_path: Path, mosquitto: MosquittoServer) -> Iterator[NodeProcess]:  # noqa: F811
    with NodeProcess(tmp_path / "node", agent_config(mosquitto)) as node:
        yield node


@pytest.fixture
async def peer(mosquitto: MosquittoServer, agent: NodeProcess) -> AsyncIterator[Peer]:  # noqa: F811
    """Connected, and the agent is: a start sent before would reach nobody."""
    settings = mosquitto.link_settings(MANAGER.username)
    async with open_peer(settings, Topics(DOMAIN, CHANNEL), PROPLET.username) as peer:
        await peer.send(Route.HELLO, wire.Hello("m"))
        await peer.until(lambda: peer.all(Route.INVENTORY), what="the agent")
        yield peer
