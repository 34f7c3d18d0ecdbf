"""Images over MQTT: a real agent and a scripted proxy, a real manager and a scripted worker, and both of ours."""

import base64
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import wasmtime

from proplet.agent import codec, wire
from proplet.agent.client import Client, Target
from proplet.agent.mqtt import MqttSettings, open_link
from proplet.agent.mqtt_model import Delivery
from proplet.agent.topics import Route, Topics
from tests.node.conftest import agent_config
from tests.node.test_fleet import DEVICE, HUB, Fleet
from tests.support.modules import ADDITION
from tests.support.mosquitto import (  # noqa: F401
    CHANNEL,
    DOMAIN,
    MANAGER,
    PROPLET,
    MosquittoServer,
    free_port,
    mosquitto,
    mosquitto_program,
)
from tests.support.node import HEARD, NodeProcess, Peer
from tests.support.registry import running_registry

pytestmark = [pytest.mark.mosquitto, pytest.mark.anyio]

IMAGE = "registry.invalid/team/sum:1"
TOPICS = Topics(DOMAIN, CHANNEL)


def padded(size: int) -> bytes:
    """The addition, with a custom section of random bytes behind it."""
    body = b"\x03pad" + os.urandom(size)
    length = bytearray()
    left = len(body)
    while True:
        length.append(left & 127 | (128 if left > 127 else 0))
        left >>= 7
        if not left:
            return ADDITION + b"\0" + bytes(length) + body


def chunk(name: str, index: int, total: int, data: bytes) -> dict[str, Any]:
    """A piece as the reference's proxy writes it."""
    return {"app_name": name, "chunk_idx": index, "total_chunks": total, "data": base64.b64encode(data).decode()}


