"""Many tasks of one image that nobody has yet: the registry is asked for it once, whatever order they come in."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.node.test_jobs_on_a_node import NODE, Hub
from tests.support.modules import ADDITION, padded
from tests.support.mosquitto import free_port, mosquitto_program
from tests.support.node import NodeProcess
from tests.support.registry import running_registry
from tests.support.registry_proxy import registry_proxy

pytestmark = [pytest.mark.mosquitto, pytest.mark.registry]

TASKS = 100
KIND = {"apiVersion": "propeller.propeller.abstractmachines.fr/v1", "kind": "Task"}


def tasks_of(hub: Hub) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(hub.done("get", "tasks", "-o", "json"))["items"]
    return found


def test_a_hundred_tasks_of_one_image_cost_one_pull() -> None:
    mosquitto_program()
    with tempfile.TemporaryDirectory(prefix="p-") as name:
        root = Path(name)
        with (
            running_registry(root / "registry") as registry,
            registry_proxy(registry.address) as proxy,
            NodeProcess(root / "node", NODE.format(port=free_port())) as node,
        ):
            digest = registry.push("demo/sum", "1", padded(ADDITION, 1_000_000))
            hub = Hub(node, root / "node")
            image = {"name": "sum", "functionName": "main", "imageUrl": f"{proxy.address}/demo/sum:1"}
            tasks = [
                {**KIND, "metadata": {"name": f"sum-{number}"}, "spec": {**image, "inputs": [number, 1]}}
                for number in range(TASKS)
            ]
            hub.done("apply", "-f", "-", stdin="\n---\n".join(map(json.dumps, tasks)).encode())
            deadline = time.monotonic() + 60
            found = tasks_of(hub)
            while {each["status"]["phase"] for each in found} != {"completed"}:
                assert time.monotonic() < deadline, found
                found = tasks_of(hub)
            results = {each["metadata"]["name"]: each["status"].get("results") for each in found}
            assert results == {f"sum-{number}": str(number + 1) for number in range(TASKS)}
            assert {each["status"].get("resolvedImage") for each in found} == {digest}
            assert len(proxy.requests("/manifests/1")) == 1
            assert len({one.path for one in proxy.requests("/blobs/")}) == len(proxy.requests("/blobs/"))
