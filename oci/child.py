"""One request in a process of its own, for a parent that may not have the registry client's libraries in its memory.

``python -m proplet.oci.child PARENT MEMORY``: PARENT is the process id of whoever starts it, MEMORY what it may use in
bytes. It reads one `Request` from its standard input, writes one answer as JSON to its standard output and ends.
It is killed to cancel, also by the kernel when its parent has died; the store is whole at any point of that.
"""

import contextlib
import ctypes
import json
import os
import pickle
import resource
import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from proplet.oci.collecting import collect
from proplet.oci.digest import Digest
from proplet.oci.errors import InvalidReference, OciError
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import ImageManifest, parse_manifest, select_platform
from proplet.oci.pull import pull
from proplet.oci.pulled import PulledModule, PullPolicy
from proplet.oci.reference import Reference
from proplet.oci.settings import MAX_MANIFEST_BYTES, RegistrySettings

MODULE: Final = "proplet.oci.child"
SIGNATURES: Final = "signatures"

_PR_SET_PDEATHSIG: Final = 1
_OOM_SCORE: Final = 700
_NICE: Final = 10
_MAX_DEPTH: Final = 3


@dataclass(frozen=True, slots=True)
class Request:
    """An image to pull: as `proplet.oci.pull.pull` takes it, in words. ``settings`` may hold passwords.

    ``policy`` is a pull policy; or `SIGNATURES`, and then only the signatures of the image, which is named by its
    digest, are brought into the store. ``store_bytes``: what the store may hold, in bytes; None is whatever comes.
    """

    image: str
    digest: str | None
    policy: str
    store_dir: Path
    settings: RegistrySettings
    store_bytes: int | None = None

    def encode(self) -> bytes:
        """What the child reads."""
        return pickle.dumps(self)


def main() -> None:
    """Answer the one request."""
    _enter(int(sys.argv[1]), int(sys.argv[2]))
    # From the parent over a private pipe: nobody else can have written it. The answer goes back as JSON, for what
    # comes from here has been near a registry.
    request = pickle.load(sys.stdin.buffer)  # noqa: S301
    sys.stdout.write(json.dumps(answer(request)))
    sys.stdout.flush()


def answer(request: Request) -> dict[str, Any]:
    """What became of the request: the fields of a stored image, or ``reason`` and ``message`` of what went wrong."""
    try:
        layout = OciLayout(request.store_dir)
        if request.policy == SIGNATURES:
            return _signatures(request, layout)
        pulled = pull(
            request.image,
            layout,
            request.settings,
            policy=PullPolicy(request.policy),
            expected_digest=Digest.parse(request.digest) if request.digest else None,
            named=True,
        )
        described = _described(pulled, layout)
        if request.store_bytes is not None:
            _collect(layout, request.store_bytes, (*map(Digest.parse, described["manifests"]), pulled.module_digest))
        return described
    except OciError as error:
        return {"reason": error.reason, "message": str(error)}
    except MemoryError:
        return {"reason": "too_large", "message": f"pulling {request.image[:200]} needs more memory than it may have"}


def _signatures(request: Request, layout: OciLayout) -> dict[str, Any]:
    from proplet.oci.signatures import fetch
    from proplet.oci.sources import open_sources

    reference = Reference.parse(request.image)
    if reference.digest is None:
        raise InvalidReference(f"{request.image}: signatures are those of a digest: name it")
    with open_sources(reference, request.settings, lambda: False) as sources:
        return {"names": list(fetch(reference, reference.digest, layout, sources))}


def _collect(layout: OciLayout, budget: int, keep: Collection[Digest]) -> None:
    """Make room for the next image. What a running node's tasks need is pinned by it."""
    with contextlib.suppress(OciError):  # the image is here all the same; the next pull tries again
        collect(layout, budget, keep=keep)


def _described(pulled: PulledModule, layout: OciLayout) -> dict[str, Any]:
    return {
        "reference": str(pulled.reference),
        "digest": str(pulled.manifest_digest),
        "manifests": [str(digest) for digest in _manifests(pulled.manifest_digest, layout)],
        "module_digest": str(pulled.module_digest),
        "module_path": str(pulled.path),
        "size": pulled.size,
        "media_type": pulled.media_type,
        "signer": pulled.signer,
    }


def _manifests(digest: Digest, layout: OciLayout) -> list[Digest]:
    """The manifests from the one that the reference names down to the image's own."""
    found = [digest]
    while len(found) <= _MAX_DEPTH:
        manifest = parse_manifest(layout.read(found[-1], MAX_MANIFEST_BYTES))
        if isinstance(manifest, ImageManifest):
            break
        found.append(select_platform(manifest).descriptor.digest)
    return found


def _enter(parent: int, memory: int) -> None:
    """Tie this process to its parent, and be modest: when memory is short it goes before the node does."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the signal was armed
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Not RLIMIT_AS: the allocator reserves far more addresses than it ever uses.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    with contextlib.suppress(OSError):
        os.nice(_NICE)


if __name__ == "__main__":
    # Under its own name: what is pickled elsewhere as proplet.oci.child.Request must be found as that.
    from proplet.oci.child import main as _main

    _main()
