"""What tasks are given of the device, end to end: manifests in, a node's configuration, the outcome a person reads."""

import base64
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node.test_jobs_on_a_node import NODE, Hub
from tests.support.modules import module
from tests.support.mosquitto import free_port, mosquitto_program
from tests.support.node import NodeProcess

pytestmark = [pytest.mark.mosquitto]

SECRET = "correct-horse-battery"
PERMISSIONS = """
[agent.permissions]
secrets = ["db/*"]
[[agent.permissions.dirs]]
host = "{place}/data"
read_only = false
[[agent.permissions.dirs]]
host = "{place}/public"
"""


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="p-") as name:  # pytest's own may be too long for a socket
        place = Path(name)
        for part in ("data", "public", "private", "secrets/db"):
            (place / part).mkdir(parents=True)
            (place / part / "note").write_text(part)
        (place / "secrets/db/password").write_text(f"{SECRET}\n")
        (place / "secrets/db/password").chmod(0o600)
        yield place


@pytest.fixture
def hub(place: Path) -> Iterator[Hub]:
    mosquitto_program()
    node = NODE.replace("[agent]", f'[agent]\nsecrets_dir = "{place}/secrets"').format(port=free_port())
    text = node + PERMISSIONS.format(place=place)
    with NodeProcess(place / "node", text) as node:
        yield Hub(node, place / "node")


def run(hub: Hub, name: str, arguments: list[str], **spec: Any) -> dict[str, Any]:
    """Run the command component once; return the Task's status."""
    file = base64.b64encode(module("component_command")).decode()
    kind = {"apiVersion": "propeller.propeller.abstractmachines.fr/v1", "kind": "Task"}
    given = {"name": "_start", "file": file, "inputs": arguments, **spec}
    manifest = {**kind, "metadata": {"name": name}, "spec": given}
    hub.done("apply", "-f", "-", stdin=json.dumps(manifest).encode())
    hub.run("wait", "--for", "finished", "--timeout", "60s", f"task/{name}")
    status: dict[str, Any] = hub.get("task", name)["status"]
    return status


def dirs(host: Path, **more: Any) -> dict[str, Any]:
    return {"dirs": [{"host": str(host), "guest": "/data", **more}]}


def test_tasks_are_given_what_they_ask_for_where_the_node_allows_it_and_no_more(hub: Hub, place: Path) -> None:
    read = ["read", "/data/note"]
    assert run(hub, "reads", read, permissions=dirs(place / "public"))["results"] == "public"
    write = ["write", "/data/new", "text"]
    done = run(hub, "writes", write, permissions=dirs(place / "data", readOnly=False))
    assert (done["phase"], (place / "data/new").read_text()) == ("completed", "text")
    (place / "data/link").symlink_to("../private")
    for name, host in (
        ("private", place / "private"),
        ("link", place / "data/link"),
        ("up", place / "data/../private"),
    ):
        refused = run(hub, name, read, permissions=dirs(host))
        assert (refused["phase"], refused["reason"]) == ("failed", "permission_denied"), name
    refused = run(hub, "too-much", write, permissions=dirs(place / "public", readOnly=False))
    assert refused["reason"] == "permission_denied"
    assert f"{place}/node/" in refused["error"], "it names the file and line of the entry"
    assert "read_only = false" in refused["error"]
    network = run(hub, "http", ["clock"], permissions={"http": ["*"]})
    assert network["reason"] == "permission_denied"
    assert "agent.permissions.http" in network["error"]


def test_a_secret_reaches_its_task_and_is_nowhere_else(hub: Hub, place: Path) -> None:
    secrets = {"PASSWORD": {"name": "db", "key": "password"}}
    done = run(hub, "has", ["clock"], envSecrets=secrets)
    assert done["phase"] == "completed", done
    files = [path for path in (place / "node").rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()], "no journal, database or log has it"
    shown = run(hub, "shows", ["environment"], envSecrets=secrets)
    assert f"PASSWORD={SECRET}" in shown["results"].splitlines(), "a task may tell what it knows"
    hub.done("delete", "task", "shows")
    assert SECRET not in hub.done("describe", "task", "has") + hub.done("get", "task", "has", "-o", "yaml")
    missing = run(hub, "missing", ["clock"], envSecrets={"A": {"name": "db", "key": "other"}})
    assert (missing["phase"], missing["reason"]) == ("failed", "secret_unavailable")
    other = run(hub, "other", ["clock"], envSecrets={"A": {"name": "mail", "key": "password"}})
    assert (other["phase"], other["reason"]) == ("failed", "permission_denied")
