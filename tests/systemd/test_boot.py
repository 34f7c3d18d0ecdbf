"""The service under a real systemd: a Debian boots, the wheel is installed in /opt/proplet, one command does the rest.

The machine is shared by the tests of this file, which tell one story, in order: installed, running, a task, the
watchdog, a crash, the sandbox, stopped, removed.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.wheel import build_wheel, wheelhouse
from tests.systemd.machine import Machine, MachineError, booted, missing

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.slow,
    pytest.mark.source,
    # The first one to run builds the Debian, unless it is cached.
    pytest.mark.timeout(600),
]

PROPLET = "/opt/proplet/bin/proplet"

ADDITION = """
apiVersion: propeller.propeller.abstractmachines.fr/v1
kind: Task
metadata:
  name: {name}
spec:
  name: {name}
  functionName: main
  file: AGFzbQEAAAABBwFgAn9/AX8DAgEABwgBBG1haW4AAAoJAQcAIAAgAWoL
  inputs: [10, 32]
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    reason = missing()
    if reason:
        # In CI none may be skipped.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    packages = build_wheel(tmp_path_factory.mktemp("wheel"))
    read_only = {packages.parent: "/srv/wheel", wheelhouse(): "/srv/wheelhouse"}
    with booted(tmp_path_factory.mktemp("machine"), read_only) as machine:
        inside = machine.run("python3", "-c", "import sys; print(sys.version_info[:2])").strip()
        if inside != str(sys.version_info[:2]):
            pytest.fail(f"the wheels are for {sys.version_info[:2]}, the machine has {inside}: use the system's Python")
        machine.run("python3", "-m", "venv", "/opt/proplet", timeout=120)
        machine.run(
            *("/opt/proplet/bin/pip", "install", "--quiet", "--no-index", "--find-links=/srv/wheelhouse"),
            f"/srv/wheel/{packages.name}",
            timeout=300,
        )
        yield machine


def drop_in(machine: Machine, text: str) -> None:
    """Change the unit until the next call, and restart the service with it."""
    machine.run("mkdir", "-p", "/etc/systemd/system/proplet.service.d")
    machine.run("tee", "/etc/systemd/system/proplet.service.d/test.conf", stdin=text)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "proplet")


def run_task(machine: Machine, name: str) -> Mapping[str, Any]:
    """Run the addition module through the service's socket and return the task's status."""
    machine.run(PROPLET, "apply", "-f", "-", stdin=ADDITION.format(name=name))
    machine.run(PROPLET, "wait", name, "--timeout", "30s")
    status: Mapping[str, Any] = json.loads(machine.run(PROPLET, "get", "task", name, "-o", "json"))["status"]
    return status


def known_tasks(machine: Machine) -> set[str]:
    return set(machine.run(PROPLET, "get", "tasks", "-o", "name").split())


def processes(machine: Machine) -> list[str]:
    """Return the process ids of the service."""
    group = machine.show("proplet").get("ControlGroup")
    return machine.run("sh", "-c", f"cat /sys/fs/cgroup{group}/cgroup.procs || true").split() if group else []


def test_one_command_installs_enables_and_starts_the_service(machine: Machine) -> None:
    said = machine.run(PROPLET, "service", "install")
    found = machine.show("proplet")
    assert found["ActiveState"] == "active"
    assert found["SubState"] == "running"
    assert found["UnitFileState"] == "enabled"
    assert found["NRestarts"] == "0"
    assert found["FragmentPath"] == "/etc/systemd/system/proplet.service"
    assert "usermod --append --groups proplet" in said


def test_installing_again_does_not_disturb_the_running_service(machine: Machine) -> None:
    before = machine.show("proplet")["MainPID"]
    machine.run(PROPLET, "service", "install")
    assert machine.show("proplet")["MainPID"] == before


