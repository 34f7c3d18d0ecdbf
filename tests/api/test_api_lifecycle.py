# ruff: noqa: ASYNC240 a look at one local file blocks nobody here
"""The API's own life: its socket's file, its neighbours, its end."""

import os
import socket
import stat
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from proplet.manager.api import ApiError, ApiSettings
from tests.api.fakes import Node, open_node
from tests.api.http import Raw, send

pytestmark = pytest.mark.anyio


async def test_the_socket_is_for_its_owner_and_group_whatever_the_umask(socket_path: Path) -> None:
    for mask in (0o077, 0o000):
        before = os.umask(mask)
        try:
            async with open_node(ApiSettings(socket=socket_path)):
                assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660
        finally:
            os.umask(before)
        assert not socket_path.exists()


async def test_a_socket_left_by_a_dead_process_is_replaced(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    async with open_node(ApiSettings(socket=socket_path)) as node:
        assert (await send(node.socket, "GET", "/tasks")).status == 200


async def test_a_second_node_on_the_same_socket_is_refused_and_the_first_lives_on(node: Node) -> None:
    with pytest.raises(ApiError, match="another node listens on"):
        async with open_node(ApiSettings(socket=node.socket)):
            pass
    assert (await send(node.socket, "GET", "/tasks")).status == 200


async def test_what_is_no_socket_is_not_removed(socket_path: Path) -> None:
    socket_path.write_text("precious")
    with pytest.raises(ApiError, match="is no socket"):
        async with open_node(ApiSettings(socket=socket_path)):
            pass
    assert socket_path.read_text() == "precious"


async def test_a_path_that_cannot_be_a_socket_is_refused(socket_path: Path) -> None:
    with pytest.raises(ApiError, match="longer than 107 bytes"):
        async with open_node(ApiSettings(socket=socket_path.with_name("x" * 120))):
            pass
    file = socket_path.with_name("file")
    file.touch()
    with pytest.raises(ApiError, match="cannot listen on"):
        async with open_node(ApiSettings(socket=file / "proplet.sock")):
            pass


async def test_the_file_of_a_successor_is_left_alone(socket_path: Path) -> None:
    async with open_node(ApiSettings(socket=socket_path)):
        socket_path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(socket_path))
    assert socket_path.exists()
    successor.close()


async def test_a_cancelled_node_closes_its_api_and_says_goodbye(settings: ApiSettings) -> None:
    assert settings.socket is not None
    async with anyio.create_task_group() as group:
        opened = anyio.Event()

        async def serve() -> None:
            async with open_node(settings):
                opened.set()
                await anyio.sleep_forever()

        group.start_soon(serve)
        await opened.wait()
        assert (await send(settings.socket, "GET", "/tasks")).status == 200
        idle = Raw(settings.socket)
        started = anyio.current_time()
        group.cancel_scope.cancel()
    assert anyio.current_time() - started < 3
    assert not settings.socket.exists()
    assert await idle.read_until(b"never") == b""
    idle.socket.close()


async def test_an_error_around_the_api_is_passed_on(settings: ApiSettings) -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        async with open_node(settings):
            raise ZeroDivisionError
    assert raised.group_contains(ZeroDivisionError)
    assert settings.socket is not None
    assert not settings.socket.exists()


async def test_one_open_connection_serves_many_requests(node: Node) -> None:
    with Raw(node.socket) as raw:
        for _ in range(3):
            raw.socket.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await raw.read_until(b"}]}}")).startswith(b"HTTP/1.1 200 ")


async def test_either_listener_may_be_off(settings: ApiSettings) -> None:
    async with open_node(replace(settings, host=None)) as node:
        assert (node.api.address, node.api.url) == (None, None)
    async with open_node(replace(settings, socket=None)) as node:
        assert node.api.socket is None
        assert node.api.url == f"http://127.0.0.1:{node.port}"
