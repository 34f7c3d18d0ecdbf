"""Manifests and indexes as values, and which of their parts is the module. Pure: bytes in, values or errors out.

Sources: OCI image specification 1.1 (manifest.md, image-index.md, descriptor.md), Docker image manifest version 2,
schema 2, and the CNCF "Wasm OCI Artifact layout" (first layer is the module, the configuration's type is
``application/vnd.wasm.config.v0+json``).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proplet.oci.digest import Digest
from proplet.oci.errors import AmbiguousLayer, InvalidDigest, InvalidManifest, NoPlatform, NoWasmLayer

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPTED_MANIFESTS = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)

WASM_CONFIG = "application/vnd.wasm.config.v0+json"
WASM_LAYERS = (
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
)
ARCHIVE_LAYERS = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)
TITLE = "org.opencontainers.image.title"

_MAX_ENTRIES = 1000
_MAX_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to some bytes: what they are, their digest and their size.

    ``artifact_type``: what a manifest is for, in indexes and answers of the referrers API; "" where it does not say.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""

    @property
    def title(self) -> str:
        """The file name the publisher gave, or an empty string."""
        return self.annotations.get(TITLE, "")


@dataclass(frozen=True, slots=True)
class PlatformEntry:
    """One manifest of an index, and the platform it is for ("" where it does not say)."""

    descriptor: Descriptor
    os: str = ""
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """One artifact: a configuration and layers."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """Several artifacts, told apart by platform."""

    media_type: str
    entries: tuple[PlatformEntry, ...]


def parse_manifest(raw: bytes, content_type: str = "") -> ImageManifest | ImageIndex:
    """What some raw manifest bytes say.

    ``content_type`` counts only where the document has no ``mediaType``: the header is covered by no digest.

    Raises:
        InvalidManifest: not JSON, an unknown kind, a part missing, or a document that can be read as both kinds
            (the specification asks to refuse those).
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidManifest("the manifest is not JSON") from None
    if not isinstance(document, dict):
        raise InvalidManifest("the manifest is not a JSON object")
    if document.get("schemaVersion") == 1:
        raise InvalidManifest("the manifest has Docker's schema 1, which is withdrawn: push the module again")
    if document.get("schemaVersion") != 2:
        raise InvalidManifest("the manifest has no schemaVersion 2")
    media_type = _media_type(document, content_type)
    if "manifests" in document and ("layers" in document or "config" in document):
        raise InvalidManifest("the manifest is an index and an image at once")
    if media_type in {OCI_INDEX, DOCKER_LIST}:
        return ImageIndex(media_type, tuple(_entry(item) for item in _list(document, "manifests")))
    config = _descriptor(document.get("config"), "config")
    layers = tuple(_descriptor(item, "layer") for item in _list(document, "layers"))
    return ImageManifest(media_type, config, layers, _annotations(document))


def select_platform(index: ImageIndex) -> PlatformEntry:
    """The entry for WebAssembly: architecture ``wasm``, first as ``wasi/wasm``, then any; else the only one there is.

    Raises:
        NoPlatform: naming the platforms the index has.
    """
    real = [entry for entry in index.entries if not _is_attestation(entry)]
    wasm = [entry for entry in real if entry.architecture in {"wasm", "wasm32"}]
    for wanted in ("", "wasi", "wasip1", "wasip2"):
        for entry in wasm:
            if entry.os == wanted:
                return entry
    if wasm:
        return wasm[0]
    if len(real) == 1:
        return real[0]
    platforms = ", ".join(sorted({f"{e.os or '?'}/{e.architecture or '?'}" for e in real})[:8]) or "none"
    raise NoPlatform(f"the index has no entry for the platform wasm (it has: {platforms}): name a manifest by digest")


