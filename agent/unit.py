"""Installation of this program as a service of the machine: one unit file, one group, and systemd told about it.

The unit is `systemd/proplet.service` of the source tree, shipped as package data. Only its ExecStart= depends on where
the program is installed. What the unit's sandbox would turn into a service that fails at its start is refused here.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from proplet.agent.systemd import NAME, SERVICE_CONFIG, SERVICE_SOCKET

UNIT = f"{NAME}.service"

#: The unit's ExecStart= before it is rewritten for the actual place.
_SHIPPED_PROGRAM = "ExecStart=/opt/proplet/bin/proplet "

#: How a unit file written here is told from one written by hand.
_MARK = "# Written by `proplet service install`"

# What ProtectHome= and PrivateTmp= hide from the service (systemd.exec(5)).
_HIDDEN = tuple(Path(name) for name in ("/home", "/root", "/run/user", "/tmp", "/var/tmp"))  # noqa: S108 - only compared

_REMEDY = "install it for the service: python3 -m venv /opt/proplet && /opt/proplet/bin/pip install ."


class ServiceError(Exception):
    """The service was not installed or removed; the message says why and what to do."""


def _run(command: Sequence[str]) -> str:
    """Run a program to its end and return what it printed; ServiceError with its own words when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ServiceError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise ServiceError(f"{' '.join(command)} failed: {said}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Installation:
    """Which program becomes the service: its environment's directory and all the files it cannot start without."""

    prefix: Path
    needs: tuple[Path, ...]

    @classmethod
    def of_this_process(cls) -> "Installation":
        """Return the environment that runs now, with its interpreter and its code, symlinks followed."""
        prefix = Path(sys.prefix)
        code = Path(__file__).resolve().parent
        needs = (prefix, prefix.resolve(), Path(sys.base_prefix).resolve(), Path(sys.executable).resolve(), code)
        return cls(prefix, needs)

    @property
    def program(self) -> Path:
        """The command that the unit starts."""
        return self.prefix / "bin" / NAME


@dataclass(frozen=True, slots=True)
class Machine:
    """Where files go and how programs run; the defaults are this machine."""

    root: Path = Path("/")
    run: Callable[[Sequence[str]], str] = _run
    is_root: bool = field(default_factory=lambda: os.geteuid() == 0)

    @property
    def unit(self) -> Path:
        """The administrator's place for units."""
        return self.root / "etc/systemd/system" / UNIT

    @property
    def booted(self) -> bool:
        """Whether systemd runs here, as sd_booted(3) finds out; false while an image is being built."""
        return (self.root / "run/systemd/system").is_dir()


def install_unit(
    *, start: bool = True, machine: Machine | None = None, installation: Installation | None = None
) -> list[str]:
    """Install and enable the service, and with `start` bring it up; return what was done, a sentence each.

    A second time it repairs what is missing and restarts the service only if its unit changed. Without `start`, or
    while systemd does not run (an image is being built), the service starts at the next boot.

    Raises:
        ServiceError: not root, a place the service could not see, a unit that is somebody else's, or systemd's refusal.
    """
    machine = machine or Machine()
    installation = installation or Installation.of_this_process()
    _demand_root(machine, f"{installation.program} service install")
    _check(installation)
    text = unit_text(installation.program)
    before = _ours(machine)
    done = []
    # groupadd --force succeeds when the group is there.
    machine.run(["groupadd", "--system", "--force", NAME])
    if before != text:
        _write(machine.unit, text)
        done.append(f"wrote {machine.unit}")
    if machine.booted:
        machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "enable", "--quiet", UNIT])
    done.append("enabled: the service starts with the machine")
    if not start:
        done.append(f"not started: systemctl start {NAME}")
    elif not machine.booted:
        done.append("not started: systemd is not running here, the service starts at the next boot")
    else:
        _start(machine, changed=before is not None and before != text)
        done.append(f"running: systemctl status {NAME}, journalctl -u {NAME}")
        done.append(f"after an upgrade: systemctl restart {NAME}")
    done.append(f"configuration: {SERVICE_CONFIG}, then systemctl restart {NAME}")
    done.append(f"people who may use {SERVICE_SOCKET}: usermod --append --groups {NAME} PERSON")
    return done


