"""A process that pulls images over and over, each time in a child that may be killed: run by test_killed_pulls.

Lines in: ``STORE COUNT REFERENCE...``; lines out: the child's process id, then how it ended. With COUNT > 0 the child
kills itself with SIGKILL at the COUNT-th operation on files: opening, renaming, removing, locking. The child is a fork
of this process, so that two hundred of them do not load Python and the registry client two hundred times.
"""

import os
import signal
import sys
from pathlib import Path

import oras.provider  # noqa: F401 - loaded before the forks

from proplet.oci import faults, login, registry, sources, transport  # noqa: F401 - likewise
from proplet.oci.layout import OciLayout
from proplet.oci.pull import PullPolicy, pull
from proplet.oci.settings import RegistrySettings

_ON_FILES = ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.truncate", "os.utime", "fcntl.flock")
SETTINGS = RegistrySettings(use_docker_config=False, first_retry_wait_s=0.01, total_timeout_s=30)


def pull_all(store: Path, references: list[str]) -> None:
    """What a node does that wants all of them now."""
    layout = OciLayout(store)
    for reference in references:
        pull(reference, layout, SETTINGS, policy=PullPolicy.ALWAYS)


def die_at(count: int) -> None:
    """End this process without a word at its ``count``-th operation on files."""
    left = count

    def heard(event: str, _arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _ON_FILES:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)


def main() -> None:
    """Serve lines until they end."""
    for line in sys.stdin:
        store, count, *references = line.split()
        child = os.fork()
        if child == 0:
            if int(count):
                die_at(int(count))
            pull_all(Path(store), references)
            os._exit(0)
        print(child, flush=True)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)


if __name__ == "__main__":
    main()
