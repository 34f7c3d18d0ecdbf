"""``proplet manager`` against a real API server and a real broker: what a person sees, and what survives what."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_manager import (
    GROUP,
    ManagerProcess,
    Workspace,
    eventually,
    install_crds,
    manager_arguments,
    proplet_manifest,
    task_manifest,
)
from tests.support.mosquitto import CHANNEL, DOMAIN, MosquittoServer, mosquitto  # noqa: F401
from tests.support.node import NodeProcess


@pytest.fixture(scope="module")
def crds(api_server: ApiServer) -> str:
    return install_crds(api_server)


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> MosquittoServer:
    server: MosquittoServer = request.getfixturevalue("mosquitto")
    return server


@pytest.fixture
def space(api_server: ApiServer, namespace: str, crds: str) -> Workspace:
    return Workspace(api_server, namespace)


@pytest.fixture
def manager(tmp_path: Path, broker: MosquittoServer, space: Workspace) -> Iterator[ManagerProcess]:
    """A manager that leads, of every namespace."""
    lease = f"--lease-namespace={space.namespace}"
    arguments = manager_arguments(broker, space.server, "--leader-elect", lease)
    with ManagerProcess(tmp_path / "manager", arguments) as process:
        process.until_ready()
        yield process


def real_proplet(directory: Path, broker: MosquittoServer) -> NodeProcess:
    """An agent of ours, as another machine would run it."""
    key = broker.identities["proplet-1"].password
    return NodeProcess(
        directory,
        f'[node]\nid = "proplet-1"\nstate_dir = "{directory / "state"}"\ncache_dir = "{directory / "cache"}"\n'
        f'runtime_dir = "{directory / "run"}"\n[agent]\nliveliness_interval = "1s"\n'
        f'[mqtt]\naddress = "{broker.address}"\ndomain = "{DOMAIN}"\nchannel = "{CHANNEL}"\nclient_key = "{key}"\n',
    )


def test_the_tutorial_works_as_it_is_written(
    space: Workspace, manager: ManagerProcess, broker: MosquittoServer, tmp_path: Path, crds: str
) -> None:
    for kind in ("federatedjobs", "propellerjobs", "proplets", "tasks", "trainingrounds"):
        assert f"{kind}.{GROUP} serverside-applied" in crds
    with real_proplet(tmp_path / "device", broker):
        said = space.apply(proplet_manifest("docker-proplet", "proplet-1", broker.address))
        assert said == f"proplet.{GROUP}/docker-proplet created\n"
        space.until("proplets", "docker-proplet", "Running")
        head, row = space.kubectl("get", "proplets").splitlines()
        assert re.split(r"\s{2,}", head.strip()) == [
            "NAME", "TYPE", "PHASE", "READY", "TASKS", "REPLICAS", "LAST SEEN", "AGE",
        ]  # fmt: skip
        assert re.match(r"docker-proplet +external +Running +True +0 +\d+s +\d+s", row), row
        described = space.kubectl("describe", "proplet", "docker-proplet")
        for words in ("External proplet is ready and connected", "PropletReady", "PropletOnline", "Last Seen:"):
            assert words in described

        said = space.apply(task_manifest("add", propletSelector={"propletId": "docker-proplet"}))
        assert said == f"task.{GROUP}/add created\n"
        space.until("tasks", "add", "completed")
        assert space.kubectl("get", "task", "add", "-o", "jsonpath={.status.results}") == "42"
        head, row = space.kubectl("get", "tasks").splitlines()
        assert re.split(r"\s{2,}", head.strip()) == [
            "NAME", "PHASE", "MODE", "PROPLET", "START TIME", "FINISH TIME", "PREFERRED TYPE", "AGE",
        ]  # fmt: skip
        assert re.match(r"add +completed +docker-proplet +\d+s +\d+s +any +\d+s", row), row
        task = space.get("tasks", "add")
        assert (task["spec"]["kind"], task["spec"]["priority"]) == ("standard", 50)
        assert space.condition("tasks", "add", "Started")["message"] == "External task is running"
        assert {"startedAt", "finishedAt", "updatedAt"} <= task["status"].keys()
        assert manager.metric('proplet_tasks{phase="completed"}') >= 1
        assert manager.metric("proplet_dispatch_seconds_count") >= 1
        assert manager.metric("proplet_leader") == 1
    eventually(lambda: space.condition("proplets", "docker-proplet", "Ready")["status"] == "False", "its will is heard")
