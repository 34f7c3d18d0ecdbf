"""A process that lists, watches, writes, leads, tells events and reads a Secret, and prints what it has loaded."""

import sys
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import anyio

from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import open_api
from proplet.manager.kubernetes_events import open_kubernetes_events
from proplet.manager.kubernetes_lease import LeaseTerms, held_lease
from proplet.manager.kubernetes_secrets import read_secret_key
from proplet.manager.model import Kind, Meta, Task, TaskSpec, TaskStatus
from proplet.manager.store_kubernetes import open_kubernetes_store


async def main(kubeconfig: Path, namespace: str) -> None:
    async with (
        open_api(Access(kubeconfig)) as api,
        open_kubernetes_store(api, namespaces=[namespace]) as store,
        open_kubernetes_events(api, "everything") as events,
        held_lease(api, LeaseTerms("everything", namespace)),
    ):
        since = (await store.list(Kind.TASK)).version
        made = await store.create(Task(Meta("a", namespace), TaskSpec(name="a", image_url="oci://example.org/a")))
        made = await store.record(replace(made, status=TaskStatus(attempt=1)))
        async with aclosing(store.watch(Kind.TASK, since)) as changes:
            async for change in changes:
                if change.resource == made:
                    break
        events.emit(made, "Scheduled", "told")
        assert await read_secret_key(api, namespace, "s", "k") == b"v"
        await store.delete(Kind.TASK, made.meta.key)
    print("\n".join(sys.modules))


anyio.run(main, Path(sys.argv[1]), sys.argv[2])
