"""The manager of a cluster's resources: a store over the Kubernetes API, and work only while that is ours to do.

`Reign` is the life of one manager: wait for the Lease (where there is one), list, connect to the broker, drive; and
step back, from the broker first, when the Lease is lost or the cluster is away. Nothing that API server or broker do
ends the process. A new turn starts from what the store says, like a restart.

Why it steps back where there is no Lease, too: a result must not be acknowledged to the broker before it is recorded.
One that cannot be recorded would keep the heartbeats behind it from us, and proplets would be taken for lost that live.
"""

import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import anyio
from anyio import CapacityLimiter

from proplet.agent.mqtt import MqttSettings
from proplet.agent.topics import Topics
from proplet.manager import rules
from proplet.manager.api_usage import families
from proplet.manager.book import HOLD_S
from proplet.manager.bus import BusSettings, open_bus
from proplet.manager.controller import Controller
from proplet.manager.exchange import Policy
from proplet.manager.health import Answer, HealthError, Page, Site, metrics_page, open_site
from proplet.manager.health_guard import FileError, Guard
from proplet.manager.kubernetes_access import Access, pod_namespace
from proplet.manager.kubernetes_api import WRITERS, KubernetesApi, open_api
from proplet.manager.kubernetes_events import open_kubernetes_events
from proplet.manager.kubernetes_lease import LeaseLostError, LeaseTerms, held_lease, new_identity
from proplet.manager.kubernetes_pulse import Pulse
from proplet.manager.manifest import GROUPS
from proplet.manager.measures import MeasuredStore, Measures
from proplet.manager.membership import Membership
from proplet.manager.model import Kind, Proplet, Task
from proplet.manager.module_answers import AnswerSettings, Assigned, ModuleAnswers
from proplet.manager.pod_grants import Grants
from proplet.manager.pods import Pods, PodSettings
from proplet.manager.ports import EventSink, StoreError, StoreUnavailableError
from proplet.manager.round_starts import RoundStarts
from proplet.manager.store_kubernetes import KubernetesStore, open_kubernetes_store
from proplet.manager.works import open_works

