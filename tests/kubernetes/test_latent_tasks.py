"""A latent Task of a cluster: deployed by the manager there, invoked through the HTTP API of the node it runs on."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_manager import Workspace, install_crds, proplet_manifest, task_manifest
from tests.support.node import NodeProcess


def test_a_latent_task_of_a_cluster_is_invoked_by_the_nodes_own_api(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    install_crds(api_server)
    space = Workspace(api_server, namespace)
    home = tmp_path / "device"
    config = (
        f'[node]\nid = "pi"\nstate_dir = "{home / "state"}"\ncache_dir = "{home / "cache"}"\n'
        f'runtime_dir = "{home / "run"}"\n[agent]\nliveliness_interval = "1s"\n[broker]\nport = 0\n'
        f'[kubernetes]\nkubeconfig = "{api_server.kubeconfig}"\nnamespaces = ["{space.namespace}"]\n'
    )
    connection = {"domainId": "local", "channelId": "main", "clientId": "pi", "clientKey": "x", "mqttAddress": "x"}

    def invoke(*inputs: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "proplet.agent", "invoke", "-n", space.namespace, "sum", *inputs],
            env={**os.environ, "PROPLET_SOCKET": f"unix:{home / 'run' / 'proplet.sock'}"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    with NodeProcess(home, config) as node:
        space.apply(proplet_manifest("pi", "pi", "x", connectionConfig=connection), task_manifest("sum", latent=True))
        space.until("tasks", "sum", "running")
        assert invoke().stdout == "42\n"
        assert invoke("1", "2").stdout == "3\n"
        manifest = space.get("tasks", "sum")
        assert manifest["metadata"]["finalizers"], "it lasts: a deletion waits until its proplet has let it go"
        assert "results" not in manifest["status"], json.dumps(manifest["status"])
        space.kubectl("delete", "task", "sum", "--timeout=30s")
        assert invoke().returncode == 4
        assert node.stop() == 0
