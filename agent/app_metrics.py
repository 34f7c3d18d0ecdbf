"""The device's metrics served: on an address of the node's own, and to the manager of the same node.

Beside `app` the only place that knows where the pages for Prometheus come from.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from proplet.agent import metrics_page
from proplet.agent.config_check import bind_address
from proplet.agent.events import Spent
from proplet.agent.failures import as_node_errors
from proplet.agent.metering import Metering
from proplet.agent.metrics_page import Family
from proplet.agent.ports import Runtime
from proplet.agent.vitals import Vitals

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentMetrics:
    """The parts of an agent that are measured."""

    meters: Metering
    vitals: Vitals
    runtime: Runtime
    invoked: Callable[[], Spent]
    workers: Callable[[], int]
    fetched_bytes: Callable[[], int]

    def work(self) -> str:
        """Return what the agent has done, for the page of a manager, which hears the rest from the wire."""
        return _text(metrics_page.work(self.meters, self.invoked(), self.workers(), self.fetched_bytes()))

    async def everything(self) -> str:
        """Return all of it, measured now."""
        measured = await self.runtime.sample()
        live = metrics_page.live(measured, self.meters.tasks())
        return self.work() + _text(metrics_page.device(*self.vitals.measure())) + _text(live)


class Counted:
    """What the manager of this node, which is there before the agent, asks for the agent's part of its page."""

    agent: AgentMetrics | None = None

    def text(self) -> str:
        """Return what the agent counts; nothing before it is there."""
        return self.agent.work() if self.agent else ""


def _text(families: Iterable[Family]) -> str:
    from proplet.manager.api_stats import family

    return "".join(family(*each) for each in families)


@asynccontextmanager
async def open_metrics(address: str | None, agent: AgentMetrics) -> AsyncIterator[int | None]:
    """Serve ``/metrics`` and the reference's ``/health`` while the context is open; yields the port, if any.

    Raises:
        NodeError: the address cannot be listened on.
    """
    where = bind_address(address) if address else None
    if where is None:
        yield None
        return
    from proplet.manager.health import Answer, HealthError, Site, open_site
    from proplet.manager.health import metrics_page as page

    def health() -> Answer:
        text = f'{{"status":"ok","running_tasks":{agent.meters.running}}}\n'
        return Answer(text, content_type="application/json")

    pages = {"/metrics": page(agent.everything), "/health": health}
    with as_node_errors(HealthError):
        async with open_site(Site(*where, pages, setting="[agent] metrics_address")) as port:
            log.info("metrics on %s:%d", where[0] or "*", port)
            yield port
