"""The installed command, as a person's shell starts it."""

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

COMMAND = Path(sysconfig.get_path("scripts")) / "proplet"


@pytest.mark.parametrize("command", [[str(COMMAND)], [sys.executable, "-m", "proplet.agent"]], ids=["script", "module"])
def test_help_is_printed(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "proplet" in done.stdout
    assert "up" in done.stdout
    assert done.stderr == ""


def test_the_version_is_the_distributions(tmp_path: Path) -> None:
    done = subprocess.run([COMMAND, "version"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert importlib.metadata.version("proplet") in done.stdout


@pytest.mark.parametrize("module", ["proplet.agent.cli", "proplet.agent.app", "proplet.manager.app"])
def test_the_nodes_own_process_does_not_load_the_engine_or_a_registry_client(module: str) -> None:
    look = f"import {module}, sys; print(*sorted({{'wasmtime', 'oras', 'requests', 'amqtt'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
