"""Ports of loopback for the servers of tests, which start only after their port has been written down."""

import os
import random
import socket
from collections.abc import Iterator
from itertools import islice

# Below those that Linux gives to outgoing connections and to whoever asks for any port (32768 and up): one of these
# might be taken before the server has started. Each worker of pytest-xdist has a share of its own and goes round in it.
_FIRST, _SHARE, _SHARES = 10_000, 1_400, 16


def free_port() -> int:
    """A TCP port of loopback that is free now, and that no test beside this one gets."""
    for port in islice(_candidates, _SHARE):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"none of {_SHARE} ports is free")


def _round(worker: int) -> Iterator[int]:
    first = _FIRST + worker % _SHARES * _SHARE
    at = random.SystemRandom().randrange(_SHARE)  # two runs of the tests may go on beside each other
    while True:
        yield first + at
        at = (at + 1) % _SHARE


_candidates = _round(int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))
