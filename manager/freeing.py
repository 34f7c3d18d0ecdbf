"""Uninstalling from a cluster: finalizers off every resource, so that deleting the definitions never hangs.

The definitions need not be there: a kind that is not served has nothing to be freed.
"""

import logging
from collections.abc import Sequence
from typing import Final

from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import Collection, Document, KubernetesApi, open_api
from proplet.manager.kubernetes_errors import NotServedError
from proplet.manager.manifest import GROUPS
from proplet.manager.model import Kind
from proplet.manager.ports import ConflictError, NotFoundError
from proplet.manager.store_kubernetes_document import collection_of

log = logging.getLogger(__name__)

#: Whose finalizers are taken off: ours, and the reference operator's, which leaves its own behind.
PREFIXES: Final = tuple(f"{group}/" for group in GROUPS)


async def free(access: Access, group: str, namespaces: Sequence[str] = ()) -> int:
    """Take the finalizers off every resource of `group`; return how many had one.

    Raises:
        AccessError: it is not known how to reach a cluster. StoreUnavailableError: it cannot be reached, or refuses.
    """
    count = 0
    async with open_api(access, watches=1) as api:
        for kind in Kind:
            for namespace in namespaces or (None,):
                count += await _free_all(api, collection_of(kind, group), namespace)
    return count


async def _free_all(api: KubernetesApi, collection: Collection, namespace: str | None) -> int:
    count = 0
    try:
        found = await api.run(lambda: [item for page in api.pages(collection, namespace) for item in page["items"]])
    except NotServedError:
        log.info("the cluster does not serve %s", collection.plural)
        return 0
    for document in found:
        if await _free_one(api, collection, document):
            count += 1
    return count


async def _free_one(api: KubernetesApi, collection: Collection, document: Document) -> bool:
    while True:
        meta = document["metadata"]
        kept = [name for name in meta.get("finalizers") or () if not name.startswith(PREFIXES)]
        if len(kept) == len(meta.get("finalizers") or ()):
            return False
        place = (collection, meta["namespace"], meta["name"])
        patch = {"metadata": {"finalizers": kept or None, "resourceVersion": meta["resourceVersion"]}}
        try:
            await api.run(api.patch, *place, patch)
            return True
        except NotFoundError:
            return False
        except ConflictError:  # somebody wrote it meanwhile
            try:
                document = await api.run(api.get, *place)
            except NotFoundError:
                return False
