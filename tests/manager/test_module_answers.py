"""Who gets which image over MQTT, in which pieces, and how little a flood of requests costs."""

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent import wire
from proplet.agent.codec import Encoding
from proplet.manager.bus import Heard
from proplet.manager.images import ImageError, StoredImage
from proplet.manager.model import Meta, Task, TaskSpec, TaskStatus
from proplet.manager.module_answers import WAITING_EACH, WORKERS, AnswerSettings, Assigned, ModuleAnswers
from proplet.manager.phases import Phase
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_MANIFEST, Descriptor

pytestmark = pytest.mark.anyio

MODULE = b"\0asm\1\0\0\0" + bytes(range(256)) * 40
IMAGE = "registry.invalid/team/sum:1"
CHUNK = 1024


def task(image: str = IMAGE, proplet_id: str = "p", phase: Phase = Phase.RUNNING, **status: Any) -> Task:
    return Task(
        Meta("t", uid="t"),
        TaskSpec(name="t", image_url=image),
        TaskStatus(phase=phase, proplet_id=proplet_id, **status),
    )


class KnownImages:
    """One image in a real store, under every name; `failure` instead, and `gate` holds a fetch up."""

    def __init__(self, root: Path) -> None:
        self.layout = OciLayout(root)
        module = self.layout.add_blob(MODULE)
        config = self.layout.add_blob(b"{}")
        layers = [{"mediaType": "application/wasm", "digest": str(module), "size": len(MODULE)}]
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(config), "size": 2},
            "layers": layers,
        }
        raw = json.dumps(manifest).encode()
        self.digest = self.layout.add_blob(raw)
        self.layout.set_reference(IMAGE, Descriptor(OCI_MANIFEST, self.digest, len(raw)))
        path = self.layout.path(module)
        self.image = StoredImage(
            IMAGE, str(self.digest), (str(self.digest),), str(module), path, len(MODULE), "application/wasm"
        )
        self.fetched: list[tuple[str, str | None, str]] = []
        self.signatures: list[str] = []
        self.failure: ImageError | None = None
        self.gate = anyio.Event()
        self.gate.set()

    async def fetch(self, image: str, digest: str | None = None, *, policy: str = "IfNotPresent") -> StoredImage:
        self.fetched.append((image, digest, policy))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return self.image

    async def fetch_signatures(self, image: str) -> None:
        self.signatures.append(image)

    def blob(self, digest: str) -> Path | None:
        return self.layout.path(self.digest) if digest == str(self.digest) else None


@dataclass
class Desk:
    """A running `ModuleAnswers`, the tasks there are, and everything it has sent."""

    images: KnownImages
    tasks: list[Task] = field(default_factory=list)
    sent: list[tuple[str | None, Any, Encoding]] = field(default_factory=list)
    looked: int = 0
    others: list[Any] = field(default_factory=list)
    hear: Callable[[Any], None] = lambda _event: None
    news: anyio.Event = field(default_factory=anyio.Event)

    async def piece(self, proplet_id: str | None, message: Any, encoding: Encoding) -> None:
        await anyio.lowlevel.checkpoint()
        self.sent.append((proplet_id, message, encoding))
        self.news.set()
        self.news = anyio.Event()

    def every(self) -> list[Task]:
        self.looked += 1
        return self.tasks

    def ask(self, proplet_id: str | None = None, name: str = IMAGE, **ext: Any) -> None:
        terms = wire.ModuleTerms(id="r", encodings=("cbor",), count=8, **ext) if proplet_id else None
        self.hear(Heard(wire.ModuleRequest(name, terms), lambda: None, proplet_id))

    async def until(self, count: int) -> list[tuple[str | None, Any, Encoding]]:
        with anyio.fail_after(10):
            while len(self.sent) < count:
                await self.news.wait()
        return self.sent


@asynccontextmanager
async def open_desk(directory: Path, *tasks: Task, allow: tuple[str, ...] = ()) -> AsyncIterator[Desk]:
    desk = Desk(KnownImages(directory), list(tasks))
    assigned = Assigned(lambda who: [one for one in desk.tasks if one.status.proplet_id == who], desk.every)
    answers = ModuleAnswers(AnswerSettings(desk.images, allow, CHUNK), assigned, desk.others.append)
    desk.hear = answers.hear
    async with anyio.create_task_group() as group:
        group.start_soon(answers.run, desk)
        yield desk
        group.cancel_scope.cancel()


async def test_a_proplet_of_ours_gets_what_it_asks_for_and_can_check_it(tmp_path: Path) -> None:
    async with open_desk(tmp_path, task()) as desk:
        desk.ask("p", chunk_bytes=1500, signatures=True)
        first = (await desk.until(8))[0][1]
        image, total = first.ext.image, first.total_chunks
        assert image.digest == str(desk.images.digest)
        while len(desk.sent) < total:
            before = len(desk.sent)
            desk.ask("p", chunk_bytes=1500, content=first.ext.content, first=before)
            await desk.until(min(before + 8, total))
        content = b"".join(message.data for _, message, _ in desk.sent)
        for blob in image.blobs:
            data, content = content[: blob.size], content[blob.size :]
            assert f"sha256:{hashlib.sha256(data).hexdigest()}" == blob.digest
        assert content == b""
        assert data == MODULE, "the module comes last"
        assert {(who, encoding) for who, _, encoding in desk.sent} == {("p", Encoding.CBOR)}
        assert len(desk.images.fetched) == 1, "what goes on needs no other look into the store"
        assert desk.images.signatures == [f"registry.invalid/team/sum@{desk.images.digest}"]


