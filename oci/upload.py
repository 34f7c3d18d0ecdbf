"""How one blob or manifest gets into a repository: the write half of the distribution protocol.

Source: OCI distribution specification 1.1, "Push": "Pushing blobs", "Pushing Manifests", "Mounting a blob from another
repository", "Pushing Manifests with Subject". Requests go through `Connection.exchange`, which knows of
credentials, TLS, time limits and busy registries; what is decided here is about bytes and places.
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import quote, urljoin, urlsplit

from proplet.oci.connection import Connection
from proplet.oci.digest import Digest
from proplet.oci.errors import (
    DigestMismatch,
    InvalidDigest,
    InvalidManifest,
    OciError,
    RegistryError,
    StoreDamaged,
    TooLarge,
    Truncated,
    Unauthorized,
)
from proplet.oci.manifest import OCI_INDEX, ImageIndex, parse_manifest
from proplet.oci.settings import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    import requests

_BYTES = "application/octet-stream"
_CHUNK_BYTES = 8 * 1024 * 1024
_ONE_REQUEST_BYTES = 64 * 1024 * 1024  # more than this goes in pieces, so that what breaks need not begin anew
_NOTHING = {"Content-Length": "0"}
_MAX_STANDING = 3  # times in a row that nothing more arrives
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,18})")
_WRONG_WAY = {404, 405, 411, 413, 415, 416, 501}  # of a method, a length or a range that a registry does not take


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes to push. ``open`` gives them from an offset on, as often as asked; they are checked while they go."""

    digest: Digest
    size: int
    open: Callable[[int], Iterator[bytes]]
    home: str | None = None  # another repository of the same registry that is likely to have it


