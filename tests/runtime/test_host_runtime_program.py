"""Finding the wasmtime program, and running one that may only be read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proplet.agent.program_find import ProgramMissingError, find, loader_of


def version_of(command: tuple[str, ...]) -> str:
    return subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_packages_program_runs_as_pip_has_installed_it() -> None:
    program = find()
    assert program.path.name == "wasmtime"
    assert find("wasmtime") == program, "not the script that pip puts on the PATH, which cannot run it"
    assert version_of(program.command).startswith("wasmtime ")


def test_a_program_that_may_only_be_read_is_run_through_its_loader(tmp_path: Path) -> None:
    only_read = tmp_path / "wasmtime"
    only_read.symlink_to(find().path)
    command = find(str(only_read)).command
    assert command[-1] == str(only_read)
    if not os.access(find().path, os.X_OK):
        assert command[0] == loader_of(find().path)
    assert version_of(command).startswith("wasmtime ")


def test_one_on_the_path_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tmp_path / "my-wasmtime"
    ours.write_text("#!/bin/sh\necho wasmtime of mine\n")
    ours.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    program = find("my-wasmtime")
    assert program.command == (str(ours),)
    assert version_of(program.command) == "wasmtime of mine\n"


def test_what_is_not_there_or_cannot_be_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProgramMissingError, match=r"there is no program .*none, which \[runtime\] program names"):
        find(str(tmp_path / "none"))
    text = tmp_path / "text"
    text.write_text("no program")
    text.chmod(0o644)
    with pytest.raises(ProgramMissingError, match=r"chmod \+x"):
        find(str(text))


def test_without_the_package_the_path_is_asked_and_then_the_person(tmp_path: Path) -> None:
    find_it = "import sys; sys.modules['wasmtime_cli'] = None; from proplet.agent.program_find import *; "
    script = (
        find_it + "import proplet.agent.program_find as f\ntry: print(f.find().path)\nexcept Exception as e: print(e)"
    )

    def found(path: str) -> str:
        environ = {**os.environ, "PATH": path}
        return subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environ, check=True
        ).stdout

    assert "pip install 'proplet[wasmtime]'" in found(str(tmp_path))
    (tmp_path / "wasmtime").write_text("#!/bin/sh\n")
    (tmp_path / "wasmtime").chmod(0o755)
    assert found(str(tmp_path)) == f"{tmp_path / 'wasmtime'}\n"


def test_the_loader_of_this_python_is_known_and_what_is_no_program_has_none(tmp_path: Path) -> None:
    python = Path(sys.executable).resolve()
    loader = loader_of(python)
    assert loader is None or Path(loader).exists()
    shell = shutil.which("sh")
    assert shell is not None
    whole = Path(shell).resolve().read_bytes()
    for length in (0, 10, 64, 100, 200, 1000):
        (tmp_path / "cut").write_bytes(whole[:length])
        assert loader_of(tmp_path / "cut") in (None, loader_of(Path(shell).resolve()))
