"""Images put into a store as a pull leaves them, for tests of what becomes of them there."""

import json
import os
import time

from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_MANIFEST, Descriptor

WASM = b"\0asm\1\0\0\0"


def put_image(
    layout: OciLayout, name: str, module: bytes = WASM, *, about: Digest | None = None, seconds_ago: float = 0.0
) -> Digest:
    """Put an image into the store, last used so long ago; return the digest of its manifest."""
    blob = layout.add_blob(module)
    config = layout.add_blob(b"{}")
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(config), "size": 2},
            "layers": [{"mediaType": "application/wasm", "digest": str(blob), "size": len(module)}],
            "annotations": {"for": name},
        }
    ).encode()
    top = layout.add_blob(raw)
    annotations = {"io.proplet.subject": str(about)} if about else {}
    layout.set_reference(name, Descriptor(OCI_MANIFEST, top, len(raw), annotations))
    for digest in (top, blob):
        set_age(layout, digest, seconds_ago)
    return top


def set_age(layout: OciLayout, digest: Digest, seconds_ago: float) -> None:
    """Let a blob have been used so long ago."""
    path = layout.path(digest)
    then = path.stat().st_mtime if not seconds_ago else time.time() - seconds_ago
    os.utime(path, (then, then))


def missing(layout: OciLayout) -> list[str]:
    """What the index leads to and is not there."""
    gone = []
    for name, descriptor in layout.references().items():
        if not layout.has(descriptor.digest):
            gone.append(f"{name}: manifest")
            continue
        document = json.loads(layout.path(descriptor.digest).read_bytes())
        parts = [document["config"], *document["layers"]]
        gone += [f"{name}: {part['digest']}" for part in parts if not layout.has(Digest.parse(part["digest"]))]
    return gone
