"""From an image reference to a verified module file in the store.

Synchronous, and meant for a process of its own: the registry client's libraries stay in memory once loaded. They are
not loaded at all when the store already holds what is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from proplet.oci.digest import Digest
from proplet.oci.errors import (
    DigestMismatch,
    InvalidManifest,
    NotInStore,
    NotWasm,
    OciError,
    PullCancelled,
    StoreDamaged,
    TooLarge,
)
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import Descriptor, ImageManifest, parse_manifest, select_layer, select_platform
from proplet.oci.reference import Reference
from proplet.oci.settings import MAX_MANIFEST_BYTES, RegistrySettings

if TYPE_CHECKING:
    from proplet.oci.registry import RegistryClient

_MAGIC = b"\0asm"
_EMPTY_CONFIG = b"{}"
_MAX_INDEX_DEPTH = 2


class PullPolicy(StrEnum):
    """When the registry is asked, with the meaning Kubernetes gives these words."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class PullStage(StrEnum):
    """What a pull is doing."""

    RESOLVE = "resolve"
    DOWNLOAD = "download"
    VERIFY = "verify"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is. ``bytes_total`` is None until the module's descriptor is known."""

    stage: PullStage
    bytes_done: int = 0
    bytes_total: int | None = None


@dataclass(frozen=True, slots=True)
class PulledModule:
    """A module in the store.

    ``reference``: what was asked for. ``manifest_digest``: what pins it, the digest of the manifest or index that the
    reference names. ``module_digest`` and ``size``: of the file at ``path``. ``from_cache``: not transferred now.
    """

    reference: Reference
    manifest_digest: Digest
    module_digest: Digest
    path: Path
    size: int
    media_type: str
    from_cache: bool


