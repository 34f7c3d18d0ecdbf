"""TCP ports of this machine that nobody uses."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

_FIRST, _LAST = 20_000, 32_000  # below those that the kernel gives out by itself


def free_ports(count: int) -> range:
    """Return that many ports in a row, each of them free a moment ago; other processes begin to look elsewhere."""
    start = _FIRST + os.getpid() * 97 % (_LAST - _FIRST)
    for first in (*range(start, _LAST - count), *range(_FIRST, start)):
        if all(_is_free(port) for port in range(first, first + count)):
            return range(first, first + count)
    raise AssertionError("this machine has no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextmanager
def listening(port: int) -> Iterator[None]:
    """Somebody else has a port."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        yield
