"""Who signed an image, as far as the policy asks: find the signatures, keep them beside the image, verify them.

Place in the flow: `pull` calls `check` once the manifest's digest is known and before anything is run, also when all of
it came from the store. Signatures are looked for in the store first and then in the registry; what is found is kept in
the store, so that it verifies without a network and travels with an export.

In the store a signature manifest of cosign's older form is an entry of ``index.json`` named
``registry/repository:sha256-<hex>.sig``, as its tag is, and a referrer (OCI distribution specification 1.1) is one
named ``registry/repository@sha256:<its digest>`` with the annotation ``io.proplet.subject`` naming the image.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from proplet.oci.digest import Digest
from proplet.oci.errors import ImageDenied
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import Descriptor
from proplet.oci.policy import Policy, Rule
from proplet.oci.reference import Reference

if TYPE_CHECKING:
    from proplet.oci.registry import RawManifest

SUBJECT = "io.proplet.subject"


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
    reference: Reference | str, digest: Digest, layout: OciLayout, policy: Policy, sources: SignatureSource | None
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
        raise ImageDenied(
            f"{name} is denied by the signature policy ({decision.where}): change the policy or the image"
        )
    raise NotImplementedError


def fetch(reference: Reference, digest: Digest, layout: OciLayout, sources: SignatureSource) -> tuple[str, ...]:
    """Bring an image's signatures into the store, whatever the policy; returns their names in its index.

    Raises:
        RegistryFault, ContentFault, StoreFault: as a pull.
    """
    raise NotImplementedError


def found_for(layout: OciLayout, digest: Digest) -> tuple[str, ...]:
    """Names of the store's index entries that sign or refer to an image (export, rm and gc take them along)."""
    tag = f":{digest.algorithm}-{digest.hex}.sig"
    return tuple(
        name
        for name, entry in layout.references().items()
        if name.endswith(tag) or entry.annotations.get(SUBJECT) == str(digest)
    )
