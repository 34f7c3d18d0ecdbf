"""A program run where memory can never become executable: ``python no_executable_memory.py PROGRAM ARGUMENT...``.

What `MemoryDenyWriteExecute=` of systemd does, without systemd: prctl(2), PR_SET_MDWE, Linux 6.3. It holds for all that
the program starts.
"""

import ctypes
import os
import sys
from pathlib import Path

WRAPPER = (sys.executable, str(Path(__file__)))
_PR_SET_MDWE, _REFUSE_EXEC_GAIN, _PR_GET_MDWE = 65, 1, 66


def is_known_here() -> bool:
    """True if the kernel knows this restriction."""
    return int(ctypes.CDLL(None).prctl(_PR_GET_MDWE, 0, 0, 0, 0)) >= 0


if __name__ == "__main__":
    if ctypes.CDLL(None).prctl(_PR_SET_MDWE, _REFUSE_EXEC_GAIN, 0, 0, 0):
        sys.exit("this kernel does not know PR_SET_MDWE")
    os.execv(sys.argv[1], sys.argv[1:])
