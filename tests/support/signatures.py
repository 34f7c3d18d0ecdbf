"""The signatures that the real cosign made (tests/oci/vectors), for a store or a registry."""

import hashlib
import json
from pathlib import Path

from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import Descriptor
from tests.support.registry import ADDITION, OCI_MANIFEST, push_blob, push_manifest, push_raw

VECTORS = Path(__file__).parent.parent / "oci" / "vectors"
KEYS = ("p256", "p384", "p521", "ed25519", "rsa2048", "rsa4096")
FORMS = ("simple", "bundle")
IMAGE = (VECTORS / "image.manifest.json").read_bytes()
DIGEST = Digest.of(IMAGE)
NAME = "ghcr.io/org/module"  # what the older signatures call it


def vector(key: str, file: str) -> bytes:
    """The bytes of one file."""
    return (VECTORS / key / file).read_bytes()


def parts(key: str, form: str) -> dict[str, bytes]:
    """Manifest, configuration and layer of a signature."""
    return {part: vector(key, f"{form}.{part}.json") for part in ("manifest", "config", "layer")}


def signed_again(found: dict[str, bytes], layer: bytes, signature: str | None = None) -> dict[str, bytes]:
    """The same signature with another layer (or another text of the signature), its manifest corrected."""
    document = json.loads(found["manifest"])
    entry = document["layers"][0]
    entry.update(digest=str(Digest.of(layer)), size=len(layer))
    if signature is not None:
        entry["annotations"]["dev.cosignproject.cosign/signature"] = signature
    return {"manifest": json.dumps(document).encode(), "config": found["config"], "layer": layer}


def store(layout: OciLayout, found: dict[str, bytes], *, tagged: bool, name: str = NAME) -> str:
    """Put a signature into a store, as a pull does; returns its name there."""
    for data in found.values():
        layout.add_blob(data)
    digest = Digest.of(found["manifest"])
    entry = f"{name}:sha256-{DIGEST.hex}.sig" if tagged else f"{name}@{digest}"
    annotations = {} if tagged else {"io.proplet.subject": str(DIGEST)}
    layout.set_reference(entry, Descriptor(OCI_MANIFEST, digest, len(found["manifest"]), annotations))
    return entry


def push_image(address: str, repository: str) -> None:
    """The image that is signed, under the tag 1."""
    push_blob(address, repository, ADDITION, "application/wasm")
    push_blob(address, repository, b"{}", "application/vnd.wasm.config.v0+json")
    push_raw(address, repository, "1", IMAGE, OCI_MANIFEST)


def push_signature(address: str, repository: str, found: dict[str, bytes], *, tagged: bool) -> None:
    """A signature beside it: with cosign's tag, or as a referrer by the tag schema, byte for byte."""
    for part in ("config", "layer"):
        push_blob(address, repository, found[part], "application/octet-stream")
    manifest = found["manifest"]
    if tagged:
        push_raw(address, repository, f"sha256-{DIGEST.hex}.sig", manifest, OCI_MANIFEST)
        return
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    push_raw(address, repository, digest, manifest, OCI_MANIFEST)
    entry = {
        "mediaType": OCI_MANIFEST,
        "digest": digest,
        "size": len(manifest),
        "artifactType": json.loads(manifest)["artifactType"],
    }
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    push_manifest(address, repository, f"sha256-{DIGEST.hex}", index)
