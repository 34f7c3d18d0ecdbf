"""The command as a person's shell starts it: a process, its output and its exit code."""

import os
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import anyio

COMMAND = Path(sysconfig.get_path("scripts")) / "proplet"


class Done(NamedTuple):
    """What became of a command."""

    code: int
    out: str
    err: str


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment in which nothing of the developer's own is found."""
    kept = {
        name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TZ", "COVERAGE_PROCESS_START")
    }
    runtime = home / "run"
    runtime.mkdir(exist_ok=True)
    return {**kept, "HOME": str(home), "XDG_RUNTIME_DIR": str(runtime), "COLUMNS": "200", **more}


async def proplet(
    home: Path, *arguments: str | Path, stdin: bytes = b"", environ: Mapping[str, str] | None = None
) -> Done:
    """Run the command to its end."""
    done = await anyio.run_process(
        [COMMAND, *map(str, arguments)],
        input=stdin,
        check=False,
        env={**environment(home), **(environ or {})},
        cwd=home,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def proplet_now(home: Path, arguments: Sequence[str | Path], stdin: bytes = b"", **environ: str) -> Done:
    """Run the command to its end, for tests without an event loop."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        check=False,
        env=environment(home, **environ),
        cwd=home,
        timeout=60,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())
