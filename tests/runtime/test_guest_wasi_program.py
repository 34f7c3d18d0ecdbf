"""WASI preview 1 as a program with a C library sees it: files within a grant and outside, polling, clocks, exits."""

import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from proplet.agent.wire import DirectoryGrant, Permissions, Reason

pytestmark = pytest.mark.anyio


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two directories, ``free`` and ``fixed``, each with a file, an empty directory and links; and a secret beside."""
    for name in ("free", "fixed"):
        directory = tmp_path / name
        (directory / "sub").mkdir(parents=True)
        (directory / "note").write_text("hello")
        for link, target in (("in", "note"), ("out", "../secret"), ("abs", str(tmp_path / "secret")), ("loop", "loop")):
            (directory / link).symlink_to(target)
    (tmp_path / "secret").write_text("secret")
    return tmp_path


async def said(node: Any, line: str, place: Path | None = None, **terms: Any) -> list[str]:
    """Carry out the operations of `line` and return the answers; ``/free`` may be written, ``/fixed`` only read."""
    if place is not None:
        grants = [
            DirectoryGrant(str(place / name), f"/{name}", read_only=name == "fixed") for name in ("free", "fixed")
        ]
        terms["permissions"] = Permissions(dirs=tuple(grants))
    outcome = await node.run("wasi_program", "_start", *line.split(), **terms)
    assert outcome.reason is Reason.OK, outcome.error
    return str(outcome.stdout.decode()).splitlines()


def answers(text: str) -> list[str]:
    return [answer.strip() for answer in text.split(";")]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_files_are_made_written_read_and_removed_within_a_grant(node: Any, place: Path) -> None:
    line = (
        "write /free/a one append /free/a two read /free/a from 2 /free/a from -1 /free/a stat /free/a create /free/a"
    )
    assert await said(node, line, place) == answers(
        "write: ok; append: ok; read: [onetwo]; read: [etwo]; read: [o]; stat: file 6; create: EEXIST"
    )
    line = "truncate 2 /free/a read /free/a touch /free/a mtime /free/a unlink /free/a unlink /free/a read /free/a"
    assert await said(node, line, place) == answers(
        "truncate: ok; read: [on]; touch: ok; mtime: 1234567890; unlink: ok; unlink: ENOENT; read: ENOENT"
    )


async def test_directories_are_made_listed_and_removed_within_a_grant(node: Any, place: Path) -> None:
    line = "mkdir /free/new mkdir /free/new rename /free/note /free/new/n list /free rmdir /free/new list /free/new"
    assert await said(node, line, place) == answers(
        "mkdir: ok; mkdir: EEXIST; rename: ok; list: . .. abs in loop new out sub; rmdir: ENOTEMPTY; list: . .. n"
    )
    line = (
        "unlink /free/sub rmdir /free/sub rename /free/new /free/abc write /free/abc x write /free/abc/n/x y stat /free"
    )
    assert await said(node, line, place) == answers(
        "unlink: EISDIR; rmdir: ok; rename: ok; write: EISDIR; write: ENOTDIR; stat: directory"
    )
    assert (place / "free" / "abc" / "n").read_text() == "hello"


async def test_links_are_made_and_followed_within_a_grant(node: Any, place: Path) -> None:
    line = "readlink /free/in lstat /free/in stat /free/in read /free/in link /free/note /free/hard symlink sub /free/s"
    assert await said(node, line, place) == answers(
        "readlink: note; lstat: link; stat: file 5; read: [hello]; link: ok; symlink: ok"
    )
    assert await said(node, "list /free/s readlink /free/note read /free/loop", place) == answers(
        "list: . ..; readlink: EINVAL; read: ELOOP"
    )


async def test_nothing_outside_a_grant_is_reached(node: Any, place: Path) -> None:
    line = (
        "read /free/out read /free/abs stat /free/out read /free/../secret write /free/../new x rename /free/note "
        "/free/../moved link /free/note /free/../hard symlink /etc/passwd /free/link mkdir /free/../made list /free/.. "
        "unlink /free/../secret"
    )
    operations = "read read stat read write rename link symlink mkdir list unlink"
    assert await said(node, line, place) == [f"{name}: EPERM" for name in operations.split()]
    # Without a grant a path names nothing.
    line = "read /secret read /etc/passwd write /new x list / mkdir /made read note stat ."
    operations = "read read write list mkdir read stat"
    assert await said(node, line, place) == [f"{name}: ENOENT" for name in operations.split()]
    assert names(place) == ["fixed", "free", "secret"]
    assert names(place / "free") == "abs in loop note out sub".split()


async def test_a_directory_that_may_only_be_read_stays_as_it_is(node: Any, place: Path) -> None:
    line = "read /fixed/note read /fixed/in list /fixed/sub stat /fixed/note readlink /fixed/in"
    assert await said(node, line, place) == answers(
        "read: [hello]; read: [hello]; list: . ..; stat: file 5; readlink: note"
    )
    line = (
        "write /fixed/note x append /fixed/note x create /fixed/new truncate 0 /fixed/note mkdir /fixed/made "
        "rmdir /fixed/sub unlink /fixed/note rename /fixed/note /fixed/moved rename /fixed/note /free/moved "
        "rename /free/note /fixed/moved link /fixed/note /fixed/hard link /fixed/note /free/hard "
        "symlink note /fixed/link touch /fixed/note"
    )
    operations = "write append create truncate mkdir rmdir unlink rename rename rename link link symlink touch"
    assert await said(node, line, place) == [f"{name}: EPERM" for name in operations.split()]
    assert names(place / "fixed") == "abs in loop note out sub".split()
    assert (place / "fixed" / "note").read_text() == "hello"


async def test_files_move_between_two_grants(node: Any, place: Path) -> None:
    (place / "fixed").rename(place / "other")
    grants = Permissions(
        dirs=tuple(DirectoryGrant(str(place / name), f"/{name}", read_only=False) for name in ("free", "other"))
    )
    line = "rename /free/note /other/moved read /other/moved read /free/note"
    assert await said(node, line, permissions=grants) == answers("rename: ok; read: [hello]; read: ENOENT")


async def test_a_grant_as_the_root_is_found_by_absolute_and_relative_paths(node: Any, place: Path) -> None:
    for guest in ("/", "."):
        grants = Permissions(dirs=(DirectoryGrant(str(place / "free"), guest),))
        found = await said(node, "read /note read note", permissions=grants)
        assert found[-1] == "read: [hello]", guest


async def test_standard_input_is_read_to_its_end_and_again(node: Any) -> None:
    data = b"line\n" * 100_000
    assert await said(node, "input input", stdin=data) == [f"input: {len(data)}", "input: 0"]
    assert await said(node, "input input") == ["input: 0", "input: 0"]


async def test_standard_streams_cannot_be_sought(node: Any) -> None:
    assert await said(node, "seekpipe 0 seekpipe 1 seekpipe 9") == [
        "seekpipe: ESPIPE", "seekpipe: ESPIPE", "seekpipe: EBADF",
    ]  # fmt: skip


async def test_streams_files_and_a_clock_are_polled_together(node: Any, place: Path) -> None:
    assert await said(node, "poll 5000 i poll 5000 o poll 5000 /free/note", place, stdin=b"x") == answers(
        "poll: 2 in at once; poll: 1 out at once; poll: 2 in at once"
    )
    assert await said(node, "poll 30 -") == ["poll: 0 after the time"]


async def test_the_end_of_standard_input_wakes_who_polls_it(node: Any) -> None:
    (found,) = await said(node, "poll 5000 i")
    assert found.endswith("at once")


async def test_clocks_go_on_and_chance_does_not_repeat(node: Any) -> None:
    assert await said(node, "clock random") == ["clock: 1 1 1", "random: 0 1"]


async def test_variables_are_those_that_were_given(node: Any) -> None:
    env = {"HOME": "/nowhere", "EMPTY": "", "ß": "ü=ö"}
    assert await said(node, "env HOME env EMPTY env ß env PATH", env=env) == [
        "HOME=/nowhere", "EMPTY=", "ß=ü=ö", "PATH=(none)",
    ]  # fmt: skip


async def test_a_program_ends_as_it_says(node: Any) -> None:
    for line, code in [("exit 1", 1), ("exit 127", 127), ("exit 255", 255), ("exit 256", 256), ("return", 3)]:
        outcome = await node.run("wasi_program", "_start", *line.split())
        assert (outcome.reason, outcome.exit_code) == (Reason.EXIT_CODE, code)
    outcome = await node.run("wasi_program", "_start", "exit", "0")
    assert (outcome.reason, outcome.exit_code) == (Reason.OK, 0)
    assert (await node.run("wasi_program", "_start", "abort")).reason is Reason.TRAP


async def test_every_function_of_preview_1_is_there(node: Any) -> None:
    """A module that imports one that is not would not be linked; these are seldom called by a C library."""
    ebadf, enotsup, enotsock = 8, 58, 57
    for export, inputs, errno in [
        ("yield", [], 0),
        ("main", [9], enotsup),  # proc_raise
        ("accept", [0], enotsock),
        ("accept", [3], ebadf),
        ("renumber", [1, 2], 0),
        ("renumber", [9, 2], ebadf),
        ("clock", [0], 0),
        ("clock", [1], 0),
        ("clock", [2], ebadf),
        ("random", [0, 65536], 0),
        ("write", [1, 0], 0),
        ("write", [0, 0], ebadf),
        ("write", [9, 0], ebadf),
    ]:
        outcome = await node.run("wasi_all", export, *map(str, inputs))
        assert (outcome.reason, outcome.results) == (Reason.OK, str(errno)), (export, inputs, outcome.error)
    # What cannot be a pointer ends the guest, as the engine has it.
    for export, inputs in [("random", [65530, 100]), ("write", [1, 65535]), ("clock", [9])]:
        assert (await node.run("wasi_all", export, *map(str, inputs))).reason is Reason.TRAP


async def test_a_sleep_in_the_c_library_is_cancelled(node: Any) -> None:
    job = await node.job("wasi_program", "_start", ["poll", "3600000", "-"], key="sleeper")
    outcomes = []

    async def run() -> None:
        outcomes.append(await node.runtime.run(job))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await node.running("sleeper")
        began = time.monotonic()
        node.runtime.stop("sleeper")
    assert time.monotonic() - began < 1
    assert outcomes[0].reason is Reason.STOPPED


async def test_memory_beyond_the_limit_is_refused_to_malloc_and_nothing_else_happens(node: Any) -> None:
    assert await said(node, "fill 8 fill 100 fill 1", memory_bytes=32 * 1024 * 1024) == answers(
        "fill: ok; fill: refused; fill: ok"
    )
