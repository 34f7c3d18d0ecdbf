"""The loop over Proplets of type `k8s`: their Deployments are as `deployments` plans them, and what those show is told.

Deployments are watched, so one that somebody changed or deleted is put right at once. They are applied on the server
(server-side apply), which leaves alone what is not ours. Phase and Connected are the roster's, from heartbeats; Ready,
Healthy and the counts of replicas are this loop's.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import anyio
from anyio import from_thread, to_thread

from proplet.manager.conditions import settled
from proplet.manager.deployments import (
    REPLICA_LABEL,
    SELECTOR,
    Document,
    Identity,
    Secrets,
    deployment,
    own_identity,
    plan,
    replicas_wanted,
    seen,
    sibling,
    sibling_of,
)
from proplet.manager.kubernetes_api import Collection, KubernetesApi, Stream
from proplet.manager.kubernetes_errors import RefusedError, UnreadableError
from proplet.manager.kubernetes_secrets import SecretError, read_secret
from proplet.manager.model import Condition, Key, Kind, Proplet
from proplet.manager.ports import (
    AlreadyExistsError,
    ChangeType,
    Clock,
    ConflictError,
    EventSink,
    GoneError,
    NotFoundError,
    Store,
    StoreError,
    StoreUnavailableError,
)
from proplet.manager.store_kubernetes_watch import closing
from proplet.manager.workqueue import WorkQueue

log = logging.getLogger(__name__)

DEPLOYMENTS: Final = Collection("apps", "v1", "deployments", "Deployment", SELECTOR)
MANAGER: Final = "proplet-manager"
APPLY: Final = "application/apply-patch+yaml"
WORKERS: Final = 4
RETRY_S: Final = 2.0
AGAIN_S: Final = 30.0  # Secrets are not watched: who waits for one is looked at again after this


@dataclass(frozen=True, slots=True)
class PodSettings:
    """Which API group the Proplets are of, and the namespaces that are seen; none are all."""

    group: str
    namespaces: tuple[str, ...] = ()


class Pods:
    """Keeps the Deployments of a cluster's Proplets."""

    def __init__(
        self,
        api: KubernetesApi,
        store: Store,
        settings: PodSettings,
        events: EventSink | None = None,
        clock: Clock = time.time,
    ) -> None:
        self._api = api
        self._store = store
        self._api_version = f"{settings.group}/v1"
        self._namespaces: tuple[str | None, ...] = settings.namespaces or (None,)
        self._events = events
        self._clock = clock
        self._queue = WorkQueue()
        self._found: dict[Key, Document] = {}
        self._listed: set[str | None] = set()
        self._applied: dict[Key, tuple[int, str]] = {}  # the generation and what was asked for
        self._told: set[tuple[str, str]] = set()  # events, by the Proplet's uid and reason
        self._waiting: set[str] = set()
        self._early: set[str] = set()  # Proplets that were looked at before the Deployments were listed

    async def run(self) -> None:
        """Work until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_proplets)
            tasks.start_soon(self._look_again)
            for namespace in self._namespaces:
                tasks.start_soon(self._watch_deployments, namespace)
            for _ in range(WORKERS):
                tasks.start_soon(self._work)

    # --- what is watched ----------------------------------------------------------------------------------------------

    async def _watch_proplets(self) -> None:
        while True:
            try:
                listing = await self._store.list(Kind.PROPLET)
                for proplet in listing.items:
                    self._changed(cast("Proplet", proplet))
                async with aclosing(cast("Any", self._store.watch(Kind.PROPLET, listing.version))) as changes:
                    async for change in changes:
                        self._changed(cast("Proplet", change.resource), gone=change.type is ChangeType.DELETED)
            except GoneError:
                continue
            except StoreUnavailableError:
                await anyio.sleep(RETRY_S)

    def _changed(self, proplet: Proplet, *, gone: bool = False) -> None:
        key = proplet.meta.key
        if proplet.spec.type != "k8s" and not any(_owner_uid(d) == proplet.meta.uid for d in self._of(key.namespace)):
            return
        if gone:
            self._told = {told for told in self._told if told[0] != proplet.meta.uid}
        owner = sibling_of(proplet)
        self._queue.add(_name(Key(owner, key.namespace) if owner else key))

    def _of(self, namespace: str) -> Iterator[Document]:
        return (document for key, document in self._found.items() if key.namespace == namespace)

    async def _watch_deployments(self, namespace: str | None) -> None:
        told = ""
        while True:
            try:
                version = await to_thread.run_sync(
                    self._list, namespace, abandon_on_cancel=True, limiter=self._api.watches
                )
                while True:
                    version = await self._follow(namespace, version)
            except GoneError:
                continue
            except StoreError as error:
                if told != str(error):  # not every two seconds, where the manager may not see Deployments at all
                    told = str(error)
                    log.warning("Deployments cannot be watched, trying again: %s", error)
                await anyio.sleep(RETRY_S)

    def _list(self, namespace: str | None) -> str:
        """In a thread."""
        version, items = "", list[Document]()
        for page in self._api.pages(DEPLOYMENTS, namespace):
            version = str(page.get("metadata", {}).get("resourceVersion", ""))
            items += page.get("items") or ()
        from_thread.run_sync(self._take_all, namespace, items)
        return version

    async def _follow(self, namespace: str | None, version: str) -> str:
        """Watch until the server ends it; return the version it came to."""
        last, failure = [version], list[StoreError]()
        async with closing(self._api.stream()) as stream:
            try:
                await to_thread.run_sync(self._read, stream, namespace, last, limiter=self._api.watches)
            except StoreError as error:
                failure.append(error)
        if failure:
            raise failure[0]
        return last[0]

    def _read(self, stream: Stream, namespace: str | None, last: list[str]) -> None:
        """In a thread."""
        for events in self._api.watch(stream, DEPLOYMENTS, namespace, last[0]):
            for event in events:
                document = event.get("object")
                if not isinstance(document, dict):
                    raise UnreadableError("watch deployments: an event without an object")
                last[0] = str(document.get("metadata", {}).get("resourceVersion", last[0]))
                if event.get("type") != "BOOKMARK":
                    from_thread.run_sync(self._take, document, event.get("type") == "DELETED")

    def _take_all(self, namespace: str | None, items: Sequence[Document]) -> None:
        before = [document for key, document in self._found.items() if namespace in (None, key.namespace)]
        for document in before:  # one that is listed again is only looked at once more
            self._take(document, gone=True)
        for document in items:
            self._take(document, gone=False)
        self._listed.add(namespace)
        for name in self._early:
            self._queue.add(name)
        self._early.clear()

    def _take(self, document: Document, gone: bool) -> None:
        key = _key(document)
        if gone:
            self._found.pop(key, None)
            self._applied.pop(key, None)
        else:
            self._found[key] = document
        owner = _owner(document)
        if owner is not None:
            self._queue.add(_name(Key(str(owner.get("name")), key.namespace)))

    # --- work ---------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            name = await self._queue.take()
            try:
                await self._look_at(Key(*name.split("/", 1)[::-1]))
                self._waiting.discard(name)
            except (ConflictError, AlreadyExistsError):
                self._queue.add(name)
            except StoreError as error:
                log.warning("the Deployments of Proplet %s cannot be kept now: %s", name, error)
                self._waiting.add(name)
            finally:
                self._queue.done(name)

    async def _look_again(self) -> None:
        slow = 0.0
        while True:
            await anyio.sleep(RETRY_S)
            slow += RETRY_S
            for name in list(self._waiting):
                if not name.startswith("?") or slow >= AGAIN_S:
                    self._queue.add(name.removeprefix("?"))
            slow = 0.0 if slow >= AGAIN_S else slow

    async def _look_at(self, key: Key) -> None:
        if not self._listed.issuperset(self._namespaces):
            self._early.add(_name(key))
            return
        try:
            proplet = cast("Proplet", await self._store.get(Kind.PROPLET, key))
        except NotFoundError:
            await self._remove(key, uid=None, beyond=0)
            return
        if sibling_of(proplet) is not None:
            return
        if proplet.spec.type != "k8s" or proplet.meta.deleted_at:
            await self._remove(key, proplet.meta.uid, beyond=0)
            return
        secrets = await self._secrets(proplet)
        wanted = plan(proplet, secrets)
        if wanted.problem:
            self._waiting.add(f"?{_name(key)}")
            self._tell(proplet, "IdentitiesMissing", wanted.problem)
        else:
            self._waiting.discard(f"?{_name(key)}")
        if own_identity(proplet).plain:
            text = "the key stands in the Proplet and in its pod for all to read: use apiKeySecretRef"
            self._tell(proplet, "KeyInline", text)
        refused = ""
        for replica, identity in enumerate(wanted.identities):
            try:
                await self._apply(proplet, replica, identity, secrets)
            except RefusedError as error:
                refused = str(error)
                self._waiting.add(f"?{_name(key)}")
                self._tell(proplet, "DeploymentRefused", refused)
        await self._remove(key, proplet.meta.uid, beyond=len(wanted.identities))
        await self._keep_siblings(proplet, wanted.identities)
        await self._show(proplet, wanted.problem, refused)

    async def _secrets(self, proplet: Proplet) -> Secrets:
        async def keys(field: str) -> tuple[str, ...] | None:
            name = str((proplet.spec.k8s.get(field) or {}).get("name", ""))
            if not name:
                return ()
            try:
                return tuple(await read_secret(self._api, proplet.meta.namespace, name))
            except SecretError as error:
                self._waiting.add(f"?{_name(proplet.meta.key)}")
                self._tell(proplet, "SecretMissing", str(error))
                return None

        return Secrets(await keys("identitiesSecretRef"), await keys("tlsSecretRef"))

    async def _apply(self, proplet: Proplet, replica: int, identity: Identity, secrets: Secrets) -> None:
        document = deployment(proplet, replica, identity, secrets, self._api_version)
        key = _key(document)
        asked = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        live = self._found.get(key)
        if live is None:
            live = await self._existing(key)
        if live is not None:
            if _owner_uid(live) != proplet.meta.uid:
                raise RefusedError(
                    f"the Deployment {key} belongs to something else: rename the Proplet, or delete that"
                )
            if self._applied.get(key) == (_generation(live), asked):
                return
            if live["spec"]["selector"] != document["spec"]["selector"]:  # the reference's; a selector never changes
                await self._delete(live)
                raise ConflictError(f"the Deployment {key} is made anew")
        query = {"fieldManager": MANAGER, "force": "true"}
        path, what = DEPLOYMENTS.path(key.namespace, key.name), f"apply Deployment {key}"
        done = await self._api.run(
            self._api.request, "PATCH", path, document, query=query, content_type=APPLY, what=what
        )
        self._applied[key] = (_generation(done), asked)
        self._found[key] = done

    async def _existing(self, key: Key) -> Document | None:
        try:
            return await self._api.run(self._api.get, DEPLOYMENTS, key.namespace, key.name)
        except NotFoundError:
            return None

    async def _remove(self, key: Key, uid: str | None, *, beyond: int) -> None:
        """Delete the Deployments of a Proplet for replicas from `beyond` on; `uid` None is a Proplet that is gone."""
        for document in list(self._of(key.namespace)):
            owner = _owner(document)
            if owner is None or owner.get("name") != key.name:
                continue
            if uid is None or owner.get("uid") != uid or _replica(document) >= beyond:
                await self._delete(document)

    async def _delete(self, document: Document) -> None:
        key = _key(document)
        with suppress(NotFoundError):
            await self._api.run(self._api.delete, DEPLOYMENTS, key.namespace, key.name, uid=document["metadata"]["uid"])
        self._applied.pop(key, None)

    async def _keep_siblings(self, proplet: Proplet, identities: Sequence[Identity]) -> None:
        """The Proplet resources of further replicas: as many as there are, and as they are to be."""
        wanted = dict[str, Proplet]()
        for replica, identity in enumerate(identities[1:], start=1):
            made = sibling(proplet, replica, identity)
            wanted[made.meta.name] = made
        for item in (await self._store.list(Kind.PROPLET)).items:
            other = cast("Proplet", item)
            owner = other.meta.owner
            if sibling_of(other) is None or owner is None or owner.uid != proplet.meta.uid:
                continue
            if other.meta.name not in wanted:
                await self._store.delete(Kind.PROPLET, other.meta.key)
            elif (spec := wanted.pop(other.meta.name).spec) != other.spec:
                await self._store.put(replace(other, spec=spec))
        for made in wanted.values():
            await self._store.create(made)

    # --- what is told -------------------------------------------------------------------------------------------------

    async def _show(self, proplet: Proplet, problem: str, refused: str) -> None:
        """Record what the Deployments show, of the Proplet and of each further replica."""
        namespace, uid = proplet.meta.namespace, proplet.meta.uid
        found = [d for d in self._of(namespace) if _owner_uid(d) == uid]
        await self._record(proplet.meta.key, found, replicas_wanted(proplet), problem, refused)
        for item in (await self._store.list(Kind.PROPLET)).items:
            other = cast("Proplet", item)
            if other.meta.owner is not None and other.meta.owner.uid == uid and sibling_of(other) is not None:
                replica = int(other.meta.labels.get(REPLICA_LABEL, "0"))
                own = [d for d in found if _replica(d) == replica]
                await self._record(other.meta.key, own, 1, "", "")

    async def _record(self, key: Key, found: Sequence[Document], wanted: int, problem: str, refused: str) -> None:
        try:
            proplet = cast("Proplet", await self._store.get(Kind.PROPLET, key))
        except NotFoundError:
            return
        wall, status = self._clock(), proplet.status
        replicas, shown = seen(found, wanted, problem, wall)
        if refused:
            shown = [Condition("Ready", False, "DeploymentRefused", refused), *shown[1:]]
        ours = {condition.type for condition in shown}
        others = [condition for condition in status.conditions if condition.type not in ours]
        conditions = settled([*shown, *others], status.conditions, wall)
        told = replace(status, replicas=replicas, conditions=conditions, observed_generation=proplet.meta.generation)
        if told != status:
            await self._store.record(replace(proplet, status=told))

    def _tell(self, proplet: Proplet, reason: str, message: str) -> None:
        """Say it once as an event; the condition goes on saying it."""
        if self._events is not None and (proplet.meta.uid, f"{reason} {message}") not in self._told:
            self._told.add((proplet.meta.uid, f"{reason} {message}"))
            self._events.emit(proplet, reason, message, warning=True)


def _name(key: Key) -> str:
    return f"{key.namespace}/{key.name}"


def _key(document: Document) -> Key:
    return Key(document["metadata"]["name"], document["metadata"]["namespace"])


def _owner(document: Document) -> Document | None:
    """The Proplet that a Deployment belongs to."""
    for reference in document["metadata"].get("ownerReferences") or ():
        if reference.get("controller") and reference.get("kind") == "Proplet":
            return cast("Document", reference)
    return None


def _owner_uid(document: Document) -> str:
    owner = _owner(document)
    return str(owner.get("uid")) if owner is not None else ""


def _replica(document: Document) -> int:
    text = str((document["metadata"].get("labels") or {}).get(REPLICA_LABEL, "0"))
    return int(text) if text.isascii() and text.isdigit() else 0


def _generation(document: Document) -> int:
    value = document["metadata"].get("generation")
    return value if type(value) is int else 0