class Uploads:
    """The uploads into the repository of one connection."""

    def __init__(self, connection: Connection, sent: Callable[[int], None], *, one_request: int | None = None) -> None:
        """``sent`` is told bytes as they go, less than nothing when they must go again."""
        self._connection = connection
        self._sent = sent
        self._gone = 0  # bytes told of the blob under way
        self._one_request = _ONE_REQUEST_BYTES if one_request is None else one_request

    def blob(self, blob: Blob) -> bool:
        """See that the registry has a blob; whether it had to be sent.

        Raises:
            RegistryFault: the registry or the way to it.
            DigestMismatch: the registry stored something else.
            StoreFault: what should be sent is not there any more, or damaged.
        """
        return self._connection.retrying(lambda: self._attempt(blob))

    def _attempt(self, blob: Blob) -> bool:
        self._gone = 0
        try:
            return not self._is_there(blob) and self._upload(blob)
        except BaseException:
            self._tell(-self._gone)
            raise

    def _tell(self, count: int) -> None:
        self._gone += count
        self._sent(count)

    def _is_there(self, blob: Blob) -> bool:
        with self._connection.exchange("HEAD", f"/blobs/{blob.digest}") as answer:
            if answer.status_code not in {200, 404}:
                raise self._refusal(answer, f"blob {blob.digest}")
            length = answer.headers.get("Content-Length", "")
            if answer.status_code == 200 and length and length != str(blob.size):
                raise RegistryError(f"the registry has {blob.digest} with {length} bytes, not {blob.size}")
            return answer.status_code == 200

    def _upload(self, blob: Blob) -> bool:
        """Send a blob, unless the registry can take it from another repository; whether it was sent."""
        what = f"blob {blob.digest}"
        query = f"?mount={quote(str(blob.digest))}&from={quote(blob.home)}" if blob.home else ""
        with self._connection.exchange("POST", f"/blobs/uploads/{query}", headers=_NOTHING) as answer:
            if answer.status_code == 201 and blob.home:
                _same(blob.digest, answer, what)
                return False
            if answer.status_code != 202:
                raise self._refusal(answer, what)
            place = self._place(answer)
            least = answer.headers.get("OCI-Chunk-Min-Length", "")
        chunk = max(_CHUNK_BYTES, int(least) if least.isascii() and least.isdigit() and len(least) < 12 else 0)
        if blob.size <= self._one_request:
            if not self._at_once(blob, place, what) and not self._in_chunks(blob, self._begin(what), chunk, what):
                raise TooLarge(
                    f"registry {self._connection.reference.registry} takes no {what}: raise its limit of size"
                )
        elif not self._in_chunks(blob, place, chunk, what) and not self._at_once(blob, self._begin(what), what):
            raise TooLarge(f"registry {self._connection.reference.registry} takes no {what}: raise its limit of size")
        return True

    def manifest(self, data: bytes, media_type: str, digest: Digest, tag: str | None) -> None:
        """Push a manifest under a tag, or else by its digest; what it refers to hears of it.

        Raises:
            RegistryFault, DigestMismatch: as for `blob`.
        """
        what = f"manifest {digest.short}"
        headers = {"Content-Type": media_type}
        with self._connection.exchange("PUT", f"/manifests/{tag or digest}", headers=headers, data=data) as answer:
            if answer.status_code not in {201, 202}:
                raise self._refusal(answer, what)
            _same(digest, answer, what)
            listed = "OCI-Subject" in answer.headers
        subject = json.loads(data).get("subject")
        if isinstance(subject, dict) and not listed:
            self._list(Digest.parse(str(subject.get("digest"))), _referrer(data, media_type, digest))

    def _list(self, subject: Digest, entry: dict[str, Any]) -> None:
        """Add a manifest to the list of referrers that a registry does not keep by itself ("Referrers Tag Schema")."""
        tag = f"{subject.algorithm}-{subject.hex}"
        entries = self._listed(tag)
        if any(item.get("digest") == entry["digest"] for item in entries):
            return
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*entries, entry]}
        data = json.dumps(document, separators=(",", ":")).encode()
        self.manifest(data, OCI_INDEX, Digest.of(data), tag)

    def _listed(self, tag: str) -> list[Any]:
        """The entries of a list of referrers as it is."""
        with self._connection.exchange("GET", f"/manifests/{tag}", accept=OCI_INDEX) as answer:
            if answer.status_code == 404:
                return []
            if answer.status_code != 200:
                raise self._refusal(answer, f"tag {tag}")
            data = bytearray()
            for chunk in self._connection.chunks(answer):
                data += chunk
                if len(data) > MAX_MANIFEST_BYTES:
                    raise TooLarge(f"the list of referrers {tag} has more than {MAX_MANIFEST_BYTES} bytes: remove it")
        if not isinstance(parse_manifest(bytes(data), answer.headers.get("Content-Type", "")), ImageIndex):
            raise InvalidManifest(f"the tag {tag} of the registry is no list of referrers: remove it")
        return list(json.loads(data)["manifests"])

    def _begin(self, what: str) -> str:
        with self._connection.exchange("POST", "/blobs/uploads/", headers=_NOTHING) as answer:
            if answer.status_code != 202:
                raise self._refusal(answer, what)
            return self._place(answer)

    def _at_once(self, blob: Blob, place: str, what: str) -> bool:
        """Send all in one request; False where the registry does not take so much."""
        body = _Body(blob, 0, blob.size, self._tell)
        headers = {"Content-Type": _BYTES, "Content-Length": str(blob.size)}
        with self._connection.exchange(
            "PUT", _with_digest(place, blob.digest), headers=headers, data=body.file
        ) as answer:
            if answer.status_code == 413:
                body.take_back()
                return False
            if answer.status_code not in {201, 204}:
                raise self._refusal(answer, what)
            _same(blob.digest, answer, what)
        return True

    def _in_chunks(self, blob: Blob, place: str, chunk: int, what: str) -> bool:
        """Send piece by piece; False where the registry does not take the first."""
        at = standing = 0
        while at < blob.size:
            count = min(chunk, blob.size - at)
            body = _Body(blob, at, count, self._tell)
            headers = {
                "Content-Type": _BYTES,
                "Content-Length": str(count),
                "Content-Range": f"{at}-{at + count - 1}",
            }
            try:
                with self._connection.exchange("PATCH", place, headers=headers, data=body.file) as answer:
                    status = answer.status_code
                    if at == 0 and status in _WRONG_WAY:
                        body.take_back()
                        return False
                    if status not in {202, 204, 416}:
                        raise self._refusal(answer, what)
                    if status != 416:
                        place, at = self._place(answer), at + count
                        _reached(answer, at, what)
                        continue
            except OciError as error:
                if not error.transient:
                    raise
            # Broken, or out of step: the registry says how far it is.
            body.take_back()
            before = at
            place, at = self._ask(place, what)
            self._tell(at - before)
            standing = standing + 1 if at <= before else 0
            if standing > _MAX_STANDING or at > blob.size:
                raise Truncated(f"the registry takes no more of {what}: try again")
        headers = {"Content-Type": _BYTES, **_NOTHING}
        with self._connection.exchange("PUT", _with_digest(place, blob.digest), headers=headers) as answer:
            if answer.status_code not in {201, 204}:
                raise self._refusal(answer, what)
            _same(blob.digest, answer, what)
        return True

    def _ask(self, place: str, what: str) -> tuple[str, int]:
        """Where an upload goes on, and how many bytes the registry has of it."""
        with self._connection.exchange("GET", place) as answer:
            if answer.status_code not in {202, 204}:
                raise self._refusal(answer, what)
            told = _RANGE.fullmatch(answer.headers.get("Range", "").strip())
            # "0-0" is said of one byte and of none; sending the first again is refused, and then asked about again.
            count = int(told[1]) + 1 if told and told[1] != "0" else 0
            return (self._place(answer) if "Location" in answer.headers else place), count

    def _refusal(self, answer: "requests.Response", what: str) -> OciError:
        """The error for a refusal; what the connection says of it is about reading."""
        status, where = answer.status_code, self._connection.reference
        error = self._connection.refusal(answer, what)
        if status == 403:
            return Unauthorized(f"pushing to {where.name} is not allowed: {error}")
        if status in {404, 405}:
            return RegistryError(f"{where.name} takes no {what} ({error}): check the name, and that it may be written")
        if status == 413:
            return TooLarge(f"registry {where.registry} takes no {what} of this size: raise its limit, or its proxy's")
        return error

    def _place(self, answer: "requests.Response") -> str:
        """The URL to go on with: wherever the registry says, as it says."""
        location = answer.headers.get("Location", "")
        if not location:
            raise RegistryError("the registry does not say where the upload goes: it has no Location")
        return urljoin(str(answer.url), location)


