"""The manager of a cluster's resources, against a real API server and etcd on this machine.

The reference operator's figures beside ours are from such a machine, with a proplet that answers at once, too.
"""

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import psutil

from proplet.manager.broker import Identity, Role
from tests.bench.nodes import ID, MQTT, NODE, run_load
from tests.bench.processes import memory, pause, whole_cpu_s
from tests.bench.rows import Plan, Row, percentile, row
from tests.support.kubernetes import ApiServer, open_api_server
from tests.support.kubernetes_manager import ManagerProcess, Workspace, eventually, install_crds, proplet_manifest
from tests.support.kubernetes_programs import SCRIPT
from tests.support.mosquitto import CHANNEL, DOMAIN, MosquittoServer
from tests.support.node import NodeProcess

MANAGER = "manager"
INSTANT = "instant"
BEAT_S = 10.0
NAMESPACE = "bench"
_COUNTER = re.compile(r"apiserver_request_total\{(.*)\} ([0-9.e+]+)")
_WRITES = ("POST", "PUT", "PATCH", "DELETE", "APPLY")
_SEEN_EVERY_S = 30
_SETTLE_S = 2.0


def measure(plan: Plan) -> Iterator[Row]:
    missing = _missing()
    if missing:
        yield Row("tasks in a Kubernetes cluster", "not measured", notes=(missing,))
        return
    with open_api_server() as server:
        install_crds(server)
        yield from _instant(plan, server)
        yield from _our_agent(plan, server)
        yield from _fleet(plan, server)


def _missing() -> str:
    """How to get the API server, where there is none."""
    if os.environ.get("KUBEBUILDER_ASSETS"):
        return ""
    found = subprocess.run([SCRIPT, "find"], capture_output=True, text=True, check=False)
    return "" if found.returncode == 0 else "needs an API server: packaging/kubernetes-servers.sh builds it once"


@dataclass
class Site:
    """An API server's namespace, a broker, and the manager between them."""

    server: ApiServer
    space: Workspace
    broker: MosquittoServer
    manager: ManagerProcess
    passwords: dict[str, str] = field(default_factory=dict)

    def load(self, prefix: str, *, one: int = 0, burst: int = 0, rest_s: float = 0.0, **more: Any) -> dict[str, Any]:
        """Create Tasks and wait for them; see `load_kubernetes`."""
        before = _cpu_of_servers()
        found = run_load(
            "load_kubernetes",
            api_port=self.server.port,
            ca_file=str(self.server.ca_file),
            token=self.server.admin_token,
            namespace=self.space.namespace,
            pid=self.manager.pid,
            port=self.broker.port,
            base=f"m/{DOMAIN}/c/{CHANNEL}",
            prefix=prefix,
            **{"one": one, "burst": burst, "rest_s": rest_s, "beat_s": BEAT_S, "passwords": self.passwords, **more},
        )
        cpu = {name: used - before.get(name, 0) for name, used in _cpu_of_servers().items()}
        found["cpu"] = {
            each: 1000 * used / max(1, one + burst) for each, used in (cpu | {"load": found["load_s"]}).items()
        }
        return found

    def writes(self) -> Counter[str]:
        """All that was written through the API server since its start, by verb and resource."""
        text = self.server.page("/metrics")
        found: Counter[str] = Counter()
        for labels, value in _COUNTER.findall(text):
            of = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if of["verb"] in _WRITES and of["resource"] != "":
                part = f"/{of['subresource']}" if of["subresource"] else ""
                found[f"{of['verb']} {of['resource']}{part}"] += int(float(value))
        return found


