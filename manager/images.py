"""Images on behalf of others: pulled into the node's store by child processes, so that no registry client is loaded.

Place in the flow: who answers proplets over MQTT, and the mirror, ask `fetch`; a child (`proplet.oci.child`) pulls,
verifies and applies the signature policy. One image is pulled once at a time, whoever asks meanwhile joins; a child
ends when the last one who waits for it is cancelled. It is started from the event loop's own thread: the parent-death
signal is tied to the thread that forked.
"""

import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
from anyio.abc import Process, TaskGroup

from proplet.oci.child import MODULE, SIGNATURES, Request
from proplet.oci.digest import Digest
from proplet.oci.errors import InvalidDigest
from proplet.oci.settings import RegistrySettings

log = logging.getLogger(__name__)

_MIB: Final = 1024 * 1024
_MAX_ANSWER_BYTES: Final = _MIB
_MAX_SAID_BYTES: Final = 4096
# What a child gets of the environment: what Python needs, and what leads to a registry.
_NETWORK: Final = frozenset(
    "HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE DOCKER_CONFIG".split()
)
_KEPT: Final = frozenset(
    "PATH LANG LC_ALL LC_CTYPE TZ HOME TMPDIR PYTHONPATH PYTHONHOME VIRTUAL_ENV LD_LIBRARY_PATH".split()
)


class ImageError(Exception):
    """An image that cannot be had. `reason` is that of an `OciError`, or ``busy``, ``interrupted`` or ``internal``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image whose module is in the store, verified.

    Attributes:
        reference: what was asked for, with every default written out.
        digest: what the reference resolved to, of a manifest or an index.
        manifests: the digests from there down to the image's own manifest.
        module_digest: of the module's file.
        module_path: that file.
        size: its bytes.
        media_type: of the layer it is from.
        signer: whose key has signed the image, where the policy asked for it.
    """

    reference: str
    digest: str
    manifests: tuple[str, ...]
    module_digest: str
    module_path: Path
    size: int
    media_type: str
    signer: str | None = None


class Images(Protocol):
    """Images for others, from the store or through it."""

    async def fetch(self, image: str, digest: str | None = None, *, policy: str = "IfNotPresent") -> StoredImage:
        """Return an image that is in the store afterwards; `digest` pins it, `policy` is a pull policy.

        Raises:
            ImageError: it cannot be had.
        """
        ...

    async def fetch_signatures(self, image: str) -> None:
        """Bring the signatures of an image, named with its digest, into the store, where it has any.

        Raises:
            ImageError: nobody can say whether it has.
        """
        ...

    def blob(self, digest: str) -> Path | None:
        """Return the file of a blob of the store, unread; None where there is none, or `digest` is no digest."""
        ...


@dataclass(frozen=True, slots=True)
class ImagesSettings:
    """Where images are kept, how registries are reached, and what pulling for others may cost.

    Attributes:
        store_dir: an OCI image layout, which may be others' too.
        registry: limits, credentials and the signature policy.
        children: pulls at once.
        waiting: pulls that may wait for their turn; one more is refused as busy.
        memory_bytes: what a child may use.
        store_bytes: what the store may hold; None is whatever comes.
    """

    store_dir: Path
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    children: int = 2
    waiting: int = 64
    memory_bytes: int = 256 * _MIB
    store_bytes: int | None = None


@asynccontextmanager
async def open_images(settings: ImagesSettings) -> "AsyncIterator[PulledImages]":
    """Yield the images of this node; at the end no child is left, and who still waits gets an ImageError."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield PulledImages(settings, tasks)
        except Exception as error:  # noqa: BLE001  kept out of the task group, which would wrap it
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


_Key = tuple[str, str | None, str]


class _Flight:
    """One pull under way and how many wait for it."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.scope = anyio.CancelScope()
        self.waiting = 0
        self.answer: dict[str, Any] | None = None
        self.error: ImageError | None = None


