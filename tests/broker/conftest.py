"""The brokers under test: one contract, both engines."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from proplet.agent.mqtt import parse_address
from proplet.manager.broker import Broker, BrokerSettings, open_broker
from tests.broker.raw_client import RawClient, Will
from tests.support.mosquitto import CHANNEL, DOMAIN, IDENTITIES, mosquitto_program


class BrokerUnderTest:
    """A running broker and the clients made for it, which are cut at the end."""

    def __init__(self, engine: str, port: int, running: Broker) -> None:
        self.running = running
        self.engine = engine
        self.port = port
        self.passwords = {identity.username: identity.password for identity in IDENTITIES}
        self._clients: list[RawClient] = []

    async def connect(
        self,
        username: str,
        *,
        client_id: str | None = None,
        password: str | None = None,
        clean: bool = True,
        keepalive: int = 60,
        will: Will | None = None,
    ) -> RawClient:
        client = await RawClient.connect(
            self.port,
            client_id or username,
            password or self.passwords.get(username),
            username=username,
            clean=clean,
            keepalive=keepalive,
            will=will,
        )
        self._clients.append(client)
        return client

    async def dial(self) -> RawClient:
        client = await RawClient.dial(self.port)
        self._clients.append(client)
        return client

    def cut_all(self) -> None:
        for client in self._clients:
            client.cut()


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BrokerUnderTest]:
    engine: Literal["mosquitto", "amqtt"] = request.param
    if engine == "mosquitto":
        mosquitto_program()
    async with open_broker(BrokerSettings(tmp_path, DOMAIN, CHANNEL, engine=engine, port=0), IDENTITIES) as running:
        assert running.engine == engine
        under_test = BrokerUnderTest(engine, parse_address(running.address).port, running)
        yield under_test
        under_test.cut_all()
