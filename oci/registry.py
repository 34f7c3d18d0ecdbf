"""The registry client: manifests as raw bytes and blobs as checked streams. The one module that imports oras.

oras-py 0.2.43 gives the session and the token and Basic protocols; everything that decides about bytes is done here: it
checks no digest, sets no time limit and no size limit, answers a Basic challenge with the token protocol by default,
then sleeps for 131 s between retries (its ``do_request``), and makes nothing of an index. Paths, statuses and headers:
OCI distribution specification 1.1.
"""

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import urlsplit

from proplet.oci.addresses import is_forbidden, is_loopback
from proplet.oci.auth import Credentials, find_credentials
from proplet.oci.digest import Digest
from proplet.oci.errors import (
    AddressRefused,
    DigestMismatch,
    InvalidDigest,
    ManifestUnknown,
    OciError,
    RegistryError,
    RegistryFailing,
    RegistryUnreachable,
    RepositoryUnknown,
    SizeMismatch,
    TooLarge,
    Truncated,
    Unauthorized,
)
from proplet.oci.headers import content_length, retry_after
from proplet.oci.layout import BlobWriter, OciLayout
from proplet.oci.manifest import ACCEPTED_MANIFESTS, Descriptor
from proplet.oci.reference import DOCKER_HUB, Reference
from proplet.oci.settings import MAX_MANIFEST_BYTES, RegistrySettings
from proplet.oci.trust import certificates, is_plain
from proplet.oci.watch import Watch

if TYPE_CHECKING:
    import requests

_HUB_API = "registry-1.docker.io"
_RETRIED = {429, 500, 502, 503, 504}
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class RawManifest:
    """A manifest as delivered: its bytes, what the registry calls them, and the digest we computed."""

    data: bytes
    content_type: str
    digest: Digest