@pytest.mark.parametrize(
    ("held", "name", "allow", "granted"),
    [
        (task(), IMAGE, (), True),
        (task(phase=Phase.COMPLETED), IMAGE, (), False),
        (task(proplet_id="another"), IMAGE, (), False),
        (task(), "registry.invalid/team/sum:2", (), False),
        (task(), "registry.invalid/team/sum:2", ("registry.invalid/team/*",), True),
        (task(), "evil.invalid/registry.invalid/team/sum:2", ("registry.invalid/team/*",), False),
    ],
)
async def test_a_proplet_gets_its_unfinished_tasks_images_and_what_everybody_may(
    tmp_path: Path, held: Task, name: str, allow: tuple[str, ...], granted: bool
) -> None:
    async with open_desk(tmp_path, held, allow=allow) as desk:
        desk.ask("p", name)
        who, message, _ = (await desk.until(1))[0]
        assert who == "p"
        assert isinstance(message, wire.ModuleChunk if granted else wire.ModuleRefusal)
        if not granted:
            assert "no unfinished task of proplet p" in message.error
            assert message.ext is not None
            assert message.ext.id == "r"
            assert not desk.images.fetched


async def test_a_tag_is_no_key_to_other_digests_of_its_repository(tmp_path: Path) -> None:
    other = f"sha256:{'1' * 64}"
    async with open_desk(tmp_path, task()) as desk:
        desk.ask("p", digest=other)
        assert "is not what" in (await desk.until(1))[0][1].error
        desk.sent.clear()
        desk.tasks[:] = [task(resolved_image=other)]
        desk.ask("p", digest=other)
        assert isinstance((await desk.until(1))[0][1], wire.ModuleChunk)


async def test_a_worker_of_the_reference_gets_the_module_as_its_proxy_sends_it(tmp_path: Path) -> None:
    async with open_desk(tmp_path, task(proplet_id="whoever")) as desk:
        desk.ask()
        total = -(-len(MODULE) // CHUNK)
        sent = await desk.until(total)
        assert b"".join(message.data for _, message, _ in sent) == MODULE
        assert [message.chunk_idx for _, message, _ in sent] == list(range(total))
        assert {(who, encoding) for who, _, encoding in sent} == {(None, Encoding.JSON)}


async def test_who_asks_while_it_is_sent_gets_what_it_has_missed(tmp_path: Path) -> None:
    async with open_desk(tmp_path, task()) as desk:
        desk.ask()
        await desk.until(3)
        desk.ask()
        total = -(-len(MODULE) // CHUNK)
        sent = await desk.until(total + 3)
        again = [message.chunk_idx for _, message, _ in sent[total:]]
        assert again == list(range(len(again)))
        assert len(again) < total
        assert len(desk.images.fetched) == 1


async def test_a_failure_is_told_and_not_asked_for_again_at_once(tmp_path: Path) -> None:
    async with open_desk(tmp_path, task()) as desk:
        desk.images.failure = ImageError("not_found", "no such tag")
        for count in (1, 2):
            desk.ask("p")
            assert (await desk.until(count))[-1][1].error == "no such tag"
        assert len(desk.images.fetched) == 1


async def test_a_flood_waits_in_its_own_place_and_others_are_served(tmp_path: Path) -> None:
    async with open_desk(tmp_path, task(), task(proplet_id="q")) as desk:
        desk.images.gate = anyio.Event()
        for number in range(1000):
            desk.ask("p", f"registry.invalid/team/n{number}:1")
            desk.ask("p")
        desk.ask("q")
        desk.images.gate.set()
        with anyio.fail_after(10):
            while not any(who == "q" and isinstance(m, wire.ModuleChunk) for who, m, _ in desk.sent):
                await desk.news.wait()
        refused = [m for who, m, _ in desk.sent if who == "p" and isinstance(m, wire.ModuleRefusal)]
        assert len(refused) <= WAITING_EACH + WORKERS


async def test_a_flood_on_the_shared_topic_looks_through_the_tasks_once_a_second(tmp_path: Path) -> None:
    async with open_desk(tmp_path, task()) as desk:
        for number in range(1000):
            desk.ask(name=f"registry.invalid/team/n{number}:1")
        await desk.until(3)
        assert desk.looked <= 2
        assert all(isinstance(message, wire.ModuleRefusal) for _, message, _ in desk.sent)


async def test_what_is_no_request_is_handed_on(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        event = Heard(wire.Alive("p"), lambda: None)
        desk.hear(event)
        desk.ask("p", "x" * 3000)
        assert desk.others == [event]