class _Body(io.RawIOBase):
    """A part of a blob as the body of a request: a file, so that it can go again from its beginning."""

    def __init__(self, blob: Blob, offset: int, count: int, sent: Callable[[int], None]) -> None:
        self._blob = blob
        self._offset = offset
        self._count = count
        self._sent = sent
        self._at = 0
        self._chunks: Iterator[bytes] = iter(())
        self._rest = memoryview(b"")

    @property
    def file(self) -> IO[bytes]:
        """It has all of that type that is used of it."""
        return cast("IO[bytes]", self)

    def __len__(self) -> int:
        return self._count

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        target = offset + (0, self._at, self._count)[whence]
        if target != self._at:
            self._sent(target - self._at)
            self._at, self._rest, self._chunks = target, memoryview(b""), iter(())
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = self._count - self._at
        if not left:
            return b""
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        if not self._rest:
            self._chunks = self._blob.open(self._offset + self._at)
            self._rest = memoryview(next(self._chunks, b""))
            if not self._rest:
                raise StoreDamaged(f"{self._blob.digest} became shorter while it was sent: try again")
        count = left if size < 0 else min(size, left)
        piece, self._rest = bytes(self._rest[:count]), self._rest[count:]
        self._at += len(piece)
        self._sent(len(piece))
        return piece

    def take_back(self) -> None:
        """What was sent did not arrive."""
        self.seek(0)


def _with_digest(place: str, digest: Digest) -> str:
    """The URL that ends an upload. What the registry put into its query stays: some keep the upload's state there."""
    return f"{place}{'&' if urlsplit(place).query else '?'}digest={quote(str(digest), safe='')}"


def _same(digest: Digest, answer: "requests.Response", what: str) -> None:
    """See that the registry calls it what we do; a digest of an algorithm we do not know says nothing.

    Raises:
        DigestMismatch: it does not.
    """
    try:
        told = Digest.parse(answer.headers.get("Docker-Content-Digest", ""))
    except InvalidDigest:
        return
    if told.algorithm == digest.algorithm and told != digest:
        raise DigestMismatch(f"the registry stored {what} as {told}: what it has now is not what was pushed")


def _reached(answer: "requests.Response", at: int, what: str) -> None:
    told = _RANGE.fullmatch(answer.headers.get("Range", "").strip())
    if told and int(told[1]) != at - 1:
        raise RegistryError(f"the registry has {int(told[1]) + 1} bytes of {what} after {at} were sent: try again")


def _referrer(data: bytes, media_type: str, digest: Digest) -> dict[str, Any]:
    """The entry of a manifest in a list of referrers: with its artifact type and annotations."""
    document = json.loads(data)
    kind = document.get("artifactType") or (document.get("config") or {}).get("mediaType")
    entry = {"mediaType": media_type, "digest": str(digest), "size": len(data)}
    if kind:
        entry["artifactType"] = kind
    if document.get("annotations"):
        entry["annotations"] = document["annotations"]
    return entry
