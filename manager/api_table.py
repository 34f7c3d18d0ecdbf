"""Every operation of the HTTP API, in the order in which paths are matched."""

from proplet.manager import api_invoke, api_jobs, api_manifests, api_node, api_proplets, api_tasks, api_top, api_watch
from proplet.manager.api_routes import Operation

# Paths with fewer parameters first: /api/v1/node must not be taken for a kind.
OPERATIONS: tuple[Operation, ...] = (
    *api_tasks.OPERATIONS,
    *api_invoke.OPERATIONS,
    *api_jobs.OPERATIONS,
    *api_proplets.OPERATIONS,
    *api_node.OPERATIONS,
    *api_top.OPERATIONS,
    *api_watch.OPERATIONS,
    *api_manifests.OPERATIONS,
)
