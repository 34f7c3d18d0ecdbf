"""The programs of Kubernetes that tests run: where they are, and one of them as a process."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

PROGRAMS = ("kube-apiserver", "etcd", "kubectl")
SCRIPT = Path(__file__).parents[2] / "packaging/kubernetes-servers.sh"

_START_SECONDS = 90.0
_STOP_SECONDS = 15.0
_STEP_SECONDS = 0.05


def kubernetes_programs() -> Path:
    """The directory of kube-apiserver, etcd and kubectl, or skip the test; in CI nothing is skipped."""
    directory = os.environ.get("KUBEBUILDER_ASSETS", "")
    if not directory and SCRIPT.exists():  # there is no script beside tests of an installed wheel
        found = subprocess.run([SCRIPT, "find"], capture_output=True, text=True, check=False)
        directory = found.stdout.strip()
    if directory and all(os.access(Path(directory, program), os.X_OK) for program in PROGRAMS):
        return Path(directory)
    line = "needs kube-apiserver, etcd and kubectl: packaging/kubernetes-servers.sh, or set KUBEBUILDER_ASSETS"
    if os.environ.get("CI") == "true":
        pytest.fail(line, pytrace=False)
    pytest.skip(line)


class Server:
    """One server program with its log; it dies with the thread that started it, even when that is killed."""

    def __init__(self, program: Path, arguments: Sequence[str], log: Path) -> None:
        self._program = program
        self._arguments = tuple(arguments)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, ready: Callable[[], bool]) -> None:
        """Start it unless it runs, and wait until `ready`; an OSError of that means not yet."""
        if self._process is not None:
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", self._program, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STEP_SECONDS)
            assert self._process.poll() is None, f"{self._program} ended:\n{self._last_words()}"
            with suppress(OSError):
                if ready():
                    return
            assert time.monotonic() < deadline, f"{self._program} is not ready:\n{self._last_words()}"

    def send(self, sig: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(sig)

    def end(self, sig: signal.Signals) -> None:
        """End it, also when it is stopped (SIGSTOP)."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(sig)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]
