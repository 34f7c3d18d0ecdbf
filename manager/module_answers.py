"""Who gets which image over MQTT: requests of proplets, sorted, judged and answered in turn.

Place in the flow: takes `ModuleRequest`s out of what the bus says and hands on everything else. A proplet on its own
topic gets the images of unfinished tasks that it holds; on the topic that all share, where nobody knows who asks and
everybody hears, there are the images of tasks that proplets of the reference hold, which have no other. Repositories
that match the allow list are for everybody. What is refused, and what cannot be pulled, is answered with an error.

Bounded: so many requests wait, of each proplet a few, and are taken in turn; the same request is not taken twice. A
flood costs its sender's own place, and the reading of small messages.
"""

import fnmatch
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import anyio

from proplet.agent.wire import ModuleRequest, PullPolicy
from proplet.manager.bus import BusEvent, Heard
from proplet.manager.core import UNDER_WAY
from proplet.manager.images import ImageError, Images, StoredImage
from proplet.manager.model import Task
from proplet.manager.module_sending import ModuleSending, Pieces
from proplet.manager.ports import BusError
from proplet.oci.digest import Digest
from proplet.oci.errors import InvalidDigest, InvalidReference
from proplet.oci.reference import Reference, parse_image

log = logging.getLogger(__name__)

WORKERS: Final = 4  # images that are sent at once
WAITING: Final = 128  # requests
WAITING_EACH: Final = 4  # requests of one proplet; on the shared topic, WAITING // 2
NAME_MAX: Final = 2048  # characters of an image's name
FETCHED_S: Final = 30.0  # so long what was fetched needs no other look at it, which takes a process
FAILED_S: Final = 5.0  # so long a failure is told again without asking the registry
LOOK_S: Final = 1.0  # how often the tasks are looked through for the shared topic, at most
REMEMBERED: Final = 256
NOTE_EVERY_S: Final = 5.0
ERRORS_EVERY_S: Final = 0.2  # on the shared topic, where every proplet has to read them

Key = tuple[str | None, str]


@dataclass(frozen=True, slots=True)
class Assigned:
    """How tasks are found: those a proplet holds, and those of peers that ask on the topic that all share."""

    held_by: Callable[[str], Iterable[Task]]
    by_others: Callable[[], Iterable[Task]]


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """What is handed out, and how.

    `images` fetches them. `allow` are patterns of ``registry/repository`` for everybody who may ask. `chunk_bytes` is
    the size of a piece, `max_packet_bytes` of what the broker takes.
    """

    images: Images
    allow: tuple[str, ...] = ()
    chunk_bytes: int = 512_000
    max_packet_bytes: int = 10 * 1024 * 1024


@dataclass(slots=True)
class _Waiting:
    """One request, and whether it came again since it was taken up."""

    proplet_id: str | None
    request: ModuleRequest
    again: bool = False


@dataclass(slots=True)
class _Desk:
    """What waits, by who asks; they are served in turn."""

    queues: OrderedDict[str | None, deque[_Waiting]] = field(default_factory=OrderedDict)
    open: dict[Key, _Waiting] = field(default_factory=dict)  # waiting or being answered
    news: anyio.Event = field(default_factory=anyio.Event)