def test_an_environment_below_home_is_refused(machine: Machine) -> None:
    machine.run("python3", "-m", "venv", "--without-pip", "--system-site-packages", "/root/venv")
    machine.run("sh", "-c", "cp -R /opt/proplet/lib/python3*/site-packages/* /root/venv/lib/python3*/site-packages/")
    said = machine.run("/root/venv/bin/python", "-m", "proplet.agent", "service", "install", check=False)
    assert "the service cannot see /root/venv" in said
    assert "/opt/proplet" in said


def test_a_task_runs_through_the_services_socket(machine: Machine) -> None:
    status = run_task(machine, "addition")
    assert status["phase"] == "completed"
    assert status["results"] == "42"
    assert "mosquitto" in machine.show("proplet")["StatusText"], (
        "the service took another broker than the installed one"
    )


def test_members_of_the_group_may_use_the_socket_and_others_may_not(machine: Machine) -> None:
    for person in ("ann", "bob"):
        machine.run("useradd", "--create-home", person)
    machine.run("usermod", "--append", "--groups", "proplet", "ann")
    as_user = ("runuser", "--user")
    assert "addition" in machine.run(*as_user, "ann", "--", PROPLET, "get", "tasks")
    with pytest.raises(MachineError, match=r"exit status \d+"):
        machine.run(*as_user, "bob", "--", PROPLET, "get", "tasks")


def test_the_state_is_private_and_the_service_has_no_privileges(machine: Machine) -> None:
    assert machine.run("stat", "-L", "-c", "%a", "/var/lib/proplet").strip() == "700"
    assert machine.run("stat", "-L", "-c", "%a %G", "/run/proplet").strip() == "750 proplet"
    assert machine.run("stat", "-c", "%a %G", "/run/proplet/proplet.sock").strip() == "660 proplet"
    for process in processes(machine):
        status = dict(
            line.split(":\t", 1) for line in machine.run("cat", f"/proc/{process}/status").splitlines() if ":\t" in line
        )
        assert status["Uid"].split()[0] != "0"
        assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"


def test_the_watchdog_is_fed_and_a_stuck_node_is_replaced(machine: Machine) -> None:
    drop_in(machine, "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\n")
    first = machine.show("proplet")
    # Longer than the watchdog's patience: only a fed one stays.
    machine.wait_for_change("proplet", "WatchdogTimestampMonotonic", first, times=4)
    assert machine.show("proplet")["MainPID"] == first["MainPID"]

    machine.run("kill", "-STOP", first["MainPID"])
    machine.wait_for_unit("proplet", NRestarts="1", ActiveState="active", SubState="running")
    assert machine.show("proplet")["MainPID"] != first["MainPID"]
    assert "Watchdog timeout" in machine.journal("--unit", "proplet")
    assert run_task(machine, "after-the-watchdog")["results"] == "42"


def test_a_killed_node_comes_back_with_what_it_knew(machine: Machine) -> None:
    drop_in(machine, "[Service]\n")
    old = set(processes(machine))
    machine.run("kill", "-KILL", machine.show("proplet")["MainPID"])
    machine.wait_for_unit("proplet", NRestarts="1", ActiveState="active", SubState="running")
    assert not old & set(processes(machine)), "processes of the killed node have survived it"
    assert known_tasks(machine) == {"task/addition", "task/after-the-watchdog"}
    assert run_task(machine, "after-the-kill")["results"] == "42"


def test_a_wrong_configuration_is_not_tried_again_and_again(machine: Machine) -> None:
    machine.run("tee", "/etc/proplet/proplet.toml", stdin="[nonsense]\n")
    try:
        machine.run("systemctl", "restart", "proplet", check=False)
        found = machine.wait_for_unit("proplet", ActiveState="failed")
        assert found["ExecMainStatus"] == "78"
        assert found["NRestarts"] == "0"
        assert "nonsense" in machine.journal("--unit", "proplet")
    finally:
        machine.run("rm", "/etc/proplet/proplet.toml")
    machine.run("systemctl", "restart", "proplet")


