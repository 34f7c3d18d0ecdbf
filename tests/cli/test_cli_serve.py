"""``proplet run`` of a service: where it is, what it prints, how it ends."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

from tests.cli.command import COMMAND, environment, proplet_now
from tests.support.modules import DIRECTORY
from tests.support.ports import free_ports, listening

SERVICE = DIRECTORY / "component_http.wasm"


@contextlib.contextmanager
def running(home: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [COMMAND, "run", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(home), cwd=home
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(port: int, path: str) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read().decode()


def test_a_component_serves_until_ctrl_c_and_what_it_prints_is_shown_at_once(home: Path) -> None:
    (port,) = free_ports(1)
    with running(home, "--env", "NAME=here", str(SERVICE), "--port", str(port)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert any(line == f"serving on port {port}; Ctrl-C ends it\n" for line in process.stderr)
        assert ask(port, "/env/NAME") == "here"
        ask(port, "/say/something")
        assert "said something" in process.stdout.readline()
        assert "muttered something" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    with listening(port):
        taken = proplet_now(home, ["run", SERVICE, f"--port={port}"])
    assert taken.code == 1
    assert f"port {port} of 127.0.0.1 is taken" in taken.err


def test_a_limit_of_time_ends_it(home: Path) -> None:
    (port,) = free_ports(1)
    done = proplet_now(home, ["run", "--timeout", "500ms", SERVICE, f"--port={port}"])
    assert done.code == 124
    assert "limit of time" in done.err
