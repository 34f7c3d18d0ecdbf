"""What requests and urllib3 raise, and what registries answer, as errors of this package.

Imports requests: load it late.
"""

import http.client
import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import requests
import urllib3.exceptions

from proplet.oci.errors import (
    ConnectionBroken,
    ManifestUnknown,
    OciError,
    PullTimeout,
    RateLimited,
    RegistryError,
    RegistryFailing,
    RegistryUnreachable,
    RepositoryUnknown,
    TlsFailed,
    Unauthorized,
)
from proplet.oci.headers import retry_after
from proplet.oci.reference import Reference
from proplet.oci.watch import Watch

_MAX_TEXT = 200
_CERTIFICATE_WANTED = {400, 495, 496}  # nginx says so in HTTP; the last two are its own
_CERTIFICATE_ALERTS = (  # OpenSSL's names of what a server says that does not like who connects
    "CERTIFICATE_REQUIRED",
    "HANDSHAKE_FAILURE",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_UNKNOWN_CA",
    "ALERT_CERTIFICATE_UNKNOWN",
)


@contextmanager
def mapped(registry: str, watch: Watch) -> Iterator[None]:
    """Turn library errors into ours; when the pull had to stop, say that rather than how the read broke."""
    try:
        yield
    except OciError:
        raise
    except (
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        OSError,
        ValueError,
    ) as error:
        watch.check()
        raise _translated(registry, error) from error


def _translated(registry: str, error: Exception) -> OciError:
    chain = list(_causes(error))
    tls = _first(chain, (ssl.SSLError, requests.exceptions.SSLError, urllib3.exceptions.SSLError))
    if tls is not None:
        return TlsFailed(f"TLS with registry {registry} failed: {_tls_advice(tls)}")
    if isinstance(error, requests.TooManyRedirects):
        return RegistryError(f"registry {registry} redirects in circles: check its configuration")
    if _first(chain, (requests.exceptions.ProxyError, urllib3.exceptions.ProxyError)):
        return RegistryUnreachable(f"the proxy for registry {registry} cannot be used: check HTTPS_PROXY and NO_PROXY")
    if _first(chain, (urllib3.exceptions.NameResolutionError,)):
        return RegistryUnreachable(f"registry {registry} is unknown: its name does not resolve; check spelling and DNS")
    if refused := _first(chain, (urllib3.exceptions.NewConnectionError,)):
        detail = _detail(refused)
        return RegistryUnreachable(
            f"registry {registry} cannot be reached ({detail}): check its address and the network"
        )
    if _first(chain, (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)):
        connecting = _first(chain, (requests.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError))
        doing = "accept a connection" if connecting else "send anything"
        return PullTimeout(
            f"registry {registry} did not {doing} within the time limit: check the network or raise the limit"
        )
    unread = _first(chain, (http.client.BadStatusLine, http.client.LineTooLong))
    if unread is not None and not isinstance(unread, http.client.RemoteDisconnected):
        return ConnectionBroken(f"registry {registry} does not answer as HTTP does: check address and port")
    if _first(chain, (requests.ConnectionError, urllib3.exceptions.ProtocolError, ConnectionError)):
        return ConnectionBroken(f"registry {registry} broke the connection: try again")
    if not isinstance(error, OSError) or isinstance(error, requests.RequestException):
        return RegistryError(f"registry {registry} answers what cannot be understood ({type(error).__name__})")
    return RegistryUnreachable(
        f"registry {registry} cannot be reached ({_detail(error)}): check its address and the network"
    )


def answered(
    reference: Reference, response: requests.Response, body: bytes, what: str, *, identity: str, advice: str
) -> OciError:
    """The error for an answer that is not a success.

    ``what`` was asked for ("tag v1"), by whom we claimed to be, ``identity``;
    ``advice`` is what to do when that is refused.
    """
    registry, status = reference.registry, response.status_code
    codes, text = _explanation(body)
    if status == 401:
        return Unauthorized(f"registry {registry} refuses {identity} for {reference.repository}: {advice}")
    if status == 403:
        return Unauthorized(
            f"registry {registry} does not let {identity} read {reference.repository}: ask for the right"
        )
    if status == 404 and "NAME_UNKNOWN" in codes:
        return RepositoryUnknown(f"registry {registry} has no repository {reference.repository}: check the name")
    if status == 404:
        return ManifestUnknown(f"registry {registry}: {reference.repository} has no {what}: check the tag or digest")
    if status == 429:
        wait = retry_after(response.headers)
        long = "wait" if wait is None else f"wait {wait:.0f} s"
        return RateLimited(f"registry {registry} limits our rate: {long}, or use credentials or a mirror")
    kind = RegistryFailing if status >= 500 else RegistryError
    advice = "try again later" if status >= 500 else "check address, port and scheme"
    if "SSL certificate" in text and status in _CERTIFICATE_WANTED:
        return TlsFailed(
            f"registry {registry} wants a client certificate ({text}): set client_cert_file and client_key_file for it"
        )
    if "HTTPS" in text and str(response.url).startswith("http:"):
        advice = "it speaks TLS: give its CA in ca_file, or set plain_http to false"
    said = f" ({text})" if text else ""
    return kind(f"registry {registry} answers HTTP {status} {response.reason or ''}{said}: {advice}")


def _explanation(body: bytes) -> tuple[set[str], str]:
    """The error codes of a registry's answer, and its words."""
    try:
        errors = json.loads(body)["errors"]
        codes = {str(item.get("code", "")) for item in errors}
        return codes, "; ".join(str(item.get("message", "")) for item in errors)[:_MAX_TEXT]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        text = body[:_MAX_TEXT].decode("utf-8", "replace").strip()
        if text.startswith("<"):  # a web server's page: its title is all that may say something
            title = re.search(r"<title>([^<]*)</title>", text, re.IGNORECASE)
            text = title[1].strip() if title else ""
        return set(), text


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything it was made from: causes, contexts, urllib3's ``reason`` and exceptions in ``args``."""
    pending, seen = [error], set[int]()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        related = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        pending.extend(item for item in related if isinstance(item, BaseException))


def _first(chain: list[BaseException], kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    return next((error for error in chain if isinstance(error, kinds)), None)


def _detail(error: BaseException) -> str:
    """The operating system's words, without the library's names of objects around them."""
    found = _first(list(_causes(error)), (OSError,))
    if isinstance(found, OSError) and found.strerror:
        return found.strerror
    return str(error).rpartition(": ")[2][:_MAX_TEXT]


def _tls_advice(error: BaseException) -> str:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message or str(cause)
            if "expired" in reason:
                return f"{reason}: renew the registry's certificate, or check this device's clock"
            if "not yet valid" in reason:
                return f"{reason}: check this device's clock"
            if "match" in reason or "not valid for" in reason:
                return f"{reason}: use the name the certificate is for"
            return f"{reason}: give its CA in ca_file"
        if isinstance(cause, ssl.SSLError) and any(alert in str(cause).upper() for alert in _CERTIFICATE_ALERTS):
            return (
                "it wants a client certificate, or another than it was shown: set client_cert_file and client_key_file "
                "for it"
            )
        if isinstance(cause, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(cause):
            return "it does not speak TLS: set plain_http for it if that is meant"
    return f"{str(error)[:_MAX_TEXT]}"
