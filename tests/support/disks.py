"""Small file systems of their own, for tests that fill a disk or find it read-only."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(directory: Path, options: str) -> Iterator[Path]:
    """A real file system at a new `directory`, gone afterwards; without root the test is skipped, in CI it fails."""
    directory.mkdir()
    if os.geteuid() != 0 or subprocess.call(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs root, to mount a disk of its own")
    try:
        yield directory
    finally:
        subprocess.check_call(["umount", "--lazy", str(directory)])
