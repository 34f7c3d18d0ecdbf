"""What the store says of images, and whether they may be run without asking a builder again.

Place in the flow: `fetch` looks here before it has an image pulled. What an image name means comes from the store; the
signature policy is asked every time. An image that must be signed is taken from here only after a builder has checked
it in this process's life, for verifying is not done in the agent: the library for it is never loaded here. What a
builder has said holds until the policy or one of its key files changes, and for an hour where a key can expire.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from proplet.agent.cache import CompileCache
from proplet.agent.ports import ModuleError, ModuleWanted
from proplet.agent.wire import Reason
from proplet.oci.digest import Digest
from proplet.oci.errors import OciError, TrustFault
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import Descriptor, ImageManifest, is_archive, parse_manifest, select_layer, select_platform
from proplet.oci.policy import Policy, Rule, load_policy
from proplet.oci.reference import Reference, WebReference, parse_image
from proplet.oci.settings import MAX_MANIFEST_BYTES, RegistrySettings
from proplet.oci.unpack import noted

_REMEMBERED = 1024
_CHECKED_AGAIN_S = 3600  # certificates are not read in the agent: a builder is asked again whether they count

State = tuple[tuple[int, ...] | None, ...]


class KnownImages:
    """The images of a store. Its methods touch the disk, except `admitted`."""

    def __init__(
        self,
        layout: OciLayout,
        cache: CompileCache,
        settings: RegistrySettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._layout = layout
        self._cache = cache
        self._settings = settings
        self._index = layout.root / "index.json"
        self._watched = [settings.signature_policy] if settings.signature_policy is not None else []
        self._expires = False
        self._policy: Policy | None = None
        self._policy_seen: State | None = None
        self._admitted: OrderedDict[tuple[str, str], None] = OrderedDict()  # names and digests of the images

    def state(self) -> State:
        """What changes when a name in the store begins to mean something else, or the policy to say something else."""
        return (_stamp(self._index), *self.rules())

    def rules(self) -> State:
        """What changes when the policy or one of its keys does, or a key may have expired."""
        period = ((int(self._clock() // _CHECKED_AGAIN_S),),) if self._expires else ()
        return (*(_stamp(path) for path in self._watched), *period)

    def resolve(self, wanted: ModuleWanted) -> tuple[str, str] | None:
        """Return the digests of an image and its module, if it may be run and is there or compiled, else None.

        The module is not read; manifests are, and compared with their digests.

        Raises:
            ModuleError: the signature policy denies the image, or cannot be read.
        """
        try:
            reference = parse_image(wanted.image_url)
        except OciError:
            return None  # a builder says what is wrong with it
        rule = self._decide(reference)
        with suppress(OciError):
            found = self._find(reference, wanted)
            if found is not None and (rule is Rule.ALLOW or (reference.name, found[0]) in self._admitted):
                return found
        return None

    def admitted(self, image_url: str, image_digest: str, rules: State) -> None:
        """Remember that a builder has checked an image and says that it may be run, by the `rules` as it began."""
        if rules != self.rules():
            return
        with suppress(OciError):
            self._admitted[parse_image(image_url).name, image_digest] = None
            while len(self._admitted) > _REMEMBERED:
                self._admitted.popitem(last=False)

    def _decide(self, reference: Reference | WebReference) -> Rule:
        try:
            seen = self.rules()
            while self._policy is None or seen != self._policy_seen:  # twice where it names other keys than before
                self._admitted.clear()
                self._policy = None
                self._policy = load_policy(self._settings.signature_policy, signed_only=self._settings.signed_only)
                self._policy_seen = seen
                self._watch(self._policy)
                seen = self.rules()
            decision = self._policy.decide(reference.name)
        except TrustFault as error:
            raise ModuleError(Reason.UNTRUSTED, str(error), error.reason) from error
        if decision.rule is Rule.DENY:
            text = f"{reference.name} is denied by the signature policy ({decision.where}): change it"
            raise ModuleError(Reason.UNTRUSTED, text, "image_denied")
        return decision.rule

    def _watch(self, policy: Policy) -> None:
        if self._settings.signature_policy is not None:
            keys = policy.keys.values()
            self._watched = [self._settings.signature_policy, *dict.fromkeys(key.file for key in keys)]
            self._expires = any(key.not_after is not None or b"CERTIFICATE" in key.pem for key in keys)

    def _find(self, reference: Reference | WebReference, wanted: ModuleWanted) -> tuple[str, str] | None:
        digest = Digest.parse(wanted.image_digest) if wanted.image_digest is not None else None
        if isinstance(reference, Reference) and reference.digest is not None:
            if digest not in {None, reference.digest}:
                return None  # a contradiction, which a builder reports
            digest = reference.digest
        if digest is None:
            recorded = self._layout.resolve(reference.store_name)
            if recorded is None:
                return None
            digest = recorded.digest
        layer = self._layer(digest)
        module = noted(self._layout, layer.digest) if layer is not None and is_archive(layer) else None
        if layer is None or (module is None and is_archive(layer)):
            return None
        module = module or layer.digest
        if isinstance(reference, WebReference) and reference.digest not in {None, module}:
            return None
        path = self._cache.path(str(module), metered=wanted.metered)
        if self._layout.has(module) or self._cache.find(path) is not None:
            return str(digest), str(module)
        return None

    def _layer(self, digest: Digest) -> Descriptor | None:
        for _ in range(3):
            manifest = parse_manifest(self._layout.read(digest, MAX_MANIFEST_BYTES), "")
            if isinstance(manifest, ImageManifest):
                return select_layer(manifest)
            digest = select_platform(manifest).descriptor.digest
        return None


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    # Also that of the last change, which a copy that keeps its times does not keep.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino
