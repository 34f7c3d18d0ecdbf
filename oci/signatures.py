"""Who signed an image, as far as the policy asks: find the signatures, keep them beside the image, verify them.

Place in the flow: `pull` calls `check` once the manifest's digest is known and before anything is run, also when all of
it came from the store. Signatures are looked for in the store first and then in the registry; what is found is kept in
the store, so that it verifies without a network and travels with an export.

In the store a signature manifest of cosign's older form is an entry of ``index.json`` named
``registry/repository:sha256-<hex>.sig``, as its tag is, and a referrer (OCI distribution specification 1.1) is one
named ``registry/repository@sha256:<its digest>`` with the annotation ``io.proplet.subject`` naming the image.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from proplet.oci import cosign
from proplet.oci.digest import Digest
from proplet.oci.errors import (
    ContentFault,
    ImageDenied,
    InvalidReference,
    NotInStore,
    RegistryFault,
    SignatureExpired,
    SignatureInvalid,
    SignatureMissing,
    SignatureUntrusted,
    StoreDamaged,
    TooLarge,
    TrustFault,
)
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import Descriptor, ImageManifest, parse_manifest
from proplet.oci.policy import SAME_NAME, Decision, Policy, Rule, matches
from proplet.oci.reference import Reference
from proplet.oci.settings import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from proplet.oci.registry import RawManifest

SUBJECT = "io.proplet.subject"

_MAX_BLOB_BYTES = 1024 * 1024  # of a payload, a bundle, or a signature's configuration
_MAX_SIGNATURES = 64  # of one image; more is nobody's need, and each costs a request
_REFERRERS = (cosign.SIMPLE_ARTIFACT, cosign.BUNDLE)


class SignatureSource(Protocol):
    """What is needed of a registry; `sources.Sources` is one."""

    def find_manifest(self, key: str) -> "RawManifest | None":
        """Another tag or digest of the image's repository; None where there is none."""

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """What refers to a manifest."""

    def copy_blob(self, descriptor: Descriptor, layout: OciLayout, what: str) -> None:
        """Bring a blob into the store."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The image may run. ``signer``: names of the keys that signed it, None where nothing was checked.

    ``warning``: a line for people, at the first look at an image that nobody has decided about; else None.
    """

    rule: Rule
    signer: str | None = None
    warning: str | None = None


def check(
    reference: Reference | str,
    digest: Digest,
    layout: OciLayout,
    policy: Policy,
    sources: SignatureSource | None,
    *,
    now: datetime | None = None,
) -> Verdict:
    """Whether an image may run, by the digest that its reference resolved to.

    ``reference`` is the image's, or the URL (without fragment) of a module by URL. ``sources`` None: no network.

    Raises:
        ImageDenied, SignatureMissing, SignatureInvalid, SignatureUntrusted, SignatureExpired, InvalidPolicy.
        RegistryFault: the signatures are not in the store and the registry could not be asked.
        StoreFault: the disk.
    """
    name = reference if isinstance(reference, str) else reference.name
    decision = policy.decide(name)
    if decision.rule is Rule.DENY:
        raise ImageDenied(f"{name} is denied by the signature policy ({decision.where}): use another image")
    if decision.rule is Rule.ALLOW:
        return Verdict(Rule.ALLOW, warning=_warning(reference, name, digest, layout, decision))
    hearing = _Hearing(name, digest, decision, now or datetime.now(UTC))
    hearing.hear(_stored(layout, digest))
    if not hearing.satisfied and sources is not None and isinstance(reference, Reference):
        unusable = []
        try:
            fetch(reference, digest, layout, sources)
        except (ContentFault, TrustFault) as error:
            unusable.append(SignatureInvalid(f"a signature of {name} cannot be used: {error}"))
        except RegistryFault:
            if not hearing.faults:  # else what is wrong with those at hand says more
                raise
        hearing.hear([*unusable, *_stored(layout, digest)])
    return Verdict(Rule.REQUIRE, hearing.verdict())


def fetch(reference: Reference, digest: Digest, layout: OciLayout, sources: SignatureSource) -> tuple[str, ...]:
    """Bring an image's signatures into the store, whatever the policy; returns their names in its index.

    Raises:
        RegistryFault, ContentFault, StoreFault: as a pull.
        SignatureInvalid: something in a signature's place is none. The others are in the store nevertheless.
    """
    names: list[str] = []
    broken: list[ContentFault | TrustFault] = []

    def keep(key: str, name: str, annotations: Mapping[str, str]) -> None:
        try:
            if (found := sources.find_manifest(key)) is not None:
                names.append(_keep(name, found, annotations, layout, sources))
        except (ContentFault, TrustFault) as error:  # one that is broken must not hide the others
            broken.append(error)

    tag = f"{digest.algorithm}-{digest.hex}.sig"
    keep(tag, f"{reference.name}:{tag}", {})
    referrers = [entry for entry in sources.referrers(digest) if entry.artifact_type in _REFERRERS]
    for entry in referrers[:_MAX_SIGNATURES]:
        keep(str(entry.digest), f"{reference.name}@{entry.digest}", {SUBJECT: str(digest)})
    if broken:
        raise broken[0]
    return tuple(names)


def found_for(layout: OciLayout, digest: Digest) -> tuple[str, ...]:
    """Names of the store's index entries that sign or refer to an image (export, rm and gc take them along)."""
    return _attached(layout.references(), digest)


def _attached(references: Mapping[str, Descriptor], digest: Digest) -> tuple[str, ...]:
    tag = f":{digest.algorithm}-{digest.hex}.sig"
    return tuple(
        name
        for name, entry in references.items()
        if name.endswith(tag) or entry.annotations.get(SUBJECT) == str(digest)
    )


def _warning(
    reference: Reference | str, name: str, digest: Digest, layout: OciLayout, decision: Decision
) -> str | None:
    """A line where nobody has decided anything, once for an image: as long as its name is not in the store as it."""
    if decision.stated:
        return None
    known = layout.resolve(reference if isinstance(reference, str) else reference.store_name)
    if known is not None and known.digest == digest:
        return None
    return f"{name} is used whoever made it: {decision.where} (modules.signature_policy)"


def _keep(
    name: str, raw: "RawManifest", annotations: Mapping[str, str], layout: OciLayout, sources: SignatureSource
) -> str:
    """Store a signature's manifest with all it consists of, the name last."""
    manifest = parse_manifest(raw.data, raw.content_type)
    if not isinstance(manifest, ImageManifest) or len(manifest.layers) > _MAX_SIGNATURES:
        raise SignatureInvalid(f"{name} is no manifest of up to {_MAX_SIGNATURES} signatures")
    for blob in (manifest.config, *manifest.layers):
        if blob.size > _MAX_BLOB_BYTES:
            raise TooLarge(f"{name} has a part of {blob.size} bytes: no signature is that large")
        try:
            layout.read(blob.digest, _MAX_BLOB_BYTES)
        except (NotInStore, StoreDamaged):
            sources.copy_blob(blob, layout, f"a signature of {name.partition('@')[0]}")
    layout.add_blob(raw.data, raw.digest)
    layout.set_reference(name, Descriptor(manifest.media_type, raw.digest, len(raw.data), annotations))
    return name


def _stored(layout: OciLayout, digest: Digest) -> Iterator[cosign.Signature | TrustFault]:
    """What the store holds of an image's signatures; one that cannot be used is told as a fault."""
    references = layout.references()
    for name in _attached(references, digest)[:_MAX_SIGNATURES]:
        try:
            manifest = parse_manifest(layout.read(references[name].digest, MAX_MANIFEST_BYTES))
        except (ContentFault, NotInStore, StoreDamaged) as error:
            yield SignatureInvalid(f"the stored signature {name} cannot be used: {error}")
            continue
        for layer in manifest.layers[:_MAX_SIGNATURES] if isinstance(manifest, ImageManifest) else ():
            try:
                if (signature := _read(layout, layer)) is not None:
                    yield signature
            except TrustFault as error:
                yield SignatureInvalid(f"the signature {name}: {error}")
            except (NotInStore, StoreDamaged) as error:
                yield SignatureInvalid(f"the stored signature {name} cannot be used: {error}")


def _read(layout: OciLayout, layer: Descriptor) -> cosign.Signature | None:
    if layer.media_type == cosign.SIMPLE_SIGNING:
        payload = layout.read(layer.digest, _MAX_BLOB_BYTES)
        return cosign.read_simple_signing(payload, layer.annotations.get(cosign.SIGNATURE, ""))
    if layer.media_type == cosign.BUNDLE:
        return cosign.read_bundle(layout.read(layer.digest, _MAX_BLOB_BYTES))
    return None


@dataclass(slots=True)
class _Hearing:
    """Counts the keys that signed an image, and remembers what was wrong with the signatures that do not count."""

    name: str
    digest: Digest
    decision: Decision
    now: datetime
    signers: dict[bytes, str] = field(default_factory=dict)  # by key, so that one under two names counts once
    faults: list[TrustFault] = field(default_factory=list)

    @property
    def satisfied(self) -> bool:
        return len(self.signers) >= self.decision.threshold

    def hear(self, found: Iterable[cosign.Signature | TrustFault]) -> None:
        self.faults.clear()
        # All keys are read, also when no signature comes: a wrong one is to be found before it is needed.
        keys = [(key, cosign.read_public_key(key.pem, f"key {key.name} ({key.file})")) for key in self.decision.keys]
        for signature in islice(found, _MAX_SIGNATURES):
            if isinstance(signature, TrustFault):
                self.faults.append(signature)
                continue
            if signature.digest != self.digest:
                self._fault(SignatureInvalid, f"is for {signature.digest}")
                continue
            fitting = [(key, public) for key, public in keys if public.signed(signature)]
            for key, public in fitting:
                end = cosign.not_yet_or_no_longer(self.now, public.not_before, public.not_after, key.not_after)
                if end is not None:
                    self._fault(
                        SignatureExpired, f"is by the key {key.name}, which {end}: sign again, or check the clock"
                    )
                elif not self._named(signature.name):
                    said = repr(signature.name[:200]) if signature.name else "nothing"
                    self._fault(SignatureUntrusted, f"calls it {said}, which signed_as does not allow")
                else:
                    self.signers.setdefault(public.identity, key.name)
            claimed = [key.name for key, public in keys if public.hint == signature.hint]
            if not fitting and claimed:
                self._fault(SignatureInvalid, f"says it is by the key {claimed[0]} and is not: it was changed")
            elif not fitting:
                self._fault(SignatureUntrusted, f"is by none of the keys {self._keys}, or was changed")

    def verdict(self) -> str:
        """The names of the keys that signed; the nearest miss is the error."""
        if self.satisfied:
            return ", ".join(sorted(self.signers.values()))
        where = self.decision.where
        if self.signers:
            raise SignatureUntrusted(
                f"{self.name}@{self.digest.short} is signed by {', '.join(sorted(self.signers.values()))} and needs "
                f"{self.decision.threshold} of the keys {self._keys} ({where})"
            )
        for kind in (SignatureExpired, SignatureInvalid, SignatureUntrusted):
            for fault in self.faults:
                if isinstance(fault, kind):
                    raise fault
        raise SignatureMissing(
            f"{self.name}@{self.digest.short} is not signed, and {where} asks for it: sign it with cosign"
        )

    @property
    def _keys(self) -> str:
        return ", ".join(key.name for key in self.decision.keys[:6])

    def _fault(self, kind: type[TrustFault], what: str) -> None:
        self.faults.append(kind(f"the signature of {self.name}@{self.digest.short} {what}"))

    def _named(self, said: str) -> bool:
        wanted = self.decision.signed_as
        if wanted is None:
            return True
        try:  # cosign writes index.docker.io where people write docker.io, or nothing
            name = Reference.parse(said).name
        except InvalidReference:
            return False
        return name == self.name if wanted == SAME_NAME else matches(wanted, name)
