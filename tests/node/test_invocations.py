"""Latent tasks as a person has them: applied, invoked from the command line and over HTTP, kept over a restart."""

import base64
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proplet.agent.client import ApiError, Client
from tests.node.test_jobs_on_a_node import NODE, Hub
from tests.support.modules import module
from tests.support.mosquitto import free_port, mosquitto_program
from tests.support.node import NodeProcess

pytestmark = [pytest.mark.mosquitto]


@pytest.fixture
def hub() -> Iterator[Hub]:
    mosquitto_program()
    with tempfile.TemporaryDirectory(prefix="p-") as name:  # pytest's own may be too long for a socket
        directory = Path(name)
        with NodeProcess(directory, NODE.format(port=free_port())) as node:
            yield Hub(node, directory)


def latent(hub: Hub, name: str, file: str = "addition", **spec: Any) -> None:
    kind = {"apiVersion": "propeller.propeller.abstractmachines.fr/v1", "kind": "Task"}
    given = {"name": "main", "file": base64.b64encode(module(file)).decode(), "latent": True, **spec}
    manifest = {**kind, "metadata": {"name": name}, "spec": given}
    assert hub.done("apply", "-f", "-", stdin=json.dumps(manifest).encode()) == f"task/{name} created\n"


def client(hub: Hub) -> Client:
    return Client.connect(f"unix:{hub.directory}/run/proplet.sock")


def test_a_latent_task_is_applied_once_and_invoked_from_the_command_line(hub: Hub) -> None:
    latent(hub, "sum", inputs=[10, 32])
    assert hub.done("invoke", "sum") == "42\n", "it may be invoked at once: that waits until it is ready"
    assert hub.done("invoke", "sum", "1", "-3") == "-2\n"
    assert hub.run("wait", "--for", "running", "sum").code == 0
    assert hub.get("task", "sum")["status"]["phase"] == "running"
    wrong = hub.run("invoke", "sum", "1", "x")
    assert (wrong.code, wrong.out) == (1, "")
    assert "x" in wrong.err
    assert hub.run("invoke", "nothing").code == 4


def test_the_answer_over_http_says_what_it_cost(hub: Hub) -> None:
    latent(hub, "sum", inputs=[10, 32])
    answer = client(hub).invoke("sum", inputs=["2", "3"])
    assert (answer["invoked"], answer["results"], answer["error"], answer["reason"]) == (True, "5", None, "ok")
    assert answer["proplet_id"] == "pi"
    assert answer["usage"]["wall_seconds"]["total"] > 0


def test_what_cannot_be_invoked_is_refused_with_what_to_do(hub: Hub) -> None:
    latent(hub, "plain", "loop", latent=False)
    with pytest.raises(ApiError, match=r"task plain is not latent: set spec\.latent") as refused:
        client(hub).invoke("plain")
    assert (refused.value.status, refused.value.reason) == (409, "not_latent")


def test_a_latent_task_is_ready_again_after_the_node_was_killed(hub: Hub) -> None:
    latent(hub, "sum", inputs=[10, 32])
    assert hub.done("invoke", "sum") == "42\n"
    hub.node.kill()
    hub.node.start()
    assert hub.done("invoke", "sum", "4", "5") == "9\n"
    assert hub.get("task", "sum")["status"]["attempts"] == 1, "the same attempt: it was deployed once"


def test_a_stopped_latent_task_can_be_invoked_no_more(hub: Hub) -> None:
    latent(hub, "sum", inputs=[10, 32])
    assert hub.done("invoke", "sum") == "42\n"
    hub.done("stop", "sum")
    assert hub.run("wait", "--for", "finished", "sum").code == 0
    refused = hub.run("invoke", "sum")
    assert refused.code == 1
    assert "task sum is interrupted" in refused.err


def test_a_module_that_is_none_fails_the_deployment_with_the_reason(hub: Hub) -> None:
    latent(hub, "broken", "missing_import")
    invoked = hub.run("invoke", "broken")
    assert invoked.code == 1
    assert "nothing here provides the import" in invoked.err
