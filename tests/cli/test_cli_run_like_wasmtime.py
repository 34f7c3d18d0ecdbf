"""``proplet run`` beside ``wasmtime run``: the same command line on the same guest, its output and its exit status."""

import os
import subprocess
from pathlib import Path

import pytest

from proplet.agent.program_find import find
from tests.cli.command import COMMAND, Done, environment
from tests.support.modules import DIRECTORY

FILES = (
    "write /data/a one append /data/a two read /data/a from 2 /data/a from -1 /data/a stat /data/a stat /data create "
    "/data/a create /data/b lstat /data/in stat /data/in readlink /data/in read /data/in rename /data/b /data/sub/c "
    "list /data list /data/sub rmdir /data/sub unlink /data/sub/c rmdir /data/sub unlink /data/sub mkdir /data/new "
    "mkdir /data/new rename /data/new /data/a truncate 2 /data/a read /data/a link /data/a /data/l symlink note "
    "/data/s read /data/s touch /data/a mtime /data/a read /data write /data x write /data/a/b x unlink /data/none"
)
ESCAPES = (
    "read /data/out read /data/abs stat /data/out lstat /data/abs read /data/../secret read /data/../../secret "
    "symlink /etc/passwd /data/t rename /data/note /data/../note unlink /data/../secret list /data/.. read /etc/passwd "
    "write /outside x list / mkdir /data/../x rename /data/note /note link /data/note /data/../l"
)
VARIABLES = "--env A=1 --env INHERITED --env UNKNOWN --env B="


def both(home: Path, *arguments: str, stdin: bytes = b"") -> tuple[Done, Done]:
    """Run both programs, each with a directory of its own as the working directory."""
    environ = environment(home, INHERITED="from here")
    return (
        _done([*find().command, "run", *arguments], _directory(home / "wasmtime"), environ, stdin),
        _done([str(COMMAND), "run", "-q", *arguments], _directory(home / "proplet"), environ, stdin),
    )


def _done(command: list[str], directory: Path, environ: dict[str, str], stdin: bytes) -> Done:
    done = subprocess.run(
        command, input=stdin, capture_output=True, check=False, cwd=directory, env=environ, timeout=60
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def _directory(place: Path) -> Path:
    (place / "inside" / "sub").mkdir(parents=True)
    (place / "inside" / "note").write_text("hello")
    (place / "secret").write_text("secret")
    for name, target in (("in", "note"), ("out", "../secret"), ("abs", "/etc/passwd")):
        (place / "inside" / name).symlink_to(target)
    (place / "guests").symlink_to(DIRECTORY)
    return place


@pytest.mark.parametrize(
    ("line", "stdin", "code"),
    [
        ("guests/wasi_program.wasm args a -b --c", b"", 0),
        ("guests/wasi_program.wasm input", b"over here", 0),
        ("guests/wasi_program.wasm say over exit 125", b"", 125),
        ("guests/wasi_program.wasm return", b"", 3),
        ("guests/wasi_program.wasm abort", b"", 134),
        ("guests/wasi_program.wasm poll 20 o poll 20 - clock random read /etc/passwd list /", b"x", 0),
        (f"{VARIABLES} guests/wasi_program.wasm env A env INHERITED env UNKNOWN env B env HOME", b"", 0),
        (f"--dir inside::/data guests/wasi_program.wasm {FILES}", b"", 0),
        (f"--dir inside::/data guests/wasi_program.wasm {ESCAPES}", b"", 0),
        ("--dir inside guests/wasi_program.wasm list inside read inside/note read note", b"", 0),
        ("--dir . --dir inside::/data guests/wasi_program.wasm read secret read /data/note", b"", 0),
        ("--dir nowhere::/data guests/wasi_program.wasm", b"", 1),
        ("--invoke main guests/addition.wasm 10 32", b"", 0),
        ("--invoke main guests/addition.wasm 10", b"", 1),
        ("--invoke main guests/addition.wasm 10 x", b"", 1),
        ("--invoke absent guests/addition.wasm", b"", 1),
        ("--invoke divide guests/traps.wasm 0", b"", 134),
        ("--invoke main guests/recursion.wasm", b"", 134),
        ("--invoke accept guests/wasi_all.wasm 3", b"", 0),
        ("guests/missing_import.wasm", b"", 1),
        ("guests/absent.wasm", b"", 1),
        ("inside/note", b"", 1),
        ("guests/component_command.wasm arguments a -b", b"", 0),
        ("guests/component_command.wasm input", b"over here", 0),
        ("guests/component_command.wasm fail", b"", 1),
        ("guests/component_command.wasm panic", b"", 134),
        ("--dir inside::/data guests/component_command.wasm read /data/note", b"", 0),
    ],
)  # fmt: skip
def test_it_prints_and_ends_as_wasmtime_run_does(home: Path, line: str, stdin: bytes, code: int) -> None:
    theirs, ours = both(home, *line.split(), stdin=stdin)
    assert (ours.code, ours.out) == (theirs.code, theirs.out)
    assert ours.code == code
    # What the guest itself says comes first, then what each program has to say about it.
    assert "say over" not in line or theirs.err == ours.err == "over\n"
    assert _tree(home / "proplet") == _tree(home / "wasmtime")


def test_it_differs_where_the_program_would_refuse_an_exit_status(home: Path) -> None:
    theirs, ours = both(home, "guests/wasi_program.wasm", "exit", "200")
    assert (theirs.code, ours.code) == (1, 200)


def test_it_differs_in_taking_the_misuse_of_a_host_function_for_a_trap(home: Path) -> None:
    theirs, ours = both(home, "--invoke", "random", "guests/wasi_all.wasm", "65530", "100")
    assert (theirs.code, ours.code) == (1, 134)
    assert "Pointer out of bounds" in ours.err


def test_it_differs_in_entering_what_is_no_command(home: Path) -> None:
    theirs, ours = both(home, "guests/initialize.wasm")
    assert (theirs, ours) == ((0, "", theirs.err), (0, "42\n", ""))


def test_a_guest_that_reads_no_input_is_not_kept_waiting_for_it(home: Path) -> None:
    reading, writing = os.pipe()
    try:
        command = [str(COMMAND), "run", "-q", "addition.wasm", "10", "32"]
        out = subprocess.run(
            command, stdin=reading, capture_output=True, check=True, cwd=DIRECTORY, env=environment(home), timeout=30
        ).stdout
    finally:
        os.close(reading)
        os.close(writing)
    assert out == b"42\n"


def test_a_guest_without_any_standard_input_reads_none(home: Path) -> None:
    # Descriptor 0 is then the next file that is opened, whatever it is.
    line = f"exec {COMMAND} run -q wasi_program.wasm input <&-"
    done = _done(["sh", "-c", line], DIRECTORY, environment(home), b"")
    assert done == (0, "input: 0\n", "")


def _tree(place: Path) -> dict[str, str]:
    """What is in a directory: the files' contents, the links' targets."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = path.read_text() if path.is_file() else "directory"
    return found
