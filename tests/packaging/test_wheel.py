"""What is packed: a wheel with `proplet/` and nothing else, complete, typed, safe to install where it cannot run."""

import ast
import configparser
import email
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.wheel import PYPROJECT, REPOSITORY, build_sdist, build_wheel

pytestmark = pytest.mark.source

PACKAGES = {"proplet.agent": "agent", "proplet.crds": "crds", "proplet.manager": "manager", "proplet.oci": "oci"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="session")
def settings() -> dict[str, Any]:
    return tomllib.loads(PYPROJECT.read_text())


def test_the_list_of_packages_equals_what_is_on_disk(settings: dict[str, Any]) -> None:
    on_disk = {
        ".".join(["proplet", *path.parent.relative_to(REPOSITORY).parts])
        for directory in PACKAGES.values()
        for path in (REPOSITORY / directory).rglob("__init__.py")
    }
    assert sorted(settings["tool"]["setuptools"]["packages"]) == sorted(on_disk)
    assert settings["tool"]["setuptools"]["package-dir"] == PACKAGES


def test_the_wheel_holds_only_our_namespace(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert "proplet" in top
    assert all(name == "proplet" or name.endswith(".dist-info") for name in top)
    assert "proplet/__init__.py" not in wheel.namelist(), "proplet is a namespace package"
    assert {name.split("/")[1] for name in wheel.namelist() if name.startswith("proplet/")} == set(PACKAGES.values())


def test_every_module_on_disk_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    on_disk = {f"proplet/{path.relative_to(REPOSITORY)}" for name in PACKAGES.values() for path in modules(name)}
    assert {name for name in wheel.namelist() if name.endswith(".py")} == on_disk


def test_the_wheel_is_typed_and_brings_its_data(wheel: zipfile.ZipFile) -> None:
    for package in ("agent", "manager", "oci"):
        assert f"proplet/{package}/py.typed" in wheel.namelist()
    # A symlink in the source tree; the wheel must hold the unit itself.
    unit = wheel.read("proplet/agent/data/proplet.service")
    assert unit == (REPOSITORY / "systemd/proplet.service").read_bytes()


def test_data_files_on_disk_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    data = [
        path
        for package in PACKAGES.values()
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md") and "__pycache__" not in path.parts
    ]
    missing = {f"proplet/{path.relative_to(REPOSITORY)}" for path in data} - set(wheel.namelist())
    assert not missing, "add them to package-data in pyproject.toml"


def test_on_other_machines_than_64_bit_x86_and_arm_no_wasmtime_is_installed(wheel: zipfile.ZipFile) -> None:
    # On 32-bit ARM pip would pick a wheel that holds only a Windows DLL.
    packaging = pytest.importorskip("packaging.requirements")
    metadata = email.message_from_bytes(wheel.read(next(n for n in wheel.namelist() if n.endswith("/METADATA"))))
    wanted = [packaging.Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    (wasmtime,) = [requirement for requirement in wanted if requirement.name == "wasmtime"]
    assert wasmtime.marker is not None
    for machine in ("x86_64", "aarch64"):
        assert wasmtime.marker.evaluate({"platform_machine": machine})
    for machine in ("armv7l", "armv6l", "i686", "riscv64"):
        assert not wasmtime.marker.evaluate({"platform_machine": machine})


def test_the_command_is_declared(wheel: zipfile.ZipFile) -> None:
    declared = configparser.ConfigParser()
    declared.read_string(wheel.read(next(n for n in wheel.namelist() if n.endswith("/entry_points.txt"))).decode())
    assert dict(declared["console_scripts"]) == {"proplet": "proplet.agent.cli:main"}


@pytest.mark.slow
def test_a_wheel_built_from_the_source_distribution_is_the_same(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    sdist = build_sdist(tmp_path / "sdist")
    subprocess.run(["tar", "--extract", "--file", sdist, "--directory", tmp_path], check=True)
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    for needed in ("systemd/proplet.service", "Makefile", "CONTRIBUTING.md", "tests/conftest.py", "packaging"):
        assert (unpacked / needed).exists(), f"add {needed} to MANIFEST.in"
    again = zipfile.ZipFile(build_wheel(tmp_path / "again", unpacked))
    assert set(again.namelist()) == set(wheel.namelist())
    with again:
        assert again.read("proplet/agent/data/proplet.service") == wheel.read("proplet/agent/data/proplet.service")


def test_the_wheel_installs_beside_other_packages_and_imports_from_there(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv/lib").glob("python3*/site-packages")
    wheel.extractall(site)
    say = "import proplet.agent.topics as t, importlib.util as u; print(t.__file__, u.find_spec('agent'))"
    said = subprocess.run([python, "-P", "-c", say], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert said == f"{site}/proplet/agent/topics.py None\n"


def modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def test_nothing_shadows_the_packages_named_packaging_and_systemd() -> None:
    assert not (REPOSITORY / "packaging/__init__.py").exists()
    assert not (REPOSITORY / "systemd/__init__.py").exists()
    assert not (REPOSITORY / "proplet").exists()


def test_the_view_for_type_checkers_is_made_of_relative_links() -> None:
    view = REPOSITORY / "packaging/src/proplet"
    found = {path.name: path.readlink() for path in view.iterdir()}
    assert set(found) <= set(PACKAGES.values())
    assert all(link == Path("../../..") / name for name, link in found.items())


@pytest.mark.parametrize("package", sorted(PACKAGES.values()))
def test_modules_import_each_other_by_their_full_names(package: str) -> None:
    for path in modules(package):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno} imports relatively"
                assert node.module, f"{path}:{node.lineno}"
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            bare = [name for name in names if name.split(".")[0] in PACKAGES.values()]
            assert not bare, f"{path}:{node.lineno} imports {bare[0]} without proplet in front"


def test_no_test_has_imported_our_packages_by_their_bare_names() -> None:
    assert not {"agent", "manager", "oci", "crds"} & set(sys.modules)