def uninstall_unit(*, purge: bool = False, machine: Machine | None = None) -> list[str]:
    """Stop, disable and remove the service; with `purge` its state and cache too. Return what was done.

    Without a service nothing happens. The configuration in ``/etc/proplet`` is kept in any case.

    Raises:
        ServiceError: not root, a unit that is somebody else's, or systemd's refusal.
    """
    machine = machine or Machine()
    _demand_root(machine, f"{NAME} service uninstall")
    if _ours(machine) is None:
        return [f"no service installed: {machine.unit} does not exist"]
    done = []
    if machine.booted:
        machine.run(["systemctl", "disable", "--quiet", "--now", UNIT])
        if purge:
            machine.run(["systemctl", "clean", "--what=state", "--what=cache", "--what=runtime", UNIT])
            done.append(f"removed /var/lib/{NAME} and /var/cache/{NAME}")
    else:
        machine.run(["systemctl", "disable", "--quiet", UNIT])
    machine.unit.unlink()
    done.insert(0, f"stopped, disabled and removed {machine.unit}")
    if machine.booted:
        machine.run(["systemctl", "daemon-reload"])
    if not purge:
        done.append(f"kept the state in /var/lib/{NAME} (another time: uninstall --purge)")
    return done


def unit_text(program: Path) -> str:
    """Return the shipped unit with ExecStart= for `program`."""
    shipped = (resources.files("proplet.agent") / "data" / UNIT).read_text(encoding="utf-8")
    if _SHIPPED_PROGRAM not in shipped:
        raise ServiceError(f"the unit in this installation is damaged: no line {_SHIPPED_PROGRAM!r}; install it again")
    body = shipped.replace(_SHIPPED_PROGRAM, f"ExecStart={program} ")
    return f"{_MARK}; the next installation overwrites it.\n{body}"


def _demand_root(machine: Machine, command: str) -> None:
    if not machine.is_root:
        raise ServiceError(f"only root can change the machine's services: sudo {command}")


def _check(installation: Installation) -> None:
    program = installation.program
    for path in installation.needs:
        for hidden in _HIDDEN:
            if path.is_relative_to(hidden):
                raise ServiceError(f"the service cannot see {path}: its sandbox hides {hidden}; {_REMEDY}")
    # systemd would read blanks, quotes, % and $ in ExecStart= in its own way.
    if not all(character.isalnum() or character in "/._+-" for character in str(program)):
        raise ServiceError(f"{program}: use a directory named with letters, digits and . _ + - only")
    if not program.is_file():
        raise ServiceError(f"{program} does not exist; {_REMEDY}")
    for path in (program, *program.parents):
        if not path.stat().st_mode & 0o001:
            raise ServiceError(f"the service's user may not enter {path}: chmod -R go+rX {installation.prefix}")


def _ours(machine: Machine) -> str | None:
    """Return the installed unit's text, None when there is none; ServiceError when it is not from here."""
    for packaged in ("usr/lib/systemd/system", "lib/systemd/system"):
        if (machine.root / packaged / UNIT).exists():
            raise ServiceError(f"a package brought /{packaged}/{UNIT} already: systemctl enable --now {NAME}")
    try:
        text = machine.unit.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"cannot read {machine.unit}: {error}") from error
    if not text.startswith(_MARK):
        raise ServiceError(f"{machine.unit} was not written by this program: move it away, or keep using it")
    return text


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        raise ServiceError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _start(machine: Machine, *, changed: bool) -> None:
    try:
        # Type=notify: returns when the node said READY=1, or failed to.
        machine.run(["systemctl", "restart" if changed else "start", UNIT])
    except ServiceError as error:
        raise ServiceError(f"{error}\nits own words: journalctl --unit {NAME} --lines 50") from error