def select_layer(manifest: ImageManifest) -> Descriptor:
    """The layer that is the module.

    By media type; where the publisher gave none that means anything, a lone layer that can only be it: what
    ``oras push`` makes of a file without a type (``octet-stream``, or an uncompressed image layer titled ``*.wasm``).
    A container image's lone layer is an archive that holds the module: see ``is_archive``.

    Raises:
        NoWasmLayer: naming the media types there are.
        AmbiguousLayer: several, in an artifact whose kind does not say that the first counts.
    """
    wasm = [layer for layer in manifest.layers if layer.media_type in WASM_LAYERS]
    if len(wasm) == 1 or (wasm and manifest.config.media_type == WASM_CONFIG):
        return wasm[0]
    if wasm:
        titles = ", ".join(layer.title or layer.digest.short for layer in wasm[:6])
        raise AmbiguousLayer(f"the artifact holds {len(wasm)} modules ({titles}): push the one to run on its own")
    if len(manifest.layers) == 1 and (_can_only_be_a_module(manifest.layers[0]) or is_archive(manifest.layers[0])):
        return manifest.layers[0]
    found = ", ".join(sorted({layer.media_type for layer in manifest.layers})[:6]) or "no layers"
    raise NoWasmLayer(
        f"the artifact holds no WebAssembly module (found: {found}): push the .wasm file with type {WASM_LAYERS[0]}"
    )


def is_archive(layer: Descriptor) -> bool:
    """Whether a layer is a tar archive, plain or compressed with gzip, as those of container images are."""
    return layer.media_type in ARCHIVE_LAYERS and not _can_only_be_a_module(layer)


def _can_only_be_a_module(layer: Descriptor) -> bool:
    titled_wasm = layer.title.endswith(".wasm")
    if layer.media_type == "application/octet-stream":
        return titled_wasm or not layer.title
    return titled_wasm and layer.media_type == "application/vnd.oci.image.layer.v1.tar"


def _is_attestation(entry: PlatformEntry) -> bool:
    """Build tools add provenance documents as entries; Docker's mark themselves."""
    return "vnd.docker.reference.type" in entry.descriptor.annotations


def _media_type(document: dict[str, Any], content_type: str) -> str:
    stated = document.get("mediaType")
    if stated is not None:
        if stated not in ACCEPTED_MANIFESTS:
            raise InvalidManifest(f"manifest type {str(stated)[:100]!r} is not understood")
        return str(stated)
    header = content_type.partition(";")[0].strip().lower()
    if header in ACCEPTED_MANIFESTS:
        return header
    return OCI_INDEX if "manifests" in document else OCI_MANIFEST


def _list(document: dict[str, Any], key: str) -> Sequence[Any]:
    items = document.get(key)
    if not isinstance(items, list):
        raise InvalidManifest(f"the manifest has no list {key!r}")
    if len(items) > _MAX_ENTRIES:
        raise InvalidManifest(f"the manifest has {len(items)} {key}, more than {_MAX_ENTRIES}")
    return items


def _entry(item: object) -> PlatformEntry:
    descriptor = _descriptor(item, "index entry")
    platform = item.get("platform") if isinstance(item, dict) else None
    if not isinstance(platform, dict):
        return PlatformEntry(descriptor)
    return PlatformEntry(descriptor, str(platform.get("os") or ""), str(platform.get("architecture") or ""))


def _descriptor(item: object, what: str) -> Descriptor:
    if not isinstance(item, dict):
        raise InvalidManifest(f"the manifest's {what} is not a descriptor")
    media_type, size = item.get("mediaType"), item.get("size")
    if not isinstance(media_type, str) or not media_type or len(media_type) > 255:
        raise InvalidManifest(f"the manifest's {what} has no mediaType")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
        raise InvalidManifest(f"the manifest's {what} has no valid size")
    try:
        digest = Digest.parse(str(item.get("digest", "")))
    except InvalidDigest as error:
        raise InvalidManifest(f"the manifest's {what}: {error}") from None
    kind = item.get("artifactType")
    return Descriptor(media_type, digest, size, _annotations(item), kind if isinstance(kind, str) else "")


def _annotations(item: dict[str, Any]) -> dict[str, str]:
    found = item.get("annotations")
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}
