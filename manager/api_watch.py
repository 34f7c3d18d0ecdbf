"""Changes of a kind as server-sent events (WHATWG HTML, section 9.2), resumable and bounded.

A stream without `since` begins with what there is, as ADDED events without ids, and a SYNCED event whose id is the
version of that list; a client that loses the connection before it begins anew. Every later event's id is its change's
version, so ``Last-Event-ID`` resumes without a gap. A reader that is too slow loses its connection, never the node its
memory: one stream holds a few events here and a socket's buffer in the kernel.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import anyio
from anyio.abc import ObjectSendStream
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proplet.manager.api_http import invalid, problem_of, unavailable, whole
from proplet.manager.api_manifests import KINDS, PLURALS
from proplet.manager.api_routes import Context, Operation
from proplet.manager.manifest import to_manifest
from proplet.manager.model import Kind, Resource
from proplet.manager.ports import Change, GoneError, StoreError

_RETRY_MS: Final = 1000
_BUFFERED_EVENTS: Final = 16
_LONGEST_WRITE: Final = 64 * 1024
# A proxy must not hold events back; the end of the stream is the end of the connection, for the simplest of readers.
_HEADERS: Final = {"X-Accel-Buffering": "no", "Connection": "close"}


async def watch(context: Context, request: Request) -> Response:
    """Stream the changes of a kind since a version, or everything there is and then the changes."""
    kind = KINDS.get(request.query_params.get("kind", "").lower())
    if kind is None:
        raise invalid(f"kind must be one of {', '.join(PLURALS)}")
    if context.stats.watchers >= context.max_watchers:
        raise unavailable("too_many_watchers", f"{context.max_watchers} watches are open, the most this node allows")
    # The header wins: it is where a browser's own reconnection says how far it came.
    since = _version(request.headers.get("last-event-id")) or whole(request, "since", -1)
    if since is None:
        raise invalid("since must be a whole number from 0, a version that a list or an event named")
    wanted = (request.query_params.get("namespace"), request.query_params.get("name"))
    return _Stream(context, kind, None if since < 0 else since, wanted)


def _version(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 18 else None


class _Stream(Response):
    """The answer to one watch: a response that ends when the client leaves, the node closes, or the past is gone."""

    def __init__(self, context: Context, kind: Kind, since: int | None, wanted: tuple[str | None, str | None]) -> None:
        super().__init__(status_code=200, headers=_HEADERS, media_type="text/event-stream")
        del self.headers["content-length"]  # the base class knows an empty body, a stream has no length
        self._context = context
        self._kind = kind
        self._since = since
        self._namespace, self._name = wanted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        self._context.stats.watchers += 1
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._until_disconnected, receive, group.cancel_scope)
                group.start_soon(self._until_closing, group.cancel_scope)
                await self._pump(send)
                group.cancel_scope.cancel()
        finally:
            self._context.stats.watchers -= 1
        await send({"type": "http.response.body", "body": b""})

    async def _until_disconnected(self, receive: Receive, stream: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        stream.cancel()

    async def _until_closing(self, stream: anyio.CancelScope) -> None:
        await self._context.closing.wait()
        stream.cancel()

    async def _pump(self, send: Send) -> None:
        """Send events as they come, a comment when none comes for a while."""
        sender, receiver = anyio.create_memory_object_stream[bytes](_BUFFERED_EVENTS)
        async with anyio.create_task_group() as group, receiver:
            group.start_soon(self._produce, sender)
            await _write(send, f"retry: {_RETRY_MS}\n\n".encode())
            while True:
                chunk = b": \n\n"
                with anyio.move_on_after(self._context.heartbeat_s):
                    try:
                        chunk = await receiver.receive()
                    except anyio.EndOfStream:
                        return
                while len(chunk) < _LONGEST_WRITE and receiver.statistics().current_buffer_used:
                    chunk += receiver.receive_nowait()
                await _write(send, chunk)

    async def _produce(self, sender: ObjectSendStream[bytes]) -> None:
        async with sender:
            try:
                if self._since is None:
                    self._since = await self._send_all(sender)
                await self._send_changes(sender, self._since)
            except GoneError as error:
                text = str(error) or "the changes since that version are no longer known"
                await sender.send(_event("gone", {"error": f"{text}: list again", "reason": "gone"}))
            except StoreError as error:
                problem = problem_of(error)
                await sender.send(_event("error", {"error": problem.message, "reason": problem.reason}))

    async def _send_all(self, sender: ObjectSendStream[bytes]) -> int:
        listing = await self._context.store.list(self._kind)
        for item in listing.items:
            if self._is_wanted(item):
                await sender.send(_event("ADDED", _data("ADDED", item, item.meta.version)))
        await sender.send(_event("SYNCED", {"type": "SYNCED", "version": listing.version}, listing.version))
        return listing.version

    async def _send_changes(self, sender: ObjectSendStream[bytes], since: int) -> None:
        changes = self._context.store.watch(self._kind, since)
        try:
            async for change in changes:
                if self._is_wanted(change.resource):
                    await sender.send(_change(change))
        finally:
            await _close(changes)

    def _is_wanted(self, item: Resource) -> bool:
        return self._namespace in {None, item.meta.namespace} and self._name in {None, item.meta.name}


async def _close(changes: AsyncIterator[Change]) -> None:
    # A generator left suspended would be closed by the garbage collector, at a time of its choosing.
    close = getattr(changes, "aclose", None)
    if close is not None:
        with anyio.CancelScope(shield=True):
            await close()


async def _write(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


def _change(change: Change) -> bytes:
    return _event(change.type.value, _data(change.type.value, change.resource, change.version), change.version)


def _data(kind: str, resource: Resource, version: int) -> dict[str, Any]:
    return {"type": kind, "version": version, "object": to_manifest(resource)}


def _event(name: str, data: dict[str, Any], version: int | None = None) -> bytes:
    number = f"id: {version}\n" if version is not None else ""
    return f"{number}event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode("ascii")


OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/watch",
        watch,
        "Watch the changes of a kind",
        answer="Event",
        answer_type="text/event-stream",
        parameters=("kind", "since", "namespace", "name", "Last-Event-ID"),
        errors=(400,),
        tag="manifests",
    ),
)
