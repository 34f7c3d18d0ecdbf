"""Installing the service into a scratch root; `test_boot.py` proves it against a real systemd."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from proplet.agent.unit import Installation, Machine, ServiceError, install_unit, uninstall_unit, unit_text

REPOSITORY = Path(__file__).parents[2]


class Computer:
    """A scratch root file system that notes what it is asked to run."""

    def __init__(self, root: Path, *, booted: bool = True) -> None:
        self.root = root
        self.asked: list[str] = []
        self.refuses = ""
        root.mkdir(exist_ok=True)
        if booted:
            (root / "run/systemd/system").mkdir(parents=True)

    def run(self, command: Sequence[str]) -> str:
        line = " ".join(command)
        self.asked.append(line)
        if self.refuses and line.startswith(self.refuses):
            raise ServiceError(f"{line} failed: no")
        return ""

    def machine(self, *, is_root: bool = True) -> Machine:
        return Machine(root=self.root, run=self.run, is_root=is_root)

    @property
    def unit(self) -> Path:
        return self.root / "etc/systemd/system/proplet.service"


@pytest.fixture
def computer(tmp_path: Path) -> Computer:
    return Computer(tmp_path / "root")


class InUsr(Installation):
    """An installation that is surely visible: its program is one every machine has."""

    @property
    def program(self) -> Path:
        return Path("/usr/bin/env")


VISIBLE = InUsr(Path("/usr"), (Path("/usr"),))


@pytest.mark.source
def test_the_shipped_unit_is_the_one_of_the_source_tree_with_another_program() -> None:
    source = (REPOSITORY / "systemd/proplet.service").read_text()
    head, _, body = unit_text(Path("/srv/node/bin/proplet")).partition("\n")
    assert head.startswith("# Written by `proplet service install`")
    assert body == source.replace("/opt/proplet/bin/proplet", "/srv/node/bin/proplet")


def test_installing_writes_the_unit_makes_the_group_and_starts_the_service(computer: Computer) -> None:
    said = install_unit(machine=computer.machine(), installation=VISIBLE)
    assert "ExecStart=/usr/bin/env up\n" in computer.unit.read_text()
    assert computer.unit.stat().st_mode & 0o777 == 0o644
    assert computer.asked == [
        "groupadd --system --force proplet",
        "systemctl daemon-reload",
        "systemctl enable --quiet proplet.service",
        "systemctl start proplet.service",
    ]
    assert any("/etc/proplet/proplet.toml" in line for line in said)
    assert any("usermod --append --groups proplet" in line for line in said)
    assert [path.name for path in computer.unit.parent.iterdir()] == ["proplet.service"]


def test_installing_again_leaves_a_running_service_alone(computer: Computer) -> None:
    install_unit(machine=computer.machine(), installation=VISIBLE)
    before = computer.unit.stat()
    computer.asked.clear()
    install_unit(machine=computer.machine(), installation=VISIBLE)
    assert computer.unit.stat() == before
    assert "systemctl start proplet.service" in computer.asked
    assert "systemctl restart proplet.service" not in computer.asked


def test_a_changed_unit_restarts_the_service(computer: Computer) -> None:
    install_unit(machine=computer.machine(), installation=VISIBLE)
    computer.unit.write_text(computer.unit.read_text() + "# older\n")
    computer.asked.clear()
    install_unit(machine=computer.machine(), installation=VISIBLE)
    assert computer.asked[-1] == "systemctl restart proplet.service"
    assert "# older" not in computer.unit.read_text()


def test_without_start_the_service_waits_for_the_next_boot(computer: Computer) -> None:
    said = install_unit(start=False, machine=computer.machine(), installation=VISIBLE)
    assert computer.asked[-1] == "systemctl enable --quiet proplet.service"
    assert any(line.startswith("not started") for line in said)


def test_in_an_image_that_has_not_booted_nothing_is_started(tmp_path: Path) -> None:
    image = Computer(tmp_path / "image", booted=False)
    said = install_unit(machine=image.machine(), installation=VISIBLE)
    assert image.asked == ["groupadd --system --force proplet", "systemctl enable --quiet proplet.service"]
    assert any("next boot" in line for line in said)


def test_only_root_may_install_and_is_told_the_command(computer: Computer) -> None:
    with pytest.raises(ServiceError, match=r"sudo /usr/bin/env service install"):
        install_unit(machine=computer.machine(is_root=False), installation=VISIBLE)
    with pytest.raises(ServiceError, match=r"sudo proplet service uninstall"):
        uninstall_unit(machine=computer.machine(is_root=False))
    assert computer.asked == []


@pytest.mark.parametrize("hidden", ["/home/pi/venv", "/root/venv", "/tmp/venv", "/run/user/1000/venv"])
def test_a_place_the_sandbox_hides_is_refused_before_anything_is_changed(computer: Computer, hidden: str) -> None:
    for needs in ((Path(hidden),), (Path("/opt/proplet"), Path(hidden) / "python3")):
        with pytest.raises(ServiceError, match="/opt/proplet/bin/pip install"):
            install_unit(machine=computer.machine(), installation=InUsr(Path("/usr"), needs))
    assert computer.asked == []
    assert not computer.unit.exists()


def test_a_directory_beside_home_is_not_taken_for_it(computer: Computer) -> None:
    install_unit(machine=computer.machine(), installation=InUsr(Path("/usr"), (Path("/homes/proplet"),)))
    assert computer.unit.exists()


def test_the_interpreter_and_the_code_count_as_well_as_the_environment() -> None:
    found = Installation.of_this_process()
    assert REPOSITORY / "agent" in found.needs or any("site-packages" in str(path) for path in found.needs)
    assert all(path.is_absolute() for path in found.needs)


def test_an_environment_the_services_user_cannot_enter_is_refused(computer: Computer, tmp_path: Path) -> None:
    program = tmp_path / "bin/proplet"
    program.parent.mkdir(mode=0o700)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with pytest.raises(ServiceError, match=r"may not enter .*: chmod -R go\+rX"):
        install_unit(machine=computer.machine(), installation=Installation(tmp_path, (Path("/opt"),)))


def test_a_missing_command_and_an_odd_path_are_refused(computer: Computer, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="does not exist"):
        install_unit(machine=computer.machine(), installation=Installation(tmp_path, ()))
    with pytest.raises(ServiceError, match="letters, digits"):
        install_unit(machine=computer.machine(), installation=Installation(Path("/opt/my node"), ()))


def test_a_unit_from_somebody_else_is_left_alone(computer: Computer) -> None:
    computer.unit.parent.mkdir(parents=True)
    computer.unit.write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(ServiceError, match="not written by this program"):
        install_unit(machine=computer.machine(), installation=VISIBLE)
    with pytest.raises(ServiceError, match="not written by this program"):
        uninstall_unit(machine=computer.machine())
    assert computer.unit.read_text() == "[Service]\nExecStart=/bin/true\n"


def test_a_unit_from_a_package_is_left_alone(computer: Computer) -> None:
    packaged = computer.root / "usr/lib/systemd/system/proplet.service"
    packaged.parent.mkdir(parents=True)
    packaged.write_text("[Service]\n")
    with pytest.raises(ServiceError, match="systemctl enable --now proplet"):
        install_unit(machine=computer.machine(), installation=VISIBLE)


def test_a_service_that_does_not_come_up_points_to_its_journal(computer: Computer) -> None:
    computer.refuses = "systemctl start"
    with pytest.raises(ServiceError, match="journalctl --unit proplet"):
        install_unit(machine=computer.machine(), installation=VISIBLE)


def test_uninstalling_stops_and_removes_the_unit_and_keeps_the_state(computer: Computer) -> None:
    install_unit(machine=computer.machine(), installation=VISIBLE)
    computer.asked.clear()
    said = uninstall_unit(machine=computer.machine())
    assert computer.asked == ["systemctl disable --quiet --now proplet.service", "systemctl daemon-reload"]
    assert not computer.unit.exists()
    assert any("kept the state in /var/lib/proplet" in line for line in said)
    assert uninstall_unit(machine=computer.machine()) == [f"no service installed: {computer.unit} does not exist"]


def test_purging_removes_the_state_too(computer: Computer) -> None:
    install_unit(machine=computer.machine(), installation=VISIBLE)
    computer.asked.clear()
    uninstall_unit(purge=True, machine=computer.machine())
    assert "systemctl clean --what=state --what=cache --what=runtime proplet.service" in computer.asked


def test_a_read_only_root_is_an_error_with_the_path(computer: Computer) -> None:
    (computer.root / "etc").mkdir()
    (computer.root / "etc/systemd").write_text("in the way")
    with pytest.raises(ServiceError, match=r"cannot (read|write) .*/etc/systemd/system/proplet.service"):
        install_unit(machine=computer.machine(), installation=VISIBLE)


def test_a_program_that_fails_speaks_in_the_error() -> None:
    with pytest.raises(ServiceError, match="sh -c echo sorry >&2; exit 3 failed: sorry"):
        Machine().run(["sh", "-c", "echo sorry >&2; exit 3"])
    with pytest.raises(ServiceError, match="cannot run no-such-program"):
        Machine().run(["no-such-program"])


@pytest.mark.source
def test_the_sandbox_of_the_unit_scores_at_most_one_and_a_half() -> None:
    rate = ["systemd-analyze", "security", "--offline=true", "--threshold=15", REPOSITORY / "systemd/proplet.service"]
    try:
        done = subprocess.run(rate, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs systemd-analyze (Debian: apt-get install systemd)")
    assert done.returncode == 0, done.stdout + done.stderr