class Proxy(Peer):
    """The reference's proxy, and manager, by hand: plain JSON on the shared topics."""

    def __init__(self) -> None:
        super().__init__(TOPICS, PROPLET.username)

    @property
    def asked(self) -> list[wire.ModuleRequest]:
        return self.all(Route.MODULE_REQUEST)

    async def send_chunk(self, index: int, total: int, data: bytes, name: str = IMAGE) -> None:
        await self.send(Route.MODULE_CHUNK, None, raw=json.dumps(chunk(name, index, total, data)).encode())

    async def send_all(self, module: bytes, size: int = 64) -> None:
        total = -(-len(module) // size)
        for index in range(total):
            await self.send_chunk(index, total, module[index * size : (index + 1) * size])


@asynccontextmanager
async def open_proxy(settings: MqttSettings) -> AsyncIterator[Proxy]:
    proxy = Proxy()
    topics = [TOPICS.build(route) for route in (*HEARD, Route.MODULE_REQUEST)]
    topics.append(TOPICS.every(Route.OWN_MODULE_REQUEST))
    async with open_link(settings, [(topic, 1) for topic in topics], None, proxy.on_event) as proxy.link:
        await proxy.until(lambda: proxy.connected, what="a connection")
        yield proxy


@pytest.fixture
def device(tmp_path: Path, mosquitto: MosquittoServer) -> Iterator[NodeProcess]:  # noqa: F811
    config = agent_config(mosquitto) + '\n[modules]\nover_mqtt = "always"\nmqtt_timeout = "3s"\n'
    with NodeProcess(tmp_path / "node", config) as node:
        yield node


@pytest.fixture
async def proxy(mosquitto: MosquittoServer, device: NodeProcess) -> AsyncIterator[Proxy]:  # noqa: F811
    async with open_proxy(mosquitto.link_settings(MANAGER.username)) as proxy:
        await proxy.send(Route.HELLO, wire.Hello("m"))
        await proxy.until(lambda: proxy.all(Route.INVENTORY), what="the agent")
        yield proxy


async def test_a_module_comes_in_pieces_from_a_proxy_of_the_reference(proxy: Proxy) -> None:
    await proxy.start("t", image_url=IMAGE)
    await proxy.until(lambda: proxy.asked)
    assert proxy.asked[0] == wire.ModuleRequest(IMAGE), "nothing but what a proxy of the reference knows"
    await proxy.send(Route.MODULE_CHUNK, None, raw=b'{"app_name": "another", "chunk_idx": 0}')
    await proxy.send_chunk(0, 1, b"for somebody else", name="registry.invalid/other:1")
    await proxy.send_all(ADDITION, 16)
    result = await proxy.result("t")
    assert (result.results, result.error) == ("42", None)
    await proxy.start("again", image_url=IMAGE)
    assert (await proxy.result("again")).results == "42"
    assert len(proxy.asked) == 1, "it is in the store now"


async def test_pieces_in_any_order_twice_and_lost_are_put_together(proxy: Proxy) -> None:
    await proxy.start("t", image_url=IMAGE)
    await proxy.until(lambda: proxy.asked)
    cut = [ADDITION[at : at + 10] for at in range(0, len(ADDITION), 10)]
    for index in (3, 1, 1, 0):
        await proxy.send_chunk(index, len(cut), cut[index])
    await proxy.until(lambda: len(proxy.asked) > 1, what="the question again")
    for index in reversed(range(len(cut))):
        await proxy.send_chunk(index, len(cut), cut[index])
    assert (await proxy.result("t")).results == "42"


async def test_two_tasks_of_one_image_ask_once(proxy: Proxy) -> None:
    for name in ("a", "b"):
        limits = wire.Limits(fuel=10_000 if name == "b" else None)  # another artefact of the same module
        await proxy.start(name, image_url=IMAGE, ext=wire.StartTerms(attempt=1, limits=limits))
    await proxy.until(lambda: proxy.asked)
    await proxy.send_all(ADDITION)
    assert [(await proxy.result(name)).results for name in ("a", "b")] == ["42", "42"]
    assert len(proxy.asked) == 1


async def test_silence_ends_with_whom_was_asked(proxy: Proxy) -> None:
    await proxy.start("t", image_url=IMAGE)
    result = await proxy.result("t")
    assert result.error is not None
    assert f"nobody answered on {TOPICS.build(Route.MODULE_REQUEST)} within 3 s" in result.error


async def test_an_error_of_the_other_side_ends_the_waiting_at_once(proxy: Proxy) -> None:
    await proxy.start("t", image_url=IMAGE)
    await proxy.until(lambda: proxy.asked)
    await proxy.send(Route.MODULE_CHUNK, wire.ModuleRefusal(IMAGE, "unknown tag"))
    error = (await proxy.result("t", within_s=2.5)).error
    assert error == "the proxy answers: unknown tag"


async def test_a_module_that_is_pinned_by_its_own_digest_is_compared(proxy: Proxy) -> None:
    digest = f"sha256:{hashlib.sha256(ADDITION).hexdigest()}"
    for name, pinned, sent in (("good", digest, ADDITION), ("bad", f"sha256:{'0' * 64}", ADDITION)):
        await proxy.start(name, image_url=f"registry.invalid/team/{name}@{pinned}")
        await proxy.until(lambda name=name: [one for one in proxy.asked if name in one.app_name])  # type: ignore[misc]
        await proxy.send_chunk(0, 1, sent, name=f"registry.invalid/team/{name}@{pinned}")
    good, bad = await proxy.result("good"), await proxy.result("bad")
    assert (good.results, good.ext and good.ext.image_digest) == ("42", digest)
    assert bad.error is not None
    assert "this proxy sends none" in bad.error
    assert bad.ext is not None
    assert bad.ext.reason is wire.Reason.DIGEST_MISMATCH


async def test_what_is_no_module_is_refused(proxy: Proxy) -> None:
    await proxy.start("t", image_url=IMAGE)
    await proxy.until(lambda: proxy.asked)
    await proxy.send_all(b"<html>not here</html>")
    assert "no WebAssembly module" in str((await proxy.result("t")).error)


# --- both of ours -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A hub with the manager, and a device that is told to ask it."""
    mosquitto_program()
    port = free_port()
    images = '[manager.images]\nallow = ["127.0.0.1:*/open/*"]\nchunk_size = "64KiB"\n'
    with NodeProcess(
        tmp_path / "hub", HUB.format(port=port).replace('["device"]', '["device", "spy"]') + images
    ) as hub:
        identities = json.loads((tmp_path / "hub/state/broker/broker-credentials.json").read_text())["identities"]
        config = DEVICE.format(port=port) + '[modules]\nover_mqtt = "always"\nmqtt_timeout = "20s"\n'
        device = NodeProcess(tmp_path / "device", config)
        key = tmp_path / "device" / "key"
        secrets = {one["username"]: one["password"] for one in identities}
        key.write_text(secrets["device"])
        key.chmod(0o600)
        (tmp_path / "device" / "spy").write_text(secrets["spy"])
        with device:
            client = Client(Target(socket=tmp_path / "hub/run/proplet.sock"), timeout_s=10)
            running = Fleet(hub, device, client)
            running.until(
                lambda: len([p for p in client.list("proplets")["items"] if p["status"]["phase"] == "Running"]) == 2
            )
            yield running


def apply(fleet: Fleet, name: str, image: str, where: str = "device") -> None:
    kind = {"apiVersion": "propeller.propeller.abstractmachines.fr/v1", "kind": "Task"}
    spec: dict[str, Any] = {"name": name, "functionName": "main", "imageUrl": image, "inputs": [10, 32]}
    spec["propletSelector"] = {"propletId": where}
    fleet.client.apply(json.dumps({**kind, "metadata": {"name": name}, "spec": spec}))


@pytest.mark.registry
def test_the_manager_pulls_for_its_proplet_which_checks_manifest_and_module(fleet: Fleet, tmp_path: Path) -> None:
    module = padded(1_500_000)
    with running_registry(tmp_path / "registry") as registry:
        digest = registry.push("team/sum", "1", module)
        apply(fleet, "sum", f"{registry.address}/team/sum:1")
        status = fleet.ended("sum")
    assert (status["phase"], status.get("results")) == ("completed", "42"), status
    assert status["resolvedImage"] == digest
    assert (fleet.device.directory / "state/modules/blobs/sha256" / digest[7:]).is_file()


@pytest.mark.registry
def test_a_device_without_a_registry_asks_by_itself_and_the_manager_has_it_in_its_store(
    fleet: Fleet, tmp_path: Path
) -> None:
    with running_registry(tmp_path / "registry") as registry:
        digest = registry.push("team/sum", "1", ADDITION)
        image = f"{registry.address}/team/sum:1"
        apply(fleet, "first", image, where="hub")
        assert fleet.ended("first")["phase"] == "completed"
    fleet.device.stop()
    config = fleet.device.config
    config.write_text(config.read_text().replace('over_mqtt = "always"', 'over_mqtt = "auto"'))
    fleet.device.start()
    apply(fleet, "sum", image)
    status = fleet.ended("sum")
    assert (status["phase"], status.get("results"), status.get("resolvedImage")) == ("completed", "42", digest), status


@pytest.mark.registry
def test_what_a_registry_denies_is_not_asked_for_elsewhere(fleet: Fleet, tmp_path: Path) -> None:
    fleet.device.stop()
    config = fleet.device.config
    config.write_text(config.read_text().replace('over_mqtt = "always"', 'over_mqtt = "auto"'))
    fleet.device.start()
    with running_registry(tmp_path / "registry") as registry:
        apply(fleet, "sum", f"{registry.address}/team/nothing:1")
        status = fleet.ended("sum")
    assert status["phase"] == "failed"
    assert "MQTT" not in status["error"]
    assert "manager" not in status["error"]


@pytest.mark.registry
def test_the_signature_policy_of_the_device_holds_for_modules_over_mqtt(fleet: Fleet, tmp_path: Path) -> None:
    fleet.device.stop()
    (fleet.device.directory / "policy.toml").write_text('default = "deny"\n')
    config = fleet.device.config
    config.write_text(config.read_text().replace("[modules]", '[modules]\nsignature_policy = "policy.toml"'))
    fleet.device.start()
    with running_registry(tmp_path / "registry") as registry:
        registry.push("team/sum", "1", ADDITION)
        apply(fleet, "sum", f"{registry.address}/team/sum:1")
        status = fleet.ended("sum")
    assert status["phase"] == "failed"
    assert "denied by the signature policy" in status["error"], status["error"]


@pytest.mark.registry
def test_the_manager_says_why_there_is_no_image(fleet: Fleet, tmp_path: Path) -> None:
    with running_registry(tmp_path / "registry") as registry:
        registry.push("team/sum", "1", ADDITION)
        apply(fleet, "sum", f"{registry.address}/team/sum:nope")
        status = fleet.ended("sum")
    assert status["phase"] == "failed"
    assert "the manager answers" in status["error"]
    assert "nope" in status["error"]


class Worker:
    """A worker of the reference, by hand, with a proplet's identity: it asks, and reads what it understands."""

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.raw: list[dict[str, Any]] = []
        self.link: Any = None
        self._news = anyio.Event()

    def on_event(self, event: Any) -> None:
        if isinstance(event, Delivery):
            self.raw.append(json.loads(event.payload))
            self.link.acknowledge(event)
        self._news.set()
        self._news = anyio.Event()

    def module(self, name: str) -> bytes | None:
        """What its chunks make; those that lack a field it drops."""
        needed = {"app_name", "chunk_idx", "total_chunks", "data"}
        mine = [one for one in self.raw if needed <= one.keys() and one["app_name"] == name]
        found = {one["chunk_idx"]: base64.b64decode(one["data"]) for one in mine}
        if not mine or len(found) != mine[0]["total_chunks"]:
            return None
        return b"".join(found[index] for index in sorted(found))

    async def until(self, met: Any, within_s: float = 20.0) -> Any:
        with anyio.fail_after(within_s):
            while not (found := met()):
                await self._news.wait()
            return found

    async def ask(self, name: str) -> None:
        await self.link.publish(self.topics.build(Route.MODULE_REQUEST), json.dumps({"app_name": name}).encode(), 1)


@asynccontextmanager
async def open_worker(fleet: Fleet) -> AsyncIterator[Worker]:
    """In place of the device, with its identity."""
    fleet.device.stop()
    async with connected_as(fleet, "device", "key") as worker:
        alive = wire.Alive("device")
        await worker.link.publish(worker.topics.build(Route.CREATE), codec.encode(wire.Discovery("device")), 1)
        await worker.link.publish(worker.topics.build(Route.ALIVE), codec.encode(alive), 1)
        yield worker


@asynccontextmanager
async def connected_as(fleet: Fleet, name: str, key_file: str) -> AsyncIterator[Worker]:
    port = fleet.hub.config.read_text().partition("port = ")[2].split()[0]
    key = (fleet.device.directory / key_file).read_text()
    settings = MqttSettings(f"tcp://127.0.0.1:{port}", name, name, key, clean_session=True)
    worker = Worker(Topics("d", "c"))
    topics = [(worker.topics.build(route), 1) for route in (Route.MODULE_CHUNK, Route.START)]
    async with open_link(settings, topics, None, worker.on_event) as worker.link:
        await worker.until(lambda: worker.link.connected)
        yield worker


@pytest.mark.registry
async def test_a_worker_of_the_reference_gets_what_is_assigned_or_allowed_and_nothing_else(
    fleet: Fleet, tmp_path: Path
) -> None:
    with running_registry(tmp_path / "registry") as registry:
        module, other = padded(300_000), padded(1000)
        for repository, wasm in (("team/sum", module), ("open/one", other), ("team/secret", ADDITION)):
            registry.push(repository, "1", wasm)
        assigned, allowed, secret = (f"{registry.address}/{name}:1" for name in ("team/sum", "open/one", "team/secret"))
        async with open_worker(fleet) as worker:
            await anyio.to_thread.run_sync(apply, fleet, "sum", assigned)
            await worker.until(lambda: [one for one in worker.raw if one.get("image_url") == assigned])
            for name in (assigned, allowed, secret):
                await worker.ask(name)
            assert await worker.until(lambda: worker.module(assigned)) == module
            assert await worker.until(lambda: worker.module(allowed)) == other
            refused = await worker.until(lambda: [one for one in worker.raw if "error" in one])
    assert refused == [{"app_name": secret, "error": refused[0]["error"]}], "it has no field that makes it a chunk"
    assert "no unfinished task" in refused[0]["error"]
    assert worker.module(secret) is None


@pytest.mark.registry
async def test_what_is_assigned_to_a_proplet_of_ours_is_not_for_others_on_the_channel(
    fleet: Fleet, tmp_path: Path
) -> None:
    loop = wasmtime.wat2wasm('(module (func (export "main") (param i32 i32) (loop br 0)))')
    with running_registry(tmp_path / "registry") as registry:
        registry.push("team/sum", "1", bytes(loop))
        image = f"{registry.address}/team/sum:1"
        await anyio.to_thread.run_sync(apply, fleet, "sum", image)
        await anyio.to_thread.run_sync(fleet.until, lambda: fleet.status("sum").get("phase") == "running")
        async with connected_as(fleet, "spy", "spy") as spy:
            await spy.ask(image)
            answers = await spy.until(lambda: spy.raw)
    assert [answer.keys() for answer in answers] == [{"app_name", "error"}]
