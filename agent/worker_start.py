"""What every child process of ours does first: tie itself to its parent, be modest, open its end of the channel."""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def enter(*, oom_score: int, nice: int = 0) -> socket.socket:
    """Prepare this process as the child that `worker_child.Child` started and return its channel.

    `oom_score` is what the kernel adds when it looks for a process to kill: a child must go before the agent does.
    """
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the signal was armed
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(oom_score))
    if nice:
        with contextlib.suppress(OSError):
            os.nice(nice)
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)
