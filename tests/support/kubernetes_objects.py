"""Custom resource definitions for tests of the store: anything goes in spec and status, which is a subresource."""

import json
from typing import Any

from proplet.manager.manifest import GROUPS
from proplet.manager.model import Kind
from proplet.manager.store_kubernetes_document import collection_of
from tests.support.kubernetes import MERGE_PATCH, ApiError, ApiServer

ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def loose_definition(kind: Kind, group: str = GROUPS[0]) -> dict[str, Any]:
    collection = collection_of(kind, group)
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": ANYTHING, "status": ANYTHING}}},
    }
    names = {
        "plural": collection.plural,
        "singular": collection.kind.lower(),
        "kind": collection.kind,
        "listKind": f"{collection.kind}List",
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{collection.plural}.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def install(server: ApiServer, *kinds: Kind, group: str = GROUPS[0]) -> None:
    """Install definitions of `kinds` (of all), whatever was there before, and wait until they are served."""
    definitions = [loose_definition(kind, group) for kind in kinds or tuple(Kind)]
    server.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-",
                   input="\n---\n".join(json.dumps(d) for d in definitions))  # fmt: skip
    names = [f"crd/{definition['metadata']['name']}" for definition in definitions]
    server.kubectl("wait", "--for=condition=Established", *names, "--timeout=30s")


def empty(server: ApiServer, group: str = GROUPS[0]) -> None:
    """Remove every object of ours, whatever finalizers it has."""
    for kind in Kind:
        path = collection_of(kind, group).path()
        for item in server.call("GET", path)["items"]:
            meta = item["metadata"]
            one = collection_of(kind, group).path(meta["namespace"], meta["name"])
            if meta.get("finalizers"):
                free = {"metadata": {"finalizers": None}}
                server.call("PATCH", one, free, content_type=MERGE_PATCH)
            if not meta.get("deletionTimestamp"):
                server.call("DELETE", one)


def ensure_namespace(server: ApiServer, name: str) -> None:
    try:
        server.create_namespace(name)
    except ApiError as refused:
        if refused.status != 409:
            raise
