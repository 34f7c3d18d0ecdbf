"""A program of ours as a process of its own, started and ended as a service manager would do it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self


class ProcessEndedError(AssertionError):
    """The process ended where it should have run; holds its exit code and its log."""

    def __init__(self, name: str, code: int, log: str) -> None:
        super().__init__(f"the {name} ended with {code}:\n{log[-4000:]}")
        self.code = code
        self.log = log


class DaemonProcess(ABC):
    """A process with a directory and a log that is kept through every restart."""

    name: ClassVar[str]
    ready_s: ClassVar[float] = 30.0
    cwd: ClassVar[Path | None] = None  # its directory

    def __init__(self, directory: Path, environ: Mapping[str, str] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.log_path = directory / "log"
        self._environ = dict(environ or {})
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What follows `python -m`."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def spawn(self) -> socket.socket:
        """Start the process; returns the socket it tells its state to, as systemd would have it."""
        assert self._process is None
        notify = self.directory / "notify"
        notify.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(str(notify))
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("PROPLET_", "KUBECONFIG"))}
        environ |= {"NOTIFY_SOCKET": str(notify), "XDG_CONFIG_HOME": str(self.directory / "none"), **self._environ}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                cwd=self.cwd or self.directory,
            )
        return listener

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        with self.spawn() as listener:
            assert self._process is not None
            listener.settimeout(0.05)
            deadline = time.monotonic() + self.ready_s
            while time.monotonic() < deadline:
                code = self._process.poll()
                if code is not None:
                    self._process = None
                    raise ProcessEndedError(self.name, code, self.log)
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in listener.recv(4096):
                        return
            raise AssertionError(f"the {self.name} is not ready after {self.ready_s} s:\n{self.log[-4000:]}")

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it as a service manager would; returns its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, sig: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(sig)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the {self.name} did not end at {sig.name}:\n{self.log[-4000:]}") from None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGKILL)
