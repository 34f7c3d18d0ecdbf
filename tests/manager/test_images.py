"""Images pulled for others: one child for many who wait, ended with the last of them, and never outliving the node."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import psutil
import pytest

from proplet.manager.images import ImageError, ImagesSettings, open_images
from proplet.oci.layout import OciLayout
from proplet.oci.settings import RegistrySettings
from tests.manager.mirrors import MODULE, put_image
from tests.support.registry import ADDITION

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def silent_registry() -> AsyncIterator[tuple[str, anyio.Event]]:
    """An address where connections are accepted and nothing is answered, and what is set at the first one."""
    asked = anyio.Event()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            asked.set()
            await anyio.sleep_forever()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}", asked
        tasks.cancel_scope.cancel()


async def test_what_the_store_has_is_found_without_a_registry(tmp_path: Path) -> None:
    digest = put_image(tmp_path, "nowhere.example/x:1")
    async with open_images(ImagesSettings(tmp_path)) as images:
        found = await images.fetch("nowhere.example/x:1")
        assert (found.reference, found.digest) == ("nowhere.example/x:1", digest)
        assert (found.manifests, found.module_digest, found.size) == ((digest,), MODULE, len(ADDITION))
        assert found.module_path.read_bytes() == ADDITION
        assert images.blob(MODULE) == found.module_path
        assert images.blob("sha256:" + "0" * 64) is None
        assert images.blob("../../etc/passwd") is None


@pytest.mark.parametrize(
    ("image", "digest", "reason"),
    [
        ("not//a reference", None, "invalid_reference"),
        ("nowhere.example/x:1", "sha256:12", "invalid_digest"),
        ("nowhere.example/x:1", None, "not_in_store"),
    ],
)
async def test_what_cannot_be_had_says_why(image: str, digest: str | None, reason: str, tmp_path: Path) -> None:
    async with open_images(ImagesSettings(tmp_path)) as images:
        with pytest.raises(ImageError) as refused:
            await images.fetch(image, digest, policy="Never")
        assert refused.value.reason == reason
        assert "\n" not in str(refused.value)


async def test_those_who_wait_for_one_image_share_a_child_that_ends_with_the_last_of_them(tmp_path: Path) -> None:
    async with silent_registry() as (address, asked), open_images(ImagesSettings(tmp_path)) as images:
        async with anyio.create_task_group() as first:
            first.start_soon(images.fetch, f"{address}/x:1")
            async with anyio.create_task_group() as second:
                second.start_soon(images.fetch, f"{address}/x:1")
                await asked.wait()
                (child,) = images.child_pids
                second.cancel_scope.cancel()
            assert images.child_pids == [child]
            first.cancel_scope.cancel()
        with anyio.fail_after(20):
            while images.child_pids:  # noqa: ASYNC110  (nothing tells when)
                await anyio.sleep(0.01)
        assert not psutil.pid_exists(child)


async def test_no_more_children_than_allowed_and_no_more_waiting(tmp_path: Path) -> None:
    settings = ImagesSettings(tmp_path, children=1, waiting=1)
    async with (
        silent_registry() as (address, asked),
        open_images(settings) as images,
        anyio.create_task_group() as all_,
    ):
        all_.start_soon(images.fetch, f"{address}/x:1")
        all_.start_soon(images.fetch, f"{address}/x:2")
        await asked.wait()
        assert len(images.child_pids) == 1
        with pytest.raises(ImageError) as refused:
            await images.fetch(f"{address}/x:3")
        assert refused.value.reason == "busy"
        all_.cancel_scope.cancel()


async def test_when_the_node_ends_no_child_is_left_and_nobody_waits_on(tmp_path: Path) -> None:
    ended: list[str] = []

    async def wait(address: str) -> None:
        try:
            await images.fetch(f"{address}/x:1")
        except ImageError as error:
            ended.append(error.reason)

    async with silent_registry() as (address, asked), anyio.create_task_group() as tasks:
        async with open_images(ImagesSettings(tmp_path)) as images:
            tasks.start_soon(wait, address)
            await asked.wait()
            (child,) = images.child_pids
        assert not psutil.pid_exists(child)
    assert ended == ["interrupted"]


async def test_a_child_that_is_killed_is_an_error_that_says_so_and_the_store_is_whole(tmp_path: Path) -> None:
    async with silent_registry() as (address, asked), open_images(ImagesSettings(tmp_path)) as images:

        async def kill() -> None:
            await asked.wait()
            os.kill(images.child_pids[0], signal.SIGKILL)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill)
            with pytest.raises(ImageError, match="ended with signal 9") as refused:
                await images.fetch(f"{address}/x:1")
            assert refused.value.reason == "internal"
        assert OciLayout(tmp_path).references() == {}


async def test_a_password_is_not_in_the_childs_arguments_or_environment(tmp_path: Path) -> None:
    from proplet.oci.settings import HostSettings

    async with silent_registry() as (address, asked):
        secret = HostSettings(username="u", password="the secret word")
        settings = ImagesSettings(tmp_path, RegistrySettings(hosts={address: secret}))
        async with open_images(settings) as images, anyio.create_task_group() as tasks:
            tasks.start_soon(images.fetch, f"{address}/x:1")
            await asked.wait()
            process = psutil.Process(images.child_pids[0])
            assert "secret word" not in f"{process.cmdline()} {process.environ()}"
            tasks.cancel_scope.cancel()


PARENT = """
import sys, anyio
from pathlib import Path
from proplet.manager.images import ImagesSettings, open_images

async def main():
    async with open_images(ImagesSettings(Path(sys.argv[1]))) as images, anyio.create_task_group() as tasks:
        tasks.start_soon(images.fetch, sys.argv[2] + "/x:1")
        while not images.child_pids:
            await anyio.sleep(0.01)
        print(images.child_pids[0], flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-c", PARENT, str(tmp_path), address], stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
            server.settimeout(30)
            connection, _ = server.accept()  # it is at work
            with connection:
                parent.kill()
                child.wait(20)
                assert not child.is_running()
