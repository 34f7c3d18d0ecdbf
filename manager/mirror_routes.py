"""The mirror's endpoints: a registry to pull from, over what the shelf has and what may be pulled through.

Source: OCI distribution specification 1.1, "Pull", "Content discovery" and "Error codes". What is damaged or not there
is answered with 404, so that a client with another source takes that; 503 asks to come back.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, quote

import anyio
import anyio.to_thread
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proplet.manager.mirror_names import (
    Naming,
    NoSuchBytesError,
    NoSuchNameError,
    Span,
    Target,
    What,
    page,
    parse_path,
    parse_range,
)
from proplet.manager.mirror_shelf import Document, Reading, Repository, Shelf
from proplet.manager.mirror_through import PENDING, Through, Trouble
from proplet.oci.digest import Digest
from proplet.oci.errors import NotInStore, OciError, StoreDamaged
from proplet.oci.manifest import OCI_INDEX

log = logging.getLogger(__name__)

#: Where the door writes down whether the client has shown the password.
KNOWN: Final = "proplet_mirror_known"

_READERS: Final = 4
_RETRY_AFTER_S: Final = 2
_SIGNATURES: Final = re.compile(r"(sha256|sha512)-([0-9a-f]+)\.sig")
_STATUS: Final = {"DIGEST_INVALID": 400, "NAME_INVALID": 400, "PAGINATION_NUMBER_INVALID": 400}
_VERSION: Final = {"Docker-Distribution-API-Version": "registry/2.0"}
#: Trouble of this node, not of the image.
_OWN: Final = frozenset(
    {
        "invalid_policy",
        "disk_full",
        "store_read_only",
        "store_failed",
        "store_damaged",
        "invalid_credentials",
        "internal",
    }
)
_T = TypeVar("_T")


class RefusedError(Exception):
    """A request that gets an error; `code` is one of the specification's, the message one line for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """Return the answer."""
        body = {"errors": [{"code": self.code, "message": str(self), "detail": None}]}
        return _json(body, self.status, headers=self.headers)