def test_credentials_reach_the_service_and_nobody_else(machine: Machine) -> None:
    machine.run("install", "-d", "-m", "0700", "/etc/credstore")
    machine.run("sh", "-c", "umask 077; cat > /etc/credstore/proplet.manager-api-token", stdin="open-sesame\n")
    machine.run("systemctl", "restart", "proplet")
    main = machine.show("proplet")["MainPID"]
    assert "open-sesame" not in machine.run("cat", f"/proc/{main}/environ")
    held = machine.run("nsenter", f"--target={main}", "--mount", "ls", "/run/credentials/proplet.service")
    assert held.split() == ["manager-api-token"]
    machine.run("rm", "/etc/credstore/proplet.manager-api-token")


def test_no_system_call_outside_of_the_filter_is_made(machine: Machine) -> None:
    # In earnest a forbidden call fails with EPERM and may be covered up; here it kills whoever makes it.
    machine.run("systemctl", "stop", "proplet")
    machine.run("systemctl", "clean", "--what=cache", "proplet")
    drop_in(machine, "[Service]\nSystemCallErrorNumber=kill\n")
    status = run_task(machine, "strict")
    assert status["results"] == "42"
    assert status["usage"]["startKind"] == "cold", "the builder has not been part of it"
    assert machine.show("proplet")["NRestarts"] == "0"
    machine.run("systemctl", "stop", "proplet")
    assert machine.show("proplet")["Result"] == "success"
    assert "SYS" not in re.findall(r"status=\d+/(\w+)", machine.journal("--unit", "proplet"))
    drop_in(machine, "[Service]\n")


def test_the_service_runs_where_memory_must_not_become_executable(machine: Machine) -> None:
    hardened = (Path(__file__).parent.parent.parent / "systemd" / "no-executable-memory.conf").read_text()
    drop_in(machine, hardened)
    assert run_task(machine, "interpreted")["results"] == "42"
    assert "(pulley)" in machine.run(PROPLET, "get", "proplets", "-o", "json")
    drop_in(machine, hardened.replace("Environment=", "#"))
    machine.run(PROPLET, "apply", "-f", "-", stdin=ADDITION.format(name="native"))
    machine.run(PROPLET, "wait", "native", "--timeout", "30s", check=False)
    assert 'set engine = \\"pulley\\"' in machine.run(PROPLET, "get", "task", "native", "-o", "json")
    assert "no task can run: memory may not be made executable" in machine.journal("--unit", "proplet")
    drop_in(machine, "[Service]\n")


def test_it_stops_cleanly_and_in_time(machine: Machine) -> None:
    run_task(machine, "last")
    machine.run("systemctl", "stop", "proplet")
    found = machine.show("proplet")
    assert found["Result"] == "success"
    assert found["ExecMainCode"] == "1"  # CLD_EXITED
    assert found["ExecMainStatus"] == "0"
    assert processes(machine) == []
    last = machine.journal("--unit", "proplet", "--lines", "50")
    assert not re.search(r"Killing process|timed out|left-over|remains running", last), last
    machine.run("systemctl", "start", "proplet")


def test_the_sandbox_has_denied_nothing(machine: Machine) -> None:
    journal = machine.journal("--unit", "proplet")
    denied = r"permission denied|operation not permitted|EPERM|EACCES|not supported by protocol|read-only file system"
    found = [line for line in journal.splitlines() if re.search(denied, line, re.IGNORECASE)]
    assert not found
    assert "Traceback" not in journal


def test_removing_the_service_keeps_its_state_unless_purged(machine: Machine) -> None:
    machine.run(PROPLET, "service", "uninstall")
    assert machine.show("proplet")["LoadState"] == "not-found"
    assert machine.run("ls", "/var/lib/private/proplet").split()
    machine.run(PROPLET, "service", "install")
    machine.run(PROPLET, "service", "uninstall", "--purge")
    assert "proplet" not in machine.run("ls", "/var/lib", "/var/lib/private", "/var/cache", "/run").split()