@contextmanager
def _site(plan: Plan, server: ApiServer, name: str, proplets: dict[str, str], *manifests: Any) -> Iterator[Site]:
    """A site with these proplets, by id with their passwords; `manifests` are Proplets that are there before it."""
    directory = plan.scratch / f"kubernetes-{name}"
    identities = [Identity(MANAGER, "manager-secret", Role.MANAGER)]
    identities += [Identity(each, password, Role.PROPLET) for each, password in proplets.items()]
    broker = MosquittoServer(directory / "broker", identities, max_connections=len(identities) + 100)
    namespace = f"{NAMESPACE}-{name}"
    server.create_namespace(namespace)
    space = Workspace(server, namespace)
    with ExitStack() as stack:
        stack.callback(server.remove_namespace, namespace)
        broker.start()
        stack.callback(broker.kill)
        declared = [proplet_manifest(each, each, broker.address) for each in proplets]
        for at in range(0, len(declared), 100):
            space.apply(*declared[at : at + 100])
        arguments = [
            f"--mqtt-address={broker.address}", f"--domain-id={DOMAIN}", f"--channel-id={CHANNEL}",
            f"--client-id={MANAGER}", "--client-key=manager-secret", f"--kubeconfig={server.kubeconfig}",
            "--leader-elect", f"--lease-namespace={namespace}",
        ]  # fmt: skip
        manager = stack.enter_context(ManagerProcess(directory / "manager", arguments))
        manager.until_ready()
        try:
            yield Site(server, space, broker, manager, proplets)
        except Exception as error:
            error.add_note(f"the manager's log:\n{manager.log[-3000:]}")
            raise


def _instant(plan: Plan, server: ApiServer) -> Iterator[Row]:
    """One proplet that answers at once."""
    with _site(plan, server, "instant", {INSTANT: "instant-secret"}) as site:
        site.load("warm", one=20)
        before = site.writes()
        found = site.load("one", one=plan.pick(300, 40))
        took = [1000 * each for each in found["latencies"]]
        p50, p90 = percentile(took, 50), percentile(took, 90)
        yield row(
            "cluster: Task created to completed, instant proplet, p50", p50, "ms", most=20.0,
            notes=[f"seen through the API server; p90 {p90:.1f} ms; the reference operator's: p50 30, p90 44 ms"],
            p90_ms=p90,
        )  # fmt: skip
        burst = plan.pick(500, 200)
        runs = [site.load(f"burst-{number}", burst=burst) for number in range(plan.pick(3, 1))]
        rates = [burst / run["elapsed_s"] for run in runs]
        rate = median(rates)
        said = ", ".join(f"{each:.0f}" for each in rates)
        notes = [
            f"runs: {said}/s; all created after {runs[0]['created_s']:.1f} s of {runs[0]['elapsed_s']:.1f} s",
            f"CPU time a Task: {_shares(min((run['cpu'] for run in runs), key=lambda cpu: sum(cpu.values())))}",
            "the reference operator's: 29/s",
        ]
        yield row(f"cluster: burst of {burst} Tasks, instant proplet", rate, "/s", least=150.0, notes=notes)
        pause(2.0)  # what is told later
        tasks = len(took) + burst * len(runs)
        yield _writes_per_task(site.writes() - before, tasks)
        taken = memory(site.manager.pid)
        notes = [
            f"after {tasks + 20:,} Tasks, all still there; the reference operator's: 61 MB",
            f"PSS beside what shares pages with it now: {taken.total / 1e6:.1f} MB",
        ]
        yield row("cluster: memory of the manager alone", taken.alone / 1e6, "MB", most=75.0, notes=notes)
        yield from _idle(plan, site)


def _cpu_of_servers() -> dict[str, float]:
    """CPU time so far, in seconds, of every program that this one runs now, by what it is."""
    found = dict[str, float]()
    for child in psutil.Process().children():
        if child.status() == psutil.STATUS_ZOMBIE:
            continue
        words, times = child.cmdline(), child.cpu_times()
        name = next((word for word in words if word in ("manager", "up")), child.name())
        found[name] = found.get(name, 0.0) + times.user + times.system
    return found


def _shares(cpu: Mapping[str, float]) -> str:
    parts = ", ".join(f"{name} {used:.1f}" for name, used in sorted(cpu.items(), key=lambda item: -item[1]))
    return f"{sum(cpu.values()):.1f} ms on all cores ({parts})"


