"""Two nodes without a registry: one has the images and serves them as a mirror, the other names it and runs them."""

import json
import tempfile
from pathlib import Path

import pytest

from tests.manager.mirrors import Asker, put_image
from tests.node.test_jobs_on_a_node import NODE, Hub
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
