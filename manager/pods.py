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
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import anyio
from anyio.abc import TaskGroup

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
    sibling_of,
)
from proplet.manager.kubernetes_api import Document, KubernetesApi
from proplet.manager.model import Condition, Key, Kind, Proplet
from proplet.manager.pod_grants import Grants, Refusal
from proplet.manager.pod_secrets import PodSecrets
from proplet.manager.pod_siblings import Siblings
from proplet.manager.pod_template import Identity, tls_keys_in
from proplet.manager.ports import (
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
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 5.0  # after a conflict, and after one conflict upon another


@dataclass(frozen=True, slots=True)
class PodSettings:
    """Which API group the Proplets are of, the namespaces that are seen (none are all), and what Proplets may name."""

    group: str
    namespaces: tuple[str, ...] = ()
    grants: Grants = field(default_factory=Grants)


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
        self._secrets = PodSecrets(api, settings.grants)
        self._siblings = Siblings(store)
        # By Proplet and Deployment: its generation, and what was asked for.
        self._applied: dict[Key, dict[Key, tuple[tuple[str, int], str]]] = {}
        self._told: dict[str, set[str]] = {}  # events, by the Proplet's uid
        self._waiting: set[str] = set()
        self._conflicts: dict[str, int] = {}  # one after another, by name
        self._pausing: set[str] = set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_proplets)
            tasks.start_soon(self._look_again)
            tasks.start_soon(self._feed.run)
            for _ in range(WORKERS):
                tasks.start_soon(self._work, tasks)

    # --- what is watched ----------------------------------------------------------------------------------------------

    async def _watch_proplets(self) -> None:
        while True:
            try:
                listing = await self._store.list(Kind.PROPLET)
                proplets = [cast("Proplet", item) for item in listing.items]
                self._siblings.take_all(proplets)
                for proplet in proplets:
                    self._changed(proplet)
                async with aclosing(cast("Any", self._store.watch(Kind.PROPLET, listing.version))) as changes:
                    async for change in changes:
                        self._changed(cast("Proplet", change.resource), gone=change.type is ChangeType.DELETED)
            except GoneError:
                continue
            except StoreUnavailableError:
                await anyio.sleep(RETRY_S)

    def _changed(self, proplet: Proplet, *, gone: bool = False) -> None:
        key = proplet.meta.key
        self._siblings.take(proplet, gone=gone)
        if gone:
            self._told.pop(proplet.meta.uid, None)
            self._secrets.forget(proplet.meta.uid)
        if proplet.spec.type != "k8s" and not self._feed.of(key, proplet.meta.uid):
            return
        owner = sibling_of(proplet)
        self._queue.add(_name(Key(owner, key.namespace) if owner else key))

    # --- work ---------------------------------------------------------------------------------------------------------

    async def _work(self, tasks: TaskGroup) -> None:
        while True:
            name = await self._queue.take()
            try:
                await self._look_at(Key(*name.split("/", 1)[::-1]))
                self._waiting.discard(name)
                self._conflicts.pop(name, None)
            except ConflictError:
                before = self._conflicts.get(name, 0)
                self._conflicts[name] = before + 1
                if name not in self._pausing:
                    self._pausing.add(name)
                    tasks.start_soon(self._after_pause, name, pause_after(before))
            except StoreError as error:
                log.warning("the Deployments of Proplet %s cannot be kept now: %s", name, error)
                self._waiting.add(name)
            finally:
                self._queue.done(name)

    async def _after_pause(self, name: str, pause_s: float) -> None:
        await anyio.sleep(pause_s)
        self._pausing.discard(name)
        self._queue.add(name)

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
            self._applied.pop(key, None)
            return
        if sibling_of(proplet) is not None:
            return
        if proplet.spec.type != "k8s" or proplet.meta.deleted_at:
            await self._remove(key, proplet.meta.uid, beyond=0)
            return
        reading = await self._secrets.read(proplet)
        if reading.refusal is not None:  # what runs already stays as it is
            self._waiting.add(f"?{_name(key)}")
            self._tell(proplet, reading.refusal.reason, reading.refusal.message)
            await self._show(proplet, "", reading.refusal)
            return
        secrets = reading.secrets
        for text in reading.missing:
            self._tell(proplet, "SecretMissing", text)
        unknown = secrets.tls is None or secrets.identities is None
        wanted = plan(proplet, secrets)
        if wanted.problem or unknown or reading.missing:
            self._waiting.add(f"?{_name(key)}")
            if wanted.problem:
                self._tell(proplet, "IdentitiesMissing", wanted.problem)
        else:
            self._waiting.discard(f"?{_name(key)}")
        if own_identity(proplet).plain:
            text = "the key stands in the Proplet and in its pod for all to read: use apiKeySecretRef"
            self._tell(proplet, "KeyInline", text)
        refused: Refusal | None = None
        for replica, identity in enumerate(wanted.identities):
            try:
                await self._apply(proplet, replica, identity, secrets)
            except RefusedError as error:
                refused = Refusal("DeploymentRefused", str(error))
                self._waiting.add(f"?{_name(key)}")
                self._tell(proplet, refused.reason, refused.message)
        if not wanted.problem or secrets.identities is not None:  # who cannot be read is not who is to go
            await self._remove(key, proplet.meta.uid, beyond=len(wanted.identities))
            for taken in await self._siblings.keep(proplet, wanted.identities):
                self._waiting.add(f"?{_name(key)}")
                text = f"there is another Proplet {taken}: no Task is placed on the replica of that name"
                self._tell(proplet, "NameTaken", text)
        await self._show(proplet, wanted.problem, refused)

    async def _apply(self, proplet: Proplet, replica: int, identity: Identity, secrets: Secrets) -> None:
        key = Key(deployment_name(proplet.meta.name, replica), proplet.meta.namespace)
        if secrets.tls is None:
            secrets = replace(secrets, tls=tls_keys_in(self._feed.get(key)))
        document = deployment(proplet, replica, identity, secrets, self._api_version)
        asked = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        applied = self._applied.setdefault(proplet.meta.key, {})
        live = self._feed.get(key)
        if live is None:
            live = await self._existing(key)
        if live is not None:
            if owner_uid(live) != proplet.meta.uid:
                raise RefusedError(
                    f"the Deployment {key} belongs to something else: rename the Proplet, or delete that"
                )
            if applied.get(key) == (generation_of(live), asked):
                return
            if live["spec"]["selector"] != document["spec"]["selector"]:  # the reference's; a selector never changes
                await self._delete(proplet.meta.key, live)
                raise StoreUnavailableError(f"the Deployment {key} is made anew")
        query = {"fieldManager": MANAGER, "force": "true"}
        path, what = DEPLOYMENTS.path(key.namespace, key.name), f"apply Deployment {key}"
        done = await self._api.run(
            self._api.request, "PATCH", path, document, query=query, content_type=APPLY, what=what
        )
        applied[key] = (generation_of(done), asked)
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
                await self._delete(key, document)

    async def _delete(self, owner: Key, document: Document) -> None:
        key = key_of(document)
        with suppress(NotFoundError):
            await self._api.run(self._api.delete, DEPLOYMENTS, key.namespace, key.name, uid=document["metadata"]["uid"])
        self._applied.get(owner, {}).pop(key, None)

    # --- what is told -------------------------------------------------------------------------------------------------

    async def _show(self, proplet: Proplet, problem: str, refused: Refusal | None) -> None:
        """Record what the Deployments show, of the Proplet and of each further replica."""
        found = self._feed.of(proplet.meta.key, proplet.meta.uid)
        await self._record(proplet.meta.key, found, replicas_wanted(proplet), problem, refused)
        for other in await self._siblings.of(proplet.meta.uid):
            own = [d for d in found if str(replica_of(d)) == other.meta.labels.get(REPLICA_LABEL)]
            await self._record(other.meta.key, own, 1, "", None)

    async def _record(
        self, key: Key, found: Sequence[Document], wanted: int, problem: str, refused: Refusal | None
    ) -> None:
        try:
            proplet = cast("Proplet", await self._store.get(Kind.PROPLET, key))
        except NotFoundError:
            return
        wall, status = self._clock(), proplet.status
        replicas, shown = seen(found, wanted, problem, wall)
        if refused is not None:
            shown = [Condition("Ready", False, refused.reason, refused.message), *shown[1:]]
        ours = {condition.type for condition in shown}
        others = [condition for condition in status.conditions if condition.type not in ours]
        conditions = settled([*shown, *others], status.conditions, wall)
        told = replace(status, replicas=replicas, conditions=conditions, observed_generation=proplet.meta.generation)
        if told != status:
            await self._store.record(replace(proplet, status=told))

    def _tell(self, proplet: Proplet, reason: str, message: str) -> None:
        """Say it once as an event; the condition goes on saying it."""
        told = self._told.setdefault(proplet.meta.uid, set())
        if self._events is not None and f"{reason} {message}" not in told:
            told.add(f"{reason} {message}")
            self._events.emit(proplet, reason, message, warning=True)


def pause_after(conflicts: int) -> float:
    """How long, in seconds, to wait after a conflict that came upon so many others."""
    return float(min(FIRST_PAUSE_S * 2 ** min(conflicts, 16), LONGEST_PAUSE_S))


def _name(key: Key) -> str:
    return f"{key.namespace}/{key.name}"