def pull(
    reference: Reference | str,
    layout: OciLayout,
    settings: RegistrySettings | None = None,
    *,
    policy: PullPolicy = PullPolicy.IF_NOT_PRESENT,
    expected_digest: Digest | None = None,
    progress: Callable[[Progress], None] = lambda _progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> PulledModule:
    """The module a reference names, every byte compared with its digest, from the store or from the registry.

    ``expected_digest`` pins the image as a digest in the reference does: the tag is then not looked up. ``progress`` is
    called in this thread; ``cancelled`` also in another, many times a second.

    Raises:
        OciError: with a ``reason`` for machines and one line for people; see ``proplet.oci.errors``.
    """
    return _Pull(
        reference,
        layout,
        settings or RegistrySettings(),
        expected_digest=expected_digest,
        progress=progress,
        cancelled=cancelled,
    ).run(policy)


class _Pull:
    """One pull: first the store, then, as the policy allows, the registry."""

    def __init__(
        self,
        reference: Reference | str,
        layout: OciLayout,
        settings: RegistrySettings,
        *,
        expected_digest: Digest | None,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._asked = Reference.parse(reference) if isinstance(reference, str) else reference
        self._pinned = _pin(self._asked, expected_digest)
        self._layout = layout
        self._settings = settings
        self._progress = progress
        self._cancelled = cancelled

    def run(self, policy: PullPolicy) -> PulledModule:
        if self._cancelled():
            raise PullCancelled("the pull was cancelled before it began")
        self._progress(Progress(PullStage.RESOLVE))
        if policy is not PullPolicy.ALWAYS:
            try:
                return self._done(self._from_store())
            except (NotInStore, StoreDamaged) as error:
                if policy is PullPolicy.NEVER:
                    raise _never(self._asked, error) from error
        return self._done(self._from_registry())

    def _done(self, module: PulledModule) -> PulledModule:
        self._progress(Progress(PullStage.DONE, module.size, module.size))
        return module

    def _from_store(self) -> PulledModule:
        """What the store holds, read and compared again: flash memory rots.

        Raises:
            NotInStore, StoreDamaged: it does not, or not any more.
        """
        digest = self._pinned.digest
        if digest is None:
            recorded = self._layout.resolve(self._pinned.store_name)
            if recorded is None:
                raise NotInStore(f"{self._pinned} was not pulled before")
            digest = recorded.digest
        _, layer = self._walk(digest, lambda wanted: self._layout.read(wanted, MAX_MANIFEST_BYTES))
        self._check_size(layer)
        self._progress(Progress(PullStage.VERIFY, 0, layer.size))
        if self._layout.verify(layer.digest) != layer.size:
            raise StoreDamaged(
                f"the stored module of {self._asked} does not have the {layer.size} bytes its manifest says"
            )
        return self._finish(digest, layer, from_cache=True)

    def _from_registry(self) -> PulledModule:
        from proplet.oci.registry import RegistryClient

        with RegistryClient(self._pinned, self._settings, self._cancelled) as client:
            top = client.manifest()
            fetched = {top.digest: top.data}

            def load(wanted: Digest) -> bytes:
                if wanted not in fetched:
                    fetched[wanted] = client.manifest(wanted).data
                return fetched[wanted]

            image, layer = self._walk(top.digest, load, top.content_type)
            self._check_size(layer)
            from_cache = self._holds(layer)
            if not from_cache:
                self._download(client, layer)
            module = self._finish(top.digest, layer, from_cache=from_cache)
            self._fetch_config(client, image.config)
        for digest, data in fetched.items():
            self._layout.add_blob(data, digest)
        media_type = parse_manifest(top.data, top.content_type).media_type
        self._layout.set_reference(self._pinned.store_name, Descriptor(media_type, top.digest, len(top.data)))
        return module

    def _walk(
        self, digest: Digest, load: Callable[[Digest], bytes], content_type: str = ""
    ) -> tuple[ImageManifest, Descriptor]:
        """From the manifest or index with this digest down to the layer that is the module."""
        for _ in range(_MAX_INDEX_DEPTH + 1):
            found = parse_manifest(load(digest), content_type)
            if isinstance(found, ImageManifest):
                return found, select_layer(found)
            digest, content_type = select_platform(found).descriptor.digest, ""
        raise InvalidManifest(f"{self._asked} is an index of indexes of indexes: name a manifest by digest")

    def _check_size(self, layer: Descriptor) -> None:
        limit = self._settings.max_module_bytes
        if layer.size > limit:
            raise TooLarge(
                f"the module of {self._asked} has {layer.size} bytes, more than the limit of {limit}: raise it"
            )

    def _holds(self, layer: Descriptor) -> bool:
        """Whether the store has the module, whole; a damaged one is as good as none."""
        try:
            return self._layout.verify(layer.digest) == layer.size
        except (NotInStore, StoreDamaged):
            return False

    def _download(self, client: "RegistryClient", layer: Descriptor) -> None:
        what = f"the module of {self._asked}"
        self._progress(Progress(PullStage.DOWNLOAD, 0, layer.size))
        client.copy_blob(
            layer, self._layout, what, lambda count: self._progress(Progress(PullStage.DOWNLOAD, count, layer.size))
        )

    def _fetch_config(self, client: "RegistryClient", config: Descriptor) -> None:
        """The configuration says nothing we need, but a layout without it is one that other tools cannot copy."""
        if config.digest == Digest.of(_EMPTY_CONFIG, config.digest.algorithm):
            self._layout.add_blob(_EMPTY_CONFIG, config.digest)
        elif not self._holds(config):
            if config.size > MAX_MANIFEST_BYTES:
                raise TooLarge(
                    f"the configuration of {self._asked} has {config.size} bytes: it cannot be that of a module"
                )
            client.copy_blob(config, self._layout, f"the configuration of {self._asked}")

    def _finish(self, manifest_digest: Digest, layer: Descriptor, *, from_cache: bool) -> PulledModule:
        """See that the verified file begins as a module does."""
        with self._layout.open(layer.digest) as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise NotWasm(
                    f"the module of {self._asked} is no WebAssembly binary: push a .wasm file, not text or an archive"
                )
        path = self._layout.path(layer.digest)
        return PulledModule(
            self._asked, manifest_digest, layer.digest, path, layer.size, layer.media_type, from_cache=from_cache
        )


def _pin(reference: Reference, expected: Digest | None) -> Reference:
    """The reference with the digest it must have, wherever that was said.

    Raises:
        DigestMismatch: the reference says one and the caller another.
    """
    if expected is None:
        return reference
    if reference.digest is not None and reference.digest != expected:
        raise DigestMismatch(f"{reference} is not the image pinned as {expected}: correct one of the two")
    return reference.with_digest(expected)


def _never(reference: Reference, error: OciError) -> OciError:
    if isinstance(error, StoreDamaged):
        return StoreDamaged(f"{error} (pull policy Never)")
    return NotInStore(
        f"{reference} is not in the store and the pull policy is Never: pull it first or use IfNotPresent"
    )
