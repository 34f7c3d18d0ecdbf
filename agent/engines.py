"""The engines that WebAssembly runs on: machine code, or byte code that is interpreted.

``cranelift`` compiles for this processor, and needs memory that becomes executable after it was written. Devices that
forbid this (``MemoryDenyWriteExecute=`` of systemd, prctl(2) PR_SET_MDWE, SELinux without execmem) have ``pulley``: the
same compiler makes portable byte code, which runs 15 to 25 times slower (measured with Python and
AssemblyScript guests on x86-64).

Place in the flow: the node's configuration names the engine; builder and worker ask here whether it can be used.
"""

import mmap
from typing import Final

CRANELIFT: Final = "cranelift"
PULLEY: Final = "pulley"


def refusal(engine: str) -> str | None:
    """Return why `engine` cannot be used by this process, and what to do; None where it can."""
    if engine == PULLEY:
        return None
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except PermissionError:
        return (
            "memory may not be made executable here (MemoryDenyWriteExecute= or the like), which the engine "
            'cranelift needs: set engine = "pulley" in [runtime], or lift the restriction'
        )
    return None
