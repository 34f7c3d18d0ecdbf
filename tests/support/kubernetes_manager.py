"""``proplet manager`` as a process, and proplets on the wire beside it, as a synchronous test needs them."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import proplet.crds
from anyio.from_thread import BlockingPortal, start_blocking_portal

from proplet.agent.mqtt_model import MqttSettings
from proplet.agent.topics import Topics
from proplet.agent.wire import Start
from tests.manager.device import Device, plug_in
from tests.support.daemon import DaemonProcess
from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_objects import await_served
from tests.support.mosquitto import CHANNEL, DOMAIN, MosquittoServer, free_port

GROUP = "propeller.propeller.abstractmachines.fr"
ROOT = Path(__file__).parents[2]
CRDS = Path(proplet.crds.__path__[0]) / "abstractmachines.fr"
KINDS = ("federatedjobs", "propellerjobs", "proplets", "tasks", "trainingrounds")
TOPICS = Topics(DOMAIN, CHANNEL)
PATIENCE_S = 40.0


def install_crds(server: ApiServer) -> str:
    """Install the definitions as they are shipped; returns what kubectl said."""
    said = server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    names = [f"crd/{kind}.{GROUP}" for kind in KINDS]
    server.kubectl("wait", "--for=condition=Established", *names, "--timeout=30s")
    for kind in KINDS:
        await_served(server, f"/apis/{GROUP}/v1/{kind}")
    return said


def eventually(found: Callable[[], Any], what: str = "", within_s: float = PATIENCE_S) -> Any:
    """Return what `found` returns once that is true; errors of a server that is away count as not yet."""
    pause, last = threading.Event(), None
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            last = found()
            if last:
                return last
        except OSError as error:
            last = error
        pause.wait(0.05)
    raise AssertionError(f"not within {within_s:g} s: {what or found}; last: {last}")


class ManagerProcess(DaemonProcess):
    """``proplet manager`` with arguments. Started, it runs; it may not be ready for anything yet."""

    name = "manager"
    ready_s = PATIENCE_S
    cwd = ROOT  # some of its programs are modules of the tests

    def __init__(self, directory: Path, arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        super().__init__(directory, environ)
        self.health_port, self.metrics_port = free_port(), free_port()
        self.arguments = [
            *arguments,
            f"--health-probe-bind-address=127.0.0.1:{self.health_port}",
            f"--metrics-bind-address=127.0.0.1:{self.metrics_port}",
        ]
        self.program = ["proplet.agent", "manager"]

    def command(self) -> Sequence[str]:
        return [*self.program, *self.arguments]

    def ask(self, page: str) -> tuple[int, str]:
        """What a page of it says, with the status."""
        port = self.metrics_port if page == "/metrics" else self.health_port
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{port}{page}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        status, text = self.ask("/metrics")
        assert status == 200
        return float(next(line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(f"{name} ")))

    def until_ready(self) -> None:
        """Wait until it is leader or standby, and has what it needs."""
        eventually(lambda: self.ask("/readyz")[0] == 200, f"ready; log:\n{self.log[-3000:]}")

    def until_dead(self) -> None:
        """Wait until it ends by itself."""
        process, self._process = self._process, None
        assert process is not None
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()


def manager_arguments(broker: MosquittoServer, server: ApiServer, *more: str) -> list[str]:
    """The tutorial's arguments, for these servers."""
    secret = broker.identities["manager"].password
    return [
        f"--mqtt-address={broker.address}",
        "--mqtt-qos=2",
        "--mqtt-timeout=30s",
        f"--domain-id={DOMAIN}",
        f"--channel-id={CHANNEL}",
        "--client-id=manager",
        f"--client-key={secret}",
        f"--kubeconfig={server.kubeconfig}",
        *more,
    ]


class Holding(Device):
    """A device that ends nothing by itself: `finish` does."""

    holding = True

    async def run(self, start: Start) -> None:
        if not self.holding:
            await super().run(start)

    def finish(self) -> None:
        """End everything it holds, and from now on everything at once."""
        self.holding = False
        for key, start in list(self.held.items()):
            self.end(key, str(sum(int(i) for i in start.inputs)))


@contextmanager
def plugged(device: Device, settings: MqttSettings) -> Iterator[BlockingPortal]:
    """The device connected, in a thread of its own; what touches it goes through the portal."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(plug_in(device, settings)):
        yield portal


def proplet_manifest(name: str, proplet_id: str, address: str, **more: Any) -> dict[str, Any]:
    """The tutorial's Proplet."""
    connection = {
        "mqttAddress": address,
        "domainId": DOMAIN,
        "channelId": CHANNEL,
        "clientId": proplet_id,
        "clientKey": "not-used-for-an-external-proplet",
        "mqttQos": 2,
        "mqttTimeout": "30s",
    }
    spec = {
        "type": "external",
        "external": {"deviceType": "docker", "capabilities": ["wasm"]},
        "connectionConfig": connection,
    }
    return {"apiVersion": f"{GROUP}/v1", "kind": "Proplet", "metadata": {"name": name}, "spec": spec | more}


def task_manifest(name: str, **spec: Any) -> dict[str, Any]:
    """The tutorial's Task: 10 + 32."""
    wanted = {
        "name": name,
        "functionName": "main",
        "file": "AGFzbQEAAAABBwFgAn9/AX8DAgEABwgBBG1haW4AAAoJAQcAIAAgAWoL",
        "inputs": [10, 32],
        "daemon": False,
    }
    return {"apiVersion": f"{GROUP}/v1", "kind": "Task", "metadata": {"name": name}, "spec": wanted | spec}


class Workspace:
    """A namespace as a person with kubectl sees it."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server = server
        self.namespace = namespace

    def kubectl(self, *arguments: str, **how: Any) -> str:
        return self.server.kubectl("-n", self.namespace, *arguments, **how)

    def apply(self, *manifests: dict[str, Any]) -> str:
        return self.kubectl(
            "apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        )

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return self.server.call("GET", f"/apis/{GROUP}/v1/namespaces/{self.namespace}/{kind}/{name}")

    def status(self, kind: str, name: str) -> dict[str, Any]:
        return dict(self.get(kind, name).get("status") or {})

    def until(self, kind: str, name: str, phase: str) -> dict[str, Any]:
        """Its status once it has this phase."""

        def reached() -> dict[str, Any] | None:
            status = self.status(kind, name)
            return status if status.get("phase") == phase else None

        found: dict[str, Any] = eventually(reached, f"{kind}/{name} {phase}")
        return found

    def condition(self, kind: str, name: str, wanted: str) -> dict[str, Any]:
        return next((c for c in self.status(kind, name).get("conditions", []) if c["type"] == wanted), {})
