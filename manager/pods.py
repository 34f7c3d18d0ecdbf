"""The loop over Proplets of type `k8s`: their Deployments are as `deployments` plans them, and what those show is told.

Deployments are watched, so one that somebody changed or deleted is put right at once. They are applied on the server
(server-side apply), which leaves alone what is not ours. Phase and Connected are the roster's, from heartbeats; Ready,
Healthy and the counts of replicas are this loop's.
"""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import anyio

from proplet.manager.conditions import settled
from proplet.manager.deployment_feed import (
    DEPLOYMENTS,
    RETRY_S,
    DeploymentFeed,
    generation_of,
    key_of,
    owner_uid,
    replica_of,
)
from proplet.manager.deployments import (
    REPLICA_LABEL,
    Secrets,
    deployment,
    deployment_name,
    own_identity,
    plan,
    replicas_wanted,
    seen,
    sibling,
    sibling_of,
)
from proplet.manager.kubernetes_api import Document, KubernetesApi
from proplet.manager.kubernetes_secrets import SecretError, read_secret
from proplet.manager.model import Condition, Key, Kind, Proplet
from proplet.manager.pod_template import Identity, tls_keys_in
from proplet.manager.ports import (
    AlreadyExistsError,
    ChangeType,
    Clock,
    ConflictError,
    EventSink,
    GoneError,
    NotFoundError,
    RefusedError,
    Store,
    StoreError,
    StoreUnavailableError,
)
from proplet.manager.workqueue import WorkQueue

log = logging.getLogger(__name__)

MANAGER: Final = "proplet-manager"
APPLY: Final = "application/apply-patch+yaml"
WORKERS: Final = 4
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
        self._events = events
        self._clock = clock
        self._queue = WorkQueue()
        self._feed = DeploymentFeed(api, settings.namespaces or (None,), lambda owner: self._queue.add(_name(owner)))
        self._applied: dict[Key, tuple[tuple[str, int], str]] = {}  # the generation and what was asked for
        self._told: set[tuple[str, str]] = set()  # events, by the Proplet's uid and reason
        self._waiting: set[str] = set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_proplets)
            tasks.start_soon(self._look_again)
            tasks.start_soon(self._feed.run)
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
        if proplet.spec.type != "k8s" and not self._feed.of(proplet.meta.uid, key.namespace):
            return
        if gone:
            self._told = {told for told in self._told if told[0] != proplet.meta.uid}
        owner = sibling_of(proplet)
        self._queue.add(_name(Key(owner, key.namespace) if owner else key))

    # --- work ---------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            name = await self._queue.take()
            try:
                await self._look_at(Key(*name.split("/", 1)[::-1]))
                self._waiting.discard(name)
            except ConflictError:
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
        if not self._feed.listed(key):
            return
        try:
            proplet = cast("Proplet", await self._store.get(Kind.PROPLET, key))
        except NotFoundError:
            self._waiting.discard(f"?{_name(key)}")
            await self._remove(key, uid=None, beyond=0)
            self._applied = {name: done for name, done in self._applied.items() if self._feed.get(name) is not None}
            return
        if sibling_of(proplet) is not None:
            return
        if proplet.spec.type != "k8s" or proplet.meta.deleted_at:
            await self._remove(key, proplet.meta.uid, beyond=0)
            return
        secrets = await self._secrets(proplet)
        unknown = secrets.tls is None or secrets.identities is None
        wanted = plan(proplet, secrets)
        if wanted.problem or unknown:
            self._waiting.add(f"?{_name(key)}")
            if wanted.problem:
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
        if not wanted.problem or secrets.identities is not None:  # who cannot be read is not who is to go
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
        key = Key(deployment_name(proplet.meta.name, replica), proplet.meta.namespace)
        if secrets.tls is None:
            secrets = replace(secrets, tls=tls_keys_in(self._feed.get(key)))
        document = deployment(proplet, replica, identity, secrets, self._api_version)
        asked = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        live = self._feed.get(key)
        if live is None:
            live = await self._existing(key)
        if live is not None:
            if owner_uid(live) != proplet.meta.uid:
                raise RefusedError(
                    f"the Deployment {key} belongs to something else: rename the Proplet, or delete that"
                )
            if self._applied.get(key) == (generation_of(live), asked):
                return
            if live["spec"]["selector"] != document["spec"]["selector"]:  # the reference's; a selector never changes
                await self._delete(live)
                raise StoreUnavailableError(f"the Deployment {key} is made anew")
        query = {"fieldManager": MANAGER, "force": "true"}
        path, what = DEPLOYMENTS.path(key.namespace, key.name), f"apply Deployment {key}"
        done = await self._api.run(
            self._api.request, "PATCH", path, document, query=query, content_type=APPLY, what=what
        )
        self._applied[key] = (generation_of(done), asked)
        self._feed.learn(done)

    async def _existing(self, key: Key) -> Document | None:
        try:
            return await self._api.run(self._api.get, DEPLOYMENTS, key.namespace, key.name)
        except NotFoundError:
            return None

    async def _remove(self, key: Key, uid: str | None, *, beyond: int) -> None:
        """Delete the Deployments of a Proplet for replicas from `beyond` on; `uid` None is a Proplet that is gone."""
        for document in self._feed.named(key):
            if uid is None or owner_uid(document) != uid or replica_of(document) >= beyond:
                await self._delete(document)

    async def _delete(self, document: Document) -> None:
        key = key_of(document)
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
            try:
                await self._store.create(made)
            except AlreadyExistsError:
                self._waiting.add(f"?{_name(proplet.meta.key)}")
                text = f"there is another Proplet {made.meta.name}: no Task is placed on the replica of that name"
                self._tell(proplet, "NameTaken", text)

    # --- what is told -------------------------------------------------------------------------------------------------

    async def _show(self, proplet: Proplet, problem: str, refused: str) -> None:
        """Record what the Deployments show, of the Proplet and of each further replica."""
        namespace, uid = proplet.meta.namespace, proplet.meta.uid
        found = self._feed.of(uid, namespace)
        await self._record(proplet.meta.key, found, replicas_wanted(proplet), problem, refused)
        for item in (await self._store.list(Kind.PROPLET)).items:
            other = cast("Proplet", item)
            if other.meta.owner is not None and other.meta.owner.uid == uid and sibling_of(other) is not None:
                own = [d for d in found if str(replica_of(d)) == other.meta.labels.get(REPLICA_LABEL)]
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