class MirrorRoutes:
    """The registry as an ASGI application, behind a door that knows who may come in."""

    def __init__(self, shelf: Shelf, naming: Naming, through: Through) -> None:
        self.shelf = shelf
        self._naming = naming
        self._through = through
        self._readers = anyio.CapacityLimiter(_READERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        try:
            response = await self._answer(scope)
        except RefusedError as refused:
            response = refused.response()
        except NoSuchNameError as error:
            response = RefusedError(_STATUS.get(error.code, 404), error.code, str(error)).response()
        except OciError as error:
            log.warning("the mirror cannot read the store: %s", error)
            response = RefusedError(500, "UNKNOWN", "the store of this mirror cannot be read").response()
        await response(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response:
        if scope["method"] not in {"GET", "HEAD"}:
            allow = {"Allow": "GET, HEAD", "Connection": "close"}
            raise RefusedError(405, "UNSUPPORTED", "this is a mirror: one can only pull from it", allow)
        target = parse_path(scope["path"])
        if target.what is What.BASE:
            return _json({})
        asked = {key: values[-1] for key, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        known = bool(scope.get(KNOWN))
        stored = await self._stored(known=known)
        if target.what is What.CATALOG:
            return _paged("repositories", {}, sorted(stored), scope["path"], asked)
        name = self._naming.meant(target.name, asked.get("ns"), stored.keys())
        if name not in stored and not self._naming.pulled(name):
            raise RefusedError(404, "NAME_UNKNOWN", f"this mirror has no repository {target.name}")
        repository = _Repository(self, name, known=known)
        headers: Mapping[str, str] = Headers(scope=scope)
        if target.what is What.MANIFEST:
            return await self._manifest(repository, target, headers)
        if target.what is What.BLOB:
            assert target.digest is not None
            return await self._blob(repository, target.digest, headers)
        if target.what is What.TAGS:
            tags = sorted((await repository.now()).tags)
            return _paged("tags", {"name": target.name}, tags, scope["path"], asked)
        assert target.digest is not None
        return await self._referrers(repository, target.digest, asked.get("artifactType"))

    async def read(self, call: Callable[..., _T], *arguments: object) -> _T:
        """Call what reads files."""
        return await anyio.to_thread.run_sync(call, *arguments, limiter=self._readers)

    async def _stored(self, *, known: bool) -> Mapping[str, Repository]:
        every = await self.read(self.shelf.repositories)
        return {name: one for name, one in every.items() if self._naming.served(name, known=known)}

    # --- manifests -------------------------------------------------------------------------------------------------

    async def _manifest(self, repository: "_Repository", target: Target, headers: Mapping[str, str]) -> Response:
        digest = target.digest
        if digest is None:
            assert target.tag is not None
            digest = await self._tagged(repository, target.tag)
        document = await self._document(repository, digest)
        await self.read(self.shelf.note, document.digest)
        said = {**_VERSION, "Docker-Content-Digest": str(digest), "ETag": f'"{digest}"'}
        if _matches(headers.get("if-none-match"), digest):
            return Response(status_code=304, headers=said)
        # Not as text: starlette would add a character set to some types.
        return Response(document.data, headers={**said, "Content-Type": document.media_type})

    async def _tagged(self, repository: "_Repository", tag: str) -> Digest:
        held = (await repository.now()).tags.get(tag)
        if self._naming.pulled(repository.name):
            trouble = await self._look_up(repository.name, tag)
            if trouble is not None and held is None and _SIGNATURES.fullmatch(tag):
                # A client that asks is about to judge by itself: for it there is none here, let it look elsewhere.
                raise RefusedError(404, "MANIFEST_UNKNOWN", str(_refusal(trouble, "MANIFEST_UNKNOWN")))
            if trouble is not None and (held is None or not trouble.passing):
                raise _refusal(trouble, "MANIFEST_UNKNOWN")
            if trouble is not None:
                log.warning("the mirror serves the last known %s:%s: %s", repository.name, tag, trouble.message)
            held = (await repository.now()).tags.get(tag)
        if held is None:
            raise RefusedError(404, "MANIFEST_UNKNOWN", f"this mirror has no tag {tag} of that repository")
        return held

    async def _look_up(self, name: str, tag: str) -> Trouble | None:
        if (signed := _SIGNATURES.fullmatch(tag)) is None:
            return await self._through.tag(name, tag)
        try:
            return await self._through.signatures(name, Digest(*signed.groups()))
        except OciError:  # too few digits
            return await self._through.tag(name, tag)

    async def _document(self, repository: "_Repository", digest: Digest) -> Document:
        now = await repository.now()
        pulled = self._naming.pulled(repository.name)
        if digest in now.blobs or digest in now.tags.values():
            try:
                return await self.read(self.shelf.document, digest)
            except (NotInStore, StoreDamaged) as error:
                log.warning("the mirror finds a manifest of %s not whole: %s", repository.name, error)
        elif not pulled:
            raise RefusedError(404, "MANIFEST_UNKNOWN", "this mirror has no such manifest of that repository")
        if pulled:
            await self._pull(repository.name, digest, "MANIFEST_UNKNOWN", anew=digest in now.blobs)
            try:
                return await self.read(self.shelf.document, digest)
            except (NotInStore, StoreDamaged):
                pass
        raise RefusedError(404, "MANIFEST_UNKNOWN", "this mirror does not have that manifest whole")

    async def _pull(self, name: str, digest: Digest, code: str, *, anew: bool) -> None:
        trouble = await self._through.digest(name, digest, anew=anew)
        if trouble is not None:
            raise _refusal(trouble, code)

    # --- blobs -----------------------------------------------------------------------------------------------------

    async def _blob(self, repository: "_Repository", digest: Digest, headers: Mapping[str, str]) -> Response:
        image = (await repository.now()).blobs.get(digest)
        if image is None:
            raise RefusedError(404, "BLOB_UNKNOWN", "no image of that repository here has such a blob")
        size = await self._sound(repository, digest, image)
        etag = f'"{digest}"'
        said = {
            **_VERSION,
            "Docker-Content-Digest": str(digest),
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if _matches(headers.get("if-none-match"), digest):
            return Response(status_code=304, headers=said)
        wanted = headers.get("range") if headers.get("if-range", etag) == etag else None
        try:
            span = parse_range(wanted, size)
        except NoSuchBytesError:
            raise RefusedError(
                416, "RANGE_INVALID", f"the blob has {size} bytes", {"Content-Range": f"bytes */{size}"}
            ) from None
        return _Blob(self, digest, size, span=span, headers=said)

    async def _sound(self, repository: "_Repository", digest: Digest, image: Digest) -> int:
        try:
            await self.read(self.shelf.note, image, digest)
            return await self.read(self.shelf.sound, digest)
        except (NotInStore, StoreDamaged) as error:
            if not self._naming.pulled(repository.name):
                log.warning("the mirror cannot serve a blob of %s: %s", repository.name, error)
                raise RefusedError(404, "BLOB_UNKNOWN", "this mirror does not have that blob whole") from None
        await self._pull(repository.name, image, "BLOB_UNKNOWN", anew=True)
        try:
            return await self.read(self.shelf.sound, digest)
        except (NotInStore, StoreDamaged):
            raise RefusedError(404, "BLOB_UNKNOWN", "this mirror does not have that blob whole") from None

    # --- referrers -------------------------------------------------------------------------------------------------

    async def _referrers(self, repository: "_Repository", subject: Digest, wanted: str | None) -> Response:
        if self._naming.pulled(repository.name):
            await self._through.signatures(repository.name, subject)  # those in the store count, whatever happened
        found = []
        for digest in (await repository.now()).subjects.get(subject, ()):
            try:
                entry = _described(await self.read(self.shelf.document, digest))
            except (NotInStore, StoreDamaged):
                continue
            if wanted is None or entry.get("artifactType") == wanted:
                found.append(entry)
        filtered = {"OCI-Filters-Applied": "artifactType"} if wanted is not None else {}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
        return _json(index, content_type=OCI_INDEX, headers=filtered)


class _Repository:
    """One repository, for one client: what the store has of it at the moment."""

    def __init__(self, routes: MirrorRoutes, name: str, *, known: bool) -> None:
        self._routes = routes
        self._known = known
        self.name = name

    async def now(self) -> Repository:
        stored = await self._routes._stored(known=self._known)  # noqa: SLF001  (a part of it)
        return stored.get(self.name) or Repository()


class _Blob(Response):
    """A blob on its way: read and hashed a piece at a time, given up when the client is gone."""

    def __init__(
        self, routes: MirrorRoutes, digest: Digest, size: int, *, span: Span | None, headers: Mapping[str, str]
    ) -> None:
        self._routes = routes
        self._digest = digest
        self._whole = span is None
        self._span = span or Span(0, size - 1)
        sized = {**headers, "Content-Length": str(self._span.size)}
        if span is not None:
            sized["Content-Range"] = f"bytes {span.first}-{span.last}/{size}"
        self.status_code = 206 if span else 200
        self.background = None
        self.body = b""
        self.init_headers(sized)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        try:
            reading = await self._routes.read(self._open)
        except OSError:
            refused = RefusedError(404, "BLOB_UNKNOWN", "the blob was removed just now")
            await refused.response()(scope, receive, send)
            return
        await send(start)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._pour, reading, send, tasks.cancel_scope)
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()
        finally:
            reading.close()

    def _open(self) -> Reading:
        path = self._routes.shelf.layout.path(self._digest)
        return Reading(path, self._digest, self._span.first, self._span.size, whole=self._whole)

    async def _pour(self, reading: Reading, send: Send, scope: anyio.CancelScope) -> None:
        try:
            while True:
                chunk = await self._routes.read(reading.next)
                await send({"type": "http.response.body", "body": chunk, "more_body": reading.more})
                if not reading.more:
                    break
        except (StoreDamaged, OSError) as error:
            # The answer stays unfinished and the server ends the connection: no client can take it for whole.
            log.warning("the mirror broke off sending a blob: %s", error)
            await self._routes.read(self._routes.shelf.doubt, self._digest)
        scope.cancel()


def _refusal(trouble: Trouble, code: str) -> RefusedError:
    if trouble.reason in _OWN:  # of no use to a client, and the message names files of this node
        return RefusedError(403, "DENIED", "this mirror cannot verify or store images now: its log says why")
    if trouble.untrusted:
        return RefusedError(403, "DENIED", trouble.message)
    if trouble.reason in {"busy", PENDING}:
        return RefusedError(503, "UNAVAILABLE", trouble.message, {"Retry-After": str(_RETRY_AFTER_S)})
    if trouble.reason == "unauthorized":
        return RefusedError(404, code, "the registry does not let this mirror have it")
    return RefusedError(404, code, trouble.message)


def _matches(header: str | None, digest: Digest) -> bool:
    tags = {part.strip().removeprefix("W/").strip('"') for part in (header or "").split(",")}
    return str(digest) in tags or "*" in tags


def _described(document: Document) -> dict[str, Any]:
    """Return a referrer as the list has it: its descriptor with its artifact type and annotations."""
    content = json.loads(document.data)
    entry = {"mediaType": document.media_type, "digest": str(document.digest), "size": len(document.data)}
    config = content.get("config")
    kind = content.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    if isinstance(kind, str):
        entry["artifactType"] = kind
    if isinstance(content.get("annotations"), dict):
        entry["annotations"] = content["annotations"]
    return entry


def _paged(key: str, more: dict[str, Any], names: list[str], path: str, asked: Mapping[str, str]) -> Response:
    shown, further = page(names, asked.get("n"), asked.get("last"))
    headers = {}
    if further:
        parameters = {"n": asked["n"], "last": shown[-1], **({"ns": asked["ns"]} if "ns" in asked else {})}
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
        headers["Link"] = f'<{quote(path)}?{query}>; rel="next"'
    return _json({**more, key: shown}, headers=headers)


def _json(
    content: object,
    status: int = 200,
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = json.dumps(content).encode()
    return Response(body, status, {**_VERSION, **(headers or {}), "Content-Type": content_type})
