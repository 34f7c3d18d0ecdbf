"""What a ``.wasm`` file becomes as an artifact: configuration and manifest, by the bytes alone. Pure but for reading.

Form: the CNCF "Wasm OCI Artifact layout" (https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/): a
configuration ``application/vnd.wasm.config.v0+json`` and one layer ``application/wasm``. Annotations: OCI image
specification 1.1, annotations.md. The same file, name and time always give the same bytes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO

from proplet.oci.component import Names, component_names
from proplet.oci.digest import Digest, VerifyingHasher
from proplet.oci.errors import NotWasm
from proplet.oci.manifest import OCI_MANIFEST, TITLE, WASM_CONFIG, WASM_LAYERS, Descriptor

CREATED = "org.opencontainers.image.created"
VERSION = "org.opencontainers.image.version"

_CHUNK = 256 * 1024
_CORE = b"\0asm\x01\0\0\0"
_COMPONENT = b"\0asm\x0d\0\x01\0"  # component model, Binary.md, "preamble"
_VERSION = re.compile(r"v?(\d+(?:\.\d+){1,3}(?:-[0-9A-Za-z.-]+)?)")
# The worlds whose name follows from what a component exports: WASI 0.2, wasi-cli and wasi-http.
_WORLDS = {"wasi:http/incoming-handler": "wasi:http/proxy", "wasi:cli/run": "wasi:cli/command"}


@dataclass(frozen=True, slots=True)
class Artifact:
    """A module and the documents that describe it, ready to be stored or pushed."""

    layer: Descriptor
    config: bytes
    manifest: bytes

    @property
    def digest(self) -> Digest:
        """What pins it."""
        return Digest.of(self.manifest)


def make_artifact(
    file: BinaryIO, title: str, created: float, *, tag: str | None = None, annotations: Mapping[str, str] | None = None
) -> Artifact:
    """The artifact of a module or component, read from the beginning of a seekable file.

    ``title`` is the name it has as a file, ``created`` a POSIX time; a ``tag`` that is a version becomes the
    annotation of one. ``annotations`` are the publisher's own, of the manifest, and go before ours.

    Raises:
        NotWasm: the bytes do not begin as a module or component does.
    """
    hasher = VerifyingHasher()
    head = file.read(len(_CORE))
    if head not in (_CORE, _COMPONENT):
        raise NotWasm(f"{title} is no WebAssembly module or component: push a .wasm file, not text or an archive")
    hasher.update(head)
    while chunk := file.read(_CHUNK):
        hasher.update(chunk)
    digest = hasher.finish()
    when = datetime.fromtimestamp(int(created), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    given = dict(annotations or {})
    when = given.get(CREATED, when)
    document: dict[str, Any] = {"created": when, "architecture": "wasm"}
    if head == _CORE:
        document |= {"os": "wasip1", "layerDigests": [str(digest)]}
    else:
        file.seek(0)
        names = component_names(file)
        document |= {"os": "wasip2", "layerDigests": [str(digest)], "component": _described(names)}
    config = json.dumps(document, separators=(",", ":")).encode()
    layer = Descriptor(WASM_LAYERS[0], digest, hasher.count, {TITLE: title})
    ours = {TITLE: title.removesuffix(".wasm"), CREATED: when}
    if tag is not None and (version := _VERSION.fullmatch(tag)):
        ours[VERSION] = version[1]
    return Artifact(layer, config, _manifest(config, layer, {**ours, **given}))


def _manifest(config: bytes, layer: Descriptor, annotations: Mapping[str, str]) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        # What a reader takes for it anyway when it is missing; lists of referrers show it.
        "artifactType": WASM_CONFIG,
        "config": {"mediaType": WASM_CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
        "layers": [
            {
                "mediaType": layer.media_type,
                "digest": str(layer.digest),
                "size": layer.size,
                "annotations": dict(layer.annotations),
            }
        ],
        "annotations": dict(sorted(annotations.items())),
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _described(names: Names) -> dict[str, Any]:
    described: dict[str, Any] = {"exports": list(names.exports), "imports": list(names.imports)}
    for export in names.exports:
        interface, _, version = export.partition("@")
        if world := _WORLDS.get(interface):
            return described | {"target": f"{world}@{version}" if version else world}
    return described
