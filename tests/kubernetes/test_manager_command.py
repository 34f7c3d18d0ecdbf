"""``proplet manager`` against a real API server and a real broker: what a person sees, and what survives what."""

import base64
import os
import re
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.manager.device import Device
from tests.mqtt.certificates import make_certificates
from tests.support.kubernetes import ApiServer
from tests.support.kubernetes_manager import (
    CRDS,
    GROUP,
    KINDS,
    TOPICS,
    Holding,
    ManagerProcess,
    Workspace,
    eventually,
    install_crds,
    manager_arguments,
    plugged,
    proplet_manifest,
    task_manifest,
)
from tests.support.kubernetes_objects import await_served
from tests.support.mosquitto import CHANNEL, DOMAIN, MosquittoServer, free_port, mosquitto  # noqa: F401
from tests.support.node import NodeProcess

LOOP = base64.b64encode((Path(__file__).parents[1] / "modules" / "loop.wasm").read_bytes()).decode()


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


def test_only_the_namespaces_to_watch_are_managed(
    space: Workspace, broker: MosquittoServer, tmp_path: Path, api_server: ApiServer
) -> None:
    other = Workspace(api_server, f"{space.namespace}-other")
    api_server.create_namespace(other.namespace)
    try:
        environ = {"WATCH_NAMESPACE": f"{space.namespace}, {other.namespace}"}
        with ManagerProcess(tmp_path / "m", manager_arguments(broker, api_server), environ) as manager:
            with plugged(Device("proplet-1", TOPICS), broker.link_settings("proplet-1")):
                other.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("add"))
                assert other.until("tasks", "add", "completed")["results"] == "42"
            manager.stop()
        one = manager_arguments(broker, api_server, "--namespace", space.namespace)
        with ManagerProcess(tmp_path / "one", one) as manager:
            with plugged(Device("proplet-2", TOPICS), broker.link_settings("proplet-2")):
                other.apply(task_manifest("unseen"))
                space.apply(proplet_manifest("p", "proplet-2", broker.address), task_manifest("seen"))
                space.until("tasks", "seen", "completed")
            assert other.status("tasks", "unseen") == {}
    finally:
        api_server.remove_namespace(other.namespace)


def test_a_proplet_on_another_channel_is_told_so(space: Workspace, manager: ManagerProcess) -> None:
    manifest = proplet_manifest("elsewhere", "proplet-9", "tcp://elsewhere:1883")
    manifest["spec"]["connectionConfig"]["channelId"] = "another"
    space.apply(manifest)
    told = eventually(lambda: space.condition("proplets", "elsewhere", "Ready"))
    assert told["status"] == "False"
    assert "another" in told["message"]


