"""``proplet manager`` that waits for less, so that a test does, too: run as a module, with the same arguments.

What is shipped waits for 15 s where this one waits for 8 (a Lease), and so on in proportion.
"""

import functools
import sys
from typing import Any

from proplet.agent.cli import main
from proplet.manager import cluster
from proplet.manager.controller import Controller
from proplet.manager.kubernetes_lease import LeaseTerms


def hasten() -> None:
    changed: dict[Any, dict[str, Any]] = {
        cluster: {
            "LeaseTerms": functools.partial(LeaseTerms, duration_s=8, renew_deadline_s=5.0, retry_s=0.5),
            "AWAY_S": 5.0,
            "Controller": functools.partial(Controller, hold_s=6.0),
        },
    }
    for module, values in changed.items():
        for name, value in values.items():
            assert hasattr(module, name), name
            setattr(module, name, value)


if __name__ == "__main__":
    hasten()
    sys.exit(main(["manager", *sys.argv[1:]]))
