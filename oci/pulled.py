"""What a pull is told and what it tells: policies, stages, progress, and the module that is in the store then."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from proplet.oci.digest import Digest
from proplet.oci.reference import Reference, WebReference


class PullPolicy(StrEnum):
    """When the registry is asked, with the meaning Kubernetes gives these words.

    With ``Always``, a registry that cannot be reached now leaves what its tag meant last, if the store has that.
    """

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class PullStage(StrEnum):
    """What a pull is doing."""

    RESOLVE = "resolve"
    DOWNLOAD = "download"
    VERIFY = "verify"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is. ``bytes_total`` is None until the module's descriptor is known."""

    stage: PullStage
    bytes_done: int = 0
    bytes_total: int | None = None


@dataclass(frozen=True, slots=True)
class PulledModule:
    """A module in the store.

    ``reference``: what was asked for. ``manifest_digest``: what pins it, the digest of the manifest or index that the
    reference names. ``module_digest`` and ``size``: of the file at ``path``. ``from_cache``: not transferred now.
    ``signer``: the names of the keys that signed it, where the policy asks. ``warnings``: lines for people.
    """

    reference: Reference | WebReference
    manifest_digest: Digest
    module_digest: Digest
    path: Path
    size: int
    media_type: str
    from_cache: bool
    signer: str | None = None
    warnings: tuple[str, ...] = ()
