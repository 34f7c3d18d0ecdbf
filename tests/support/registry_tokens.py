"""A token service for docker-registry: who gives the right password gets a signed token for what it may read.

Form: the distribution project's "Token Authentication Specification" and its token's JWT form (``access`` claims, the
certificate of the key in the header's ``x5c``), and "OAuth2 token endpoint" for the POST with a refresh token.
"""

import base64
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.support.registry import PASSWORD, USER

ISSUER, SERVICE = "proplet test tokens", "proplet test registry"
REFRESH_TOKEN = "refresh-0123"

_COORDINATE = 32  # bytes of a P-256 number: RFC 7518, section 3.4


@dataclass
class TokenService:
    """``asked``: of each request method, user or grant, scope. ``readable``: repositories for everybody."""

    directory: Path
    readable: set[str] = field(default_factory=set)
    lifetime_s: int = 300
    field_name: str = "token"
    failing: int = 0  # so many requests are answered 503 first
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ISSUER)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._der = certificate.public_bytes(serialization.Encoding.DER)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.bundle = self.directory / "tokens.pem"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def auth(self) -> dict[str, Any]:
        """The part ``auth`` of the configuration of a registry that trusts this service."""
        realm = f"http://127.0.0.1:{self.port}/token"
        return {
            "token": {"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(self.bundle)},
        }

    def token(self, user: str, scope: str, *, age_s: int = 0) -> str:
        """A token for what ``user`` ("" for anybody) may do of ``scope``, made ``age_s`` ago."""
        now = int(time.time()) - age_s
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(self._der).decode()]}
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            "exp": now + self.lifetime_s,
            "nbf": now - 10,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": [found for one in scope.split() if (found := self._access(user, one))],
        }
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64url(r.to_bytes(_COORDINATE, 'big') + s.to_bytes(_COORDINATE, 'big'))}"

    def _access(self, user: str, scope: str) -> dict[str, Any] | None:
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        wanted = actions.split(",")
        if not user:
            wanted = [one for one in wanted if one == "pull" and name in self.readable]
        return {"type": kind, "name": name, "actions": wanted} if wanted else None


class _Handler(BaseHTTPRequestHandler):
    service: TokenService
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        scope = " ".join(parse_qs(urlsplit(self.path).query).get("scope", []))
        scheme, _, encoded = self.headers.get("Authorization", "").partition(" ")
        user, _, password = base64.b64decode(encoded).decode().partition(":") if scheme == "Basic" else ("", "", "")
        self.service.asked.append(("GET", user, scope))
        self._answer(user, scope, known=not user or (user, password) == (USER, PASSWORD))

    def do_POST(self) -> None:
        body = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        grant, scope = (body.get(name, [""])[0] for name in ("grant_type", "scope"))
        self.service.asked.append(("POST", grant, scope))
        if grant == "refresh_token":
            known = body.get("refresh_token") == [REFRESH_TOKEN]
        else:
            known = (body.get("username"), body.get("password")) == ([USER], [PASSWORD])
        self._answer(USER, scope, known=known)

    def _answer(self, user: str, scope: str, *, known: bool) -> None:
        service = self.service
        if service.failing:
            service.failing -= 1
            self._send(503, {})
        elif not known:
            self._send(401, {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]})
        else:
            issued = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._send(
                200,
                {
                    service.field_name: service.token(user, scope),
                    "expires_in": service.lifetime_s,
                    "issued_at": issued,
                },
            )

    def _send(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def token_service(directory: Path, **how: Any) -> Iterator[TokenService]:
    """The service in a thread, on a free port of loopback."""
    service = TokenService(directory, **how)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": service}))
    server.daemon_threads = True
    service.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
