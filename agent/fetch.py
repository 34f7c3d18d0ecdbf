"""The adapter behind the port `Modules`: from inline bytes or an image reference to a compiled module.

Place in the flow: the shell awaits `keep` and `prepare`. Stored modules live in an OCI layout (`proplet.oci.layout`),
compiled ones in `cache`; pulling and compiling happen in builder processes. A module that is in the cache already costs
two looks at the file system and no process. Preparing the same thing twice at once does the work once; the work is
abandoned when the last one who waits for it is cancelled. Neither wasmtime nor oras is ever imported here.
"""

import hashlib
import logging
import os
import pickle
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from proplet.agent.builder_sections import COMPONENT_LAYER
from proplet.agent.cache import CompileCache, Record
from proplet.agent.engines import CRANELIFT
from proplet.agent.fetch_builders import Builders
from proplet.agent.fetch_images import KnownImages, State
from proplet.agent.module_holds import ModuleHolds
from proplet.agent.module_storing import ModulesOverMqtt
from proplet.agent.ports import (
    KEPT,
    Artefact,
    ModuleError,
    ModuleKind,
    Modules,
    ModuleWanted,
    Stage,
    StartKind,
    StorageError,
)
from proplet.agent.wire import PullPolicy, Reason
from proplet.oci.digest import Digest
from proplet.oci.errors import InvalidDigest, OciError, StoreBusy, StoreFault
from proplet.oci.layout import OciLayout
from proplet.oci.settings import RegistrySettings

log = logging.getLogger(__name__)

_MIB: Final = 1024 * 1024
_HASH_INLINE: Final = 64 * 1024
_REMEMBERED: Final = 1024
_MAGIC: Final = b"\0asm"
_CORE_VERSION: Final = b"\1\0\0\0"
_REMOVAL_S: Final = 0.02
_COLLECT_EVERY: Final = 16 * _MIB  # of inline modules

_K = TypeVar("_K")
_V = TypeVar("_V")

Progress = Callable[[Stage], None]


@dataclass(frozen=True, slots=True)
class ModulesSettings:
    """Where modules are kept and what making them may cost. Sizes in bytes, times in seconds.

    `store_dir` is an OCI image layout. `key_dir` holds the device's key, as in `runtime.RuntimeSettings`.
    `compile_memory_bytes` caps a builder's data, and so does what is free; `memory_room` has what modules take.
    `engine` as in `runtime.RuntimeSettings`. `store_bytes` is how much the store may have; what is in use, and what
    the unfinished tasks in `journal` need, stays anyway.
    """

    store_dir: Path
    cache_dir: Path
    key_dir: Path
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    max_module_bytes: int = 100 * _MIB
    cache_bytes: int = 512 * _MIB
    store_bytes: int = 2048 * _MIB
    journal: Path | None = None
    compile_memory_bytes: int = 512 * _MIB
    compile_timeout_s: float = 600.0
    linger_s: float = 5.0
    engine: str = CRANELIFT


@asynccontextmanager
async def open_modules(
    settings: ModulesSettings, over_mqtt: ModulesOverMqtt | None = None, *, starting: bool = False
) -> "AsyncIterator[StoredModules]":
    """Yield the modules of this node; at the end no builder is left. `over_mqtt` is asked as its settings say.

    Of a node that is `starting` nothing is collected before `holds.started`.

    Raises:
        StorageError: the store cannot be opened.
    """
    try:
        layout = await to_thread.run_sync(lambda: OciLayout(settings.store_dir.absolute()))
    except OciError as error:
        raise StorageError(str(error)) from error
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        modules = StoredModules(settings, layout, tasks, over_mqtt, starting=starting)
        try:
            yield modules
        except Exception as error:  # noqa: BLE001  kept out of the task group, which would wrap it
            failure = error
        finally:
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await modules.aclose()
    if failure is not None:
        raise failure