log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What the manager of a cluster is told.

    Attributes:
        mqtt: the broker, and the manager's one identity on it.
        topics: the channel it manages.
        manager_id: its name in the hello.
        access: how the cluster is reached.
        group: the API group whose resources it manages.
        namespaces: those it sees, none are all.
        lease: the Lease that it must hold to work; None is none.
        policy: waiting times.
        server_timeout_s: how long the API server may be away or silent while the manager stays connected to the broker;
            less than the silence that makes a proplet lost.
        refused_hold_s: how long what the cluster refuses to record is kept unacknowledged; longer than that.
        register: make resources of proplets that announce themselves.
        reply_s: how long the broker may take to acknowledge a command.
        health: where /healthz and /readyz are served, as host and port.
        metrics: where /metrics is served.
        metrics_certificate: certificate and key for it.
        metrics_token: the file with what is to be shown for /metrics.
        metrics_open: without a token, /metrics is for everybody, not only for this machine.
        grants: what Proplets of type k8s may name.
        hands_out: which images are handed out to proplets over MQTT; None are none.
    """

    mqtt: MqttSettings
    topics: Topics
    manager_id: str
    access: Access = field(default_factory=Access)
    group: str = GROUPS[0]
    namespaces: tuple[str, ...] = ()
    lease: LeaseTerms | None = None
    policy: Policy = field(default_factory=Policy)
    server_timeout_s: float = 10.0
    refused_hold_s: float = HOLD_S
    register: bool = False
    reply_s: float = 20.0
    health: tuple[str, int] | None = None
    metrics: tuple[str, int] | None = None
    metrics_certificate: tuple[str, str] | None = None
    metrics_token: str | None = None
    metrics_open: bool = False
    grants: Grants = field(default_factory=Grants)
    hands_out: AnswerSettings | None = None


def lease_terms(
    group: str, name: str | None, namespace: str | None, identity: str | None, namespaces: Sequence[str] = ()
) -> LeaseTerms:
    """Return the terms of the Lease; its name is the reference operator's, so that it and this never both work.

    Where nothing is said it is in the pod's namespace, or, outside of a cluster, in the first that is managed.
    """
    terms = LeaseTerms(
        name=name or f"fa27fa49.{group.removeprefix('propeller.')}",
        namespace=namespace or pod_namespace() or next(iter(namespaces), "default"),
    )
    return replace(terms, identity=identity) if identity else terms


class _SteppedBackError(Exception):
    """The cluster has been away for too long; the message says why."""


class Reign:
    """One manager's life. What it does now is in its attributes."""

    def __init__(
        self, settings: ClusterSettings, api: KubernetesApi, store: KubernetesStore, events: EventSink
    ) -> None:
        self._settings = settings
        self._events = events
        self._api = api
        self._cluster = store
        slots = CapacityLimiter(2)  # never behind other calls; a call that was given up may still hold one
        ask = partial(api.run, api.request, "GET", "/version", limiter=slots)
        self.pulse = Pulse(lambda: api.heard_at, ask, api.cut, settings.server_timeout_s)
        self.measures = Measures()
        self.store = MeasuredStore(store, self.measures)
        self.leading = settings.lease is None
        self.control: Controller | None = None
        self.trouble = ""  # why it does not work now, although it should

    # --- what others ask ----------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether it has its broker."""
        return self.control is not None and self.control.connected

    @property
    def problem(self) -> StoreError | None:
        """Why it does not know what is in the cluster now, None when it does."""
        return self.pulse.problem or self._cluster.problem

    def readiness(self) -> Answer:
        """Whether it does its work, or is ready to take it over; the text says what is missing."""
        lines, ok = [], True
        problem = self.problem
        lines.append(f"kubernetes: {problem}" if problem else "kubernetes: watched")
        ok = problem is None
        if self._settings.lease is not None and not self.leading:
            lines.append("lease: standby")
        else:
            lines.append("lease: leader" if self._settings.lease else "lease: none")
            lines.append(
                "mqtt: connected" if self.connected else f"mqtt: no connection to {self._settings.mqtt.address}"
            )
            ok = ok and self.connected
            if self.trouble:
                lines.append(f"work: {self.trouble}")
                ok = False
        return Answer("".join(f"{line}\n" for line in lines), ok)

    async def metrics(self) -> str:
        """Everything that is measured, in Prometheus' format."""
        queued = self.control.queued if self.control is not None else 0
        gauges = {
            "proplet_mqtt_connected": ("Whether the MQTT broker is connected.", float(self.connected)),
            "proplet_leader": ("Whether this manager works, and is no standby.", float(self.leading)),
            "proplet_store_synced": ("Whether every watch gets on.", float(self.problem is None)),
            "proplet_queue_depth": ("Tasks that wait to be looked at.", float(queued)),
        }
        own = "".join(f"{line}\n" for line in self.measures.lines(gauges))
        return own + "".join(await self._usage())

    async def _usage(self) -> list[str]:
        """What the proplets have told, while this manager hears them."""
        if self.control is None:
            return []
        try:
            tasks = await self._cluster.list(Kind.TASK)
            proplets = await self._cluster.list(Kind.PROPLET)
        except StoreError:
            return []  # what can be told without the cluster is
        return families(
            [task for task in tasks.items if isinstance(task, Task)],
            [proplet for proplet in proplets.items if isinstance(proplet, Proplet)],
            self.control,
        )

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take turn after turn, for ever. Only a defect of this program ends it."""
        pause = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                await self._turn()
            except (LeaseLostError, _SteppedBackError) as error:
                self.trouble = str(error)
                log.warning("this manager steps back: %s", error)
            except StoreError as error:
                self.trouble = str(error)
                log.warning("this manager cannot work, trying again: %s", error)
            except BaseExceptionGroup as group:
                errors = list(_leaves(group))
                if not all(isinstance(error, StoreError | LeaseLostError | _SteppedBackError) for error in errors):
                    raise
                self.trouble = "; ".join(map(str, errors))
                log.warning("this manager steps back: %s", self.trouble)
            pause = FIRST_PAUSE_S if time.monotonic() - began > LONGEST_PAUSE_S else min(2 * pause, LONGEST_PAUSE_S)
            await anyio.sleep(pause)

    async def _turn(self) -> None:
        if self._settings.lease is None:
            await self._lead()
            return
        async with held_lease(self._api, self._settings.lease):
            self.leading = True
            try:
                await self._lead()
            finally:
                self.leading = False

    async def _lead(self) -> None:
        """List, connect, drive, until cancelled or the cluster is away."""
        await self._synced()
        settings = self._settings
        control = Controller(
            self.store,
            policy=settings.policy,
            unsupported=rules.unsupported,
            not_proplets=(settings.manager_id,),
            membership=Membership(
                settings.register,
                settings.namespaces[0] if settings.namespaces else "default",
                (settings.topics.domain, settings.topics.channel),
            ),
            events=self._events,
            hold_s=settings.refused_hold_s,
        )
        await control.load()
        handing = settings.hands_out is not None
        bus_settings = BusSettings(settings.mqtt, settings.topics, settings.manager_id, settings.reply_s, handing)
        self.control = control
        starts = RoundStarts(self.store, control.hear)
        answers = ModuleAnswers(settings.hands_out, Assigned(control.held_by, control.held_by_others), starts.hear)
        try:
            async with (
                open_bus(bus_settings, control.announcement, answers.hear) as bus,
                open_works(self.store, self._events, collect_garbage=False),
                anyio.create_task_group() as tasks,
            ):
                self.trouble = ""
                log.info("this manager is at work")
                tasks.start_soon(control.run, bus)
                tasks.start_soon(starts.run)
                tasks.start_soon(answers.run, bus)
                pods = PodSettings(settings.group, settings.namespaces, settings.grants)
                tasks.start_soon(Pods(self._api, self.store, pods, self._events).run)
                await self._away()
        finally:
            self.control = None

    async def _synced(self) -> None:
        """Wait until everything was listed once, and is watched."""
        while True:
            try:
                await self._cluster.ready()
                if self.problem is None:
                    return
                self.trouble = str(self.problem)
            except StoreUnavailableError as error:
                self.trouble = str(error)
            await anyio.sleep(LOOK_S)

    async def _away(self) -> None:
        """Return never; raise when the cluster has been away for too long."""
        timeout_s = self._settings.server_timeout_s
        since: float | None = None
        while True:
            await anyio.sleep(LOOK_S)
            if self.pulse.problem is not None:
                raise _SteppedBackError(str(self.pulse.problem))
            problem = self._cluster.problem
            if problem is None:
                since = None
                continue
            since = since or time.monotonic()
            if time.monotonic() - since >= timeout_s:
                raise _SteppedBackError(f"the cluster has been away for {timeout_s:g} s: {problem}")


@asynccontextmanager
async def open_cluster_manager(settings: ClusterSettings) -> AsyncIterator[Reign]:
    """Run the manager of a cluster while the context is open; yields at once, whatever is there or not.

    Raises:
        AccessError: it is not known how to reach a cluster.
        HealthError: an address cannot be listened on.
    """
    async with AsyncExitStack() as stack:
        spaces = max(1, len(settings.namespaces))
        # A watch for each kind, and of Deployments.
        watches = (len(Kind) + 1) * spaces
        api = await stack.enter_async_context(open_api(settings.access, writers=WRITERS, watches=watches))
        instance = settings.lease.identity if settings.lease else new_identity()
        store = await stack.enter_async_context(
            open_kubernetes_store(api, group=settings.group, namespaces=settings.namespaces)
        )
        events = await stack.enter_async_context(open_kubernetes_events(api, instance, group=settings.group))
        reign = Reign(settings, api, store, events)
        for site in _sites(settings, reign):
            port = await stack.enter_async_context(open_site(site))
            log.info("%s on %s:%d", " and ".join(site.pages), site.host or "*", port)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(reign.pulse.run)
        tasks.start_soon(reign.run)
        stack.callback(tasks.cancel_scope.cancel)
        yield reign


def _sites(settings: ClusterSettings, reign: Reign) -> Iterator[Site]:
    probes: Mapping[str, Page] = {"/healthz": lambda: Answer("ok\n"), "/readyz": reign.readiness}
    metrics: Mapping[str, Page] = {"/metrics": metrics_page(reign.metrics)}
    try:
        guards = {"/metrics": Guard(settings.metrics_token, everybody=settings.metrics_open)}
    except FileError as error:
        raise HealthError(f"the token for /metrics cannot be used (--metrics-token-file): {error}") from error
    if settings.health is not None and settings.health == settings.metrics:
        yield Site(*settings.health, {**probes, **metrics}, guards=guards, setting="--health-probe-bind-address")
        return
    if settings.health is not None:
        yield Site(*settings.health, probes, setting="--health-probe-bind-address")
    if settings.metrics is not None:
        yield Site(*settings.metrics, metrics, settings.metrics_certificate, guards, "--metrics-bind-address")


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
