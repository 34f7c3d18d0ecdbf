"""Custom resource definitions for tests of the store: anything goes in spec and status, which is a subresource."""

import json
import threading
from typing import Any

import anyio

from proplet.manager.manifest import GROUPS
from proplet.manager.model import Kind
from proplet.manager.store_kubernetes import KubernetesStore
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
    for kind in kinds or tuple(Kind):
        await_served(server, collection_of(kind, group).path())


def await_served(server: ApiServer, path: str) -> None:
    """Wait until objects can be listed: after a definition, or a start, their storage is being made for a moment."""
    pause = threading.Event()
    for _ in range(1200):
        try:
            server.call("GET", path)
            return
        except ApiError as refused:
            if refused.status not in (404, 429):
                raise
        pause.wait(0.05)
    raise AssertionError(f"{path} is not served")


def empty(server: ApiServer, group: str = GROUPS[0]) -> None:
    """Remove every object of ours, whatever finalizers it has."""
    for kind in Kind:
        path = collection_of(kind, group).path()
        await_served(server, path)
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


async def recovered(store: KubernetesStore) -> None:
    """Wait until the store is up to date."""
    with anyio.fail_after(60):
        while store.problem:  # noqa: ASYNC110  # what changes it is in another process
            await anyio.sleep(0.02)


async def interrupted(store: KubernetesStore) -> None:
    """Wait until the store has noticed that it is not."""
    with anyio.fail_after(60):
        while not store.problem:  # noqa: ASYNC110
            await anyio.sleep(0.02)


def uninstall(server: ApiServer, *kinds: Kind, group: str = GROUPS[0]) -> None:
    """Take definitions away again; there must be no objects with finalizers left."""
    names = [f"crd/{collection_of(kind, group).plural}.{group}" for kind in kinds]
    server.kubectl("delete", "--ignore-not-found", "--timeout=30s", *names)
