"""Invocations over HTTP: the reference's route and our own, which says more of what came of it."""

import json
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from proplet.agent.codec import WireError, decode_as, to_plain
from proplet.agent.wire import Invoke, InvokeResult
from proplet.manager.api_http import ProblemError, invalid, media_type, parse_json, read_body, reply, unavailable
from proplet.manager.api_http import unsupported as unsupported_type
from proplet.manager.api_routes import Context, Operation
from proplet.manager.invoking import PATIENCE_S
from proplet.manager.model import Key, Kind
from proplet.manager.ports import InvocationError, NoAnswerError

_JSON: Final = "application/json"
_MEMBERS: Final = frozenset({"inputs", "env", "timeout_seconds"})
_STATUS: Final = {"not_found": 404, "busy": 503, "no_proplet": 503}


async def invoke_task(context: Context, request: Request) -> Response:
    """Answer what a latent task returned; 502 with its error where it failed, or its proplet refused."""
    uid = str(request.path_params["id"])
    await context.store.find(Kind.TASK, uid)
    answer = await _invoke(context, request, uid)
    if answer.error is not None:
        reason = answer.ext.reason.value if answer.ext and answer.ext.reason else "invocation_failed"
        raise ProblemError(502, reason, answer.error)
    return reply({"invoked": True, "results": answer.results})


async def invoke_resource(context: Context, request: Request) -> Response:
    """Answer what a latent task returned: results, and an error where it failed."""
    key = Key(request.path_params["name"], request.path_params["namespace"])
    task = await context.store.get(Kind.TASK, key)
    answer = await _invoke(context, request, task.meta.uid)
    terms = to_plain(answer.ext) if answer.ext else {}
    told = {name: terms[name] for name in ("reason", "exit_code", "usage") if name in terms}
    body = {"proplet_id": answer.proplet_id, "results": answer.results, "error": answer.error}
    return reply({"invoked": answer.error is None, **body, **told})


async def _invoke(context: Context, request: Request, uid: str) -> InvokeResult:
    given, timeout_s = await _given(context, request)
    try:
        return await context.control.invoke(uid, given.inputs, given.env, timeout_s)
    except InvocationError as error:
        status = _STATUS.get(error.reason, 409)
        raise (
            unavailable(error.reason, str(error)) if status == 503 else ProblemError(status, error.reason, str(error))
        ) from None
    except NoAnswerError as error:
        raise ProblemError(504, "no_answer", f"{error}; it may have run all the same") from None


async def _given(context: Context, request: Request) -> tuple[Invoke, float]:
    """The inputs and variables of the body, which may be empty, and how long to wait."""
    async with read_body(request, context.body) as body:
        if not body:
            return Invoke("-"), PATIENCE_S
        if media_type(request) != _JSON:
            raise unsupported_type(request, _JSON)
        value: Any = parse_json(body)
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object")
    if unknown := value.keys() - _MEMBERS:
        raise invalid(f"there is no member {min(unknown)[:50]!r}; there are {', '.join(sorted(_MEMBERS))}")
    timeout_s = value.pop("timeout_seconds", PATIENCE_S)
    if not isinstance(timeout_s, int | float) or isinstance(timeout_s, bool) or not 0 < timeout_s <= PATIENCE_S:
        raise invalid(f"timeout_seconds must be a number above 0, at most {PATIENCE_S:g}")
    try:
        return decode_as(Invoke, json.dumps({"id": "-", **value}).encode()), float(timeout_s)
    except WireError as error:
        raise invalid(error.detail) from None


OPERATIONS = (
    Operation(
        "POST",
        "/tasks/{id}/invoke",
        invoke_task,
        "Invoke a latent task",
        answer="Invoked",
        body="Invocation",
        errors=(400, 404, 408, 409, 413, 415, 502, 504),
    ),
    Operation(
        "POST",
        "/api/v1/tasks/{namespace}/{name}/invoke",
        invoke_resource,
        "Invoke a latent task",
        answer="InvocationAnswer",
        body="Invocation",
        errors=(400, 404, 408, 409, 413, 415, 504),
        tag="manifests",
    ),
)
