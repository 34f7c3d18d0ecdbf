"""From an image reference to a verified module file in the store.

Synchronous, and meant for a process of its own: the registry client's libraries stay in memory once loaded. They are
not loaded at all when the store already holds what is asked for.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from proplet.oci.digest import Digest
from proplet.oci.errors import (
    DigestMismatch,
    ImageDenied,
    InvalidManifest,
    NotInStore,
    NotWasm,
    OciError,
    PullCancelled,
    RegistryFault,
    SignatureExpired,
    SignatureInvalid,
    SignatureMissing,
    SignatureUntrusted,
    StoreDamaged,
    StoreReadOnly,
    TooLarge,
)
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import (
    OCI_MANIFEST,
    Descriptor,
    ImageManifest,
    is_archive,
    parse_manifest,
    select_layer,
    select_platform,
)
from proplet.oci.pins import Pins
from proplet.oci.policy import Policy, Rule, load_policy
from proplet.oci.pulled import Progress, PulledModule, PullPolicy, PullStage
from proplet.oci.reference import Reference, WebReference, parse_image
from proplet.oci.settings import MAX_MANIFEST_BYTES, RegistrySettings
from proplet.oci.signatures import check
from proplet.oci.unpack import module_in

if TYPE_CHECKING:
    from proplet.oci.sources import Sources

_MAGIC = b"\0asm"
_EMPTY_CONFIG = b"{}"
_MAX_INDEX_DEPTH = 2


def pull(
    reference: Reference | WebReference | str,
    layout: OciLayout,
    settings: RegistrySettings | None = None,
    *,
    policy: PullPolicy = PullPolicy.IF_NOT_PRESENT,
    expected_digest: Digest | None = None,
    progress: Callable[[Progress], None] = lambda _progress: None,
    cancelled: Callable[[], bool] = lambda: False,
    pins: Pins | None = None,
    named: bool = False,
) -> PulledModule:
    """The module a reference names, every byte compared with its digest, from the store or from the registry.

    ``expected_digest`` pins the image as a digest in the reference does: the tag is then not looked up. Of a module by
    URL it is that of the file, or of the manifest that the store has it under. ``progress`` is called in this thread;
    ``cancelled`` also in another, many times a second. ``pins`` keeps what was found from being collected, as long as
    the caller has it; without it that ends with the pull. ``named``: of the store counts only what was pulled from the
    reference's own repository, not whatever has the digest: for those who ask on behalf of others, who may know the
    digests of what is not for them.

    Raises:
        OciError: with a ``reason`` for machines and one line for people; see ``proplet.oci.errors``.
    """
    with ExitStack() as stack:
        if pins is None:
            with suppress(StoreReadOnly):  # then nobody removes anything
                pins = stack.enter_context(Pins(layout.root))
        return _Pull(
            reference,
            layout,
            settings or RegistrySettings(),
            expected_digest=expected_digest,
            progress=progress,
            cancelled=cancelled,
            pins=pins,
            named=named,
        ).run(policy)


class _Pull:
    """One pull: first the store, then, as the policy allows, the registry."""

    def __init__(
        self,
        reference: Reference | WebReference | str,
        layout: OciLayout,
        settings: RegistrySettings,
        *,
        expected_digest: Digest | None,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        pins: Pins | None,
        named: bool,
    ) -> None:
        self._pins = pins
        self._named = named
        self._asked = parse_image(reference) if isinstance(reference, str) else reference
        self._expected = expected_digest
        if isinstance(self._asked, Reference):
            self._pinned: Reference | WebReference = _pin(self._asked, expected_digest)
        else:
            self._pinned = self._asked
        self._layout = layout
        self._settings = settings
        self._progress = progress
        self._cancelled = cancelled
        self._signer: str | None = None
        self._warnings: list[str] = []

    def run(self, policy: PullPolicy) -> PulledModule:
        if self._cancelled():
            raise PullCancelled("the pull was cancelled before it began")
        self._progress(Progress(PullStage.RESOLVE))
        trust = load_policy(self._settings.signature_policy, signed_only=self._settings.signed_only)
        decision = trust.decide(self._asked.name)
        if decision.rule is Rule.DENY:  # nobody need be asked for it
            raise ImageDenied(f"{self._asked.name} is denied by the signature policy ({decision.where}): change it")
        if policy is not PullPolicy.ALWAYS:
            try:
                return self._done(self._from_store(trust, may_ask=policy is not PullPolicy.NEVER))
            except (NotInStore, StoreDamaged) as error:
                if policy is PullPolicy.NEVER:
                    raise _never(self._asked, error) from error
        try:
            return self._done(self._from_afar(trust))
        except RegistryFault as error:
            if not error.transient:
                raise
            return self._done(self._out_of_reach(trust, error))

    def _done(self, module: PulledModule) -> PulledModule:
        self._progress(Progress(PullStage.DONE, module.size, module.size))
        return replace(module, signer=self._signer, warnings=tuple(dict.fromkeys(self._warnings)))

    def _out_of_reach(self, trust: Policy, error: RegistryFault) -> PulledModule:
        """What the name meant last, where the registry cannot be asked now.

        Raises:
            RegistryFault: the store does not have it.
        """
        try:
            module = self._from_store(trust, may_ask=False, whole=False)
        except (NotInStore, StoreDamaged, SignatureMissing):
            raise error from None
        self._warnings.append(f"{error}; what {self._asked} was last is used, {module.manifest_digest.short}")
        return module

    def _from_store(self, trust: Policy, *, may_ask: bool, whole: bool = True) -> PulledModule:
        """What the store holds, read and compared again: flash memory rots.

        ``may_ask``: for signatures that are not in the store. ``whole``: what is not run must be right, too.

        Raises:
            NotInStore, StoreDamaged: it does not, or not any more.
            TrustFault: it may not be run.
        """
        digest = self._stored_top()
        image, layer = self._walk(digest, lambda wanted: self._layout.read(wanted, MAX_MANIFEST_BYTES))
        self._check_web(digest, layer.digest)
        self._check_size(layer)
        self._progress(Progress(PullStage.VERIFY, 0, layer.size))
        if self._layout.verify(layer.digest) != layer.size:
            raise StoreDamaged(
                f"the stored module of {self._asked} does not have the {layer.size} bytes its manifest says"
            )
        if whole and self._layout.has(image.config.digest):
            self._layout.verify(image.config.digest)
        self._check_trust_of_stored(digest, trust, may_ask=may_ask)
        return self._finish(digest, layer, from_cache=True)

    def _stored_top(self) -> Digest:
        """The manifest or index that is meant, by its digest or by what the name meant last.

        Raises:
            NotInStore: nobody knows.
        """
        pinned = self._pinned.digest if isinstance(self._pinned, Reference) else self._expected
        if pinned is not None and (isinstance(self._pinned, Reference) or self._is_manifest(pinned)):
            if self._named and not self._is_named(pinned):
                raise NotInStore(f"{self._pinned} was not pulled before")
            return pinned
        recorded = self._layout.resolve(self._pinned.store_name)
        if recorded is None:
            raise NotInStore(f"{self._pinned} was not pulled before")
        return recorded.digest

    def _is_named(self, digest: Digest) -> bool:
        """Whether the store knows a manifest, or an index, by a name of the repository that is asked for."""
        name, known = self._pinned.name, self._layout.references().items()
        if isinstance(self._pinned, WebReference):
            return any(of == name and found.digest == digest for of, found in known)
        return any(of.startswith((f"{name}:", f"{name}@")) and found.digest == digest for of, found in known)

    def _is_manifest(self, digest: Digest) -> bool:
        """Whether a blob of the store is a manifest: what pins a URL may also be the file's own digest."""
        try:
            parse_manifest(self._layout.read(digest, MAX_MANIFEST_BYTES))
        except (NotInStore, StoreDamaged, InvalidManifest):
            return False
        return True

    def _check_web(self, manifest: Digest, module: Digest) -> None:
        """See that the module of a URL is the one that is pinned, by its own digest or by its manifest's.

        Raises:
            NotInStore: the URL had something else.
        """
        if isinstance(self._pinned, WebReference):
            pinned, expected = self._pinned.digest, self._expected
            if (pinned is not None and pinned != module) or (
                expected is not None and expected not in {manifest, module}
            ):
                raise NotInStore(f"{self._asked} was something else when it was pulled, with the digest {module}")

    def _check_trust_of_stored(self, digest: Digest, trust: Policy, *, may_ask: bool) -> None:
        try:
            self._check_trust(digest, trust, None)
        except (SignatureMissing, SignatureInvalid, SignatureUntrusted, SignatureExpired):
            # Pulled before anybody asked for signatures, signed again since, or the signature has rotted.
            if not may_ask or isinstance(self._pinned, WebReference):
                raise
            from proplet.oci.sources import open_sources

            with open_sources(self._pinned.with_digest(digest), self._settings, self._cancelled) as sources:
                self._check_trust(digest, trust, sources)

    def _check_trust(self, digest: Digest, trust: Policy, sources: "Sources | None") -> None:
        """See that the image may be run.

        Raises:
            TrustFault: it may not.
        """
        about = self._asked if isinstance(self._asked, Reference) else self._asked.url
        verdict = check(about, digest, self._layout, trust, sources)
        self._signer = verdict.signer
        if verdict.warning is not None:
            self._warnings.append(verdict.warning)

    def _from_afar(self, trust: Policy) -> PulledModule:
        if isinstance(self._pinned, WebReference):
            return self._from_web(self._pinned, trust)
        return self._from_registry(self._pinned, trust)

    def _from_registry(self, pinned: Reference, trust: Policy) -> PulledModule:
        from proplet.oci.sources import open_sources

        with open_sources(pinned, self._settings, self._cancelled) as sources:
            top = sources.manifest()
            fetched = {top.digest: top.data}

            def load(wanted: Digest) -> bytes:
                if wanted not in fetched:
                    fetched[wanted] = sources.manifest(wanted).data
                return fetched[wanted]

            image, layer = self._walk(top.digest, load, top.content_type)
            self._check_size(layer)
            self._check_trust(top.digest, trust, sources)
            from_cache = self._holds(layer)
            if not from_cache:
                self._download(sources, layer)
            module = self._finish(top.digest, layer, from_cache=from_cache)
            self._fetch_config(sources, image.config)
            self._warnings += sources.warnings
        for digest, data in fetched.items():
            self._layout.add_blob(data, digest)
        media_type = parse_manifest(top.data, top.content_type).media_type
        self._layout.set_reference(pinned.store_name, Descriptor(media_type, top.digest, len(top.data)))
        return module

    def _from_web(self, pinned: WebReference, trust: Policy) -> PulledModule:
        from proplet.oci.web import fetch, manifest_of

        self._progress(Progress(PullStage.DOWNLOAD))
        module = fetch(
            pinned,
            self._layout,
            self._settings,
            self._cancelled,
            lambda count, size: self._progress(Progress(PullStage.DOWNLOAD, count, size)),
        )
        size = self._layout.path(module).stat().st_size
        raw = manifest_of(module, size)
        digest = Digest.of(raw)
        try:
            if self._expected is not None and self._expected not in {digest, module}:
                raise DigestMismatch(f"{pinned.url} now has {module}, and not what is pinned as {self._expected}")
            _, layer = self._walk(digest, lambda _digest: raw)
            self._check_trust(digest, trust, None)
            found = self._finish(digest, layer, from_cache=False)
        except NotWasm:
            self._layout.remove_blob(module)
            raise
        self._layout.add_blob(_EMPTY_CONFIG)
        self._layout.add_blob(raw)
        self._layout.set_reference(pinned.store_name, Descriptor(OCI_MANIFEST, digest, len(raw)))
        return found

    def _walk(
        self, digest: Digest, load: Callable[[Digest], bytes], content_type: str = ""
    ) -> tuple[ImageManifest, Descriptor]:
        """From the manifest or index with this digest down to the layer that is the module."""
        for _ in range(_MAX_INDEX_DEPTH + 1):
            self._pin(digest)
            found = parse_manifest(load(digest), content_type)
            if isinstance(found, ImageManifest):
                layer = select_layer(found)
                self._pin(found.config.digest)
                self._pin(layer.digest)
                return found, layer
            digest, content_type = select_platform(found).descriptor.digest, ""
        raise InvalidManifest(f"{self._asked} is an index of indexes of indexes: name a manifest by digest")

    def _pin(self, digest: Digest) -> None:
        """Before it is looked for: what is found then stays."""
        if self._pins is not None and not self._pins.holds(digest):
            self._pins.hold(digest, wait=True)

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

    def _download(self, sources: "Sources", layer: Descriptor) -> None:
        what = f"the module of {self._asked}"
        self._progress(Progress(PullStage.DOWNLOAD, 0, layer.size))
        sources.copy_blob(
            layer, self._layout, what, lambda count: self._progress(Progress(PullStage.DOWNLOAD, count, layer.size))
        )

    def _fetch_config(self, sources: "Sources", config: Descriptor) -> None:
        """The configuration says nothing we need, but a layout without it is one that other tools cannot copy."""
        if config.digest == Digest.of(_EMPTY_CONFIG, config.digest.algorithm):
            self._layout.add_blob(_EMPTY_CONFIG, config.digest)
        elif not self._holds(config):
            if config.size > MAX_MANIFEST_BYTES:
                raise TooLarge(
                    f"the configuration of {self._asked} has {config.size} bytes: it cannot be that of a module"
                )
            sources.copy_blob(config, self._layout, f"the configuration of {self._asked}")

    def _finish(self, manifest_digest: Digest, layer: Descriptor, *, from_cache: bool) -> PulledModule:
        """See that the verified file begins as a module does; of an archive, take the module out."""
        module, size = layer.digest, layer.size
        if is_archive(layer):
            module = module_in(self._layout, layer, self._settings.max_module_bytes)
            self._pin(module)
            size = self._layout.path(module).stat().st_size
        with self._layout.open(module) as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise NotWasm(
                    f"the module of {self._asked} is no WebAssembly binary: push a .wasm file, not text or an archive"
                )
        path = self._layout.path(module)
        return PulledModule(self._asked, manifest_digest, module, path, size, layer.media_type, from_cache=from_cache)


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


def _never(reference: Reference | WebReference, error: OciError) -> OciError:
    if isinstance(error, StoreDamaged):
        return StoreDamaged(f"{error} (pull policy Never)")
    return NotInStore(
        f"{reference} is not in the store and the pull policy is Never: pull it first or use IfNotPresent"
    )
