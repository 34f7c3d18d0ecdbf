"""Two nodes without a registry: one has the images and serves them as a mirror, the other names it and runs them."""

import json
import socket
import tempfile
import time
from pathlib import Path

import pytest

from proplet.agent import app_images
from proplet.agent.config_schema import ManagerTable, MirrorTable, NodeSettings, NodeTable
from proplet.agent.failures import NodeError
from tests.manager.mirrors import Asker, put_image
from tests.node.test_jobs_on_a_node import NODE, Hub
from tests.support.modules import module
from tests.support.mosquitto import free_port, mosquitto_program
from tests.support.node import NodeProcess
from tests.support.registry import make_tls_files

pytestmark = [pytest.mark.mosquitto, pytest.mark.anyio]

IMAGE = "registry.invalid/open/addition:1"
KIND = {"apiVersion": "propeller.propeller.abstractmachines.fr/v1", "kind": "Task", "metadata": {"name": "sum"}}
MIRROR = """
[manager.mirror]
port = {port}
username = "device"
password_file = "{secret}"
tls_cert_file = "{tls.certificate}"
tls_key_file = "{tls.key}"
"""
DEVICE = """
[registries."registry.invalid"]
mirrors = ["127.0.0.1:{port}"]
[registries."127.0.0.1:{port}"]
plain_http = false
ca_file = "{tls.ca}"
username = "device"
password_file = "{secret}"
"""


async def test_a_device_without_internet_runs_an_image_from_the_mirror_of_its_hub() -> None:
    mosquitto_program()
    with tempfile.TemporaryDirectory(prefix="p-") as name:
        root = Path(name)
        tls, secret, port = make_tls_files(root / "tls"), root / "secret", free_port()
        secret.write_text("a word for devices\n")
        secret.chmod(0o600)
        digest = put_image(root / "hub/state/modules", IMAGE)
        told = {"port": port, "tls": tls, "secret": secret}
        with (
            NodeProcess(root / "hub", NODE.format(port=free_port()) + MIRROR.format(**told)),
            NodeProcess(root / "device", NODE.format(port=free_port()) + DEVICE.format(**told)) as node,
        ):
            device = Hub(node, root / "device")
            spec = {"name": "sum", "functionName": "main", "imageUrl": IMAGE, "inputs": [20, 22]}
            device.done("apply", "-f", "-", stdin=json.dumps({**KIND, "spec": spec}).encode())
            device.done("wait", "--for", "finished", "--timeout", "60s", "task/sum")
            status = device.get("task", "sum")["status"]
            assert (status["phase"], status.get("results")) == ("completed", "42"), status
            assert digest in json.dumps(status)
            # Without the password nobody gets anything.
            refused = await Asker(f"127.0.0.1:{port}", tls.ca)("/v2/")
            assert (refused.status, refused.code) == (401, "UNAUTHORIZED")


def test_a_daemons_status_says_while_it_runs_which_image_its_tag_stood_for() -> None:
    mosquitto_program()
    with tempfile.TemporaryDirectory(prefix="p-") as name:
        root = Path(name)
        digest = put_image(root / "state/modules", IMAGE, module("sleeper"))
        with NodeProcess(root, NODE.format(port=free_port())) as node:
            device = Hub(node, root)
            spec = {"name": "sleep", "functionName": "_start", "imageUrl": IMAGE, "daemon": True}
            device.done("apply", "-f", "-", stdin=json.dumps({**KIND, "spec": spec}).encode())
            device.runs("sum")
            deadline = time.monotonic() + 30  # told with its progress
            while (status := device.get("task", "sum")["status"]).get("resolvedImage") != digest:
                assert time.monotonic() < deadline, status
            assert status["phase"] == "running"


async def test_a_mirror_whose_port_is_taken_keeps_the_node_from_starting_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        table = MirrorTable(port=other.getsockname()[1])
        settings = NodeSettings(node=NodeTable(state_dir=tmp_path), manager=ManagerTable(mirror=table))
        with pytest.raises(NodeError, match=r"^the mirror cannot listen on [^\n]* another program listens there$"):
            async with app_images.open_served_images(settings):
                pass


async def test_a_manager_without_a_mirror_has_the_images_and_no_listener(tmp_path: Path) -> None:
    settings = NodeSettings(node=NodeTable(state_dir=tmp_path), manager=ManagerTable())
    digest = put_image(tmp_path / "modules", IMAGE)
    async with app_images.open_served_images(settings) as (images, mirror):
        assert mirror is None
        assert (await images.fetch(IMAGE)).digest == digest
