"""The custom resource definitions, made of the vocabulary; `python -m proplet.manager.crd` writes those in crds/.

One set for each of the reference's API groups. Needs Kubernetes 1.29 or later, for its rules.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from proplet.manager.crd_schema import Schema, described, schema_of
from proplet.manager.manifest import GROUPS
from proplet.manager.model import Kind
from proplet.manager.scalars import MOMENT
from proplet.manager.shapes import Record
from proplet.manager.vocabulary import PROPLET_SPEC, PROPLET_STATUS, TASK_SPEC, TASK_STATUS
from proplet.manager.vocabulary_work import (
    FEDERATED_SPEC,
    FEDERATED_STATUS,
    JOB_SPEC,
    JOB_STATUS,
    ROUND_SPEC,
    ROUND_STATUS,
)

_SHAPES: Final[Mapping[Kind, tuple[Any, Record]]] = {
    Kind.FEDERATED_JOB: (FEDERATED_SPEC, FEDERATED_STATUS),
    Kind.JOB: (JOB_SPEC, JOB_STATUS),
    Kind.PROPLET: (PROPLET_SPEC, PROPLET_STATUS),
    Kind.TASK: (TASK_SPEC, TASK_STATUS),
    Kind.ROUND: (ROUND_SPEC, ROUND_STATUS),
}
_SHORT_NAMES: Final = {Kind.JOB: ["pjob"]}
# The older era had the kinds of federated learning in this version; the schemas are the same.
_VERSIONS: Final = {Kind.FEDERATED_JOB: ("v1", "v1alpha1"), Kind.ROUND: ("v1", "v1alpha1")}
_SCALE: Final = {"specReplicasPath": ".spec.k8s.replicas", "statusReplicasPath": ".status.k8sStatus.readyReplicas"}

# What `kubectl get` prints, as the reference has it: head, type, path.
_AGE: Final = ("Age", "date", ".metadata.creationTimestamp")
_PHASE: Final = ("Phase", "string", ".status.phase")
_COLUMNS: Final[Mapping[Kind, tuple[tuple[str, str, str], ...]]] = {
    Kind.TASK: (
        _PHASE,
        ("Mode", "string", ".spec.mode"),
        ("Proplet", "string", ".status.assignedProplet"),
        ("Start Time", "date", ".status.startedAt"),
        ("Finish Time", "date", ".status.finishedAt"),
        ("Preferred Type", "string", ".spec.preferredPropletType"),
        _AGE,
    ),
    Kind.PROPLET: (
        ("Type", "string", ".spec.type"),
        _PHASE,
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
        ("Tasks", "integer", ".status.taskCount"),
        ("Replicas", "string", ".status.k8sStatus.readyReplicas"),
        ("Last Seen", "date", ".status.lastSeen"),
        _AGE,
    ),
    Kind.JOB: (
        _PHASE,
        ("Mode", "string", ".spec.executionMode"),
        ("Tasks", "integer", ".status.taskCount"),
        ("Completed", "integer", ".status.completedCount"),
        ("Failed", "integer", ".status.failedCount"),
        _AGE,
    ),
    Kind.FEDERATED_JOB: (
        _PHASE,
        ("Current Round", "integer", ".status.currentRound"),
        ("Completed Rounds", "integer", ".status.completedRounds"),
        _AGE,
    ),
    Kind.ROUND: (
        _PHASE,
        ("Job", "string", ".spec.federatedJobRef.name"),
        ("Updates", "integer", ".status.updatesReceived"),
        ("Required", "integer", ".status.updatesRequired"),
        _AGE,
    ),
}


def definition(kind: Kind, group: str) -> dict[str, Any]:
    """Return the definition of one kind in one API group."""
    singular = kind.value.lower()
    names = {"kind": kind.value, "listKind": f"{kind.value}List", "plural": f"{singular}s", "singular": singular}
    subresources: dict[str, Any] = {"status": {}}
    if kind is Kind.PROPLET:
        subresources["scale"] = _SCALE
    version = {
        "served": True,
        "subresources": subresources,
        "additionalPrinterColumns": [
            {"name": name, "type": form, "jsonPath": path} for name, form, path in _COLUMNS[kind]
        ],
        "schema": {"openAPIV3Schema": _root(kind)},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": names | ({"shortNames": _SHORT_NAMES[kind]} if kind in _SHORT_NAMES else {}),
            "versions": [{"name": name, "storage": name == "v1", **version} for name in _VERSIONS.get(kind, ("v1",))],
        },
    }


def _root(kind: Kind) -> Schema:
    spec, status = _SHAPES[kind]
    root = described(
        {
            "type": "object",
            "properties": {
                "apiVersion": described({"type": "string"}, "apiVersion"),
                "kind": described({"type": "string"}, "kind"),
                "metadata": {"type": "object"},
                "spec": schema_of(spec, f"{kind.value}.spec"),
                "status": schema_of(status, f"{kind.value}.status"),
            },
            "required": ["spec"],
        },
        kind.value,
    )
    moments: Schema = root["properties"]["status"]["properties"]
    for name in ("createdAt", "updatedAt"):  # every kind's status shares them with its `meta`
        moments[name] = schema_of(MOMENT, f"{kind.value}.status.{name}")
    return root


def files() -> dict[str, str]:
    """Return the text of every definition by its path in crds/."""
    return {
        f"{group.removeprefix('propeller.propeller.')}/{kind.value.lower()}s.yaml": _text(definition(kind, group))
        for group in GROUPS
        for kind in _SHAPES
    }


class _Dumper(yaml.SafeDumper):
    """Without anchors: the same rule stands in two places."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text(document: dict[str, Any]) -> str:
    body = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return f"# Made by `python -m proplet.manager.crd` from the vocabulary; do not edit.\n{body}"


def main() -> None:
    """Write the definitions into crds/ of the source tree."""
    root = Path(__file__).parent.parent / "crds"
    for name, text in files().items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
