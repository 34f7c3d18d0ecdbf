"""What the images of somebody's archive are called here. Pure.

Tools differ: skopeo and oras write into ``org.opencontainers.image.ref.name`` whatever they were given, often only a
tag; containerd and docker add the full name as ``io.containerd.image.name``; ``cosign save`` gives only ``kind``; and
what refers to an image (OCI image specification 1.1, "subject") may have no name at all.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from proplet.oci.digest import Digest
from proplet.oci.errors import OciError
from proplet.oci.manifest import Descriptor
from proplet.oci.reference import Reference

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
SUBJECT = "io.proplet.subject"  # in the store's index: the digest that a referrer refers to

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
# cosign's tags for what belongs to an image (sigstore/cosign, specs/SIGNATURE_SPEC.md, "Storage").
_COSIGN_TAG = re.compile(r"(sha256|sha512)-([0-9a-f]+)\.(?:sig|att|sbom)")
_REFERRERS_TAG = re.compile(r"(?:sha256|sha512)-[0-9a-f]+")
_KIND = "kind"
_COSIGN_KIND = re.compile(r"dev\.cosignproject\.cosign/(?:sigs|atts)")
_MAX_URL = 2000


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of an archive's index: all the manifests it leads to, and what it refers to, if anything."""

    entry: Descriptor
    manifests: Sequence[Digest]
    subject: Digest | None = None


def signs(entry: Descriptor, subject: Digest | None) -> bool:
    """Whether an entry belongs to an image instead of being one."""
    return subject is not None or _cosign_subject(entry) is not None or bool(_COSIGN_KIND.match(_kind(entry)))


def lists_referrers(entry: Descriptor) -> bool:
    """Whether an entry is only a list of what refers to an image (distribution specification 1.1, "Referrers Tag")."""
    return bool(_REFERRERS_TAG.fullmatch(_said(entry).rpartition(":")[2]))


def names_of(found: Sequence[Found], repository: str) -> list[str]:
    """The name in the store of each entry, in order; ``repository`` is used where an entry does not say its own."""
    images = [one for one in found if not signs(one.entry, one.subject)]
    unnamed = sum(1 for one in images if not full_name(one.entry) and not _tag(one.entry))
    names: dict[int, str] = {}
    homes: dict[Digest, str] = {}
    for one in images:
        tag = _tag(one.entry) or ("latest" if unnamed == 1 else "")
        made = f"{repository}:{tag}" if tag else f"{repository}@{one.entry.digest}"
        names[id(one)] = full_name(one.entry) or made
        homes.update((digest, _repository(names[id(one)])) for digest in one.manifests)
    lone = images[0].entry.digest if len(images) == 1 else None
    for one in found:
        if id(one) not in names:
            names[id(one)] = full_name(one.entry) or _belonging(one, homes, lone, repository)
    return [names[id(one)] for one in found]


def kept_annotations(entry: Descriptor, subject: Digest | None) -> Mapping[str, str]:
    """An entry's annotations without those that name it, and with what it refers to."""
    ours = {REF_NAME, CONTAINERD_NAME, SUBJECT, _KIND}
    kept = {key: value for key, value in entry.annotations.items() if key not in ours}
    return kept if subject is None else {**kept, SUBJECT: str(subject)}


def full_name(entry: Descriptor) -> str:
    """The name an entry says it has, if it says all of it; one with a digest counts only if that is the entry's."""
    for text in _texts(entry):
        if text.startswith("https://") and text.isprintable() and " " not in text and len(text) <= _MAX_URL:
            return text  # a module that came from there, without a registry
        if not any(mark in text for mark in ":/@"):
            continue
        try:
            reference = Reference.parse(text)
        except OciError:
            continue
        if reference.digest is None or reference.digest == entry.digest:
            return reference.store_name
    return ""


def shown(entry: Descriptor) -> str:
    """What to call an entry in a message."""
    return next(iter(_texts(entry)), "") or str(entry.digest)


def repository_for(file_name: str) -> str:
    """The repository of images that have only a tag in a file of this name."""
    stem = re.sub(r"\.(?:tar|tgz|gz|oci)\b", "", file_name.rpartition("/")[2].lower())
    return f"localhost/{re.sub('[^a-z0-9]+', '-', stem).strip('-')[:100].strip('-') or 'image'}"


def _belonging(one: Found, homes: Mapping[Digest, str], lone: Digest | None, repository: str) -> str:
    """The name of what belongs to an image: cosign's tag where it is known to be that, else its own digest."""
    signed = _cosign_subject(one.entry)
    if one.subject is None and signed is None and _COSIGN_KIND.match(_kind(one.entry)):
        signed = lone
    about = signed if one.subject is None else one.subject
    home = homes.get(about, repository) if about is not None else repository
    if one.subject is None and (tag := _tag(one.entry)):
        return f"{home}:{tag}"
    if one.subject is None and signed is not None:
        suffix = "att" if _kind(one.entry).endswith("atts") else "sig"
        return f"{home}:{signed.algorithm}-{signed.hex}.{suffix}"
    return f"{home}@{one.entry.digest}"


def _cosign_subject(entry: Descriptor) -> Digest | None:
    for text in _texts(entry):
        if found := _COSIGN_TAG.fullmatch(text.rpartition(":")[2]):
            try:
                return Digest(found[1], found[2])
            except OciError:
                return None
    return None


def _tag(entry: Descriptor) -> str:
    text = entry.annotations.get(REF_NAME, "")
    return text if _TAG.fullmatch(text) else ""


def _texts(entry: Descriptor) -> Iterable[str]:
    return [text for key in (CONTAINERD_NAME, REF_NAME) if (text := entry.annotations.get(key, ""))]


def _said(entry: Descriptor) -> str:
    return next(iter(_texts(entry)), "")


def _kind(entry: Descriptor) -> str:
    return entry.annotations.get(_KIND, "")


def _repository(name: str) -> str:
    head, at, _ = name.partition("@")
    return head if at or name.startswith("https://") else head.rpartition(":")[0]
