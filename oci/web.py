"""Modules from web servers: ``https://host/path/x.wasm``, with or without the digest that the file must have.

Place in the flow: `pull` calls `fetch` for a `WebReference`. In the store such a module is an image like every other:
the file is its only layer, under a manifest that is made here, always the same for the same file, and named by the URL.
A URL comes from whoever starts tasks, not from this device's owner: it never leads to this device itself, to link-local
or to metadata addresses, neither by a name nor by a redirect, unless its host is in ``local_url_hosts``.

Imports requests: load it late.
"""

import json
import random
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import requests

from proplet.oci import faults, transport
from proplet.oci.addresses import is_forbidden, is_loopback
from proplet.oci.blobs import BlobWriter, PartialBlob
from proplet.oci.digest import Digest
from proplet.oci.errors import (
    AddressRefused,
    ConnectionBroken,
    NotFound,
    OciError,
    RateLimited,
    RegistryError,
    RegistryFailing,
    RegistryUnreachable,
    TooLarge,
    Truncated,
    Unauthorized,
)
from proplet.oci.headers import content_length, content_range, retry_after
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import OCI_MANIFEST, WASM_LAYERS
from proplet.oci.reference import Reference, WebReference, split_host_port
from proplet.oci.settings import RegistrySettings
from proplet.oci.trust import certificates, client_certificate
from proplet.oci.watch import Watch

_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"  # OCI image specification 1.1, manifest.md, "Guidance for an Empty"
_EMPTY = b"{}"
_RETRIED = {429, 500, 502, 503, 504}
_PROGRESS_BYTES = 1024 * 1024

Progress = Callable[[int, int | None], None]


