"""The client's typed models would cost 25 MB and half a second: nothing of ours loads any."""

import subprocess
import sys
from pathlib import Path

from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_objects import install

CHILD = Path(__file__).with_name("everything_child.py")


def test_a_process_that_does_everything_has_loaded_no_model(api_server: ApiServer, namespace: str) -> None:
    install(api_server)
    api_server.call(
        "POST", f"/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": "s"}, "stringData": {"k": "v"}}
    )
    done = subprocess.run(
        [sys.executable, CHILD, api_server.kubeconfig, namespace],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "kubernetes.client.api_client" in loaded
    typed = [name for name in loaded if name.startswith(("kubernetes.client.models.", "kubernetes.client.api."))]
    assert typed == []


def test_the_client_is_not_loaded_before_a_cluster_is_configured() -> None:
    modules = "store_kubernetes kubernetes_lease kubernetes_events kubernetes_secrets".split()
    imports = "; ".join(f"import proplet.manager.{name}" for name in modules)
    check = f"{imports}; import sys; print([n for n in sys.modules if n.split('.')[0] in ('kubernetes', 'urllib3')])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
