"""Leader election by a Lease: of several managers at most one is at work.

Nobody's clock is compared with anybody else's: a Lease counts as abandoned when it was *seen* unchanged for its
duration, on the monotonic clock of who looks. The holder gives up before that, when it could not renew for
`renew_deadline_s`, measured from when its last successful renewal was sent.
"""

import logging
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import anyio
from anyio import CancelScope, CapacityLimiter

from proplet.manager.kubernetes_api import Collection, Document, KubernetesApi
from proplet.manager.ports import AlreadyExistsError, ConflictError, NotFoundError, StoreError

LEASES: Final = Collection("coordination.k8s.io", "v1", "leases", "Lease")
_RELEASE_S: Final = 5.0

log = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """The Lease is another's, or could not be renewed in time: what needs it must end at once."""


def new_identity() -> str:
    """Return a name for this process that no other has, and that a person recognises: the pod's, or the host's."""
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}_{secrets.token_hex(8)}"


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """Which Lease, and how long it holds, in seconds; retry < renew_deadline < duration."""

    name: str = "proplet-manager"
    namespace: str = "default"
    identity: str = field(default_factory=new_identity)
    duration_s: int = 15
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.retry_s < self.renew_deadline_s < self.duration_s:
            raise ValueError("a Lease needs 0 < retry < renew deadline < duration")


class Lease:
    """One candidate for a Lease. `clock` is monotonic, `wall` is the time of day, which only people read."""

    def __init__(
        self,
        api: KubernetesApi,
        terms: LeaseTerms,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._terms = terms
        self._clock = clock
        self._wall = wall
        self._slots = CapacityLimiter(2)  # never behind other calls; a call that was given up may still hold one
        self._seen: Document | None = None
        self._seen_at = 0.0
        self._renewed_at = 0.0
        self._complaint = ""
        self.holder = ""  # who holds it, as last seen

    async def acquire(self) -> None:
        """Wait until this candidate holds the Lease."""
        told = ""
        while not (await self.attempt() and self._fresh()):
            if self.holder and self.holder != told:
                told = self.holder
                log.info("%s holds the lease %s; waiting", self.holder, self._name)
            await anyio.sleep(self._terms.retry_s * random.uniform(0.8, 1.2))  # noqa: S311
        log.info("this manager (%s) holds the lease %s", self._terms.identity, self._name)

    def _fresh(self) -> bool:
        """Whether what was taken still holds: the answer may have come late."""
        return self._clock() < self._renewed_at + self._terms.renew_deadline_s

    async def keep(self) -> None:
        """Renew it until it is lost.

        Raises:
            LeaseLostError: it is another's, or was not renewed in time.
        """
        while True:
            await anyio.sleep(self._terms.retry_s)
            left = self._renewed_at + self._terms.renew_deadline_s - self._clock()
            with anyio.move_on_after(max(left, 0.0)):  # a server that does not answer must not hold us past it
                await self.attempt()
            if self.holder not in ("", self._terms.identity):
                raise LeaseLostError(f"the lease {self._name} is now held by {self.holder}")
            if not self._fresh():
                raise LeaseLostError(
                    f"the lease {self._name} could not be renewed for {self._terms.renew_deadline_s:g} s"
                )

    async def release(self) -> None:
        """Let it go, so that the next does not wait for its end; if the server cannot be told, it ends by itself."""
        with CancelScope(shield=True), anyio.move_on_after(_RELEASE_S):
            try:
                if self._seen is not None and self.holder == self._terms.identity:
                    await self._write({**self._spec(self._seen), "holderIdentity": "", "leaseDurationSeconds": 1})
                    self.holder = ""
            except StoreError as error:
                log.warning("the lease %s could not be released, it ends by itself: %s", self._name, error)

    async def attempt(self) -> bool:
        """Take or renew it, if it is ours, free or abandoned; whether that succeeded."""
        try:
            done = await self._attempt()
            self._complaint = ""
            return done
        except (ConflictError, AlreadyExistsError):
            return False  # somebody wrote it between our look and our write; the next look tells who
        except StoreError as error:
            if str(error) != self._complaint:  # once, and not at every try
                self._complaint = str(error)
                log.warning("the lease %s: %s", self._name, error)
            return False

    async def _attempt(self) -> bool:
        await self._look()
        ours = self.holder == self._terms.identity
        if self.holder and not ours and not self._abandoned():
            return False
        started = self._clock()
        now = _moment(self._wall())
        old = {} if self._seen is None else self._spec(self._seen)
        spec = {
            **old,
            "holderIdentity": self._terms.identity,
            "leaseDurationSeconds": self._terms.duration_s,
            "renewTime": now,
        }
        if not ours or self._seen is None:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = 0 if self._seen is None else _whole(old.get("leaseTransitions")) + 1
        await self._write(spec)
        self._renewed_at = started
        return True

    async def _look(self) -> None:
        """Read the Lease, and note when it was first seen as it is."""
        try:
            found = await self._run(self._api.get, self._terms.name)
        except NotFoundError:
            self._seen, self.holder = None, ""
            return
        self._observe(found)

    async def _write(self, spec: Document) -> None:
        if self._seen is None:
            document = {
                "apiVersion": LEASES.api_version,
                "kind": LEASES.kind,
                "metadata": {"name": self._terms.name, "namespace": self._terms.namespace},
                "spec": spec,
            }
            self._observe(await self._run(self._api.create, document))
        else:
            document = {**self._seen, "spec": spec}  # with the version it was read at
            self._observe(await self._run(self._api.replace, self._terms.name, document))

    async def _run(self, call: Callable[..., Document], *args: Any) -> Document:
        return await self._api.run(call, LEASES, self._terms.namespace, *args, limiter=self._slots)

    def _observe(self, found: Document) -> None:
        # By version and not by what it says: whoever renews may have a clock that stands still.
        if self._seen is None or _version(found) != _version(self._seen):
            self._seen, self._seen_at = found, self._clock()
        self.holder = str(self._spec(found).get("holderIdentity") or "")

    def _abandoned(self) -> bool:
        assert self._seen is not None
        duration = _whole(self._spec(self._seen).get("leaseDurationSeconds")) or self._terms.duration_s
        return self._clock() >= self._seen_at + duration

    def _spec(self, lease: Document) -> Document:
        spec = lease.get("spec")
        return spec if isinstance(spec, dict) else {}

    @property
    def _name(self) -> str:
        return f"{self._terms.namespace}/{self._terms.name}"


@asynccontextmanager
async def held_lease(
    api: KubernetesApi, terms: LeaseTerms, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[Lease]:
    """Wait until the Lease is held, then run the block while it is; released at the end of the block.

    Raises:
        LeaseLostError: it was lost, which cancels the block.
    """
    lease = Lease(api, terms, clock)
    await lease.acquire()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(lease.keep)
            yield lease
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        raise
    finally:
        await lease.release()


def _version(document: Document) -> Any:
    return (document.get("metadata") or {}).get("resourceVersion")


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


def _moment(now: float) -> str:
    """A time as the API's MicroTime has it: always six digits of fraction."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
