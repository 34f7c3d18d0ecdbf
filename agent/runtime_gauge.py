"""What one process uses, asked of the kernel: CPU time, memory now, memory at its peak.

Place in the flow: `runtime_link` measures workers that hold a single job with it, where the process's use is the job's.
It looks from outside, so it sees a worker that is stuck, too. No privileges are needed for one's own children; where
/proc does not tell, a measure is None.
"""

import os
import time
from pathlib import Path
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_FORGET_PEAK: Final = b"5"  # proc(5), /proc/pid/clear_refs


class Gauge:
    """The measures of the process `pid`, which must not have been waited for yet."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        # clock_getcpuclockid(3): a process's CPU clock is its id, inverted, above three bits of kind (2: scheduler).
        self._clock = (~pid << 3) | 2

    def cpu_s(self) -> float | None:
        """CPU seconds of all its threads so far, those that have ended included."""
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return None

    def private_bytes(self) -> int | None:
        """Resident memory that belongs to no file: what it allocated, linear memories included."""
        try:
            _, resident, of_files, *_ = (self._proc / "statm").read_bytes().split()
        except (OSError, ValueError):
            return None
        return (int(resident) - int(of_files)) * _PAGE

    def peak_bytes(self) -> int | None:
        """The most resident memory it had since its start, or since `forget_peak`."""
        try:
            status = (self._proc / "status").read_bytes()
            return int(status.partition(b"VmHWM:")[2].split(None, 1)[0]) * 1024
        except (OSError, ValueError, IndexError):
            return None

    def forget_peak(self) -> bool:
        """Let the peak begin anew at what is resident now; False where the kernel does not allow it."""
        try:
            (self._proc / "clear_refs").write_bytes(_FORGET_PEAK)
        except OSError:
            return False
        return True