class PulledImages(Images):
    """Made by `open_images`."""

    def __init__(self, settings: ImagesSettings, tasks: TaskGroup) -> None:
        self._settings = settings
        self._store_dir = settings.store_dir.absolute()
        self._tasks = tasks
        self._flights: dict[_Key, _Flight] = {}
        self._turns = anyio.Semaphore(settings.children)
        self._live: set[int] = set()

    @property
    def child_pids(self) -> list[int]:
        """The process ids of the live children."""
        return sorted(self._live)

    async def fetch(self, image: str, digest: str | None = None, *, policy: str = "IfNotPresent") -> StoredImage:
        """Pull through a child; see the port."""
        mine = self._settings
        request = Request(image, digest, policy, self._store_dir, mine.registry, mine.store_bytes)
        answer = await self._joined(request)
        return StoredImage(
            reference=answer["reference"],
            digest=answer["digest"],
            manifests=tuple(answer["manifests"]),
            module_digest=answer["module_digest"],
            module_path=Path(answer["module_path"]),
            size=answer["size"],
            media_type=answer["media_type"],
            signer=answer["signer"],
        )

    async def fetch_signatures(self, image: str) -> None:
        """Fetch through a child; see the port."""
        await self._joined(Request(image, None, SIGNATURES, self._store_dir, self._settings.registry))

    async def _joined(self, request: Request) -> dict[str, Any]:
        """Return the answer to a request, asked once however many wait for it."""
        key = (request.image, request.digest, request.policy)
        flight = self._flights.get(key)
        if flight is None:
            if len(self._flights) >= self._settings.children + self._settings.waiting:
                raise ImageError("busy", "too many images are being pulled: ask again later")
            flight = self._flights[key] = _Flight()
            self._tasks.start_soon(self._fly, key, request, flight)
        flight.waiting += 1
        try:
            await flight.done.wait()
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.done.is_set():
                flight.scope.cancel()
                self._forget(key, flight)
        if flight.error is not None:  # anew for each who waits: one object would collect all their tracebacks
            raise ImageError(flight.error.reason, str(flight.error)) from flight.error
        assert flight.answer is not None
        return flight.answer

    def blob(self, digest: str) -> Path | None:
        """Look for a file; see the port."""
        try:
            known = Digest.parse(digest)
        except InvalidDigest:
            return None
        path = self._store_dir / "blobs" / known.algorithm / known.hex
        return path if path.is_file() else None

    def _forget(self, key: _Key, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _fly(self, key: _Key, request: Request, flight: _Flight) -> None:
        try:
            with flight.scope:
                async with self._turns:
                    flight.answer = await self._ask(request)
        except ImageError as error:
            flight.error = error
        except Exception as error:  # a defect of ours must end those who wait here, not the node
            log.exception("an image could not be pulled")
            flight.error = ImageError("internal", f"internal error while pulling an image: {error!r}")
        finally:
            if flight.answer is None and flight.error is None:
                flight.error = ImageError("interrupted", f"pulling {key[0][:300]} was interrupted")
            self._forget(key, flight)
            flight.done.set()

    async def _ask(self, request: Request) -> dict[str, Any]:
        answer = await self._child(request.encode())
        if "reason" in answer:
            raise ImageError(str(answer["reason"]), str(answer["message"]))
        return answer

    async def _child(self, request: bytes) -> dict[str, Any]:
        """Start a child, hand it the request, return its answer; it has ended afterwards, whatever happens."""
        command = [sys.executable, "-P", "-m", MODULE, str(os.getpid()), str(self._settings.memory_bytes)]
        try:
            process = await anyio.open_process(command, env=_environment(), cwd="/", start_new_session=True)
        except OSError as error:
            raise ImageError("internal", f"no process can be started to pull images: {error.strerror}") from error
        self._live.add(process.pid)
        try:
            return await _exchange(process, request)
        finally:
            with anyio.CancelScope(shield=True):
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                await process.aclose()
            self._live.discard(process.pid)


async def _exchange(process: Process, request: bytes) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    said, answer = bytearray(), bytearray()

    async def listen() -> None:
        assert process.stderr is not None
        async for chunk in process.stderr:
            said.extend(chunk)
            del said[:-_MAX_SAID_BYTES]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # it ended early: how is told below
            await process.stdin.send(request)
            await process.stdin.aclose()
        async for chunk in process.stdout:
            if len(answer) <= _MAX_ANSWER_BYTES:
                answer.extend(chunk)
        code = await process.wait()
    if code == 0 and len(answer) <= _MAX_ANSWER_BYTES:
        with suppress(ValueError):
            return dict(json.loads(answer))
    last = " ".join(said.decode("utf-8", "replace").strip().rpartition("\n")[2].split())[:200]
    how = f"signal {-code}" if code < 0 else f"status {code}"
    raise ImageError("internal", f"the process that pulls images ended with {how}{': ' if last else ''}{last}")


def _environment() -> dict[str, str]:
    wanted = {*_KEPT, *_NETWORK, *(name.lower() for name in _NETWORK)}
    return {name: value for name, value in os.environ.items() if name in wanted}