def _writes_per_task(wrote: Counter[str], tasks: int) -> Row:
    """What the manager wrote: all but the creations, which were the load's, and what was there anyway."""
    ours = Counter({what: count for what, count in wrote.items() if " leases" not in what})
    ours["POST tasks"] -= tasks
    shares = ", ".join(f"{what} {count / tasks:.2f}" for what, count in (+ours).most_common())
    each = sum((+ours).values()) / tasks
    return row("cluster: API writes for each short Task", each, "writes", most=3.0, notes=[f"a Task: {shares}"])


def _idle(plan: Plan, site: Site) -> Iterator[Row]:
    """One proplet beats, and nothing is to be done."""
    seconds = plan.pick(60.0, 6.0)
    with ThreadPoolExecutor(1) as beside:
        beating = beside.submit(site.load, "idle", rest_s=seconds + 2 * _SETTLE_S)
        pause(_SETTLE_S)
        before, cpu = site.writes(), whole_cpu_s(site.manager.pid)
        began = time.monotonic()
        pause(seconds)
        elapsed = time.monotonic() - began
        wrote = +(site.writes() - before)
        used = 100 * (whole_cpu_s(site.manager.pid) - cpu) / elapsed
        beating.result()
    leases = sum(count for what, count in wrote.items() if " leases" in what)
    others = {what: count for what, count in wrote.items() if " leases" not in what}
    shares = ", ".join(f"{what} {count}" for what, count in others.items()) or "none"
    notes = [f"over {elapsed:.0f} s: {shares}; renewals of the Lease beside: {leases}",
             "the reference operator's: about 100 a second"]  # fmt: skip
    most = 1 + (elapsed - 1) // _SEEN_EVERY_S  # a window of 60 s holds two at most
    yield row("cluster: API writes while idle, one proplet", sum(others.values()), "writes", most=most, notes=notes)
    yield row("cluster: idle CPU of the manager", used, "% of a core", notes=[f"over {elapsed:.0f} s"])


def _our_agent(plan: Plan, server: ApiServer) -> Iterator[Row]:
    """The addition on an agent of ours."""
    directory = plan.scratch / "kubernetes-agent"
    with _site(plan, server, "agent-site", {ID: "own-secret"}) as site:
        directory.mkdir()
        mqtt = MQTT.format(address=site.broker.address, key="own-secret")
        config = NODE.format(directory=directory) + mqtt.replace('domain = "d"', f'domain = "{DOMAIN}"').replace(
            'channel = "c"', f'channel = "{CHANNEL}"'
        )
        with NodeProcess(directory, config):
            eventually(lambda: site.space.status("proplets", ID).get("phase") == "Running", "the agent is known")
            site.load("warm", one=20, passwords={})
            found = site.load("one", one=plan.pick(300, 40), passwords={})
            burst = plan.pick(500, 50)
            many = site.load("burst", burst=burst, passwords={})
    took = [1000 * each for each in found["latencies"]]
    p50, p90 = percentile(took, 50), percentile(took, 90)
    notes = [f"p90 {p90:.1f} ms; a burst of {burst}: {burst / many['elapsed_s']:.0f}/s"]
    yield row("cluster: Task created to completed, our agent, p50", p50, "ms", most=25.0, notes=notes, p90_ms=p90)


def _fleet(plan: Plan, server: ApiServer) -> Iterator[Row]:
    """Many proplets, many Tasks."""
    proplets, tasks = plan.pick((500, 1000), (50, 100))
    passwords = {f"sim-{number}": f"secret-{number}" for number in range(proplets)}
    with _site(plan, server, "fleet", passwords) as site:
        found = site.load("all", burst=tasks, rest_s=plan.pick(40.0, 3.0))
        taken = memory(site.manager.pid)
    notes = [
        f"{tasks / found['elapsed_s']:.0f}/s; the manager's memory alone: {taken.alone / 1e6:.0f} MB",
        f"CPU time a Task: {_shares(found['cpu'])}",
        f"before, the manager's CPU while they beat every {BEAT_S:.0f} s: {100 * found['rest_cpu']:.1f} % of a core",
    ]
    what = f"cluster: {tasks:,} Tasks among {proplets:,} heartbeating proplets"
    yield row(what, found["elapsed_s"], "s", notes=notes)
