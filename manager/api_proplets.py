"""The reference's routes for proplets: who is there, since when, what it measured, and its SDF description."""

from starlette.requests import Request
from starlette.responses import Response

from proplet.agent.codec import rfc3339, to_plain
from proplet.manager.api_http import ProblemError, check_version, invalid, page, rendered, reply
from proplet.manager.api_routes import PAGING, Context, Operation
from proplet.manager.api_sdf import description
from proplet.manager.model import Kind, Proplet
from proplet.manager.ports import NotFoundError
from proplet.manager.rest import proplet_to_rest


async def list_proplets(context: Context, request: Request) -> Response:
    """Answer a page of proplets, in order of creation; `status` selects those alive (active) or not (inactive)."""
    wanted = page(request)
    status = request.query_params.get("status", "")
    if status not in {"", "active", "inactive"}:
        raise invalid("status must be active or inactive")
    known = [(item, context.control.liveness(item.id)) for item in await _all(context)]
    chosen = [pair for pair in known if not status or pair[1].alive == (status == "active")]
    shown = await rendered(wanted.of(chosen), lambda pair: proplet_to_rest(*pair))
    return reply(wanted.body("proplets", shown, len(chosen)))


async def get_proplet(context: Context, request: Request) -> Response:
    """Answer one proplet."""
    proplet = await _find(context, request)
    return reply(proplet_to_rest(proplet, context.control.liveness(proplet.id)))


async def delete_proplet(context: Context, request: Request) -> Response:
    """Forget a proplet that has no tasks under way; it comes back if it is still there and speaks again."""
    proplet = await _find(context, request)
    check_version(request, proplet.meta.version)
    count = context.control.liveness(proplet.id).task_count
    if count > 0:
        raise ProblemError(409, "has_tasks", f"{count} tasks are under way on {proplet.id}: stop them first")
    await context.store.delete(Kind.PROPLET, proplet.meta.key)
    return Response(status_code=204)


async def alive_history(context: Context, request: Request) -> Response:
    """Answer a page of a proplet's last heartbeats, oldest first."""
    wanted = page(request)
    proplet = await _find(context, request)
    history = context.control.liveness(proplet.id).history
    return reply(wanted.body("history", [rfc3339(at) for at in wanted.of(history)], len(history)))


async def metrics(context: Context, request: Request) -> Response:
    """Answer a page of a proplet's last measurements, oldest first."""
    wanted = page(request)
    proplet = await _find(context, request)
    found = context.control.proplet_metrics(proplet.id)
    return reply(wanted.body("metrics", [to_plain(item) for item in wanted.of(found)], len(found)))


async def sdf(context: Context, request: Request) -> Response:
    """Answer the proplet's Semantic Definition Format document."""
    proplet = await _find(context, request)
    return reply(description(proplet.id), media_type="application/sdf+json")


async def _all(context: Context) -> list[Proplet]:
    return [item for item in (await context.store.list(Kind.PROPLET)).items if isinstance(item, Proplet)]


async def _find(context: Context, request: Request) -> Proplet:
    wanted = request.path_params["id"]
    for proplet in await _all(context):
        if proplet.id == wanted:
            return proplet
    raise NotFoundError(f"there is no proplet {wanted[:100]!r}")


OPERATIONS = (
    Operation(
        "GET",
        "/proplets",
        list_proplets,
        "List proplets",
        answer="PropletList",
        parameters=(*PAGING, "status"),
        errors=(400,),
        tag="proplets",
    ),
    Operation("GET", "/proplets/{id}", get_proplet, "Get a proplet", answer="Proplet", errors=(404,), tag="proplets"),
    Operation(
        "DELETE",
        "/proplets/{id}",
        delete_proplet,
        "Forget a proplet that has no tasks under way",
        204,
        errors=(404, 409, 412),
        tag="proplets",
    ),
    Operation(
        "GET",
        "/proplets/{id}/sdf",
        sdf,
        "Get a proplet's SDF document",
        answer="Sdf",
        answer_type="application/sdf+json",
        errors=(404,),
        tag="proplets",
    ),
    Operation(
        "GET",
        "/proplets/{id}/metrics",
        metrics,
        "List a proplet's measurements",
        answer="PropletMetricsList",
        parameters=PAGING,
        errors=(400, 404),
        tag="proplets",
    ),
    Operation(
        "GET",
        "/proplets/{id}/alive-history",
        alive_history,
        "List a proplet's last heartbeats",
        answer="AliveHistory",
        parameters=PAGING,
        errors=(400, 404),
        tag="proplets",
    ),
)
