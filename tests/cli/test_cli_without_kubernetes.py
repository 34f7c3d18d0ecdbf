"""Where the Kubernetes client is not installed, the manager of a cluster says what to install."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_manager_without_the_kubernetes_client_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "kubernetes.py").write_text("raise ModuleNotFoundError('No module named kubernetes')\n")
    command = [sys.executable, "-m", "proplet.agent", "manager", "--health-probe-bind-address=0"]
    broker = ["--mqtt-address=tcp://127.0.0.1:1", "--domain-id=d", "--channel-id=c", "--client-id=m"]
    ended = subprocess.run(
        [*command, *broker],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 69
    assert "pip install 'proplet[kubernetes]'" in ended.stderr
    assert "Traceback" not in ended.stderr