def manifest_of(module: Digest, size: int) -> bytes:
    """The manifest under which a store keeps a file that came without one."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": _EMPTY_TYPE, "digest": str(Digest.of(_EMPTY)), "size": len(_EMPTY)},
        "layers": [{"mediaType": WASM_LAYERS[0], "digest": str(module), "size": size}],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def fetch(
    reference: WebReference,
    layout: OciLayout,
    settings: RegistrySettings,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Progress = lambda _count, _size: None,
) -> Digest:
    """Bring the file into the store; returns its digest. A pinned one goes on where its transfer broke off.

    ``progress`` is told how many bytes are there and how many there will be, if the server says so.

    Raises:
        AddressRefused: the URL, or where it leads, is on this device, link-local or a metadata address.
        RegistryFault: the server or the way to it.
        TooLarge: more than ``max_module_bytes``.
        DigestMismatch, SizeMismatch: it is not the file the URL promises.
        StoreFault: the disk.
    """
    watch = Watch(settings.total_timeout_s, cancelled)
    try:
        return _Fetch(reference, layout, settings, watch, progress).run()
    finally:
        watch.close()


class UrlGuard(transport.AddressGuard):
    """Lets a module's URL lead to other machines only; to local addresses where the device's owner allows the host."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        """Allow these hosts, which are names or addresses without port and brackets, everything."""
        super().__init__("")
        self._allowed = {host.lower().strip("[]").rstrip(".") for host in allowed}

    def admit(self, host: str, address: str) -> None:
        """Let a connection be made; see the class.

        Raises:
            AddressRefused: it is to a local address.
        """
        if host.lower().strip("[]").rstrip(".") in self._allowed:
            return
        if is_forbidden(address) or is_loopback(address):
            raise AddressRefused(
                f"{host} ({address}) is on this device or link-local, and the URL of a module must not lead there: "
                "allow the host in modules.local_url_hosts"
            )


class _Session(transport.GuardedSession):
    """Asks the guard about every hop by name, too: behind a proxy nobody else would."""

    def __init__(self, guard: UrlGuard, watch: Watch, trust: transport.Trust, settings: RegistrySettings) -> None:
        super().__init__(guard, watch, trust, settings.connect_timeout_s, settings.read_timeout_s, proxies=True)
        self._guard = guard

    def send(self, request: requests.PreparedRequest, **kwargs: object) -> requests.Response:
        parts = urlsplit(str(request.url))
        self._guard.admit_host(str(parts.hostname), parts.port or 443)
        return super().send(request, **kwargs)


class _Fetch:
    def __init__(
        self,
        reference: WebReference,
        layout: OciLayout,
        settings: RegistrySettings,
        watch: Watch,
        progress: Progress,
    ) -> None:
        self._reference = reference
        self._layout = layout
        self._settings = settings
        self._watch = watch
        self._progress = progress
        self._answered = False
        host = settings.host(reference.registry)
        there = Reference(reference.registry, "module", "latest")  # for the settings of its host
        trust = transport.Trust(
            reference.registry,
            split_host_port(reference.registry)[0],
            certificates(there, host),
            client_certificate(host, reference.registry),
        )
        self._session = _Session(UrlGuard(settings.local_url_hosts), watch, trust, settings)

    def run(self) -> Digest:
        try:
            number = 1
            while True:
                try:
                    return self._attempt()
                except (Truncated, RegistryUnreachable) as error:
                    broken = isinstance(error, Truncated | ConnectionBroken)
                    unreachable = not broken and not self._answered
                    if unreachable or number >= self._settings.max_attempts:
                        raise
                self._watch.pause(self._backoff(number))
                number += 1
        finally:
            self._session.close()

    def _attempt(self) -> Digest:
        what = f"the module at {self._reference.url}"
        with self._get(0) as response:
            size = content_length(response.headers)
            self._check_size(size)
            pinned = self._reference.digest
            if pinned is None or size is None:
                with self._layout.new_blob(pinned, size, what) as writer:
                    return self._copy(response, writer, 0, size)
            with self._layout.continue_blob(pinned, size, what, self._watch.pause) as blob:
                if blob.is_present:
                    return pinned
                if not blob.count:
                    return self._copy(response, blob, 0, size)
                response.close()
                return self._continue(blob, size)

    def _continue(self, blob: PartialBlob, size: int) -> Digest:
        if blob.count == size:
            return blob.commit()
        with self._get(blob.count) as response:
            if response.status_code == 206:
                if content_range(response.headers) != (blob.count, size - 1, size):
                    blob.restart()
                    raise Truncated(f"{self._reference.host} sends another part of the module than was asked for")
            else:
                blob.restart()
            return self._copy(response, blob, blob.count, size)

    def _copy(
        self, response: requests.Response, writer: BlobWriter | PartialBlob, count: int, size: int | None
    ) -> Digest:
        told = -_PROGRESS_BYTES
        for chunk in self._chunks(response):
            count += len(chunk)
            self._check_size(count)
            writer.write(chunk)
            if count - told >= _PROGRESS_BYTES or count == size:
                told = count
                self._progress(count, size)
        return writer.commit()

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        chunks = transport.body_chunks(response)
        while True:
            with faults.mapped(self._reference.registry, self._watch):
                chunk = next(chunks, b"")
            self._watch.check()
            if not chunk:
                return
            yield chunk

    def _check_size(self, size: int | None) -> None:
        limit = self._settings.max_module_bytes
        if size is not None and size > limit:
            raise TooLarge(f"the module at {self._reference.url} has more than the limit of {limit} bytes: raise it")

    def _get(self, start: int) -> requests.Response:
        """The answer, if it is the file or its rest; asked again while the server is busy."""
        headers = {"Accept": "application/wasm, */*", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        for number in range(1, self._settings.max_attempts + 1):
            with faults.mapped(self._reference.registry, self._watch):
                response = self._session.request("GET", self._reference.url, headers=headers, stream=True)
            self._answered = True
            if response.status_code in {200, 206} and (start or response.status_code == 200):
                return response
            response.close()
            wait = retry_after(response.headers)
            longest = min(self._settings.max_retry_wait_s, self._watch.remaining())
            last = number == self._settings.max_attempts or (wait is not None and wait > longest)
            if response.status_code not in _RETRIED or last:
                break
            self._watch.pause(self._backoff(number) if wait is None else wait)
        raise self._refusal(response.status_code)

    def _refusal(self, status: int) -> OciError:
        url = self._reference.url
        if status in {401, 403}:
            return Unauthorized(f"{url} is not for everybody (HTTP {status}): give it a URL that needs no login")
        if status in {404, 410}:
            return NotFound(f"{url} does not exist (HTTP {status}): check the URL")
        if status == 416:
            return Truncated(f"{url} has become shorter meanwhile (HTTP 416): try again")
        if status == 429:
            return RateLimited(f"{url} may not be asked for so often (HTTP 429): try again later")
        if status >= 500:
            return RegistryFailing(f"{url} fails (HTTP {status}): try again later")
        return RegistryError(f"{url} answers HTTP {status}, which is no file: check the URL")

    def _backoff(self, number: int) -> float:
        wait = self._settings.first_retry_wait_s * 2.0 ** (number - 1)
        return float(min(wait, self._settings.max_retry_wait_s)) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load only
