"""The link against the embedded broker: what both of us made must fit together."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from proplet.agent.mqtt import Connected, Delivery, Disconnected, MqttSettings, Will
from proplet.agent.topics import Route, Topics
from proplet.manager.broker import Broker, BrokerSettings, open_broker
from tests.mqtt.link_probe import linked
from tests.support.mosquitto import CHANNEL, DOMAIN, IDENTITIES

pytestmark = pytest.mark.anyio

TOPICS = Topics(DOMAIN, CHANNEL)
START = TOPICS.build(Route.START)
ALIVE = TOPICS.build(Route.ALIVE)
RESULTS = TOPICS.build(Route.RESULTS)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with open_broker(BrokerSettings(tmp_path, DOMAIN, CHANNEL, engine="amqtt", port=0), IDENTITIES) as running:
        yield running


def settings(broker: Broker, name: str) -> MqttSettings:
    password = next(identity.password for identity in IDENTITIES if identity.username == name)
    return MqttSettings(broker.address, client_id=name, username=name, password=password, backoff_max_s=0.2)


async def test_a_refused_subscription_is_named_and_the_link_is_not_called_connected(broker: Broker) -> None:
    async with linked(settings(broker, "proplet-1"), [(START, 1), (RESULTS, 1)], connected=False) as proplet:
        (down,) = await proplet.count(Disconnected, 1)
        assert RESULTS in down.reason
        assert START not in down.reason
        assert not proplet.link.connected
        assert proplet.all(Connected) == []


async def test_a_thousand_messages_at_once_are_all_delivered(broker: Broker) -> None:
    async with (
        linked(settings(broker, "manager"), [(RESULTS, 1)], acknowledging=True) as manager,
        linked(settings(broker, "proplet-1")) as proplet,
    ):
        async with anyio.create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(proplet.link.publish, RESULTS, str(number).encode(), 1)
        received = await manager.count(Delivery, 1000)
    assert sorted(int(delivery.payload) for delivery in received) == list(range(1000))


async def test_unacknowledged_deliveries_come_again_and_wills_fire_only_without_a_goodbye(broker: Broker) -> None:
    will = Will(ALIVE, b"offline")
    async with linked(settings(broker, "manager"), [(ALIVE, 1)], acknowledging=True) as manager:
        async with linked(settings(broker, "proplet-1"), [(START, 1)], will) as proplet:
            await manager.link.publish(START, b"work", 1)
            await proplet.count(Delivery, 1)
        async with linked(settings(broker, "proplet-1"), [(START, 1)], will) as proplet:
            (again,) = await proplet.count(Delivery, 1)
            assert (again.payload, again.duplicate) == (b"work", True)
            assert manager.all(Delivery) == []
            await proplet.link.publish(ALIVE, b"online", 1)
            connection = proplet.link._connection
            assert connection is not None
            assert connection._sock is not None
            connection._sock.shutdown(2)
            offline = (await manager.count(Delivery, 2))[1]
            assert offline.payload == b"offline"
