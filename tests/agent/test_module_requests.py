"""Asking for images over MQTT: what is asked, what is believed of the answers, and what is in the store then."""

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent import codec, wire
from proplet.agent.module_requests import WINDOW, ModuleRequests, Received, RequestSettings
from proplet.agent.module_storing import ModulesOverMqtt
from proplet.agent.mqtt_model import Connected, Delivery, Receipt
from proplet.agent.ports import ModuleError, ModuleWanted, Stage
from proplet.agent.topics import Route, Topics
from proplet.agent.wire import PullPolicy, Reason
from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout

pytestmark = pytest.mark.anyio

IMAGE = "registry.invalid/team/sum:1"
MODULE = b"\0asm\1\0\0\0" + bytes(range(256)) * 20
TOPICS = Topics("d", "c")
SHARED = TOPICS.build(Route.MODULE_CHUNK)
CHUNK = 100


def blob_of(data: bytes) -> wire.ModuleBlob:
    return wire.ModuleBlob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


CONFIG = b"{}"
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": blob_of(CONFIG).digest, "size": 2},
        "layers": [{"mediaType": "application/wasm", "digest": blob_of(MODULE).digest, "size": len(MODULE)}],
    }
).encode()
BLOBS = (MANIFEST, CONFIG, MODULE)
DESCRIPTION = wire.ModuleImage(blob_of(MANIFEST).digest, tuple(map(blob_of, BLOBS)))
CONTENT = b"".join(BLOBS)
TOTAL = -(-len(CONTENT) // CHUNK)


class Broker:
    """A link whose other end is a script: `answer` is called with every request."""

    def __init__(self) -> None:
        self.connected = True
        self.requests: list[wire.ModuleRequest] = []
        self.acknowledged = 0
        self.listening: list[bool] = []
        self.asking: ModuleRequests
        self.answer: Callable[[wire.ModuleRequest], None] = lambda _request: None

    async def publish(self, topic: str, payload: bytes, qos: int) -> None:
        await anyio.lowlevel.checkpoint()
        parsed = TOPICS.parse(topic)
        assert parsed is not None
        request = codec.decode(parsed.route, payload)
        self.requests.append(request)
        self.answer(request)

    def acknowledge(self, _delivery: Delivery) -> None:
        self.acknowledged += 1

    def listen(self, topic: str, *, wanted: bool) -> None:
        assert topic == SHARED
        self.listening.append(wanted)

    def deliver(self, message: Any, *, own: bool = True) -> None:
        topic = TOPICS.build(Route.OWN_MODULE_CHUNK, "p") if own else SHARED
        payload = message if isinstance(message, bytes) else codec.encode(message, codec.Encoding.CBOR)
        assert self.asking.take(Delivery(topic, payload, 1, False, False, Receipt(1, 1)))

    def manage(self, content: bytes = CONTENT, image: wire.ModuleImage = DESCRIPTION, name: str = "c") -> None:
        """Answer as a manager of ours does."""

        def answer(request: wire.ModuleRequest) -> None:
            assert request.ext is not None
            first = request.ext.first if request.ext.content == name else 0
            for index in range(first, min(-(-len(content) // CHUNK), first + request.ext.count)):
                self.deliver(self.piece(request, index, content, image, name))

        self.answer = answer

    def piece(
        self,
        request: wire.ModuleRequest,
        index: int,
        content: bytes = CONTENT,
        image: wire.ModuleImage = DESCRIPTION,
        name: str = "c",
    ) -> wire.ModuleChunk:
        assert request.ext is not None
        terms = wire.ChunkTerms(request.ext.id, name, image if index == 0 else None)
        data = content[index * CHUNK : (index + 1) * CHUNK]
        return wire.ModuleChunk(request.app_name, index, -(-len(content) // CHUNK), data, ext=terms)


@asynccontextmanager
async def asking(directory: Path, timeout_s: float = 1.0, **more: Any) -> AsyncIterator[tuple[Broker, ModuleRequests]]:
    broker = Broker()
    broker.asking = ModuleRequests(RequestSettings(directory, timeout_s, **more), TOPICS, "p")
    broker.asking.open(broker)
    yield broker, broker.asking


async def fetched(requests: ModuleRequests, *, own: bool = True, told: list[Stage] | None = None) -> Received:
    with anyio.fail_after(10):
        tell = (told if told is not None else []).append
        return await requests.fetch(IMAGE, None, PullPolicy.IF_NOT_PRESENT, own=own, tell=tell)


async def test_pieces_are_asked_for_a_few_at_a_time(tmp_path: Path) -> None:
    async with asking(tmp_path) as (broker, requests):
        broker.manage()
        told: list[Stage] = []
        received = await fetched(requests, told=told)
        assert b"".join(received.parts.read()) == CONTENT
        assert received.image == DESCRIPTION
        assert [one.ext and (one.ext.first, one.ext.count) for one in broker.requests] == [
            (first, min(WINDOW, TOTAL - first)) for first in range(0, TOTAL, WINDOW)
        ]
        assert told[-1] == Stage("fetching", len(CONTENT), len(CONTENT))
        assert broker.acknowledged == TOTAL
        assert broker.listening[-1] is False
        received.parts.close()


async def test_a_lost_piece_is_asked_for_again(tmp_path: Path) -> None:
    async with asking(tmp_path) as (broker, requests):
        broker.manage()
        answer, lost = broker.answer, [2, 5]

        def deaf(request: wire.ModuleRequest) -> None:
            deliver = broker.deliver
            broker.deliver = lambda chunk, **_: None if chunk.chunk_idx in lost else deliver(chunk)  # type: ignore[method-assign]
            answer(request)
            broker.deliver = deliver  # type: ignore[method-assign]
            del lost[:1]

        broker.answer = deaf
        received = await fetched(requests)
        assert b"".join(received.parts.read()) == CONTENT
        received.parts.close()


async def test_a_new_connection_asks_at_once_again(tmp_path: Path) -> None:
    async with asking(tmp_path, timeout_s=60.0) as (broker, requests):
        async with anyio.create_task_group() as tasks:

            async def fetch() -> None:
                (await fetched(requests)).parts.close()

            tasks.start_soon(fetch)
            with anyio.fail_after(5):
                while not broker.requests:
                    await anyio.lowlevel.checkpoint()
                broker.manage()
                assert requests.take(Connected(session_present=True)) is False, "others want to know it, too"
        assert len(broker.requests) > 1


async def test_what_has_changed_meanwhile_is_received_anew_but_not_for_ever(tmp_path: Path) -> None:
    async with asking(tmp_path) as (broker, requests):
        other = wire.ModuleImage(blob_of(MODULE).digest, (blob_of(MODULE),))
        broker.manage(MODULE, other, name="old")
        first = broker.answer

        def changed(request: wire.ModuleRequest) -> None:
            if len(broker.requests) == 1:
                first(request)
            else:
                broker.manage()
                broker.answer(request)

        broker.answer = changed
        received = await fetched(requests)
        assert b"".join(received.parts.read()) == CONTENT
        received.parts.close()

        def fickle(request: wire.ModuleRequest) -> None:
            broker.deliver(broker.piece(request, 0, name=f"c{len(broker.requests)}"))

        broker.answer = fickle
        with pytest.raises(ModuleError, match="contradicts itself"):
            await fetched(requests)


async def test_who_is_at_it_is_waited_for_and_who_is_not_is_not(tmp_path: Path) -> None:
    async with asking(tmp_path, timeout_s=0.3) as (broker, requests):
        began = anyio.current_time()

        def pulling(request: wire.ModuleRequest) -> None:
            assert request.ext is not None
            if anyio.current_time() - began < 0.9:
                note = wire.ChunkTerms(request.ext.id, note="the manager fetches it")
                broker.deliver(wire.ModuleChunk(IMAGE, ext=note))

        broker.answer = pulling
        with pytest.raises(ModuleError, match=r"nobody answered .* \(last heard: the manager fetches it\)"):
            await fetched(requests)
        assert anyio.current_time() - began > 0.9
        broker.connected = False
        with pytest.raises(ModuleError, match="the broker is away"):
            await fetched(requests)


async def test_what_nobody_asked_for_is_acknowledged_and_dropped_unread(tmp_path: Path) -> None:
    async with asking(tmp_path) as (broker, requests):
        broker.deliver(b"\xff not even a message", own=False)
        broker.deliver(b"\xff not even a message")
        assert broker.acknowledged == 2

        def answer(request: wire.ModuleRequest) -> None:
            for number in range(200):
                broker.deliver(wire.ModuleChunk(f"registry.invalid/other{number}:1", 0, 1, bytes(1000)), own=False)
            broker.deliver(wire.ModuleChunk(request.app_name, 0, 1, MODULE), own=False)

        broker.answer = answer
        received = await fetched(requests, own=False)
        assert b"".join(received.parts.read()) == MODULE
        assert broker.listening[-2:] == [True, False]
        received.parts.close()


async def test_more_than_a_module_may_have_is_refused(tmp_path: Path) -> None:
    async with asking(tmp_path, max_module_bytes=1000) as (broker, requests):
        broker.answer = lambda request: broker.deliver(wire.ModuleChunk(request.app_name, 0, 1, bytes(1001)), own=False)
        with pytest.raises(ModuleError, match="max_module_size"):
            await fetched(requests, own=False)


# --- the store --------------------------------------------------------------------------------------------------------


class Builder:
    """Takes from the store what is asked for with the policy Never; a registry it never reaches."""

    def __init__(self, layout: OciLayout, cause: str = "registry_unreachable") -> None:
        self.layout = layout
        self.cause = cause

    async def pull(self, fields: Any) -> dict[str, Any]:
        if fields["policy"] != "Never":
            raise ModuleError(Reason.MODULE_UNAVAILABLE, "the registry says nothing", self.cause)
        raw = self.layout.read(Digest.parse(fields["digest"]), 10_000)
        return {"image_digest": fields["digest"], "module_digest": json.loads(raw)["layers"][0]["digest"]}


async def pulled(requests: ModuleRequests, builder: Builder, mode: str = "auto", **wanted: Any) -> dict[str, Any]:
    order = ModuleWanted(**{"image_url": IMAGE, "handed_out": True, **wanted})
    fields = {"image": order.image_url, "digest": order.image_digest, "policy": order.pull_policy.value}
    with anyio.fail_after(10):
        over = ModulesOverMqtt(requests, mode)
        return dict(await over.pull(order, fields, builder.pull, builder.layout, lambda _stage: None))


async def test_an_image_is_in_the_store_under_its_name_afterwards(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path)
    async with asking(tmp_path) as (broker, requests):
        broker.manage()
        found = await pulled(requests, Builder(layout))
        assert found == {"image_digest": blob_of(MANIFEST).digest, "module_digest": blob_of(MODULE).digest}
        known = layout.resolve(IMAGE)
        assert known is not None
        assert str(known.digest) == blob_of(MANIFEST).digest
        for blob in DESCRIPTION.blobs:
            layout.verify(Digest.parse(blob.digest))


@pytest.mark.parametrize(
    ("image", "content"),
    [
        (DESCRIPTION, CONTENT[:-1] + b"x"),
        (DESCRIPTION, b"x" + CONTENT[1:]),
        (replace(DESCRIPTION, blobs=DESCRIPTION.blobs[1:]), CONTENT[len(MANIFEST) :]),
        (replace(DESCRIPTION, blobs=DESCRIPTION.blobs[:-1]), CONTENT),
        (replace(DESCRIPTION, digest=blob_of(CONFIG).digest), CONTENT),
        (replace(DESCRIPTION, digest="nonsense"), CONTENT),
        (replace(DESCRIPTION, blobs=(wire.ModuleBlob("../../x", len(CONTENT)),)), CONTENT),
    ],
)
async def test_what_does_not_fit_its_digests_gets_no_name(
    tmp_path: Path, image: wire.ModuleImage, content: bytes
) -> None:
    layout = OciLayout(tmp_path)
    async with asking(tmp_path) as (broker, requests):
        broker.manage(content, image)
        with pytest.raises(ModuleError, match="what came over MQTT is refused"):
            await pulled(requests, Builder(layout))
        assert layout.references() == {}


async def test_another_image_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path)
    async with asking(tmp_path) as (broker, requests):
        broker.manage()
        with pytest.raises(ModuleError, match="pinned as") as refused:
            await pulled(requests, Builder(layout), image_digest=f"sha256:{'0' * 64}")
        assert refused.value.reason is Reason.DIGEST_MISMATCH


async def test_only_names_of_its_signatures_are_taken_over(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path)
    digest = blob_of(MANIFEST).digest
    hexed = digest.partition(":")[2]
    good = f"registry.invalid/team/sum:sha256-{hexed}.sig"
    names = (
        good,
        "registry.invalid/other:latest",
        "registry.invalid/team/sum:2",
        IMAGE,
        "registry.invalid/team/summer:sha256-1.sig",
    )
    entries = tuple(wire.ModuleEntry(name, digest, len(MANIFEST), "x/y") for name in names)
    async with asking(tmp_path) as (broker, requests):
        broker.manage(image=replace(DESCRIPTION, entries=entries))
        await pulled(requests, Builder(layout))
        assert set(layout.references()) == {IMAGE, good}


@pytest.mark.parametrize("cause", ["unauthorized", "not_found", "digest_mismatch", "signature_missing", ""])
async def test_a_registry_that_says_no_is_the_last_word(tmp_path: Path, cause: str) -> None:
    async with asking(tmp_path) as (broker, requests):
        broker.manage()
        with pytest.raises(ModuleError, match=r"^the registry says nothing$"):
            await pulled(requests, Builder(OciLayout(tmp_path), cause))
        assert broker.requests == []


async def test_never_means_never_and_always_means_no_registry(tmp_path: Path) -> None:
    builder = Builder(OciLayout(tmp_path))
    async with asking(tmp_path) as (broker, requests):
        broker.manage()
        with pytest.raises(ModuleError, match=r"^the registry says nothing$"):
            await pulled(requests, builder, "never")
        assert broker.requests == []
        builder.cause = "unauthorized"
        assert (await pulled(requests, builder, "always"))["module_digest"] == blob_of(MODULE).digest


async def test_when_nobody_answers_what_the_image_was_last_is_used(tmp_path: Path) -> None:
    builder = Builder(OciLayout(tmp_path))
    async with asking(tmp_path, timeout_s=0.3) as (broker, requests):
        broker.manage()
        first = await pulled(requests, builder, "always")
        broker.answer = lambda _request: None
        assert await pulled(requests, builder, "always", pull_policy=PullPolicy.ALWAYS) == first
