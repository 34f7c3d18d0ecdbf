"""A node with broker, manager and agent: jobs applied and waited for from the command line, kept over a restart."""

import base64
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Done, proplet_now
from tests.support.modules import ADDITION, module
from tests.support.mosquitto import free_port, mosquitto_program
from tests.support.node import NodeProcess

pytestmark = [pytest.mark.mosquitto]

NODE = """
[node]
id = "pi"
state_dir = "state"
cache_dir = "cache"
runtime_dir = "run"
[mqtt]
domain = "d"
channel = "c"
[agent]
liveliness_interval = "1s"
[broker]
port = {port}
[manager]
"""


@dataclass
class Hub:
    """A node, and the command line as a person uses it there."""

    node: NodeProcess
    directory: Path

    def run(self, *arguments: str, stdin: bytes = b"") -> Done:
        return proplet_now(self.directory, arguments, stdin, PROPLET_SOCKET=str(self.directory / "run/proplet.sock"))

    def done(self, *arguments: str, stdin: bytes = b"") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.code == 0, done
        return done.out

    def apply(self, mode: str, tasks: list[dict[str, Any]], **spec: Any) -> None:
        kind = {"apiVersion": "propeller.propeller.abstractmachines.fr/v1", "kind": "PropellerJob"}
        spec = {"name": "sums", "executionMode": mode, "tasks": tasks, **spec}
        manifest = {**kind, "metadata": {"name": "sums"}, "spec": spec}
        assert self.done("apply", "-f", "-", stdin=json.dumps(manifest).encode()) == "propellerjob/sums created\n"

    def wait(self, *more: str) -> Done:
        return self.run("wait", "--for", "completed", "--timeout", "60s", "job/sums", *more)

    def row(self) -> list[str]:
        return self.done("get", "pjob", "sums", "--no-headers").split()[:-1]

    def runs(self, name: str) -> None:
        """Return when a task is there and running."""
        deadline = time.monotonic() + 30
        while (done := self.run("wait", "--for", "running", f"task/{name}")).code == 4:
            assert time.monotonic() < deadline, done
        assert done.code == 0, done

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.done("get", kind, name, "-o", "json"))
        return found


def task(name: str, first: int, wasm: bytes = ADDITION, **more: Any) -> dict[str, Any]:
    file = base64.b64encode(wasm).decode()
    return {"name": name, "functionName": "main", "file": file, "inputs": [first, 1], **more}


@pytest.fixture
def hub() -> Iterator[Hub]:
    mosquitto_program()
    # pytest's own directories may be too long for a socket's path.
    with tempfile.TemporaryDirectory(prefix="p-") as name:
        directory = Path(name) / "node"
        with NodeProcess(directory, NODE.format(port=free_port())) as node:
            yield Hub(node, directory)


@pytest.mark.parametrize("mode", ["parallel", "sequential", "configurable"])
def test_a_job_of_three_tasks_completes_in_every_mode(hub: Hub, mode: str) -> None:
    after = {"b": ["a"], "c": ["a", "b"]} if mode == "configurable" else {}
    hub.apply(mode, [task(name, n, dependsOn=after.get(name, [])) for n, name in enumerate("abc", 10)])
    assert hub.wait() == (0, "propellerjob/sums completed\n", "")
    assert hub.row() == ["sums", "Completed", mode, "3", "3", "0"]
    tasks = [hub.get("task", f"sums-{name}") for name in "abc"]
    assert [each["status"]["results"] for each in tasks] == ["11", "12", "13"]
    owner = hub.get("job", "sums")["metadata"]["uid"]
    assert {each["spec"]["jobId"] for each in tasks} == {owner}
    ends = [each["status"]["finishedAt"] for each in tasks]
    starts = [each["status"]["startedAt"] for each in tasks]
    if mode != "parallel":
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    shown = hub.done("get", "all", "-o", "name").split()
    assert shown == ["task/sums-a", "task/sums-b", "task/sums-c", "proplet/pi", "propellerjob/sums"]


def test_a_failure_ends_a_sequential_job_says_which_and_runs_what_is_for_that(hub: Hub) -> None:
    hub.apply("sequential", [task("a", 1, module("traps")), task("b", 2), task("sweep", 3, runIf="failure")])
    done = hub.wait()
    assert (done.code, done.out) == (1, "")
    assert "job sums failed: Tasks did not complete: sums-a (failed)" in done.err
    assert hub.row() == ["sums", "Failed", "sequential", "3", "1", "1"]
    assert hub.done("get", "tasks", "-o", "name").split() == ["task/sums-a", "task/sums-sweep"]


def test_what_depends_on_a_failed_task_is_skipped_and_the_rest_goes_on(hub: Hub) -> None:
    tasks = [task("a", 1, module("traps")), task("b", 2, dependsOn=["a"]), task("c", 3)]
    hub.apply("configurable", [*tasks, task("d", 4, dependsOn=["a"], runIf="failure")])
    assert hub.wait().code == 1
    status = hub.get("job", "sums")["status"]
    assert (status["completedCount"], status["failedCount"], status["skippedCount"]) == (2, 1, 1)
    assert hub.get("task", "sums-b")["status"]["phase"] == "skipped"
    assert hub.get("task", "sums-d")["status"]["results"] == "5"


def test_a_job_under_way_goes_on_after_a_power_cut_and_goes_away_with_its_tasks(hub: Hub) -> None:
    hub.apply("sequential", [task("a", 1), task("endless", 2, module("loop"), inputs=[]), task("c", 3)])
    hub.runs("sums-endless")
    hub.node.kill()
    hub.node.start()
    assert hub.row() == ["sums", "Running", "sequential", "3", "1", "0"]
    hub.runs("sums-endless")
    assert hub.done("stop", "job/sums") == "propellerjob/sums stopped\n"
    assert "job sums failed: The job was stopped" in hub.wait().err
    status = hub.get("job", "sums")["status"]
    assert (status["completedCount"], status["interruptedCount"], status["skippedCount"]) == (1, 1, 1)
    hub.done("delete", "job", "sums")
    assert hub.run("wait", "--for", "finished", "task/sums-c").code == 4
    hub.node.kill()
    hub.node.start()
    assert hub.done("get", "tasks", "-o", "name") == ""


def test_a_job_waits_for_a_task_that_it_refers_to(hub: Hub) -> None:
    hub.apply("configurable", [task("b", 2, dependsOn=["other"])], taskRefs=["other"])
    assert hub.run("wait", "--for", "running", "job/sums").code == 0
    assert "There is no Task other of taskRefs" in hub.done("describe", "job", "sums")
    kind = {"apiVersion": "propeller.propeller.abstractmachines.fr/v1", "kind": "Task"}
    manifest = {**kind, "metadata": {"name": "other"}, "spec": task("other", 7)}
    hub.done("apply", "-f", "-", stdin=json.dumps(manifest).encode())
    assert hub.wait().code == 0
    assert hub.row() == ["sums", "Completed", "configurable", "2", "2", "0"]
