"""The door of a listener: who may speak to the API, and what every answer carries.

A Unix socket is guarded by its file's mode. A TCP listener is reachable by every local user and, through DNS
rebinding, by every web page a user of this machine looks at; so it asks for a token, answers only to names it knows,
and refuses requests that another site's page makes. The token comes, best first, as ``Authorization: Bearer``, as the
password of ``Authorization: Basic`` or as a path prefix ``/t/<token>/``; the last two are for clients, such as the
reference's command line and SDK, that know nothing but a base URL. Nothing logs a path with the prefix still on it.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proplet.manager.api_http import ProblemError

_PREFIX = "/t/"
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class DoorRules:
    """What a TCP listener lets in. `hosts` are names in lower case; `origins` are written as browsers write them."""

    token: str = field(repr=False)
    hosts: frozenset[str] = _LOOPBACK_NAMES
    origins: frozenset[str] = frozenset()

    @classmethod
    def build(cls, token: str, bound: str, hosts: tuple[str, ...], origins: tuple[str, ...]) -> "DoorRules":
        """Return the rules of a listener bound to `bound`: loopback names, that one, and the configured ones."""
        names = {*_LOOPBACK_NAMES, bound.lower(), *(name.lower().strip("[]") for name in hosts)}
        return cls(token, frozenset(names), frozenset(origin.lower().rstrip("/") for origin in origins))


class Guard:
    """The outermost ASGI layer of one listener. `rules` is None on a Unix socket."""

    def __init__(self, app: ASGIApp, rules: DoorRules | None) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and pass on, or refuse."""
        if scope["type"] != "http":
            return

        async def stamp(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # RFC 9110, 6.6.1; the server's own clock tick, ten times a second, is switched off.
                headers.setdefault("date", formatdate(usegmt=True))
                headers.setdefault("cache-control", "no-store")
                headers.setdefault("x-content-type-options", "nosniff")
            await send(message)

        try:
            _check_framing(Headers(scope=scope))
            inner = scope if self._rules is None else _admit(self._rules, scope)
        except ProblemError as problem:
            await problem.response()(scope, receive, stamp)
        else:
            await self._app(inner, receive, stamp)


def _check_framing(headers: Headers) -> None:
    """Refuse a body with two lengths: a proxy in front may believe the other one (RFC 9112, 6.3)."""
    if "transfer-encoding" in headers and "content-length" in headers:
        message = "send Content-Length or Transfer-Encoding, not both"
        raise ProblemError(400, "invalid", message, {"Connection": "close"})


def _admit(rules: DoorRules, scope: Scope) -> Scope:
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not answers_to(rules.hosts, host, scope):
        raise ProblemError(
            421, "host_not_allowed", "this node does not answer to that Host; add the name to the API's allowed hosts"
        )
    origin = headers.get("origin")
    if origin is not None and not _same_origin(rules, origin.lower(), f"{scope['scheme']}://{host}".lower()):
        raise ProblemError(403, "origin_not_allowed", "requests from pages of another origin are refused")
    path, in_path = _split(scope["path"])
    if not _authentic(rules.token, headers.get("authorization"), in_path):
        # Basic is accepted but not offered: a browser would ask for it, keep it, and send it along for any page.
        raise ProblemError(
            401,
            "unauthorized",
            "send the node's token: Authorization: Bearer TOKEN",
            {"WWW-Authenticate": 'Bearer realm="proplet"'},
        )
    if in_path is None:
        return scope
    return {**scope, "path": path, "raw_path": path.encode("utf-8")}


def answers_to(hosts: frozenset[str], host: str, scope: Scope) -> bool:
    """Return whether a ``Host`` header names one of these, or the address that the connection was made to."""
    try:
        parts = urlsplit(f"//{host}")
        name = parts.hostname or ""
        _ = parts.port  # raises when it is no number
    except ValueError:
        return False
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return False
    name = name.rstrip(".")
    return name in hosts or _is_own_address(name, scope)


def _is_own_address(name: str, scope: Scope) -> bool:
    # Rebinding needs a name; an address in the Host header that is the connection's own cannot have been rebound.
    address, _port = scope.get("server") or ("", None)
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(address)
    except ValueError:
        return False


def _same_origin(rules: DoorRules, origin: str, own: str) -> bool:
    return origin == own or origin in rules.origins


def _split(path: str) -> tuple[str, str | None]:
    """Return the path without the token's prefix, and the token."""
    if not path.startswith(_PREFIX):
        return path, None
    token, _, rest = path.removeprefix(_PREFIX).partition("/")
    return f"/{rest}", token


def _authentic(token: str, authorization: str | None, in_path: str | None) -> bool:
    candidates = [in_path] if in_path is not None else []
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() == "bearer":
        candidates.append(value.strip())
    elif scheme.lower() == "basic":
        candidates.append(_password(value))
    return any(_equal(candidate, token) for candidate in candidates)


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _equal(candidate: str, token: str) -> bool:
    # Hashed first: comparing digests of one length tells nothing of the token's length either.
    given, wanted = (hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (candidate, token))
    return hmac.compare_digest(given, wanted)
