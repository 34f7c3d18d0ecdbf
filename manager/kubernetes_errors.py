"""What an API server's refusals mean, as the errors of `ports`, so that nobody else reads HTTP codes."""

import json
from collections.abc import Mapping
from typing import Any, Final

from proplet.manager.ports import (
    AlreadyExistsError,
    ConflictError,
    GoneError,
    NotFoundError,
    RefusedError,
    ResourceTooLargeError,
    StoreError,
    StoreUnavailableError,
)

_LONGEST: Final = 600
_TOO_LARGE: Final = (
    "request is too large",
    "larger than max",
)  # etcd's words, which come as an error of the server's own


class NotServedError(StoreUnavailableError):
    """The API server does not know this kind of object: its custom resource definition is not installed."""


class UnreadableError(StoreUnavailableError):
    """The API server answered with something that is no such object."""


def refusal(status: int, body: bytes, what: str) -> StoreError:
    """Return the error for an answer with the HTTP status `status` (400 or more); `what` names what was tried."""
    answer = _answer(body)
    said = str(answer.get("message") or body[:_LONGEST].decode("utf-8", "replace")).strip()[:_LONGEST]
    text = f"{what}: {said or f'HTTP {status}'}"
    if status == 404:
        # The answer about a missing object is a Status that names it; about a missing kind it is plain text.
        return NotFoundError(text) if _details(answer).get("name") else NotServedError(text)
    if status == 409:
        exists = answer.get("reason") == "AlreadyExists"
        return AlreadyExistsError(text) if exists else ConflictError(f"{text}: read it again")
    if status == 410:
        return GoneError(f"{text}: list again")
    if status == 401:
        return RefusedError(f"{text}: the credentials of the kubeconfig or the service account are not accepted")
    if status == 403:
        return RefusedError(f"{text}: grant it with a Role or ClusterRole")
    if status == 413 or (status >= 500 and any(words in said for words in _TOO_LARGE)):
        return ResourceTooLargeError(text)
    if 400 <= status < 500 and status != 429:
        return RefusedError(text)
    return StoreUnavailableError(text)


def event_error(answer: Any, what: str) -> StoreError:
    """Return the error that a watch sent as its last event (a Status)."""
    answer = answer if isinstance(answer, Mapping) else {}
    code = answer.get("code")
    return refusal(code if isinstance(code, int) else 500, json.dumps(answer).encode(), what)


def _answer(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _details(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    details = answer.get("details")
    return details if isinstance(details, dict) else {}