class _Flight:
    """One preparation under way and those who wait for it."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.scope = anyio.CancelScope()
        self.listeners: list[Progress] = []
        self.artefact: Artefact | None = None
        self.error: ModuleError | StorageError | None = None

    def tell(self, stage: Stage) -> None:
        for listener in self.listeners:
            listener(stage)


class StoredModules(Modules):
    """Made by `open_modules`."""

    def __init__(
        self,
        settings: ModulesSettings,
        layout: OciLayout,
        tasks: TaskGroup,
        over_mqtt: ModulesOverMqtt | None = None,
        *,
        starting: bool = False,
    ) -> None:
        self._settings = settings
        self.holds = ModuleHolds(layout, starting=starting)
        self._written: int | None = _COLLECT_EVERY if starting else None  # bytes kept since the last collection
        self._over_mqtt = over_mqtt
        self._layout = layout
        self._tasks = tasks
        self._cache = CompileCache(settings.cache_dir, settings.cache_bytes, settings.engine)
        self._builders = Builders(
            tasks,
            memory_bytes=settings.compile_memory_bytes,
            compile_timeout_s=settings.compile_timeout_s,
            linger_s=settings.linger_s,
        )
        self._flights: dict[ModuleWanted, _Flight] = {}
        self._kept: OrderedDict[str, str] = OrderedDict()  # digest to its file; text, for this is asked for every task
        self._at_hand: OrderedDict[ModuleWanted, tuple[Artefact, str, int]] = OrderedDict()  # with its file's size
        self._compiled: OrderedDict[Path, tuple[Artefact, int]] = OrderedDict()  # as found warm; with its file's size
        self._known = KnownImages(layout, self._cache, settings.registry)
        self._images: OrderedDict[tuple[str, str | None], tuple[str, str]] = OrderedDict()
        self._seen: State | None = None

    async def aclose(self) -> None:
        """End the idle builders, and need nothing any more."""
        await self._builders.aclose()
        self.holds.close()

    @property
    def builder_pids(self) -> list[int]:
        """The process ids of the live builders, for measuring them."""
        return self._builders.pids

    @property
    def fetched_bytes(self) -> int:
        """How much was fetched from registries since this was opened."""
        return self._builders.fetched_bytes

    async def keep(self, data: bytes) -> str:
        """Store inline bytes durably; see the port."""
        if len(data) <= _HASH_INLINE:
            digest = _digest(data)
        else:
            digest = await to_thread.run_sync(_digest, data)
        await self._hold(KEPT, digest)  # before looking for it: then it stays
        if (kept := self._kept.get(digest)) is not None and _is_there(kept):
            self._kept.move_to_end(digest)
            return digest
        try:
            await to_thread.run_sync(self._layout.add_blob, data)
        except OciError as error:
            raise StorageError(str(error)) from error
        _remember(self._kept, digest, str(self._layout.path(Digest.parse(digest))))
        self._wrote(len(data))
        return digest

    def _wrote(self, size: int) -> None:
        """What came with tasks counts, too; what was pulled, the builder has seen to."""
        if self._written is not None:  # a node's, for others may not look only at pins
            self._written += size
            if self._written > _COLLECT_EVERY:
                self._written = 0
                self._tasks.start_soon(self._collect, name="collection")

    async def _collect(self) -> None:
        from proplet.oci.collecting import collect

        try:
            await to_thread.run_sync(collect, self._layout, self._settings.store_bytes)
        except StoreBusy:
            self._written = _COLLECT_EVERY
        except OciError as error:
            log.warning("nothing could be collected in the store of modules: %s", error)

    async def _hold(self, holder: object, *digests: str | None) -> None:
        """Pin blobs; if one is just being removed, wait until it has gone: who looks for it then knows."""
        while not self.holds.hold(holder, *digests):  # noqa: ASYNC110  another process is at it, for a moment
            await anyio.sleep(_REMOVAL_S)

    async def prepare(self, wanted: ModuleWanted, progress: Progress) -> Artefact:
        """Fetch, verify and compile; see the port."""
        if (ready := self.ready(wanted)) is not None:
            return ready
        flight = self._flights.get(wanted)
        if flight is None:
            flight = self._flights[wanted] = _Flight()
            self._tasks.start_soon(self._fly, wanted, flight)
        flight.listeners.append(progress)
        try:
            await flight.done.wait()
        finally:
            flight.listeners.remove(progress)
            if not flight.listeners and not flight.done.is_set():
                flight.scope.cancel()
                self._flights.pop(wanted, None)
        # A new exception for each who waits: one object raised in several tasks would collect all their tracebacks.
        if isinstance(flight.error, ModuleError):
            raise ModuleError(flight.error.reason, str(flight.error)) from flight.error
        if flight.error is not None:
            raise StorageError(str(flight.error)) from flight.error
        assert flight.artefact is not None
        return flight.artefact

    def ready(self, wanted: ModuleWanted) -> Artefact | None:
        """Return what is known to be compiled; costs two calls of stat, and one for each file of the policy."""
        if (known := self._at_hand.get(wanted)) is not None and _has_size(known[1], known[2]):
            self._at_hand.move_to_end(wanted)
            return known[0]
        image_digest, module_digest = None, wanted.module_digest
        if module_digest is None:
            if wanted.pull_policy is PullPolicy.ALWAYS or self._known.state() != self._seen:
                return None
            found = self._images.get((wanted.image_url, wanted.image_digest))
            if found is None:
                return None
            image_digest, module_digest = found
        path = self._cache.path(module_digest, metered=wanted.metered)
        compiled = self._compiled.get(path)
        if compiled is None or not _has_size(path, compiled[1]):
            return None
        self._compiled.move_to_end(path)
        if image_digest is not None:  # what an image is can change with the store's index
            return replace(compiled[0], image_digest=image_digest)
        _remember(self._at_hand, wanted, (compiled[0], str(path), compiled[1]))
        return compiled[0]

    async def _fly(self, wanted: ModuleWanted, flight: _Flight) -> None:
        try:
            with flight.scope:
                flight.artefact = await self._make(wanted, flight)
        except (ModuleError, StorageError) as error:
            flight.error = error
        except Exception as error:  # a defect of ours must end the tasks that wait here, not the node
            log.exception("a module could not be made ready")
            flight.error = ModuleError(Reason.INTERNAL, f"internal error while preparing the module: {error!r}")
        finally:
            if flight.artefact is None and flight.error is None:
                flight.error = ModuleError(Reason.INTERRUPTED, "the preparation was abandoned")
            if self._flights.get(wanted) is flight:
                del self._flights[wanted]
            flight.done.set()
            # Who waits for it holds it in a moment; until then it is what was used last, and would be collected last.
            self.holds.release(flight)

    async def _make(self, wanted: ModuleWanted, flight: _Flight) -> Artefact:
        began, tell = time.monotonic(), flight.tell
        image_digest, module_digest, fetch_s = None, wanted.module_digest, 0.0
        if module_digest is None:
            image_digest, module_digest = await self._fetch(wanted, tell)
            fetch_s = time.monotonic() - began
        await self._hold(flight, image_digest, module_digest)
        try:
            digest = Digest.parse(module_digest)
        except InvalidDigest as error:
            raise ModuleError(Reason.MODULE_UNAVAILABLE, str(error)) from error
        blob = self._layout.path(digest)
        path = self._cache.path(module_digest, metered=wanted.metered)
        artefact = Artefact(module_digest, path, ModuleKind.CORE, image_digest, fetch_s=fetch_s, metered=wanted.metered)
        record = await to_thread.run_sync(self._cache.find, path)
        if record is None:
            artefact = await self._compile(artefact, blob, wanted, tell)
            record = await to_thread.run_sync(self._cache.find, path)
            await to_thread.run_sync(self._cache.trim, path)
        if record is not None:
            artefact = self._described(artefact, record, blob)
            warm = replace(artefact, image_digest=None, start_kind=StartKind.WARM, fetch_s=0.0, compile_s=0.0)
            _remember(self._compiled, path, (warm, record.size))
        return artefact

    async def _compile(self, artefact: Artefact, blob: Path, wanted: ModuleWanted, tell: Progress) -> Artefact:
        """Compile a stored module. That of an image was one when it was pulled: if it is none now, it is damaged."""
        digest = Digest.parse(artefact.module_digest)
        again = wanted.module_digest is None
        while True:
            began = time.monotonic()
            try:
                kind = await to_thread.run_sync(self._look, blob, digest)
            except ModuleError:
                if not again:
                    raise
            else:
                artefact = replace(artefact, kind=kind)
                try:
                    await self._builders.compile(self._order(artefact, blob), tell)
                    return replace(artefact, start_kind=StartKind.COLD, compile_s=time.monotonic() - began)
                except ModuleError as error:
                    if not again or error.reason is not Reason.DIGEST_MISMATCH:
                        raise
            log.warning("the stored module of %s is damaged and is taken anew", wanted.image_url)
            again = False
            await self._pull(replace(wanted, image_digest=artefact.image_digest), tell)

    def _described(self, artefact: Artefact, record: Record, blob: Path) -> Artefact:
        return replace(
            artefact,
            kind=ModuleKind(record.kind),
            waits=record.waits,
            serves_http=record.serves_http,
            wasm=blob.absolute() if _is_there(str(blob)) else None,
        )

    async def _fetch(self, wanted: ModuleWanted, tell: Progress) -> tuple[str, str]:
        """Return the digests of the image and of its module, which is in the store or compiled already."""
        key = (wanted.image_url, wanted.image_digest)
        state = self._known.state()
        # Also where a builder has to be asked anyway: what is denied is not pulled.
        found = await to_thread.run_sync(self._known.resolve, wanted)
        if found is None or wanted.pull_policy is PullPolicy.ALWAYS:
            rules = self._known.rules()
            found = await self._pull(wanted, tell)
            if rules != self._known.rules():  # the policy was changed meanwhile: what it says now counts
                await to_thread.run_sync(self._known.resolve, wanted)
                return await self._pull(wanted, tell)  # and is asked again at the next start
            state = self._known.state()
        if state != self._seen:
            self._images.clear()
            self._seen = state
        _remember(self._images, key, found)
        return found

    async def _pull(self, wanted: ModuleWanted, tell: Progress) -> tuple[str, str]:
        """Have a builder see to it that an image is in the store, whole, and may be run."""
        rules = self._known.rules()
        registry = replace(self._settings.registry, max_module_bytes=self._settings.max_module_bytes)
        fields = {
            "image": wanted.image_url,
            "digest": wanted.image_digest,
            "policy": wanted.pull_policy.value,
            "store_dir": str(self._layout.root),
            "store_bytes": self._settings.store_bytes,
            "journal": str(self._settings.journal) if self._settings.journal else "",
            "settings": pickle.dumps(registry),
        }
        if self._over_mqtt is None:
            pulled = await self._builders.pull(fields, tell)
        else:
            pull = partial(self._builders.pull, progress=tell)
            pulled = await self._over_mqtt.pull(wanted, fields, pull, self._layout, tell)
        for line in pulled.get("warnings", ()):
            log.warning("%s", line)
        self._known.admitted(wanted.image_url, str(pulled["image_digest"]), rules)
        return str(pulled["image_digest"]), str(pulled["module_digest"])

    def _look(self, blob: Path, digest: Digest) -> ModuleKind:
        """Check size and preamble of a stored module. Source: component model, Binary.md, "preamble"."""
        try:
            with self._layout.open(digest) as file:
                head, size = file.read(8), blob.stat().st_size
        except StoreFault as error:
            raise ModuleError(Reason.MODULE_UNAVAILABLE, str(error)) from error
        except OSError as error:
            raise StorageError(f"{blob}: {error.strerror}") from error
        limit = self._settings.max_module_bytes
        if size > limit:
            raise ModuleError(
                Reason.INVALID_MODULE, f"the module has {size} bytes, more than the limit of {limit}: raise it"
            )
        if head[:4] != _MAGIC:
            what = f"it begins with {head[:4]!r}, not b'\\x00asm'" if head else "it is empty"
            raise ModuleError(Reason.INVALID_MODULE, f"not a WebAssembly module: {what}")
        if head[4:8] == _CORE_VERSION:
            return ModuleKind.CORE
        if head[6:8] == COMPONENT_LAYER:
            return ModuleKind.COMPONENT
        raise ModuleError(Reason.INVALID_MODULE, f"WebAssembly of an unknown version: {head[4:8].hex() or 'truncated'}")

    def _order(self, artefact: Artefact, blob: Path) -> dict[str, Any]:
        return {
            "wasm": str(blob.absolute()),
            "out": str(artefact.path.absolute()),
            "module_digest": artefact.module_digest,
            "metered": artefact.metered,
            "engine": self._settings.engine,
            "key_dir": str(self._settings.key_dir.absolute()),
        }


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _is_there(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110  (asked for every task, and several times faster)


def _has_size(path: str | Path, size: int) -> bool:
    try:
        return os.stat(path).st_size == size  # noqa: PTH116
    except OSError:
        return False


def _remember(known: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    known[key] = value
    known.move_to_end(key)
    while len(known) > _REMEMBERED:
        known.popitem(last=False)
