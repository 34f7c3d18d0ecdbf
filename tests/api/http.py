"""A client for tests that sends exactly what it is told, from a thread, so that the server under test runs on."""

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import anyio.to_thread


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def _exchange(
    where: Path | tuple[str, int], method: str, path: str, body: bytes | None, headers: Mapping[str, str]
) -> Answer:
    if isinstance(where, Path):
        connection = http.client.HTTPConnection("localhost", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(str(where))
    else:
        connection = http.client.HTTPConnection(*where, timeout=20)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None and "Content-Length" not in headers:
            connection.putheader("Content-Length", str(len(body)))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
            connection.endheaders(body)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


async def send(
    where: Path | tuple[str, int],
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request; a body that is not bytes goes as JSON."""
    given = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        given.setdefault("Content-Type", "application/json")
    return await anyio.to_thread.run_sync(_exchange, where, method, path, body, given)


class Raw:
    """A connection that sends and reads bytes."""

    def __init__(self, where: Path | tuple[str, int]) -> None:
        family = socket.AF_UNIX if isinstance(where, Path) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(20)
        self.socket.connect(str(where) if isinstance(where, Path) else where)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    async def read_until(self, end: bytes) -> bytes:
        """Read until `end` was seen, or the end of the stream."""
        seen = bytearray()

        def read() -> None:
            while end not in seen and (chunk := self.socket.recv(65536)):
                seen.extend(chunk)

        await anyio.to_thread.run_sync(read)
        return bytes(seen)
