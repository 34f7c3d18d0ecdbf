"""Resources as the API server's objects, and the smallest patches that lead from one to another.

A patch names only what differs between what was read and what is wanted, so that a field of another program, or of a
newer version of this one, stays as it is.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from proplet.manager.kubernetes_api import Collection, Document
from proplet.manager.kubernetes_errors import NotServedError, UnreadableError
from proplet.manager.manifest import ManifestError, from_manifest, status_to_manifest, to_manifest
from proplet.manager.model import Kind, Resource
from proplet.manager.reading import Style
from proplet.manager.scalars import MOMENT

_PLURALS: Final[Mapping[Kind, str]] = {kind: f"{kind.value.lower()}s" for kind in Kind}
# What a create gives of the metadata, and a put may change.
_GIVEN: Final = ("labels", "annotations", "ownerReferences", "finalizers")
# Times in a status that are the server's or ours, never the caller's.
_STAMPS: Final = ("createdAt", "updatedAt")


def collection_of(kind: Kind, group: str) -> Collection:
    """Where the API group `group` has the resources of a kind."""
    return Collection(group, "v1", _PLURALS[kind], kind.value)


def not_installed(collection: Collection) -> NotServedError:
    """The error for a cluster that does not know a kind of ours."""
    return NotServedError(
        f"the cluster has no {collection.kind}s ({collection.api_version}); install them: "
        "proplet crds | kubectl apply -f -"
    )


def version_of(document: Mapping[str, Any]) -> int:
    """Return the version of an object or a list.

    It is said to be opaque, but every API server has the revision of its etcd there, and ordering versions is how a
    cache never goes backwards.

    Raises:
        UnreadableError: it is not a decimal number.
    """
    metadata = document.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, Mapping) else None
    if not isinstance(version, str) or not version.isascii() or not version.isdigit():
        raise UnreadableError(f"the API server has the resourceVersion {version!r}; only decimal numbers are supported")
    return int(version)


def read(document: Document, collection: Collection) -> Resource:
    """Return the resource that an object of a collection is.

    Raises:
        UnreadableError: it is not one; the message says where.
    """
    version_of(document)
    try:
        resource = from_manifest({**document, "apiVersion": collection.api_version, "kind": collection.kind})
    except ManifestError as error:
        metadata = document.get("metadata") or {}
        name = f"{metadata.get('namespace')}/{metadata.get('name')}"
        raise UnreadableError(f"{collection.kind} {name} cannot be read: {error}") from error
    meta = resource.meta
    if not meta.updated_at:
        resource = dataclasses.replace(resource, meta=dataclasses.replace(meta, updated_at=meta.created_at))
    return resource


def new_object(resource: Resource, collection: Collection) -> Document:
    """Return the object to create for a resource; the server takes no status with it."""
    whole = to_manifest(resource, api_version=collection.api_version)
    given = {name: whole["metadata"][name] for name in _GIVEN if name in whole["metadata"]}
    metadata = {"name": resource.meta.name, "namespace": resource.meta.namespace, **given}
    return {"apiVersion": whole["apiVersion"], "kind": whole["kind"], "metadata": metadata, "spec": whole["spec"]}


def put_patch(current: Resource, wanted: Resource, collection: Collection) -> Document | None:
    """Return the patch that gives `current` the meta and spec of `wanted`; None when it has them."""
    old = to_manifest(current, api_version=collection.api_version)
    new = to_manifest(wanted, api_version=collection.api_version)
    metadata = difference(_picked(old["metadata"], _GIVEN), _picked(new["metadata"], _GIVEN))
    spec = difference(old["spec"], new["spec"])
    parts = {name: part for name, part in (("metadata", metadata), ("spec", spec)) if part}
    return _locked(parts, current) if parts else None


@dataclass(frozen=True, slots=True)
class StatusWrite:
    """A status to write over `current` at `at`: the patch, and what the server should have answered then."""

    current: Resource
    wanted: Resource
    at: float
    patch: Document
    expected: Document  # the status without stamps

    def read(self, answer: Document, collection: Collection) -> Resource:
        """Return the resource that the answer is. Raises UnreadableError: it is none."""
        # All but the status is as it was at the version that the patch was locked to.
        unchanged: dict[str, Any] = {"spec": self.current.spec}
        status = answer.get("status")
        as_written = (
            isinstance(status, Mapping)
            and status.get("updatedAt") == self.patch["status"]["updatedAt"]
            and _without_stamps(status) == self.expected
        )
        if not as_written:  # somebody else's fields, or a server with older definitions
            return dataclasses.replace(read({**answer, "spec": {}}, collection), **unchanged)
        meta = dataclasses.replace(self.current.meta, version=version_of(answer), updated_at=self.at)
        return dataclasses.replace(self.wanted, meta=meta, **unchanged)


def status_write(current: Resource, wanted: Resource, now: float) -> StatusWrite | None:
    """Return how to give `current` the status of `wanted`, changed at `now`; None when it has it."""
    if wanted.status == current.status:
        return None
    old, new = status_to_manifest(current), status_to_manifest(wanted)
    expected = _without_stamps(new)
    status = difference(_without_stamps(old), expected)
    if not status:
        return None
    # A status that was never written has no phase to differ from.
    status["phase"] = new["phase"]
    status["updatedAt"] = MOMENT.write(now, Style.MANIFEST)
    if "createdAt" in old and current.meta.updated_at == current.meta.created_at:
        status["createdAt"] = old["createdAt"]
    return StatusWrite(current, wanted, now, _locked({"status": status}, current), expected)


def _without_stamps(status: Mapping[str, Any]) -> Document:
    return {key: status[key] for key in status if key not in _STAMPS}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Document:
    """Return the JSON merge patch (RFC 7386) that makes `new` of `old`; empty when they are the same."""
    patch: Document = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            inner = difference(before, value)
            if inner:
                patch[key] = inner
        elif key not in old or value != before or type(value) is not type(before):
            patch[key] = value
    return patch


def _picked(metadata: Mapping[str, Any], names: tuple[str, ...]) -> Document:
    return {name: metadata[name] for name in names if name in metadata}


def _locked(patch: Document, current: Resource) -> Document:
    metadata = {**patch.get("metadata", {}), "resourceVersion": str(current.meta.version)}
    return {**patch, "metadata": metadata}
