"""Manifests (`apiVersion`, `kind`, `metadata`, `spec`) as resources, and back.

The same documents are the input everywhere: files, `proplet apply -f`, `kubectl apply -f`. Both eras' group names and
fields are read; unknown fields are mistakes that name their path; all mistakes of a text are told at once.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from proplet.manager import rules
from proplet.manager.manifest_text import TextError, documents
from proplet.manager.model import (
    RESOURCES,
    Kind,
    Meta,
    Owner,
    Proplet,
    PropletSpec,
    Resource,
    Resources,
)
from proplet.manager.reading import Problem, Reading, Style, kind_of, unknown_field
from proplet.manager.scalars import MOMENT, TEXT, WHOLE
from proplet.manager.shapes import Record
from proplet.manager.vocabulary import PROPLET_SPEC, PROPLET_STATUS, TASK_SPEC, TASK_STATUS, TEXT_MAP, TEXTS
from proplet.manager.vocabulary_work import (
    FEDERATED_SPEC,
    FEDERATED_STATUS,
    JOB_SPEC,
    JOB_STATUS,
    ROUND_SPEC,
    ROUND_STATUS,
)

# The reference's API groups: the older, which the tutorial uses, and the newer.
GROUPS: Final = ("propeller.propeller.abstractmachines.fr", "propeller.propeller.absmach.eu")
API_VERSION: Final = f"{GROUPS[0]}/v1"
API_VERSIONS: Final = tuple(f"{group}/v1" for group in GROUPS)
# The older era had the kinds of federated learning in this version.
_ALPHA_VERSIONS: Final = tuple(f"{group}/v1alpha1" for group in GROUPS)
_ALPHA: Final = (Kind.FEDERATED_JOB.value, Kind.ROUND.value)

_SPECS: Final[Mapping[Kind, Record]] = {
    Kind.TASK: TASK_SPEC,
    Kind.JOB: JOB_SPEC,
    Kind.FEDERATED_JOB: FEDERATED_SPEC,
    Kind.ROUND: ROUND_SPEC,
}
_STATUSES: Final[Mapping[Kind, Record]] = {
    Kind.TASK: TASK_STATUS,
    Kind.PROPLET: PROPLET_STATUS,
    Kind.JOB: JOB_STATUS,
    Kind.FEDERATED_JOB: FEDERATED_STATUS,
    Kind.ROUND: ROUND_STATUS,
}

_TOP: Final = ("apiVersion", "kind", "metadata", "spec", "status")
# What an API server or another controller adds: kept of a store's own documents, read over in a user's.
_SERVER_METADATA: Final = frozenset(
    "managedFields selfLink ownerReferences finalizers deletionTimestamp deletionGracePeriodSeconds".split()
)
_METADATA: Final = (
    "name namespace labels annotations uid resourceVersion generation creationTimestamp generateName".split()
)


class ManifestError(ValueError):
    """A text is no manifest we can take. `problems` lists every mistake with its path and what to do."""

    def __init__(self, problems: list[Problem], source: str = "") -> None:
        self.problems = problems
        self.source = source
        prefix = f"{source}: " if source else ""
        super().__init__("\n".join(f"{prefix}{problem}" for problem in problems))


def parse_documents(text: str | bytes, source: str = "") -> list[Resource]:
    """Return the resources that a YAML or JSON text describes, in its order; a `kind: List` is its items.

    What only a store assigns (uid, version, times, status) is read over, so that exported documents can be applied.

    Raises:
        ManifestError: with every mistake of every document; `source` (a file's name) leads each line.
    """
    try:
        plain = _flatten(documents(text if isinstance(text, str) else text.decode("utf-8")))
    except UnicodeDecodeError as error:
        raise ManifestError([Problem("", f"it is not UTF-8 text (byte {error.start})")], source) from None
    except TextError as error:
        raise ManifestError([Problem("", str(error))], source) from None
    problems: list[Problem] = []
    found: list[Resource] = []
    seen: set[tuple[Kind, str]] = set()
    for index, document in enumerate(plain):
        try:
            resource = from_manifest(document, stored=False)
        except ManifestError as error:
            subject = _subject(document, index)
            problems += [dataclasses.replace(problem, subject=subject) for problem in error.problems]
            continue
        identity = (resource.kind, str(resource.meta.key))
        if identity in seen:
            problems.append(Problem("metadata.name", "is there twice; rename one", _subject(document, index)))
        seen.add(identity)
        found.append(resource)
    if problems:
        raise ManifestError(problems, source)
    return found


def _flatten(plain: list[Any]) -> list[Any]:
    out: list[Any] = []
    for document in plain:
        if isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list):
            out += document["items"]
        else:
            out.append(document)
    return out


def _subject(document: Any, index: int) -> str:
    if isinstance(document, Mapping):
        metadata = document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        if isinstance(document.get("kind"), str) and isinstance(name, str):
            return f"{document['kind'][:40]} {name[:80]!r}"
    return f"document {index + 1}"


def from_manifest(document: Any, *, stored: bool = True) -> Resource:
    """Return the resource that one plain document describes.

    With `stored`, the document is a store's own: uid, version, times and status are read, and unknown fields, which a
    newer version may have written, are read over. Without, it is somebody's input.

    Raises:
        ManifestError: with every mistake.
    """
    reading = Reading(Style.MANIFEST, lenient=stored)
    if not isinstance(document, Mapping):
        raise ManifestError([Problem("", f"a manifest must be an object, not {kind_of(document)}")])
    for name in document:
        if name not in _TOP and not stored:
            reading.bad(str(name), unknown_field(str(name), dict.fromkeys(_TOP)))
    accepted = API_VERSIONS + _ALPHA_VERSIONS if document.get("kind") in _ALPHA else API_VERSIONS
    if document.get("apiVersion") not in accepted:
        reading.bad("apiVersion", f"is {document.get('apiVersion')!r}; it must be {' or '.join(API_VERSIONS)}")
    kinds = [kind.value for kind in Kind]
    if document.get("kind") not in kinds:
        reading.bad("kind", f"is {document.get('kind')!r}; it must be {' or '.join(kinds)}")
    if reading.problems:
        raise ManifestError(reading.problems)
    status = document.get("status") if stored else None
    meta = _read_meta(document.get("metadata"), status, reading, stored=stored)
    resource = _read_resource(Kind(document["kind"]), meta, document.get("spec"), status, reading)
    if not reading.problems and not stored:
        reading.problems += rules.check(resource)
    if reading.problems:
        raise ManifestError(reading.problems)
    return resource


def _read_meta(raw: Any, status: Any, reading: Reading, *, stored: bool) -> Meta:
    if not isinstance(raw, Mapping):
        reading.bad("metadata", "is required, with a name in it")
        return Meta("")
    for name in raw:
        if name not in _METADATA and name not in _SERVER_METADATA and not stored:
            reading.bad(f"metadata.{name}", unknown_field(str(name), dict.fromkeys(_METADATA)))
    if raw.get("generateName") and not raw.get("name"):
        reading.bad("metadata.generateName", "is not supported; give a name")

    def given(name: str, shape: Any, default: Any) -> Any:
        value = raw.get(name)
        return default if value is None else shape.read(value, f"metadata.{name}", reading)

    meta = Meta(
        name=given("name", TEXT, ""),
        namespace=given("namespace", TEXT, "default"),
        labels=given("labels", TEXT_MAP, {}),
        annotations=given("annotations", TEXT_MAP, {}),
    )
    if not stored:
        return meta
    version = given("resourceVersion", TEXT, "0")
    updated = status.get("updatedAt") if isinstance(status, Mapping) else None
    return dataclasses.replace(
        meta,
        uid=given("uid", TEXT, ""),
        created_at=given("creationTimestamp", MOMENT, 0.0),
        updated_at=0.0 if updated is None else MOMENT.read(updated, "status.updatedAt", reading),
        generation=given("generation", WHOLE, 1),
        version=int(version) if version and version.isascii() and version.isdigit() else 0,
        owner=_read_owner(raw.get("ownerReferences")),
        finalizers=given("finalizers", TEXTS, ()),
        deleted_at=given("deletionTimestamp", MOMENT, 0.0),
    )


def _read_owner(references: Any) -> Owner | None:
    """The controlling owner, else the first one."""
    found = [r for r in references or () if isinstance(r, Mapping)]
    found.sort(key=lambda r: not r.get("controller"))
    if not found:
        return None
    first = found[0]
    version = str(first.get("apiVersion", ""))
    ours = version in API_VERSIONS + _ALPHA_VERSIONS
    name, uid = str(first.get("name", "")), str(first.get("uid", ""))
    return Owner(str(first.get("kind", "")), name, uid, bool(first.get("controller")), "" if ours else version)


def _write_owner(owner: Owner, api_version: str) -> dict[str, Any]:
    reference = {
        "apiVersion": owner.api_version or api_version,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
    }
    return {**reference, "controller": True, "blockOwnerDeletion": True} if owner.controller else reference


def _read_resource(kind: Kind, meta: Meta, spec: Any, status: Any, reading: Reading) -> Resource:
    if spec is None and not reading.lenient:
        reading.bad("spec", "is required")
    spec = {} if spec is None else spec
    read: Any = _read_proplet_spec(spec, reading) if kind is Kind.PROPLET else _SPECS[kind].read(spec, "spec", reading)
    if status is None:
        return RESOURCES[kind](meta, read)
    return RESOURCES[kind](meta, read, _STATUSES[kind].read(status, "status", reading))


def _read_proplet_spec(raw: Any, reading: Reading) -> PropletSpec:
    given = PROPLET_SPEC.read(raw, "spec", reading)
    external = given.get("external") or {}
    if "type" not in given and not reading.lenient:
        reading.bad("spec.type", "is required; it must be external or k8s")
    return PropletSpec(
        type=given.get("type", "external"),
        device_type=external.get("deviceType"),
        capabilities=external.get("capabilities", ()),
        resources=given.get("resources", Resources()),
        connection=given.get("connectionConfig", {}),
        k8s=given.get("k8s", {}),
        declared=given.get("declared", True),
    )


def to_manifest(resource: Resource, *, api_version: str = API_VERSION) -> dict[str, Any]:
    """Return `resource` as a plain document, status included; `from_manifest` of it is `resource` again."""
    meta = resource.meta
    metadata: dict[str, Any] = {"name": meta.name, "namespace": meta.namespace}
    if meta.uid:
        metadata["uid"] = meta.uid
    if meta.labels:
        metadata["labels"] = dict(meta.labels)
    if meta.annotations:
        metadata["annotations"] = dict(meta.annotations)
    if meta.created_at:
        metadata["creationTimestamp"] = MOMENT.write(meta.created_at, Style.MANIFEST)
    metadata["generation"] = meta.generation
    if meta.version:
        metadata["resourceVersion"] = str(meta.version)
    if meta.owner is not None:
        metadata["ownerReferences"] = [_write_owner(meta.owner, api_version)]
    if meta.finalizers:
        metadata["finalizers"] = list(meta.finalizers)
    if meta.deleted_at:
        metadata["deletionTimestamp"] = MOMENT.write(meta.deleted_at, Style.MANIFEST)
    return {
        "apiVersion": api_version,
        "kind": resource.kind.value,
        "metadata": metadata,
        "spec": spec_to_manifest(resource),
        "status": status_to_manifest(resource),
    }


def spec_to_manifest(resource: Resource) -> dict[str, Any]:
    """Return what is wanted, as a manifest has it: fields at their default are left out."""
    if not isinstance(resource, Proplet):
        return _SPECS[resource.kind].write(resource.spec, Style.MANIFEST)
    spec = resource.spec
    external: dict[str, Any] = {}
    if spec.device_type is not None:
        external["deviceType"] = spec.device_type
    if spec.capabilities:
        external["capabilities"] = spec.capabilities
    plain: dict[str, Any] = {"type": spec.type}
    for name, value, default in (
        ("external", external, {}),
        ("k8s", spec.k8s, {}),
        ("resources", spec.resources, Resources()),
        ("connectionConfig", spec.connection, {}),
        ("declared", spec.declared, True),
    ):
        if value != default:
            plain[name] = value  # noqa: PERF403
    return PROPLET_SPEC.write(plain, Style.MANIFEST)


def status_to_manifest(resource: Resource) -> dict[str, Any]:
    """Return what is so, as a manifest has it: fields at their default are left out, but for the phase."""
    status: dict[str, Any] = {"phase": resource.status.phase.value}
    for name, moment in (("createdAt", resource.meta.created_at), ("updatedAt", resource.meta.updated_at)):
        if moment:
            status[name] = MOMENT.write(moment, Style.MANIFEST)
    return {**status, **_STATUSES[resource.kind].write(resource.status, Style.MANIFEST)}
