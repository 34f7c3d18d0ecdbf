"""What a cluster's manager tells Prometheus of the tasks that run, measured by a real agent on the node it runs on."""

import base64
import urllib.request
from pathlib import Path

from tests.node.test_latent_tasks import LOOP
from tests.support import prometheus
from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_manager import Workspace, eventually, install_crds, proplet_manifest, task_manifest
from tests.support.mosquitto import free_port
from tests.support.node import NodeProcess


def page(port: int) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        said: str = answer.read().decode()
        return said


def test_a_task_of_a_cluster_is_measured_and_its_costs_are_in_its_status(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    install_crds(api_server)
    space, home, port = Workspace(api_server, namespace), tmp_path / "device", free_port()
    config = (
        f'[node]\nid = "pi"\nstate_dir = "{home / "state"}"\ncache_dir = "{home / "cache"}"\n'
        f'runtime_dir = "{home / "run"}"\n[agent]\nliveliness_interval = "1s"\n[broker]\nport = 0\n'
        f'[kubernetes]\nkubeconfig = "{api_server.kubeconfig}"\nnamespaces = ["{space.namespace}"]\n'
        f'metrics_address = "127.0.0.1:{port}"\n'
    )
    connection = {"domainId": "local", "channelId": "main", "clientId": "pi", "clientKey": "x", "mqttAddress": "x"}
    busy = task_manifest(
        "busy", file=base64.b64encode(LOOP).decode(), inputs=[], daemon=True, monitoringProfile={"interval": "1s"}
    )
    labels = {"namespace": space.namespace, "task": "busy", "proplet": "pi"}
    with NodeProcess(home, config) as node:
        space.apply(proplet_manifest("pi", "pi", "x", connectionConfig=connection), busy)
        space.until("tasks", "busy", "running")
        key = frozenset(labels.items())

        def measured() -> float | None:
            found = prometheus.read(page(port))
            return found.get("proplet_task_cpu_seconds_total", {}).get(key)

        assert eventually(measured) > 0
        space.apply(task_manifest("sum", inputs=[1, 2]))
        status = space.until("tasks", "sum", "completed")
        usage = status["usage"]
        assert usage["cpuSeconds"] > 0
        assert usage["peakMemoryBytes"] == 0, "the module has no memory"
        assert node.stop() == 0
