"""What becomes the wasmtime program: ``python -I -S program_start.py SETTING COMMAND...``, started by `program_child`.

Run as a file, with the standard library only: it prepares its process and turns into COMMAND. What it sets outlives
that: the signal at the parent's death, no core dumps, the first to go when memory is short, no new privileges. And two
things for which the program has no switch of its own: unless the guest may reach the network, a kernel filter without
connect(2) (seccomp), and files can be written only where the guest, or the program's cache, may (landlock).
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from typing import Final

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_FILTER_MODE: Final = 2
# seccomp(2): architecture as the kernel names it, and the numbers of connect and io_uring_setup there.
_MACHINES: Final = {"x86_64": (0xC000003E, 42, 425), "aarch64": (0xC00000B7, 203, 425)}
_X32: Final = 0x40000000  # from here on x86-64 has a second set of numbers
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 13  # EACCES
REFUSED: Final = 126
# landlock(7): its system calls have the same numbers everywhere, and these are the rights to change what is there.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _BENEATH = 1, 1
_WRITES: Final = (1 << 1) | sum(1 << bit for bit in range(4, 13))
_LATER_WRITES: Final = ((2, 1 << 13), (3, 1 << 14))  # linking elsewhere, truncating: from these versions on


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _without_connect() -> bytes:
    architecture, connect, io_uring = _MACHINES[platform.machine()]
    steps = (
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, 4, architecture),
        (_LOAD, 0, 0, 0),
        (_EQUAL, 2, 0, connect),
        (_EQUAL, 1, 0, io_uring),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    )
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _close_network(libc: ctypes.CDLL) -> None:
    """Take connect(2) away. Raises OSError where the kernel has no filters, KeyError on an unknown machine."""
    code = _without_connect()
    program = _Filter(len(code) // 8, code)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _write_only_below(libc: ctypes.CDLL, places: list[str]) -> None:
    """Let files be written below `places` only. Raises OSError where the kernel cannot see to that."""
    version = libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)
    rights = _WRITES | sum(right for since, right in _LATER_WRITES if version >= since)
    rules = libc.syscall(_CREATE_RULESET, struct.pack("=Q", rights), 8, 0)
    if version < 1 or rules < 0:
        raise OSError(ctypes.get_errno(), "landlock")
    for place in places:
        directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if libc.syscall(_ADD_RULE, rules, _BENEATH, struct.pack("=Qi", rights, directory), 0) != 0:
            raise OSError(ctypes.get_errno(), f"landlock: {place}")
        os.close(directory)
    if libc.syscall(_RESTRICT_SELF, rules, 0) != 0:
        raise OSError(ctypes.get_errno(), "landlock")
    os.close(rules)


def _opened(path: str) -> str:
    """Open a directory and return a path to just this one, whatever `path` leads to later."""
    try:
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        where = f"/proc/self/fd/{directory}"
        real, trouble = os.readlink(where), "there is a link on the way"  # noqa: PTH115  pathlib would take its time
    except OSError as error:
        real, trouble = "", str(error.strerror)
    if real != path:
        sys.stderr.write(f"the directory {path} cannot be opened: {trouble}\n")
        os._exit(REFUSED)
    os.set_inheritable(directory, True)
    return where


def main() -> None:
    """Prepare this process and become the command."""
    setting, command = json.loads(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != setting["parent"]:  # it died before the signal was armed
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(setting["oom_score"]))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for argument, path in setting["directories"]:
        command[command.index(argument)] = argument.replace(path, _opened(path), 1)
    try:
        _write_only_below(libc, setting["writable"])
    except OSError as error:
        if setting["protects"]:
            text = "grant the directories to be written, or run it on a kernel with landlock"
            sys.stderr.write(f"this system cannot keep the guest from writing ({error}): {text}\n")
            os._exit(REFUSED)
    try:
        if not setting["network"]:
            _close_network(libc)
    except (OSError, KeyError) as error:
        text = 'allow outbound HTTP (permissions.http: ["*"]), or run it on a kernel with seccomp filters'
        sys.stderr.write(f"this system cannot keep the guest from the network ({error!r}): {text}\n")
        os._exit(REFUSED)
    try:
        os.execv(command[0], command)  # noqa: S606  to become it is the point
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be run: {error.strerror}\n")
        os._exit(REFUSED)


if __name__ == "__main__":
    main()
