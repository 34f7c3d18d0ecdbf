"""The wheel of the source tree, built away from it, and the wheels of everything it depends on."""

import contextlib
import hashlib
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.systemd.machine import cache_entry

REPOSITORY = Path(__file__).parents[2]
PYPROJECT = REPOSITORY / "pyproject.toml"

# What is not part of the sources although it may lie between them.
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")


class BuildError(Exception):
    """A wheel or source distribution could not be built or fetched; the message holds the program's last words."""


def build_wheel(directory: Path, sources: Path = REPOSITORY) -> Path:
    """Build the project's wheel into `directory` and return its path."""
    with _copy(sources, directory) as copy:
        _python("pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps", "--wheel-dir", directory, copy)
    (wheel,) = directory.glob("proplet-*.whl")
    return wheel


def build_sdist(directory: Path) -> Path:
    """Build the project's source distribution into `directory` and return its path."""
    with _copy(REPOSITORY, directory) as copy:
        _python("build", "--sdist", "--outdir", directory, copy)
    (sdist,) = directory.glob("proplet-*.tar.gz")
    return sdist


@contextlib.contextmanager
def _copy(sources: Path, directory: Path) -> Iterator[Path]:
    """Give a copy to build from: setuptools leaves a `build/` behind and packs what an earlier one held."""
    copy = directory / "sources"
    shutil.copytree(sources, copy, symlinks=True, ignore=_LEFT_OUT)
    yield copy
    shutil.rmtree(copy)


def wheelhouse() -> Path:
    """Return a directory with wheels of all dependencies for this interpreter; fetched when they changed."""
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    definition = "\n".join([f"{sys.version_info[:2]}", platform.machine(), *sorted(dependencies)])
    key = hashlib.sha256(definition.encode()).hexdigest()[:12]
    with cache_entry(f"wheels-{key}") as (final, partial):
        if partial is not None:
            _python("pip", "--quiet", "--disable-pip-version-check", "wheel", "--wheel-dir", partial, *dependencies)
    return final


def _python(module: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise BuildError(f"{module} failed: {(done.stderr + done.stdout)[-2000:]}")
