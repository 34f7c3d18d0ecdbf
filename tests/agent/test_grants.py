"""What a task is given of what it asks for: held against the node's ceiling, on a real file system."""

import os
import site
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.grants import AllowedDirectory, Ceiling, GrantError, grant, process_mounts
from proplet.agent.wire import DirectoryGrant, Permissions, Reason

FILE = "/etc/proplet/proplet.toml"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    for name in ("data/sub", "state/keys", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/note").write_text("x")
    return tmp_path


def ceiling(*dirs: Path, read_only: bool = True, own: tuple[Path, ...] = ()) -> Ceiling:
    return Ceiling(tuple(AllowedDirectory(str(d), read_only, where=f"{FILE}:7") for d in dirs), own=own, file=FILE)


def ask(host: Path | str, guest: str = "/data", *, read_only: bool = True) -> Permissions:
    return Permissions(dirs=(DirectoryGrant(str(host), guest, read_only),))


def refusal(asked: Permissions, allowed: Ceiling, reason: Reason = Reason.PERMISSION_DENIED) -> str:
    with pytest.raises(GrantError) as caught:
        grant(asked, allowed)
    assert caught.value.reason is reason
    return str(caught.value)


def test_nothing_is_granted_by_default(disk: Path) -> None:
    assert grant(Permissions(), Ceiling()) == Permissions()
    said = refusal(ask(disk / "data"), Ceiling(file=FILE))
    assert "permissions.dirs" in said
    assert f'write in {FILE}: [[agent.permissions.dirs]] host = "{disk / "data"}"' in said


def test_an_allowed_directory_and_any_below_it_are_granted(disk: Path) -> None:
    for host in (disk / "data", disk / "data/sub"):
        assert grant(ask(host), ceiling(disk / "data")) == ask(host)


def test_a_name_that_only_begins_alike_is_not_below(disk: Path) -> None:
    (disk / "data-of-others").mkdir()
    assert "does not allow" in refusal(ask(disk / "data-of-others"), ceiling(disk / "data"))


def test_who_asks_to_read_where_writing_is_allowed_reads(disk: Path) -> None:
    assert grant(ask(disk / "data"), ceiling(disk / "data", read_only=False)).dirs[0].read_only


def test_who_asks_to_write_where_only_reading_is_allowed_is_refused_not_downgraded(disk: Path) -> None:
    said = refusal(ask(disk / "data", read_only=False), ceiling(disk / "data"))
    assert f"{FILE}:7" in said
    assert "read_only = false" in said


def test_of_two_entries_the_one_that_allows_writing_counts(disk: Path) -> None:
    both = Ceiling((AllowedDirectory(str(disk / "data")), AllowedDirectory(str(disk / "data/sub"), read_only=False)))
    assert not grant(ask(disk / "data/sub", read_only=False), both).dirs[0].read_only


@pytest.mark.parametrize("path", ["data", "", "/x\0y", "{disk}/data/../data"])
def test_a_path_that_is_not_absolute_or_goes_up_is_refused(disk: Path, path: str) -> None:
    assert "absolute" in refusal(ask(path.replace("{disk}", str(disk))), ceiling(disk / "data"))


def test_links_are_followed_before_comparing_and_the_real_path_is_granted(disk: Path) -> None:
    (disk / "data/way-out").symlink_to("../elsewhere")
    (disk / "way-in").symlink_to("data/sub")
    assert "does not allow" in refusal(ask(disk / "data/way-out"), ceiling(disk / "data"))
    assert grant(ask(disk / "way-in"), ceiling(disk / "data")) == ask(disk / "data/sub")


def test_an_allowed_directory_may_be_named_by_a_link(disk: Path) -> None:
    (disk / "disk").symlink_to("data")
    assert grant(ask(disk / "disk/sub"), ceiling(disk / "disk")) == ask(disk / "data/sub")


def test_what_is_missing_or_no_directory_is_said_clearly_and_only_to_those_who_may_look(disk: Path) -> None:
    invalid = Reason.INVALID_ARGUMENTS
    assert "is not there" in refusal(ask(disk / "data/nowhere"), ceiling(disk / "data"), invalid)
    assert "is no directory" in refusal(ask(disk / "data/note"), ceiling(disk / "data"), invalid)
    (disk / "loop").symlink_to("loop")
    assert "on this node it" in refusal(ask(disk / "loop"), ceiling(disk), invalid)
    there, missing = (refusal(ask(disk / name), ceiling(disk / "data")) for name in ("elsewhere", "nowhere"))
    assert there.replace("elsewhere", "X") == missing.replace("nowhere", "X")


@pytest.mark.parametrize("host", ["state", "state/keys", "", "link"])
def test_what_the_node_lives_from_is_never_granted_whatever_the_ceiling(disk: Path, host: str) -> None:
    (disk / "link").symlink_to("state/keys")
    said = refusal(ask(disk / host), ceiling(Path("/"), read_only=False, own=(disk / "state",)))
    assert "no task is ever given" in said


def test_nobody_writes_to_the_nodes_own_program(disk: Path) -> None:
    everything = ceiling(Path("/"), read_only=False)
    assert grant(ask(sys.prefix), everything).dirs
    for host in (sys.prefix, Path(sys.prefix).parent):
        assert "no task is ever given" in refusal(ask(host, read_only=False), everything)


@pytest.mark.parametrize("place", [os.__file__, sys.executable, site.getusersitepackages()])
def test_nor_to_the_python_that_runs_it(place: str) -> None:
    directory = Path(place).resolve().parent
    assert "no task is ever given" in refusal(ask(directory, read_only=False), ceiling(Path("/"), read_only=False))


def test_nor_to_a_program_that_runs_guests_which_anybody_may_read(disk: Path) -> None:
    (disk / "data/wasmtime").write_text("")
    allowed = replace(ceiling(disk / "data", read_only=False), programs=(str(disk / "data/wasmtime"),))
    assert "no task is ever given" in refusal(ask(disk / "data", read_only=False), allowed)
    assert grant(ask(disk / "data"), allowed).dirs


def test_the_processes_of_the_machine_are_found_wherever_they_are_mounted() -> None:
    mounts = """22 1 0:21 / /proc rw,nosuid - proc proc rw
23 1 0:22 / /sys rw - sysfs sysfs rw
90 1 0:44 / /srv/host\\040root/proc rw shared:3 - proc none rw,hidepid=2
"""
    assert process_mounts(mounts) == [Path("/proc"), Path("/srv/host root/proc")]


def test_the_processes_of_the_machine_are_never_granted() -> None:
    for host in ("/", "/proc", "/proc/self"):
        assert "no task is ever given" in refusal(ask(host), ceiling(Path("/")))


@pytest.mark.parametrize(("mode", "read_only", "said"), [(0o555, False, "ReadWritePaths="), (0o333, True, "be read")])
def test_what_the_node_itself_may_not_use_is_said_before_the_guest_runs(mode: int, read_only: bool, said: str) -> None:
    before = os.geteuid()
    with tempfile.TemporaryDirectory(prefix="p-") as name:  # pytest's own are closed to other users
        Path(name).chmod(0o755)
        data = Path(name, "data")
        data.mkdir()
        data.chmod(mode)
        if before == 0:
            os.seteuid(65534)  # root may do everything
        try:
            allowed = ceiling(data, read_only=False)
            assert said in refusal(ask(data, read_only=read_only), allowed, Reason.INVALID_ARGUMENTS)
        finally:
            os.seteuid(before)


def test_more_directories_than_a_worker_can_hold_are_refused(disk: Path) -> None:
    many = Permissions(dirs=tuple(DirectoryGrant(str(disk / "data"), f"/{number}") for number in range(257)))
    assert "more than 256" in refusal(many, ceiling(disk / "data"), Reason.INVALID_ARGUMENTS)


def test_two_directories_cannot_be_in_one_place_of_the_guest(disk: Path) -> None:
    both = Permissions(dirs=ask(disk / "data").dirs + ask(disk / "data/sub", "/data/").dirs)
    assert "two directories" in refusal(both, ceiling(disk / "data"), Reason.INVALID_ARGUMENTS)


def test_what_every_task_has_comes_beside_what_it_asks_for_and_gives_way_to_it(disk: Path) -> None:
    always = AllowedDirectory(str(disk / "data"), read_only=False, always=True)
    own = DirectoryGrant(str(disk / "data"), str(disk / "data"), read_only=False)
    assert grant(Permissions(), Ceiling((always,))).dirs == (own,)
    asked = ask(disk / "data/sub").dirs
    assert grant(Permissions(dirs=asked), Ceiling((always,))).dirs == (*asked, own)
    instead = ask(disk / "data/sub", str(disk / "data")).dirs
    assert grant(Permissions(dirs=instead), Ceiling((always,))).dirs == instead


@pytest.mark.parametrize("key", ["http", "tcp"])
def test_networks_are_all_or_nothing(key: str) -> None:
    asked = Permissions(**{key: ("*",)})
    said = refusal(asked, Ceiling(file=FILE))
    assert f"agent.permissions.{key}" in said
    assert f'{key} = ["*"] in [agent.permissions] of {FILE}' in said
    assert grant(asked, Ceiling(http=True, tcp=True)) == asked
    assert grant(Permissions(), Ceiling(http=True, tcp=True)) == Permissions()
    named = Permissions(**{key: ("*", "api.example.com")})
    assert "cannot hold a guest to hosts" in refusal(named, Ceiling(http=True, tcp=True))


@given(parts=st.lists(st.sampled_from(["a", "b", "..", ".", "", "up", "out", "c\0"]), max_size=6))
def test_nothing_outside_the_ceiling_is_ever_granted(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    root = tmp_path_factory.getbasetemp() / "any"
    if not root.exists():
        for name in ("in/a/b", "in/b", "other/a"):
            (root / name).mkdir(parents=True)
        (root / "in/a/up").symlink_to("..")
        (root / "in/out").symlink_to("../other")
    try:
        granted = grant(ask("/".join([str(root / "in"), *parts])), ceiling(root / "in"))
    except GrantError:
        return
    real = Path(granted.dirs[0].host)
    assert real == real.resolve()
    assert real.is_relative_to(root / "in")
