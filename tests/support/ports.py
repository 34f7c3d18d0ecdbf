"""Ports of loopback for the servers of tests, which start only after their port has been written down."""

import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

# Below those that Linux gives to outgoing connections and to whoever asks for any port (32768 and up): one of these
# might be taken before the server has started. Each worker of pytest-xdist has a share of its own and goes round in it.
_FIRST, _SHARE, _SHARES = 10_000, 1_400, 16
_START = _FIRST + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _SHARES * _SHARE


def free_port() -> int:
    """A TCP port of loopback that is free now, and that no test beside this one gets."""
    return free_ports(1)[0]


def free_ports(count: int) -> range:
    """That many of them in a row."""
    for first in islice(_candidates, _SHARE):
        ports = range(first, first + count)
        if ports[-1] < _START + _SHARE and all(map(_is_free, ports)):
            for _ in range(count - 1):
                next(_candidates)
            return ports
    raise OSError(f"there are no {count} free ports among {_SHARE}")


@contextmanager
def listening(port: int) -> Iterator[None]:
    """Somebody else has a port."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        yield


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _round() -> Iterator[int]:
    at = random.SystemRandom().randrange(_SHARE)  # two runs of the tests may go on beside each other
    while True:
        yield _START + at
        at = (at + 1) % _SHARE


_candidates = _round()