class ModuleAnswers:
    """Answers requests in `run`; `hear` takes them from the bus."""

    def __init__(
        self, settings: AnswerSettings | None, assigned: Assigned, on_event: Callable[[BusEvent], None]
    ) -> None:
        """Without settings nothing is handed out, and `run` has nothing to do."""
        self._assigned = assigned
        self._settings = settings
        self._on_event = on_event
        self._desk = _Desk()
        self._failed: OrderedDict[tuple[str, str | None], tuple[float, str]] = OrderedDict()
        self._fetched: OrderedDict[tuple[str, str | None], tuple[float, StoredImage]] = OrderedDict()
        self._signatures: OrderedDict[str, None] = OrderedDict()  # of which images they were looked for
        self._shared: dict[str, list[Task]] = {}
        self._looked_at = -LOOK_S
        self._error_at = 0.0

    @property
    def _given(self) -> AnswerSettings:
        assert self._settings is not None  # requests are heard only where images are handed out
        return self._settings

    def hear(self, event: BusEvent) -> None:
        """Take what the bus says; in order, from the event loop."""
        if not isinstance(event, Heard) or not isinstance(event.message, ModuleRequest):
            self._on_event(event)
            return
        self._take(event.proplet_id, event.message)
        event.done()

    def _take(self, proplet_id: str | None, request: ModuleRequest) -> None:
        desk = self._desk
        if len(request.app_name) > NAME_MAX:
            return
        key = (proplet_id, request.app_name)
        if (known := desk.open.get(key)) is not None:
            known.again = True
            if proplet_id is not None:  # it says anew what it still needs
                known.request = request
            return
        queue = desk.queues.setdefault(proplet_id, deque())
        most = WAITING // 2 if proplet_id is None else WAITING_EACH
        if len(queue) >= most or len(desk.open) >= WAITING:
            if not queue:
                del desk.queues[proplet_id]
            return  # who still wants it asks again
        waiting = _Waiting(proplet_id, request)
        queue.append(waiting)
        desk.open[key] = waiting
        desk.news.set()

    async def run(self, bus: Pieces) -> None:
        """Answer until cancelled."""
        if self._settings is None:
            return
        given = self._settings
        sending = ModuleSending(
            given.images, bus, chunk_bytes=given.chunk_bytes, max_packet_bytes=given.max_packet_bytes
        )
        async with anyio.create_task_group() as tasks:
            for _ in range(WORKERS):
                tasks.start_soon(self._work, sending)

    async def _work(self, sending: ModuleSending) -> None:
        while True:
            waiting = await self._next()
            try:
                await self._answer(waiting, sending)
            except BusError as error:
                log.debug("an image could not be sent: %s", error)  # who still wants it asks again
            except Exception:  # a defect of ours must end one answer, not the manager
                log.exception("a request for an image could not be answered")
            finally:
                self._desk.open.pop((waiting.proplet_id, waiting.request.app_name), None)
            if waiting.again and waiting.proplet_id is not None:
                self._take(waiting.proplet_id, waiting.request)

    async def _next(self) -> _Waiting:
        desk = self._desk
        while not desk.queues:
            desk.news = anyio.Event()
            await desk.news.wait()
        proplet_id, queue = desk.queues.popitem(last=False)
        waiting = queue.popleft()
        if queue:
            desk.queues[proplet_id] = queue  # behind the others
        return waiting

    # --- one answer ---------------------------------------------------------------------------------------------------

    async def _answer(self, waiting: _Waiting, sending: ModuleSending) -> None:
        proplet_id, request = waiting.proplet_id, waiting.request
        digest = request.ext.digest if request.ext is not None else None
        ours = proplet_id is not None and request.ext is not None
        content = image = None
        try:
            policy = await self._policy(proplet_id, request, digest)
            content = sending.known(request) if ours else None
            if content is None:
                image = await self._fetch(waiting, digest, policy, sending)
                if ours:
                    await self._bring_signatures(request, image)
                    content = await sending.content(request, image)
        except ImageError as error:
            who = proplet_id or "somebody"
            log.warning("%s does not get the image %s: %s", who, _printable(request.app_name), error)
            if proplet_id is None:
                await self._pace()
            await sending.refuse(proplet_id, request, str(error))
            return
        waiting.again = False
        if proplet_id is not None and content is not None:
            await sending.window(proplet_id, request, content)
        elif image is not None:
            await sending.everything(proplet_id, request.app_name, image, lambda: _asked_again(waiting))

    async def _policy(self, proplet_id: str | None, request: ModuleRequest, digest: str | None) -> str:
        """Return the pull policy to use. Raises ImageError: it is not for whoever asks."""
        name = request.app_name
        tasks = await self._tasks(proplet_id, name)
        if not tasks and not self._allowed(name):
            whose = f"proplet {proplet_id}" if proplet_id is not None else "a proplet here"
            raise ImageError(
                "refused",
                f"no unfinished task of {whose} has the image {name[:300]}, and [manager.images] allow "
                "does not name its repository",
            )
        if digest is not None and not self._allowed(name):
            await self._check_digest(name, digest, tasks)
        continued = request.ext is not None and bool(request.ext.content)
        asked = request.ext.pull_policy if request.ext is not None else None
        always = asked is PullPolicy.ALWAYS or any(task.spec.pull_policy is PullPolicy.ALWAYS for task in tasks)
        return PullPolicy.ALWAYS.value if always and not continued else PullPolicy.IF_NOT_PRESENT.value

    async def _check_digest(self, name: str, digest: str, tasks: Sequence[Task]) -> None:
        """An assigned tag is not a key to all that its repository ever had."""
        if any(task.status.resolved_image == digest for task in tasks) or name.endswith(f"@{digest}"):
            return
        if "#sha256=" in name and digest == "sha256:" + name.rpartition("#sha256=")[2]:
            return
        meant = await self._given.images.fetch(name)
        if digest not in (meant.digest, *meant.manifests, meant.module_digest):
            raise ImageError("refused", f"{digest} is not what {name[:300]} means, so it is not assigned to you")

    async def _tasks(self, proplet_id: str | None, name: str) -> Sequence[Task]:
        if proplet_id is not None:
            held = self._assigned.held_by(proplet_id)
            return [task for task in held if task.spec.image_url == name and task.status.phase in UNDER_WAY]
        if name not in self._shared:
            await anyio.sleep(max(0.0, self._looked_at + LOOK_S - time.monotonic()))
        if self._looked_at + LOOK_S <= time.monotonic():
            self._looked_at = time.monotonic()
            self._shared = {}
            for task in self._assigned.by_others():
                if task.spec.image_url and task.status.phase in UNDER_WAY:
                    self._shared.setdefault(task.spec.image_url, []).append(task)
        return self._shared.get(name, [])

    def _allowed(self, name: str) -> bool:
        if not self._given.allow:
            return False
        try:
            repository = parse_image(name).name
        except InvalidReference:
            return False
        return any(fnmatch.fnmatchcase(repository, pattern) for pattern in self._given.allow)

    async def _fetch(self, waiting: _Waiting, digest: str | None, policy: str, sending: ModuleSending) -> StoredImage:
        """Return the image. Whoever asked is told now and then that it is being fetched; a failure is remembered."""
        key = (waiting.request.app_name, digest)
        known = self._fetched.get(key)
        if known is not None and policy != PullPolicy.ALWAYS.value and self._is_there(*known):
            return known[1]
        failed = self._failed.get(key)
        if failed is not None and time.monotonic() - failed[0] < FAILED_S:
            raise ImageError("failed", failed[1])
        if digest is not None:
            try:
                Digest.parse(digest)
            except InvalidDigest as error:
                raise ImageError(error.reason, str(error)) from error
        try:
            image = await self._noting(waiting, digest, policy, sending)
            self._fetched[key] = (time.monotonic(), image)
            while len(self._fetched) > REMEMBERED:
                self._fetched.popitem(last=False)
            return image
        except ImageError as error:
            self._failed[key] = (time.monotonic(), str(error))
            while len(self._failed) > REMEMBERED:
                self._failed.popitem(last=False)
            raise

    async def _bring_signatures(self, request: ModuleRequest, image: StoredImage) -> None:
        """See that the signatures a proplet needs are in the store. Where there are none, it says so itself."""
        if request.ext is None or not request.ext.signatures or image.digest in self._signatures:
            return
        try:
            name = Reference.parse(image.reference).name
            await self._given.images.fetch_signatures(f"{name}@{image.digest}")
        except InvalidReference:
            return  # a module by URL has none
        except ImageError as error:
            log.warning("the signatures of %s cannot be had: %s", _printable(request.app_name), error)
        self._signatures[image.digest] = None
        while len(self._signatures) > REMEMBERED:
            self._signatures.popitem(last=False)

    def _is_there(self, fetched_at: float, image: StoredImage) -> bool:
        fresh = time.monotonic() - fetched_at < FETCHED_S
        return fresh and self._given.images.blob(image.digest) is not None and image.module_path.is_file()

    async def _noting(self, waiting: _Waiting, digest: str | None, policy: str, sending: ModuleSending) -> StoredImage:
        """Fetch; a proplet on its own topic is told meanwhile that somebody is at it."""
        image: StoredImage | None = None
        failure: ImageError | None = None

        async def note() -> None:
            while True:
                await anyio.sleep(NOTE_EVERY_S)
                with suppress(BusError):
                    await sending.note(waiting.proplet_id, waiting.request, "the manager fetches it")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(note)
            try:
                image = await self._given.images.fetch(waiting.request.app_name, digest, policy=policy)
            except ImageError as error:
                failure = error
            tasks.cancel_scope.cancel()
        if image is None:
            raise failure or ImageError("interrupted", "it was interrupted")
        return image

    async def _pace(self) -> None:
        now = time.monotonic()
        self._error_at = max(now, self._error_at + ERRORS_EVERY_S)
        await anyio.sleep(self._error_at - now)


def _asked_again(waiting: _Waiting) -> bool:
    again, waiting.again = waiting.again, False
    return again


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:300]
