"""The registry client: manifests as raw bytes, what refers to them, and blobs as checked streams that can be continued.

Paths, statuses and headers: OCI distribution specification 1.1; ranges: RFC 9110, 14.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from proplet.oci.blobs import PartialBlob
from proplet.oci.connection import Connection
from proplet.oci.digest import Digest
from proplet.oci.errors import (
    DigestMismatch,
    InvalidDigest,
    InvalidManifest,
    NotFound,
    RegistryError,
    SizeMismatch,
    TooLarge,
    Truncated,
)
from proplet.oci.headers import content_length, content_range, next_page
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import ACCEPTED_MANIFESTS, OCI_INDEX, Descriptor, ImageIndex, parse_manifest
from proplet.oci.reference import Reference
from proplet.oci.settings import MAX_MANIFEST_BYTES, RegistrySettings
from proplet.oci.watch import Watch

if TYPE_CHECKING:
    import requests

_NO_REFERRERS_API = {400, 404, 405, 406, 501}
_MAX_REFERRER_PAGES = 16
_PROGRESS_S = 0.1  # between two reports of progress


@dataclass(frozen=True, slots=True)
class RawManifest:
    """A manifest as delivered: its bytes, what the registry calls them, and the digest we computed."""

    data: bytes
    content_type: str
    digest: Digest


class RegistryClient:
    """What one repository of a registry has; a context manager, for one pull or push.

    ``actions``, ``namespace``, ``watch``: as for `Connection`.

    Raises:
        AddressRefused: the registry is at a link-local or metadata address.
        TlsFailed: the CA file or the client certificate cannot be used.
    """

    def __init__(
        self,
        reference: Reference,
        settings: RegistrySettings,
        cancelled: Callable[[], bool] = lambda: False,
        *,
        actions: str = "pull",
        namespace: str | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Load oras and prepare a session; nothing is sent yet."""
        self._reference = reference
        self._connection = Connection(reference, settings, cancelled, actions=actions, namespace=namespace, watch=watch)

    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | IO[bytes] | None = None,
        accept: str = "*/*",
    ) -> "requests.Response":
        """One request of the protocol, with authorization and retries: see `Connection.exchange`."""
        return self._connection.exchange(method, url, headers=headers, data=data, accept=accept)

    def manifest(self, expected: Digest | None = None) -> RawManifest:
        """The manifest of the reference, or that with the expected digest, as the bytes that came.

        Raises:
            RegistryFault: the registry or the way to it; the subclass says what.
            InvalidCredentials: the registry wants credentials, and a file or helper with them cannot be used.
            DigestMismatch: the bytes have another digest than asked for, or than the registry says.
            TooLarge: more than 4 MiB.
        """
        key = str(expected) if expected else self._reference.manifest_key
        return self._connection.retrying(lambda: self._manifest(key, expected or self._reference.digest))

    def find_manifest(self, key: str) -> RawManifest | None:
        """The manifest under another tag or digest of the same repository, or None where there is none.

        Raises:
            RegistryFault, InvalidCredentials, DigestMismatch, TooLarge: as for `manifest`.
        """
        expected = Digest.parse(key) if ":" in key else None
        try:
            return self._connection.retrying(lambda: self._manifest(key, expected))
        except NotFound:
            return None

    def _manifest(self, key: str, expected: Digest | None) -> RawManifest:
        what = f"the manifest {self._reference.name} {key}"
        with self._connection.exchange("GET", f"/manifests/{key}", accept=", ".join(ACCEPTED_MANIFESTS)) as response:
            if response.status_code != 200:
                raise self._connection.refusal(response, f"tag {key}" if ":" not in key else f"manifest {key}")
            data = self._read_document(response, what)
            digest = _checked_digest(data, expected, response.headers.get("Docker-Content-Digest"), what)
            return RawManifest(data, response.headers.get("Content-Type", ""), digest)

    def _read_document(self, response: "requests.Response", what: str) -> bytes:
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise RegistryError(
                f"registry {self._reference.registry} answers with a web page: check its address, "
                "or log in to the network"
            )
        length = content_length(response.headers)
        data = bytearray()
        for chunk in () if (length or 0) > MAX_MANIFEST_BYTES else self._connection.chunks(response):
            data += chunk
            if len(data) > MAX_MANIFEST_BYTES:
                break
        if max(length or 0, len(data)) > MAX_MANIFEST_BYTES:
            raise TooLarge(
                f"{what} has more than the limit of {MAX_MANIFEST_BYTES} bytes: it cannot be that of a module"
            )
        if length is not None and len(data) != length:
            raise Truncated(f"{what} ended after {len(data)} of {length} bytes")
        if length is None and not data:  # what is left of an answer that was cut in its head
            raise Truncated(f"{what} has no bytes at all")
        return bytes(data)

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """What refers to a manifest: signatures and the like; by the API, else by the tag that stands in for it.

        Distribution specification 1.1, "Listing Referrers" and "Referrers Tag Schema".

        Raises:
            RegistryFault, InvalidCredentials, TooLarge, InvalidManifest: the registry's answer cannot be had or used.
        """
        found = self._connection.retrying(lambda: self._listed_referrers(digest))
        if found is None:
            tagged = self.find_manifest(f"{digest.algorithm}-{digest.hex}")
            found = _entries(tagged.data) if tagged is not None else ()
        return found

    def _listed_referrers(self, digest: Digest) -> tuple[Descriptor, ...] | None:
        """As the API lists them; None where the registry does not have it."""
        found: dict[Digest, Descriptor] = {}
        url: str | None = f"/referrers/{digest}"
        for _ in range(_MAX_REFERRER_PAGES):
            if url is None:
                break
            with self._connection.exchange("GET", url, accept=OCI_INDEX) as response:
                status, kind = response.status_code, response.headers.get("Content-Type", "")
                if status in _NO_REFERRERS_API or (status == 200 and not kind.startswith(OCI_INDEX)):
                    return None
                if status != 200:
                    raise self._connection.refusal(response, f"list of what refers to {digest}")
                data = self._read_document(response, f"the list of what refers to {digest.short}")
                following = next_page(response.headers, response.url)
            found.update((one.digest, one) for one in _entries(data))
            url = following
        return tuple(found.values())

    def copy_blob(
        self,
        descriptor: Descriptor,
        layout: OciLayout,
        what: str,
        progress: Callable[[int], None] = lambda _count: None,
    ) -> None:
        """Bring a blob into the store, hashed while it streams and never longer than its descriptor says.

        A transfer that broke, now or in an earlier life, goes on where it broke. ``progress`` is told how many bytes
        are there, now and then and at the end; fewer than before when it has to begin anew.

        Raises:
            RegistryFault: the registry or the way to it.
            DigestMismatch, SizeMismatch: what came is not what the descriptor promises.
            StoreFault: the disk.
        """
        with layout.continue_blob(descriptor.digest, descriptor.size, what, self._connection.watch.pause) as blob:
            if not blob.is_present:
                self._connection.retrying(lambda: self._continue(blob, descriptor, what, progress), lambda: blob.count)
            else:
                progress(blob.count)

    def _continue(self, blob: PartialBlob, descriptor: Descriptor, what: str, progress: Callable[[int], None]) -> None:
        if blob.count < descriptor.size or not descriptor.size:
            headers = {"Range": f"bytes={blob.count}-"} if blob.count else {}
            with self._connection.exchange("GET", f"/blobs/{descriptor.digest}", headers=headers) as response:
                self._take_place(response, blob, descriptor, what)
                self._copy_body(response, blob, descriptor.size, progress)
        blob.commit()

    def _take_place(self, response: "requests.Response", blob: PartialBlob, descriptor: Descriptor, what: str) -> None:
        """See that what comes now is what is missing, or begin anew."""
        length, status = content_length(response.headers), response.status_code
        if status == 206 and blob.count:
            fits = content_range(response.headers) == (blob.count, descriptor.size - 1, descriptor.size)
            if fits and length in {None, descriptor.size - blob.count}:
                return
            blob.restart()
            raise Truncated(f"registry {self._reference.registry} sends another part of {what} than was asked for")
        if status == 416 and blob.count:
            blob.restart()
            raise Truncated(f"registry {self._reference.registry} does not send the rest of {what}")
        if status != 200:
            raise self._connection.refusal(response, f"blob {descriptor.digest}")
        if length is not None and length != descriptor.size:
            raise SizeMismatch(f"{what} is announced with {length} bytes, its descriptor says {descriptor.size}")
        if blob.count:
            blob.restart()

    def _copy_body(
        self, response: "requests.Response", blob: PartialBlob, size: int, progress: Callable[[int], None]
    ) -> None:
        told = 0.0
        for chunk in self._connection.chunks(response):
            blob.write(chunk)
            now = time.monotonic()
            if now - told >= _PROGRESS_S or blob.count == size:
                told = now
                progress(blob.count)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _entries(data: bytes) -> tuple[Descriptor, ...]:
    """The descriptors of an index of referrers."""
    found = parse_manifest(data, OCI_INDEX)
    if not isinstance(found, ImageIndex):
        raise InvalidManifest("what lists the referrers is no index")
    return tuple(entry.descriptor for entry in found.entries)


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