def test_one_device_is_broker_manager_and_agent_of_a_cluster(
    space: Workspace, api_server: ApiServer, tmp_path: Path
) -> None:
    home = tmp_path / "device"
    config = (
        f'[node]\nid = "pi"\nstate_dir = "{home / "state"}"\ncache_dir = "{home / "cache"}"\n'
        f'runtime_dir = "{home / "run"}"\n[agent]\nliveliness_interval = "1s"\n[broker]\nport = 0\n'
        f'[kubernetes]\nkubeconfig = "{api_server.kubeconfig}"\nnamespaces = ["{space.namespace}"]\n'
    )
    connection = {"domainId": "local", "channelId": "main", "clientId": "pi", "clientKey": "x", "mqttAddress": "x"}
    manifest = proplet_manifest("pi", "pi", "x", connectionConfig=connection)
    with NodeProcess(home, config) as node:
        space.apply(manifest, task_manifest("add"))
        assert space.until("tasks", "add", "completed")["results"] == "42"
        space.apply(task_manifest("daemon", file=LOOP, daemon=True, inputs=[]))
        space.until("tasks", "daemon", "running")
        assert space.get("tasks", "daemon")["metadata"]["finalizers"]
        listed = subprocess.run(
            [sys.executable, "-m", "proplet.agent", "get", "tasks", "-n", space.namespace],
            env={**os.environ, "PROPLET_SOCKET": f"unix:{home / 'run' / 'proplet.sock'}"},
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
        assert re.search(r"^add +completed", listed, re.MULTILINE), listed  # its own API shows the cluster's
        node.kill()
        space.kubectl("delete", "task", "daemon", "--wait=false")  # while nobody is there to stop it
        node.start()
        eventually(lambda: not space.kubectl("get", "tasks", "daemon", "--ignore-not-found"), "it is stopped and goes")
        assert node.stop() == 0


def test_finalizers_come_off_so_that_everything_can_be_deleted(
    space: Workspace, broker: MosquittoServer, tmp_path: Path
) -> None:
    arguments = manager_arguments(broker, space.server, "-n", space.namespace)
    with ManagerProcess(tmp_path / "m", arguments) as manager:
        with plugged(Holding("proplet-1", TOPICS), broker.link_settings("proplet-1")):
            space.apply(proplet_manifest("p", "proplet-1", broker.address), task_manifest("held", daemon=True))
            space.until("tasks", "held", "running")
        manager.kill()
    space.kubectl("delete", "task", "held", "--wait=false")
    assert space.get("tasks", "held")["metadata"]["deletionTimestamp"]
    code, said = command(f"--kubeconfig={space.server.kubeconfig}", "-n", space.namespace, "--remove-finalizers")
    assert (code, "1 resources were freed" in said) == (0, True), said
    assert space.kubectl("get", "tasks") == ""


def test_the_broker_is_reached_over_tls_and_metrics_are_served_so(space: Workspace, tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "tls")
    port = free_port()
    extra = [f"listener {port} 127.0.0.1"]
    extra += [f"certfile {made / 'server.pem'}", f"keyfile {made / 'server.key'}", f"cafile {made / 'ca.pem'}"]
    server = MosquittoServer(tmp_path / "broker", extra=[*extra, "require_certificate true"], more_ports=[port])
    server.start()
    (tmp_path / "key").write_text(server.identities["manager"].password)
    (tmp_path / "key").chmod(0o600)
    kept = [a for a in manager_arguments(server, space.server) if not a.startswith(("--mqtt-addr", "--client-key"))]
    tls = [
        f"--mqtt-address=ssl://127.0.0.1:{port}",
        f"--client-key-file={tmp_path / 'key'}",
        f"--mqtt-ca-file={made / 'ca.pem'}",
        f"--mqtt-cert-file={made / 'client.pem'}",
        f"--mqtt-key-file={made / 'client.key'}",
        f"--metrics-cert-path={made}",
        "--metrics-cert-name=server.pem",
        "--metrics-cert-key=server.key",
    ]
    try:
        with ManagerProcess(tmp_path / "m", [*kept, *tls, "--namespace", space.namespace]) as manager:
            manager.until_ready()
            with plugged(Device("proplet-1", TOPICS), server.link_settings("proplet-1")):
                space.apply(proplet_manifest("p", "proplet-1", server.address), task_manifest("add"))
                assert space.until("tasks", "add", "completed")["results"] == "42"
            trusted = ssl.create_default_context(cafile=str(made / "ca.pem"))
            with urllib.request.urlopen(f"https://127.0.0.1:{manager.metrics_port}/metrics", context=trusted) as page:
                assert b"proplet_mqtt_connected 1" in page.read()
            assert "shows the secret" not in manager.log
    finally:
        server.kill()


def test_the_newer_group_and_its_names_work_the_same(
    broker: MosquittoServer, tmp_path: Path, private_api_server: ApiServer
) -> None:
    newer, space = "propeller.propeller.absmach.eu", Workspace(private_api_server, "default")
    # On a server of its own: with both groups in one, `tasks` alone would not say which.
    private_api_server.kubectl("apply", "--server-side", "-f", str(CRDS.parent / "absmach.eu"))
    for kind in KINDS:
        private_api_server.kubectl("wait", "--for=condition=Established", f"crd/{kind}.{newer}")
        await_served(private_api_server, f"/apis/{newer}/v1/{kind}")
    proplet = proplet_manifest("p", "proplet-1", broker.address)
    proplet["spec"]["connectionConfig"] = {
        "mqttAddress": broker.address, "tenantId": DOMAIN, "channelId": CHANNEL, "entityId": "proplet-1",
        "apiKeySecretRef": {"name": "not-needed", "key": "here"},
    }  # fmt: skip
    arguments = [
        f"--mqtt-address={broker.address}", f"--tenant-id={DOMAIN}", f"--channel-id={CHANNEL}", "--entity-id=manager",
        f"--api-key={broker.identities['manager'].password}", f"--kubeconfig={private_api_server.kubeconfig}",
        f"--api-group={newer}", f"--namespace={space.namespace}", "--leader-elect", "--scheduler=priority",
    ]  # fmt: skip
    device = Device("proplet-1", TOPICS)
    with plugged(device, broker.link_settings("proplet-1")), ManagerProcess(tmp_path / "m", arguments):
        for manifest in (proplet, task_manifest("add", inputs=["10", "32"])):
            space.apply({**manifest, "apiVersion": f"{newer}/v1"})
        path = ("-o", "jsonpath={.status.results}")
        eventually(lambda: space.kubectl("get", "tasks", "add", *path) == "42")
        assert (
            space.kubectl("get", "leases", "-o", "name") == "lease.coordination.k8s.io/fa27fa49.propeller.absmach.eu\n"
        )


def test_after_that_the_definitions_can_be_deleted(private_api_server: ApiServer) -> None:
    install_crds(private_api_server)
    private_api_server.kubectl("delete", "crd", f"trainingrounds.{GROUP}")  # not all of them need be there
    space = Workspace(private_api_server, "default")
    task = task_manifest("left")
    ours, theirs = f"{GROUP}/stop", "propeller.propeller.absmach.eu/task-finalizer"
    task["metadata"]["finalizers"] = [ours, theirs, "example.org/somebody-else"]
    space.apply(task, proplet_manifest("p", "p", "tcp://b"))
    code, said = command(f"--kubeconfig={private_api_server.kubeconfig}", "--remove-finalizers")
    assert (code, "1 resources were freed" in said) == (0, True), said
    assert space.get("tasks", "left")["metadata"]["finalizers"] == ["example.org/somebody-else"]
    space.kubectl("patch", "task", "left", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    private_api_server.kubectl("delete", "-k", str(CRDS.parent), "--ignore-not-found", "--timeout=30s")


def test_proplets_that_announce_themselves_are_registered_where_that_is_wanted(
    space: Workspace, broker: MosquittoServer, tmp_path: Path
) -> None:
    arguments = manager_arguments(broker, space.server, "--namespace", space.namespace, "--register")
    device = Device("proplet-1", TOPICS)
    with plugged(device, broker.link_settings("proplet-1")), ManagerProcess(tmp_path / "m", arguments):
        space.until("proplets", "proplet-1", "Running")
        space.apply(task_manifest("add"))
        assert space.until("tasks", "add", "completed")["assignedProplet"] == "proplet-1"


def command(*arguments: str, **environ: str) -> tuple[int, str]:
    """How ``proplet manager`` ends, and what it says."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PROPLET_", "KUBE"))} | {"HOME": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-m", "proplet.agent", "manager", *arguments],
        env=env | environ, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 78, "no broker: give --mqtt-address"),
        (["--mqtt-address=tcp://b:1883"], 78, "mqtt.domain: is missing"),
        (["--no-such-flag"], 2, "there is no flag `--no-such-flag`"),
        (["--mqtt-address=tcp://b", "--domain-id=d", "--channel-id=c", "--health-probe-bind-address=x"], 78,
         "--health-probe-bind-address: kubernetes.health_address: "),
        (["--mqtt-address=tcp://b", "--domain-id=d", "--channel-id=c", "--namespace=No"], 78,
         '--namespace: kubernetes.namespaces: "No" is no namespace'),
        (["--mqtt-address=tcp://b", "--domain-id=d", "--channel-id=c"], 69, "does not say how to reach a cluster"),
        (["--mqtt-address=tcp://b", "--tenant-id=d", "--channel-id=c", "--kubeconfig=/nowhere"], 78,
         "--kubeconfig: kubernetes.kubeconfig: /nowhere cannot be read"),
        (["--mqtt-address=tcp://b", "--tenant-id=d", "--channel-id=c", "--api-key=secret"], 69,
         "--client-key shows the secret to everybody on this machine (ps): use --client-key-file FILE"),
        (["--mqtt-address=tcp://b", "--tenant-id=d", "--channel-id=c", "--scheduler=priority", "--enable-http2"], 69,
         "the least loaded is always taken"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_arguments_is_said_in_a_line(arguments: list[str], code: int, words: str) -> None:
    ended, said = command(*arguments)
    assert words in said
    assert ended == code, said
    assert "Traceback" not in said
