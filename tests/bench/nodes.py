"""Nodes to measure: ``proplet up`` as users run it, its broker's credentials, and loads that run beside it."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from proplet.agent.client import Client, Target
from proplet.manager.broker import Identity, load_or_create_identities
from tests.bench.processes import wait_for
from tests.bench.wire_client import Access
from tests.support.mosquitto import MosquittoServer, free_port
from tests.support.node import NodeProcess

ID, MANAGER_ID = "bench", "bench-manager"
ROOT = Path(__file__).parent.parent.parent

NODE = """
[node]
id = "bench"
state_dir = "{directory}/state"
cache_dir = "{directory}/cache"
runtime_dir = "{directory}/run"
manifests_dir = "{directory}/none"
"""
MQTT = """
[mqtt]
address = "{address}"
domain = "d"
channel = "c"
client_key = "{key}"
"""
BROKER = """
[broker]
engine = "{engine}"
port = {port}
max_connections = {connections}
"""


@dataclass(frozen=True)
class BenchNode:
    """A node that is up: its process, how a load reaches its broker, and its API where it has a manager."""

    process: NodeProcess
    access: Access
    client: Client | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def load(self, prefix: str, **parameters: Any) -> dict[str, Any]:
        """Tasks over MQTT; see `load_tasks`."""
        return run_load("load_tasks", access=asdict(self.access), proplet_id=ID, prefix=prefix, **parameters)


def identities(directory: Path, proplets: int = 0) -> dict[str, Identity]:
    """The credentials of the broker of the node in `directory`, made before its first start; more proplets, too."""
    names = [ID, *(f"sim-{number}" for number in range(proplets))]
    return {i.username: i for i in load_or_create_identities(directory / "state" / "broker", names, MANAGER_ID)}


@contextmanager
def node_with_broker(
    directory: Path, engine: str, *, manager: bool = False, proplets: int = 0, more: str = ""
) -> Iterator[BenchNode]:
    """Agent and broker in one node, and a manager. Without one, the load plays it."""
    directory.mkdir(parents=True)
    known = identities(directory, proplets)
    port = free_port()
    config = NODE.format(directory=directory) + more
    config += BROKER.format(engine=engine, port=port, connections=max(1000, proplets + 100))
    config += "[manager]\n" if manager else ""
    access = Access(port, MANAGER_ID, known[MANAGER_ID].password, "m/local/c/main")
    client = Client(Target(socket=directory / "run" / "proplet.sock")) if manager else None
    with NodeProcess(directory, config) as process:
        node = BenchNode(process, access, client)
        if client is not None:
            wait_for(lambda: _alive(client), 20, "the manager knows its own proplet")
        yield node


def _alive(client: Client) -> bool:
    return any(item["status"].get("phase") for item in client.list("proplets")["items"])


@contextmanager
def agent_only(directory: Path, *, more: str = "") -> Iterator[BenchNode]:
    """An agent on a mosquitto that is no part of it."""
    from proplet.manager.broker import Role

    directory.mkdir(parents=True)
    manager, own = Identity(MANAGER_ID, "manager-secret", Role.MANAGER), Identity(ID, "own-secret", Role.PROPLET)
    server = MosquittoServer(directory / "broker", (manager, own))
    server.start()
    try:
        config = NODE.format(directory=directory) + more + MQTT.format(address=server.address, key=own.password)
        access = Access(server.port, MANAGER_ID, manager.password, "m/d/c/c")
        with NodeProcess(directory, config) as process:
            yield BenchNode(process, access)
    finally:
        server.kill()


def run_load(module: str, **parameters: Any) -> dict[str, Any]:
    """Run a load generator to its end in a process of its own; what it found."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{module}", json.dumps(parameters)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module} failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def addition_task(name: str, **spec: Any) -> Mapping[str, Any]:
    """A manifest of the addition; `spec` says where its module is."""
    return {
        "apiVersion": "propeller.propeller.abstractmachines.fr/v1",
        "kind": "Task",
        "metadata": {"name": name},
        "spec": {"name": "addition", "functionName": "main", "inputs": [10, 32], **spec},
    }
