"""A Debian that boots with systemd as PID 1 in a container without a network of its own, for tests as root.

Its file system comes from a tarball that is built once (`~/.cache/proplet`) and unpacked per machine. Nothing is
registered with the host's machined or D-Bus, neither need exist; commands enter the machine's namespaces.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CACHE = Path.home() / ".cache/proplet"
NEEDS = ("mmdebstrap", "systemd-nspawn", "nsenter", "unshare")
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "mosquitto", "procps", "passwd")

# Services of the distribution that only disturb: mosquitto is ours to start, the rest waits for hardware or network.
_MASKED = ("mosquitto.service", "console-getty.service", "apt-daily.timer", "apt-daily-upgrade.timer")


class MachineError(Exception):
    """The machine could not be built or did not boot; the message holds the program's last words."""


def missing() -> str:
    """Say in one line what keeps a machine from booting here; empty when nothing does."""
    if os.geteuid() != 0:
        return "booting a Debian needs root"
    lacking = [program for program in NEEDS if shutil.which(program) is None]
    if lacking:
        return f"needs {', '.join(lacking)} (Debian: apt-get install mmdebstrap systemd-container)"
    return ""


def suite() -> str:
    """Return the Debian release to boot: the host's own, so that its Python suits the wheels built here."""
    release = platform.freedesktop_os_release()
    return release.get("VERSION_CODENAME", "") if release.get("ID") in ("debian", "raspbian") else "bookworm"


@contextlib.contextmanager
def cache_entry(name: str) -> Iterator[tuple[Path, Path | None]]:
    """Give the path of a cache entry, and where to build it (then it is kept) unless it is there already."""
    CACHE.mkdir(parents=True, exist_ok=True)
    final, partial = CACHE / name, CACHE / f"{name}.partial"
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if final.exists():
            yield final, None
            return
        remove(partial)
        yield final, partial
        partial.replace(final)


def remove(path: Path) -> None:
    """Remove a file or a tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def base_tarball() -> Path:
    """Return the tarball of the machine's Debian, built at the first call (about 40 s, 250 MB)."""
    definition = f"{suite()} {platform.machine()} {' '.join(PACKAGES)}"
    key = hashlib.sha256(definition.encode()).hexdigest()[:12]
    with cache_entry(f"debian-{key}.tar") as (final, partial):
        if partial is not None:
            command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "--format=tar", suite()]
            done = subprocess.run([*command, partial], capture_output=True, text=True, check=False)
            if done.returncode:
                raise MachineError(f"mmdebstrap failed: {done.stderr[-2000:]}")
    return final


@dataclass
class Machine:
    """A running machine. `leader` is the process id of its PID 1 on the host."""

    root: Path
    container: subprocess.Popen[bytes]
    leader: int

    def run(self, *command: str, check: bool = True, timeout: float = 60, stdin: str = "") -> str:
        """Run a command inside, as root, and return what it printed; MachineError when it fails and `check` is set."""
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        done = subprocess.run(
            [*enter, "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
        if check and done.returncode:
            raise MachineError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def show(self, unit: str) -> Mapping[str, str]:
        """Return a unit's properties."""
        lines = self.run("systemctl", "show", unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def journal(self, *arguments: str) -> str:
        """Return the messages of the journal, written out first."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--quiet", *arguments)

    def wait_for_unit(self, unit: str, timeout_s: float = 30, **wanted: str) -> Mapping[str, str]:
        """Wait until a unit's properties have the wanted values; MachineError with the journal after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.show(unit)
            if all(found.get(name) == value for name, value in wanted.items()):
                return found
            if time.monotonic() > deadline:
                have = {name: found.get(name) for name in wanted}
                raise MachineError(f"{unit}: {have} instead of {wanted}\n{self.journal('--unit', unit)}")
            self.demand_alive()
            wait_a_moment()

    def wait_for_change(
        self, unit: str, name: str, before: Mapping[str, str], times: int, timeout_s: float = 30
    ) -> None:
        """Wait until a unit's property has changed so many `times`; MachineError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        last, changes = before[name], 0
        while changes < times:
            now = self.show(unit)[name]
            last, changes = now, changes + (now != last)
            if time.monotonic() > deadline:
                raise MachineError(f"{unit}: {name} changed {changes} times in {timeout_s} s instead of {times}")
            wait_a_moment()

    def demand_alive(self) -> None:
        """Raise MachineError when the machine is gone."""
        if self.container.poll() is not None:
            assert self.container.stderr is not None
            said = self.container.stderr.read().decode(errors="replace").strip()
            raise MachineError(f"systemd-nspawn ended with status {self.container.returncode}: {said}")


def wait_a_moment() -> None:
    """Yield between two looks at something that has no event to wait for; every caller has a deadline."""
    with contextlib.suppress(TimeoutError, ChildProcessError):
        signal.sigtimedwait([], 0.1)


@contextlib.contextmanager
def booted(directory: Path, read_only: Mapping[Path, str]) -> Iterator[Machine]:
    """Boot a machine in `directory`, with host directories bound `read_only`; it is gone afterwards, files and all."""
    root = directory / "root"
    root.mkdir()
    try:
        subprocess.run(["tar", "--extract", "--file", base_tarball(), "--directory", root], check=True)
        subprocess.run(["systemctl", f"--root={root}", "--quiet", "mask", *_MASKED], check=True)
        with _container(root, read_only) as machine:
            yield machine
    finally:
        remove(root)


@contextlib.contextmanager
def _container(root: Path, read_only: Mapping[Path, str]) -> Iterator[Machine]:
    boot = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"]
    binds = [f"--bind-ro={source}:{target}" for source, target in read_only.items()]
    container = subprocess.Popen(
        [*boot, "--console=pipe", f"--directory={root}", f"--machine=proplet-{os.getpid()}", *binds],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        machine = Machine(root, container, leader=0)
        machine.leader = _leader(machine)
        _wait_until_up(machine)
        yield machine
    finally:
        # nspawn passes SIGTERM on as an orderly power-off.
        container.terminate()
        try:
            container.wait(30)
        except subprocess.TimeoutExpired:
            container.kill()
            container.wait(10)
        assert container.stderr is not None
        container.stderr.close()


def _leader(machine: Machine) -> int:
    children = Path(f"/proc/{machine.container.pid}/task/{machine.container.pid}/children")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        machine.demand_alive()
        for child in children.read_text().split():
            name = Path(f"/proc/{child}/comm")
            # nspawn has a short-lived helper too; the leader is the one that has become systemd.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if name.read_text().strip() == "systemd":
                    return int(child)
        wait_a_moment()
    raise MachineError("the machine's PID 1 did not appear within 30 s")


def _wait_until_up(machine: Machine) -> None:
    deadline = time.monotonic() + 60
    state = ""
    while time.monotonic() < deadline:
        machine.demand_alive()
        # Fails until PID 1 listens on its private socket.
        state = machine.run("systemctl", "is-system-running", check=False).strip()
        if state in ("running", "degraded"):
            return
        wait_a_moment()
    raise MachineError(f"the machine did not come up within 60 s: {state}")