class RegistryClient:
    """A connection to the registry of one reference, for one pull; a context manager.

    Raises:
        AddressRefused: the registry is at a link-local or metadata address.
        TlsFailed: the CA file cannot be read.
    """

    def __init__(
        self, reference: Reference, settings: RegistrySettings, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Load oras and prepare a session; nothing is sent yet."""
        host = settings.host(reference.registry)
        if is_forbidden(reference.host):
            raise AddressRefused(f"registry {reference.registry} is a link-local or metadata address: never used")
        self._reference = reference
        self._settings = settings
        self._credentials: Credentials | None = None
        self._authorization: dict[str, str] = {}
        self._answered = False
        self._verify = certificates(reference, host)
        self._plain = is_plain(reference, host)
        api = _HUB_API if reference.registry == DOCKER_HUB else reference.registry
        self._root = f"{'http' if self._plain else 'https'}://{api}/v2/{reference.repository}"
        self._open(api, cancelled)

    def _open(self, api: str, cancelled: Callable[[], bool]) -> None:
        import oras.provider

        from proplet.oci import faults, transport

        # What oras logs about refused logins reaches the user as our errors.
        logging.getLogger("oras.logger").setLevel(logging.CRITICAL + 1)
        self._faults, self._transport = faults, transport
        self._oras = oras.provider.Registry(api, insecure=self._plain, tls_verify=self._verify)
        host = str(urlsplit(self._root).hostname)
        self._watch = Watch(self._settings.total_timeout_s, cancelled)
        session = transport.GuardedSession(
            transport.AddressGuard(host),
            self._watch,
            self._settings.connect_timeout_s,
            self._settings.read_timeout_s,
            proxies=not is_loopback(host),
        )
        session.cookies = self._oras.session.cookies  # oras' policy: keep none
        self._oras.session.close()
        self._oras.session = self._session = session

    def manifest(self, expected: Digest | None = None) -> RawManifest:
        """The manifest of the reference, or that with the expected digest, as the bytes that came.

        Raises:
            RegistryFault: the registry or the way to it; the subclass says what.
            InvalidCredentials: the registry wants credentials, and a file or helper with them cannot be used.
            DigestMismatch: the bytes have another digest than asked for, or than the registry says.
            TooLarge: more than 4 MiB.
        """
        key = str(expected) if expected else self._reference.manifest_key
        return self._retrying(lambda: self._manifest(key, expected or self._reference.digest))

    def _manifest(self, key: str, expected: Digest | None) -> RawManifest:
        what = f"the manifest {self._reference.name} {key}"
        with self._get(f"/manifests/{key}", ", ".join(ACCEPTED_MANIFESTS)) as response:
            if response.status_code != 200:
                raise self._refusal(response, f"tag {key}" if ":" not in key else f"manifest {key}")
            length = content_length(response.headers)
            data = self._read_manifest(response, length or 0, what)
        if length is not None and len(data) != length:
            raise Truncated(f"{what} ended after {len(data)} of {length} bytes")
        digest = _checked_digest(data, expected, response.headers.get("Docker-Content-Digest"), what)
        return RawManifest(data, response.headers.get("Content-Type", ""), digest)

    def _read_manifest(self, response: "requests.Response", length: int, what: str) -> bytes:
        data = bytearray()
        for chunk in () if length > MAX_MANIFEST_BYTES else self._chunks(response):
            data += chunk
            if len(data) > MAX_MANIFEST_BYTES:
                break
        if max(length, len(data)) > MAX_MANIFEST_BYTES:
            raise TooLarge(
                f"{what} has more than the limit of {MAX_MANIFEST_BYTES} bytes: it cannot be that of a module"
            )
        return bytes(data)

    def copy_blob(
        self,
        descriptor: Descriptor,
        layout: OciLayout,
        what: str,
        progress: Callable[[int], None] = lambda _count: None,
    ) -> None:
        """Bring a blob into the store, hashed while it streams and never longer than its descriptor says.

        ``progress`` is told how many bytes are there, from 0 again when a broken transfer is repeated.

        Raises:
            RegistryFault: the registry or the way to it.
            DigestMismatch, SizeMismatch: what came is not what the descriptor promises.
            StoreFault: the disk.
        """
        self._retrying(lambda: self._copy_blob(descriptor, layout, what, progress))

    def _copy_blob(self, descriptor: Descriptor, layout: OciLayout, what: str, progress: Callable[[int], None]) -> None:
        with (
            layout.new_blob(descriptor.digest, descriptor.size, what) as writer,
            self._get(f"/blobs/{descriptor.digest}") as response,
        ):
            self._copy_body(response, descriptor, writer, what, progress)
            writer.commit()

    def _copy_body(
        self,
        response: "requests.Response",
        descriptor: Descriptor,
        writer: BlobWriter,
        what: str,
        progress: Callable[[int], None],
    ) -> None:
        if response.status_code != 200:
            raise self._refusal(response, f"blob {descriptor.digest}")
        length = content_length(response.headers)
        if length is not None and length != descriptor.size:
            raise SizeMismatch(f"{what} is announced with {length} bytes, its descriptor says {descriptor.size}")
        count = 0
        for chunk in self._chunks(response):
            writer.write(chunk)
            count += len(chunk)
            progress(count)

    def _chunks(self, response: "requests.Response") -> Iterator[bytes]:
        """The body. Only the reading is under the mapping of network errors: the disk and the caller have their own."""
        chunks = self._transport.body_chunks(response)
        while True:
            with self._faults.mapped(self._reference.registry, self._watch):
                chunk = next(chunks, b"")
            self._watch.check()  # a connection shut by the watch may look like the end of the body
            if not chunk:
                return
            yield chunk

    def _retrying(self, attempt: Callable[[], _Result]) -> _Result:
        """Repeat what broke in the middle of a transfer; a refused connection is not worth it."""
        for number in range(1, self._settings.max_attempts):
            try:
                return attempt()
            except (Truncated, RegistryUnreachable) as error:
                if isinstance(error, RegistryUnreachable) and not self._answered:
                    raise
                self._watch.pause(self._backoff(number))
        return attempt()

    def _get(self, path: str, accept: str = "*/*") -> "requests.Response":
        """Answer of the registry, asked again while it is busy; the body is still to be read."""
        for number in range(1, self._settings.max_attempts + 1):
            with self._faults.mapped(self._reference.registry, self._watch):
                response = self._get_authorized(self._root + path, accept)
            self._answered = True
            if response.status_code not in _RETRIED or number == self._settings.max_attempts:
                break
            wait = retry_after(response.headers)
            if wait is not None and wait > min(self._settings.max_retry_wait_s, self._watch.remaining()):
                break
            response.close()
            self._watch.pause(self._backoff(number) if wait is None else wait)
        return response

    def _get_authorized(self, url: str, accept: str) -> "requests.Response":
        response = self._request(url, accept)
        # A challenge from wherever the registry redirected to is not for our credentials.
        if response.status_code != 401 or urlsplit(response.url).netloc != urlsplit(url).netloc:
            return response
        try:
            known_more = self._authorize(response)
        except BaseException:
            response.close()
            raise
        if not known_more:
            return response
        response.close()
        return self._request(url, accept)

    def _request(self, url: str, accept: str) -> "requests.Response":
        headers = {"Accept": accept, **self._authorization}
        response: requests.Response = self._oras.session.request(
            "GET", url, headers=headers, stream=True, verify=self._verify
        )
        return response

    def _authorize(self, response: "requests.Response") -> bool:
        """Answer a challenge with the backend of oras that speaks its scheme; False when there is nothing new to say.

        Chosen by the challenge and only then, because oras' token backend makes a URL of a Basic realm and hangs.
        """
        import oras.auth

        challenge = response.headers.get("WWW-Authenticate", "")
        scheme = challenge.partition(" ")[0].lower()
        if scheme not in {"basic", "bearer"}:
            raise RegistryError(
                f"registry {self._reference.registry} asks for authentication of an unknown kind {scheme!r}"
            )
        # Looked up only now: most pulls of public modules need no helper to be run and no file to be right.
        self._credentials = find_credentials(self._reference.registry, self._settings)
        if scheme == "bearer":
            self._check_realm(challenge)
        elif self._credentials is None or self._authorization:
            return False
        name = "basic" if scheme == "basic" else "token"
        session = self._session
        backend = oras.auth.get_auth_backend(  # type: ignore[no-untyped-call]
            name, session, self._plain, tls_verify=self._verify
        )
        if self._credentials is not None:
            backend.set_basic_auth(self._credentials.username, self._credentials.password)
        self._oras.auth = backend
        self._authorization = {}
        try:
            headers, changed = backend.authenticate_request(response, {})
            authorization = str(headers["Authorization"]) if changed else ""
        except (AttributeError, TypeError, KeyError) as error:  # oras trusts the token's document to be one
            raise RegistryError(f"the token service of registry {self._reference.registry} answers no token") from error
        if not changed and session.last_status in _RETRIED:
            raise RegistryFailing(
                f"the token service of registry {self._reference.registry} answers HTTP {session.last_status}: "
                "try again later"
            )
        if not changed:
            raise Unauthorized(
                f"the token service of registry {self._reference.registry} refuses {self._identity} for "
                f"{self._reference.repository}: {self._advice}"
            )
        self._authorization = {"Authorization": authorization}
        return True

    def _check_realm(self, challenge: str) -> None:
        """Passwords go to the token service the registry names: not in the clear when the registry itself is not."""
        import oras.auth.utils

        realm = oras.auth.utils.parse_auth_header(challenge).realm or ""
        url = urlsplit(realm)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise RegistryError(
                f"registry {self._reference.registry} names no URL for its tokens: check its configuration"
            )
        if url.scheme == "http" and not self._plain:
            raise AddressRefused(
                f"registry {self._reference.registry} wants passwords sent to {url.hostname} over plain http"
            )

    @property
    def _identity(self) -> str:
        found = self._credentials
        return f"user {found.username!r} (from {found.source})" if found else "anonymous access"

    @property
    def _advice(self) -> str:
        return "check user name and password" if self._credentials else "set credentials for it"

    def _refusal(self, response: "requests.Response", what: str) -> OciError:
        """The error for a refusal. Many registries do not say whether tag or repository is missing: ask again."""
        body = self._transport.read_start(response, 64 * 1024)
        error = self._faults.answered(self._reference, response, body, what, self._identity)
        if isinstance(error, ManifestUnknown):
            listing = self._get("/tags/list?n=1")
            listing.close()
            if listing.status_code == 404:
                where = self._reference
                return RepositoryUnknown(
                    f"registry {where.registry} has no repository {where.repository}: check the name"
                )
        return error

    def _backoff(self, number: int) -> float:
        """Seconds before attempt ``number + 1``: doubling, with jitter so that a fleet does not return in step."""
        wait = self._settings.first_retry_wait_s * 2.0 ** (number - 1)
        return float(min(wait, self._settings.max_retry_wait_s)) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load only

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._oras.session.close()
        self._watch.close()


def _checked_digest(data: bytes, expected: Digest | None, header: str | None, what: str) -> Digest:
    """The digest of a manifest, compared with the one asked for; by tag, with what the registry says it is."""
    if expected is None and header:
        try:
            expected = Digest.parse(header)
        except InvalidDigest:
            expected = None  # an algorithm we do not know: ours is computed all the same
    digest = Digest.of(data, expected.algorithm if expected else "sha256")
    if expected is not None and digest != expected:
        raise DigestMismatch(f"{what} has digest {digest}, not {expected}: it was changed or damaged and is not used")
    return digest
