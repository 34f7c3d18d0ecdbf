"""The part of the application that is about a cluster: its manager, told what the settings say, and the way out."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from proplet.agent.app_images import answer_settings, open_served_images
from proplet.agent.config_check import bind_address
from proplet.agent.config_schema import KubernetesTable, NodeSettings
from proplet.agent.link_parts import topics_of
from proplet.agent.mqtt_model import MqttSettings
from proplet.manager.cluster import ClusterSettings, Reign, lease_terms, open_cluster_manager
from proplet.manager.exchange import Policy
from proplet.manager.freeing import free
from proplet.manager.health import HealthError
from proplet.manager.kubernetes_access import Access
from proplet.manager.module_answers import AnswerSettings
from proplet.manager.pod_grants import Grants
from proplet.manager.ports import StoreError
from proplet.manager.steering import Steering

if TYPE_CHECKING:
    from proplet.manager.api import ApiSettings
    from proplet.manager.api_routes import NodeState

log = logging.getLogger(__name__)

#: What keeps a cluster's manager from starting.
ERRORS: Final = (StoreError, HealthError)


def access_of(table: KubernetesTable) -> Access:
    """How the cluster is reached."""
    return Access(table.kubeconfig, table.context or "")


def cluster_settings(settings: NodeSettings, mqtt: MqttSettings) -> ClusterSettings:
    """What the manager is told."""
    table, manager = settings.kubernetes, settings.manager
    assert table is not None
    assert manager is not None
    certificate = None
    if table.metrics_cert_file and table.metrics_key_file:
        certificate = (str(table.metrics_cert_file), str(table.metrics_key_file))
    lease = None
    if table.leader_elect:
        lease = replace(
            lease_terms(table.group, table.lease_name, table.lease_namespace, table.identity, table.namespaces),
            duration_s=round(table.lease_duration_s),
            renew_deadline_s=table.renew_deadline_s,
            retry_s=table.retry_period_s,
        )
    return ClusterSettings(
        mqtt=mqtt,
        topics=topics_of(settings),
        manager_id=mqtt.client_id,
        access=access_of(table),
        group=table.group,
        namespaces=table.namespaces,
        lease=lease,
        policy=Policy(
            silence_s=manager.liveliness_timeout_s,
            silent_deadline_s=manager.default_deadline_s or float("inf"),
            confirm_delay_s=0.25,  # in a burst results come later than that they are on the way: a write less for each
            finalizers=True,
            last_seen_every_s=table.last_seen_interval_s,
        ),
        server_timeout_s=table.api_server_timeout_s,
        refused_hold_s=table.refused_hold_s,
        register=table.register,
        reply_s=manager.mqtt_timeout_s,
        health=_bound(table.health_address),
        metrics=_bound(table.metrics_address),
        metrics_certificate=certificate,
        metrics_token=str(table.metrics_token_file) if table.metrics_token_file else None,
        metrics_open=table.metrics_open,
        grants=Grants(table.proplet_service_accounts, table.proplet_secrets),
    )


def _bound(address: str | None) -> tuple[str, int] | None:
    return None if address in (None, "", "0") else bind_address(str(address))


@asynccontextmanager
async def open_cluster(
    settings: NodeSettings, mqtt: MqttSettings, hands_out: AnswerSettings | None = None
) -> AsyncIterator[Reign]:
    """Run the manager of the cluster that the settings name. Raises one of `ERRORS`: it cannot start as configured."""
    async with open_cluster_manager(replace(cluster_settings(settings, mqtt), hands_out=hands_out)) as reign:
        yield reign


@asynccontextmanager
async def open_lone_cluster(settings: NodeSettings, mqtt: MqttSettings) -> AsyncIterator[Reign]:
    """The same in a process without an agent, which hands out images and has its mirror. Raises as above."""
    async with (
        open_served_images(settings) as (images, _mirror),
        open_cluster(settings, mqtt, answer_settings(settings, images)) as reign,
    ):
        yield reign


@asynccontextmanager
async def open_local_api(served: "ApiSettings", reign: Reign, about: "NodeState") -> AsyncIterator[None]:
    """Serve this node's HTTP API, about the cluster's resources. Raises ApiError: it cannot be opened as configured."""
    from proplet.manager.api import open_api

    def state() -> "NodeState":
        return replace(about, manager_id=f"{about.proplet_id}-manager", mqtt_connected=reign.connected)

    async with open_api(served, reign.store, Steering(lambda: reign.control), state):
        yield


async def free_resources(settings: NodeSettings) -> int:
    """Take this manager's finalizers off every resource; return how many had one. Raises StoreError."""
    table = settings.kubernetes
    assert table is not None
    return await free(access_of(table), table.group, table.namespaces)
