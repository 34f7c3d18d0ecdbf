"""Making the byte stream to a broker: TCP, then TLS, then WebSocket, each failure as one line for the person."""

import os
import socket
import ssl
from asyncio import get_running_loop
from typing import Any

import anyio
from paho.mqtt import client as paho_client

from proplet.agent.mqtt_model import Address, MqttSettings

CONNECT_TIMEOUT_S = 10.0
NEXT_ADDRESS_S = 3.0
"""How long one of several addresses of a host may keep us from trying the next."""
WEBSOCKET_TIMEOUT_S = 5.0


class ConnectError(Exception):
    """A connection could not be made; the message is the line for the person."""


async def dial(address: Address) -> socket.socket:
    """A connected, non-blocking socket without Nagle's delay, which would cost 44 ms per QoS 1 message."""
    loop = get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectError(f"the host {address.host!r} is unknown: {getattr(error, 'strerror', error)}") from None
    failure: OSError | None = None
    for family, kind, protocol, _, where in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with anyio.fail_after(CONNECT_TIMEOUT_S if where == found[-1][4] else NEXT_ADDRESS_S):
                await loop.sock_connect(sock, where)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    why = os.strerror(failure.errno) if failure and failure.errno else "no answer"
    raise ConnectError(f"{address.host} port {address.port} cannot be reached: {why}")


def tls_context(settings: MqttSettings) -> ssl.SSLContext:
    """The TLS terms of `settings`; reads files, so it belongs in a thread. Raises ConnectError."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(name for name in (settings.ca_file, settings.cert_file, settings.key_file) if name)
        raise ConnectError(f"the TLS files ({files}) cannot be used: {error}") from None
    if settings.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def tls_socket(sock: socket.socket, context: ssl.SSLContext, address: Address) -> ssl.SSLSocket:
    """`sock` under TLS, before its handshake. `sock` itself is not to be used any more."""
    return context.wrap_socket(sock, server_hostname=address.host, do_handshake_on_connect=False)


async def tls_handshake(sock: socket.socket) -> None:
    """Agree on TLS without blocking the event loop. Raises ConnectError."""
    assert isinstance(sock, ssl.SSLSocket)
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            await anyio.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await anyio.wait_writable(sock)
        except ssl.SSLCertVerificationError as error:
            raise ConnectError(f"the broker's certificate is not trusted: {error.verify_message}") from None
        except OSError as error:
            raise ConnectError(f"the TLS handshake failed: {error.strerror or error}") from None


async def websocket(sock: socket.socket, address: Address) -> Any:
    """Paho's WebSocket over `sock`; its handshake blocks, so it runs in a thread."""

    def upgrade() -> Any:
        sock.settimeout(WEBSOCKET_TIMEOUT_S)
        return paho_client._WebsocketWrapper(  # noqa: SLF001 - pinned
            socket=sock,
            host=address.host,
            port=address.port,
            is_ssl=address.tls,
            path=address.path,
            extra_headers=None,
        )

    try:
        return await anyio.to_thread.run_sync(upgrade)
    except (OSError, paho_client.WebsocketConnectionError, ValueError) as error:
        raise ConnectError(f"the WebSocket handshake at {address.path} failed: {error or 'no answer'}") from None
