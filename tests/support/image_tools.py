"""Other people's tools for images: Debian's skopeo, and the oras command line that packaging/oras-cli.sh builds."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_ORAS = Path(__file__).parents[2] / "packaging/oras-cli.sh"
_SECONDS = 60


class ImageTool:
    """A program that is run to its end; what it says when it fails is in the error."""

    def __init__(self, program: str, home: Path) -> None:
        """``home``: where it finds no one's settings and leaves its own."""
        self._program = program
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.upper().endswith("_PROXY")},
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "TMPDIR": str(home),
            "DOCKER_CONFIG": str(home / ".docker"),
        }

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Its output."""
        done = subprocess.run(
            [self._program, *map(str, arguments)],
            cwd=cwd,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{done.args} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout


def skopeo(home: Path) -> ImageTool:
    """Skip the test where skopeo is missing; in CI, fail."""
    program = shutil.which("skopeo")
    if program is None:
        _missing("needs skopeo: apt-get install skopeo")
    return ImageTool(str(program), home)


def oras(home: Path) -> ImageTool:
    """Skip the test where oras was not built; in CI, build it."""
    find = [] if os.environ.get("CI") == "true" else ["find"]
    found = subprocess.run([_ORAS, *find], capture_output=True, text=True, check=False)
    if found.returncode:
        _missing(found.stderr.strip())
    return ImageTool(found.stdout.strip(), home)


def _missing(line: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(line, pytrace=False)
    pytest.skip(line)
